"""Models from Python: the API, its errors, and the promise that logits are the same bits everywhere."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitgen
from bitgen import headers
from bitgen.checkpoints import reference, synth
from bitgen.checkpoints.checkpoint import ALL
from bitgen.compile import library, pack
from bitgen.data import shipped_path
from bitgen.engine import model as model_module
from bitgen.engine.opened import Cache
from bitgen.engine.prompt_lookup import PromptLookup
from bitgen.errors import ArgumentError, BitgenError, EngineError
from bitgen.gguf.reader import read_gguf
from bitgen.kernels import plan, space
from bitgen.spec import MatrixPlan, ModelShape

TOKENS = [1, 17, 300, 299, 5, 4, 1000, 64, 2, 3, 77, 78, 79, 80, 81, 82, 83, 84]


@pytest.fixture(scope="module")
def model() -> bitgen.Model:
    return bitgen.Model.load(threads=2)


@pytest.fixture(scope="module")
def expected(model: bitgen.Model) -> np.ndarray:
    return model.logits(TOKENS)


def test_logits_agree_with_the_reference(model: bitgen.Model) -> None:
    """Short prompts, each from an empty context. Float noise of one ulp can turn an int8 rounding tie the other way,
    which moves all later logits by a few hundredths: most prompts meet none, and those agree to 1e-4."""
    checkpoint, rng = read_gguf(model.path), np.random.default_rng(0)
    worst = []
    for _ in range(16):
        tokens = rng.integers(0, model.shape.vocab, 3).tolist()
        want, got = reference.forward(checkpoint, tokens, cache=np.float16), model.logits(tokens)
        assert got.shape == want.shape and got.dtype == np.float32
        worst.append(np.abs(got - want).max() / want.std())
    assert max(worst) < 0.1
    assert np.median(worst) < 1e-4


@pytest.mark.parametrize("isa", library.host_isas())
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_on_every_isa_and_thread_count(isa: str, threads: int, expected: np.ndarray) -> None:
    loaded = bitgen.Model.load(isa=isa, threads=threads)
    assert loaded.plan.isa == isa
    assert np.array_equal(loaded.logits(TOKENS), expected)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_same_bits_however_the_tokens_come(model: bitgen.Model, expected: np.ndarray, chunk: int) -> None:
    with model.session() as session:
        parts = [session.forward(TOKENS[i : i + chunk], every=True) for i in range(0, len(TOKENS), chunk)]
    assert np.array_equal(np.concatenate(parts), expected)


def test_an_int8_cache_changes_little(model: bitgen.Model) -> None:
    """As little as halves: nearly all of either difference comes from activations that round the other way."""
    story = model.generate("Once upon a time, there was a dog.", 120, temperature=0.8, seed=3, stop=False)
    list(story)

    def log_p(cache: Cache) -> np.ndarray:
        x = model.logits(story.prompt_ids + story.token_ids, cache=cache).astype(np.float64)
        x -= x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    exact = log_p("f32")
    for cache in ("f16", "int8"):
        divergence = (np.exp(exact) * (exact - log_p(cache))).sum(-1)
        assert 0 < divergence.mean() < 4e-4 and divergence.max() < 4e-3  # nats; measured 1e-4 and 1e-3 for both


def test_generation_with_an_int8_cache(model: bitgen.Model) -> None:
    generation = model.generate("Once upon a time", 12, temperature=0, repeat_penalty=1, stop=False, cache="int8")
    text = "".join(generation)
    ids = generation.prompt_ids + generation.token_ids
    greedy = model.logits(ids, cache="int8").argmax(-1)[len(generation.prompt_ids) - 1 : -1]
    assert generation.token_ids == greedy.tolist() and text


def test_an_unknown_cache_is_refused(model: bitgen.Model) -> None:
    with pytest.raises(ArgumentError, match="cache is 'int4', must be one of f16, f32, int8"):
        model.session(cache="int4")  # type: ignore[arg-type]


def layouts_of(shape: ModelShape, isa: str) -> list[plan.ModelPlan]:
    """A look-up per format that the ISA has a kernel for, other than the default."""
    found = []
    names = {layout.format for gemm in shape.matrices.values() for layout in space.candidate_layouts(gemm, isa, True)}
    for name in sorted(names):
        matrices = {}
        for role, gemm in shape.matrices.items():
            layout = next(x for x in reversed(space.candidate_layouts(gemm, isa, True)) if x.format == name)
            tiles = [space.candidate_tiles(op, gemm, isa, layout, True)[-1] for op in ("gemv", "gemm")]
            matrices[role] = MatrixPlan(layout, *tiles)
        found.append(plan.ModelPlan(isa, matrices, dict.fromkeys(matrices, "test"), None))
    return found


def test_same_bits_from_every_format(
    model: bitgen.Model, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups = layouts_of(model.shape, library.host_isa())
    assert len(lookups) >= 2 or library.host_isa() == "scalar"
    for planned in lookups:
        monkeypatch.setattr(plan, "of_model", lambda shape, isa, found=planned: found)
        loaded = bitgen.Model.load()
        assert loaded.plan.layout_key != model.plan.layout_key
        assert np.array_equal(loaded.logits(TOKENS), expected)


def test_int8_head_is_close(model: bitgen.Model, expected: np.ndarray) -> None:
    loaded = bitgen.Model.load(head="int8")
    got = loaded.logits(TOKENS)
    assert 0 < np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    assert model.head_bytes < loaded.head_bytes < bitgen.Model.load(head="f16").head_bytes


def test_rewind_forgets(model: bitgen.Model) -> None:
    with model.session() as session:
        first = session.forward(TOKENS)
        session.forward([9, 9, 9])
        session.rewind(len(TOKENS) - 1)
        assert session.position == len(TOKENS) - 1
        assert np.array_equal(session.forward(TOKENS[-1:]), first)


def test_sessions_are_independent(model: bitgen.Model) -> None:
    with model.session() as a, model.session(threads=1) as b:
        a.forward([7, 8, 9])
        assert b.position == 0
        assert np.array_equal(b.forward(TOKENS), model.session().forward(TOKENS))


def test_generate_is_seeded(model: bitgen.Model) -> None:
    texts = {s: "".join(model.generate("Once upon a time", 20, temperature=1.0, seed=s)) for s in (1, 1, 2)}
    assert texts[1] != texts[2]
    assert texts[1] == "".join(model.generate("Once upon a time", 20, temperature=1.0, seed=1))


def test_greedy_generation_follows_the_logits(model: bitgen.Model) -> None:
    generation = model.generate("The little dog", 12, temperature=0, repeat_penalty=1, stop=False)
    list(generation)
    ids = model.tokenizer.encode("The little dog")
    logits = model.logits(ids + generation.token_ids)
    assert generation.token_ids == logits[len(ids) - 1 : -1].argmax(-1).tolist()
    assert generation.timing.tokens == 12 and generation.timing.prompt_tokens == len(ids)


def test_generation_ends_where_the_context_is_full(model: bitgen.Model) -> None:
    prompt = "word " * (model.shape.context - 20)
    generation = model.generate(prompt[: len(prompt) // 2], 10**6, stop=False, temperature=0)
    list(generation)
    assert generation.timing.prompt_tokens + generation.timing.tokens == model.shape.context + 1


def test_threads_use_one_model_at_once(model: bitgen.Model) -> None:
    """Four threads from the start together; the tokenizer's lazy tables are built while they run."""
    fresh, start = bitgen.Model.load(threads=1), threading.Barrier(4)
    jobs: list[Callable[[bitgen.Model], Any]] = [
        lambda m: ["".join(m.generate("Once upon a time", 60, temperature=1.0, seed=seed)) for seed in range(4)],
        lambda m: ["".join(m.generate("The little dog", 60, temperature=0, prompt_lookup=8)) for _ in range(4)],
        lambda m: m.generate_many(["A", "Lily", "Tom ran to"], 60, top_k=20, seed=2),
        lambda m: (m.embed(["A cat", "dogs"] * 8).tolist(), m.score("Tom has a red ball. " * 8).logprobs.tolist()),
    ]

    def run(job: Callable[[bitgen.Model], Any]) -> Any:
        start.wait()
        return job(fresh)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(run, jobs))
    assert found == [job(model) for job in jobs]


# ---- many at once, and many tokens at once -------------------------------------------------------------------


def test_sessions_together_give_the_bits_of_each_alone(model: bitgen.Model, expected: np.ndarray) -> None:
    with model.session() as a, a.share() as b, a.share(10) as c:
        first = bitgen.forward_batch([a, b, c], [TOKENS[:3], TOKENS[:7], TOKENS[:1]])
        assert np.array_equal(first, expected[[2, 6, 0]])
        every = bitgen.forward_batch([c, a], [TOKENS[1:4], TOKENS[3:5]], every=True)
        assert np.array_equal(every, expected[[1, 2, 3, 3, 4]])
        assert [s.position for s in (a, b, c)] == [5, 7, 4]
        for sessions, tokens, words in (
            ([a, a], [[1], [1]], "differ"),
            ([a, c], [[1], [1] * 7], "context"),
            ([a, b], [[1]], "each session"),
            ([], [], "each session"),
            ([a, b], [[1], []], r"tokens\[1\] must be a non-empty list"),
            ([a, b], [[1], [-1]], r"tokens\[1\] must be .* ids in"),
        ):
            with pytest.raises(EngineError, match=words):
                bitgen.forward_batch(sessions, tokens)
        assert [s.position for s in (a, b, c)] == [5, 7, 4]


PROMPTS = ["Once upon a time", "The little dog", "A", "One day, Tom went to the park with his mother. They", "Lily"]


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 0, "repeat_penalty": 1},
        {"temperature": 1.0, "seed": 3, "repeat_penalty": 1.2},
        {"top_k": 40, "seed": 4, "repeat_penalty": 1.1},
    ],
)
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_generate_many_gives_the_texts_of_each_alone(model: bitgen.Model, batch: int, how: dict[str, float]) -> None:
    want = ["".join(model.generate(prompt, 40, **how)) for prompt in PROMPTS]
    assert model.generate_many(PROMPTS, 40, batch=batch, **how) == want


def test_sessions_choose_together_with_few_of_the_logits(model: bitgen.Model) -> None:
    greedy, drawn = bitgen.Sampling(temperature=0), bitgen.Sampling(top_k=5, seed=2)
    with model.session() as a, a.share() as b:
        want = [a.next(TOKENS, greedy, TOKENS, 0, 3), b.next(TOKENS[:4], drawn, TOKENS[:4], 7)]
        before = a.rescored
        a.rewind(0)
        b.rewind(0)
        choices = [bitgen.Choice(greedy, TOKENS, 0, 3), bitgen.Choice(drawn, TOKENS[:4], 7)]
        assert bitgen.next_batch([a, b], [TOKENS, TOKENS[:4]], choices) == want
        assert before < a.rescored < before + model.shape.vocab / 2
        for tokens, asks, words in (
            ([[1], [1]], choices[:1], "choice for each"),
            ([[1], []], choices, "non-empty list"),
            ([[1], [1]], choices, "count is 3, must be a whole number from 0 to 1"),
        ):
            with pytest.raises(EngineError, match=words):
                bitgen.next_batch([a, b], tokens, asks)
        assert (a.position, b.position) == (len(TOKENS), 4)


def test_generate_many_of_nothing(model: bitgen.Model) -> None:
    assert model.generate_many([]) == []
    assert model.generate_many(["A", "B"], 0) == ["", ""]
    with pytest.raises(BitgenError, match="batch"):
        model.generate_many(["A"], batch=0)


REPEATS = "Tom has a red ball. Tom has a red ball. Tom has a red ball. Tom has"


@pytest.mark.parametrize("lookup", [1, 3, 8, 200])
@pytest.mark.parametrize(
    "how", [{"temperature": 0, "repeat_penalty": 1}, {"temperature": 0.9, "seed": 5, "repeat_penalty": 1.1}]
)
def test_lookup_changes_no_token(model: bitgen.Model, lookup: int, how: dict[str, float]) -> None:
    for prompt in (REPEATS, "Once upon a time"):
        for stop in (True, False):
            plain = model.generate(prompt, 120, stop=stop, **how)
            guessed = model.generate(prompt, 120, stop=stop, prompt_lookup=lookup, **how)
            assert "".join(plain) == "".join(guessed) == guessed.text
            assert plain.token_ids == guessed.token_ids
            assert 0 <= guessed.timing.accepted <= guessed.timing.proposed
            assert plain.timing.proposed == 0


def test_lookup_needs_fewer_passes_where_text_repeats(model: bitgen.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    forward = bitgen.Session.next
    monkeypatch.setattr(bitgen.Session, "next", lambda *a, **k: passes.append(len(a[1])) or forward(*a, **k))
    generation = model.generate(REPEATS, 200, temperature=0, repeat_penalty=1, prompt_lookup=8, stop=False)
    list(generation)
    timing = generation.timing
    assert timing.tokens == 200 and len(passes) + timing.accepted == 200
    assert len(passes) < 120
    assert sum(passes[1:]) == len(passes) - 1 + timing.proposed
    assert f"lookup {timing.accepted} of {timing.proposed} accepted" in str(timing)


def test_lookup_up_to_the_end_of_the_context(model: bitgen.Model) -> None:
    prompt = "Tom has a red ball. " * 80
    plain, guessed = (model.generate(prompt, 10**6, stop=False, temperature=0, prompt_lookup=n) for n in (0, 8))
    assert "".join(plain) == "".join(guessed)
    assert len(guessed.prompt_ids) + len(guessed.token_ids) == model.shape.context + 1


def test_proposals_follow_the_latest_occurrence() -> None:
    guess = PromptLookup(8, [1, 2, 3, 4, 1, 2, 3, 5, 6, 1, 2, 3])
    assert guess.propose(8) == [5]  # one at first
    guess.learn(1, 1)
    assert guess.propose(8) == [5, 6]
    assert guess.propose(1) == [5]
    guess.learn(2, 2)
    assert guess.propose(8) == [5, 6, 1, 2]
    guess.learn(4, 4)
    guess.extend([9])
    assert guess.propose(8) == []  # 3 9 has not been seen
    guess.extend([7, 9, 7])
    assert guess.propose(8) == [9, 7, 9, 7, 9, 7, 9, 7]  # a loop
    assert PromptLookup(8, [1]).propose(8) == PromptLookup(0, [1, 1, 1, 1]).propose(8) == []


def test_failing_proposals_become_rare() -> None:
    guess, tried = PromptLookup(8, [1, 2, 3, 1, 2, 3]), 0
    for _ in range(80):
        proposed = len(guess.propose(8))
        guess.learn(proposed, 0)
        tried += proposed
    assert tried == 1 + (80 - 1) // 8
    for _ in range(24):
        proposed = len(guess.propose(8))
        guess.learn(proposed, proposed)
    assert proposed == 8


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda s: s.forward([0] * 600), "context"),
        (lambda s: s.forward([10**6]), "tokens must be"),
        (lambda s: s.forward([-1]), "tokens must be"),
        (lambda s: s.forward([]), "tokens must be"),
        (lambda s: s.rewind(5), "position is 5, must be a whole number from 0 to 0"),
        (lambda s: s.rewind(-1), "position is -1"),
    ],
)
def test_wrong_calls_are_clear_errors_and_harmless(model: bitgen.Model, expected: np.ndarray, action, words) -> None:  # type: ignore[no-untyped-def]
    with model.session() as session:
        with pytest.raises(EngineError, match=words):
            action(session)
        assert session.position == 0
        assert np.array_equal(session.forward(TOKENS, every=True), expected)


def test_a_closed_session_says_so(model: bitgen.Model) -> None:
    session = model.session()
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.forward([1])


@pytest.mark.parametrize(("tuned", "usable", "given", "want"), [
    (8, 2, None, 2),  # tuned where there were more CPUs
    (1, 2, None, 1),
    (None, 2, None, 2),
    (1, 2, 3, 3),  # what is asked for is taken
])  # fmt: skip
def test_a_tuned_count_of_threads_is_bounded(
    monkeypatch: pytest.MonkeyPatch, tuned: int | None, usable: int, given: int | None, want: int
) -> None:
    of_model = plan.of_model
    monkeypatch.setattr(plan, "of_model", lambda shape, isa: replace(of_model(shape, isa), threads=tuned))
    monkeypatch.setattr(model_module, "default_threads", lambda: usable)
    loaded = bitgen.Model.load(threads=given)
    with loaded.session(context=8) as session:
        assert loaded.threads == session.threads == want


def test_a_damaged_packed_model_is_refused_and_named(tmp_path: Path) -> None:
    found = plan.of_model(read_gguf(shipped_path()).shape, library.host_isa())
    packed = tmp_path / "m.bgpk"
    pack.write(packed, read_gguf(shipped_path()), found)
    whole = packed.read_bytes()
    model = bitgen.Model.load()
    for size in (0, 100, 256, len(whole) // 2, len(whole) - 1):
        packed.write_bytes(whole[:size])
        with pytest.raises(EngineError, match=r"m\.bgpk"):
            bitgen.Model(model.path, model.shape, model.tokenizer, found, model.artefact, packed, "f16", 1)


def test_a_packed_header_says_the_shape(tmp_path: Path) -> None:
    """Each field that has the name of one of the shape's is that; what nobody gives is an error, not zero."""
    shape = replace(
        read_gguf(shipped_path()).shape, activation="gelu_tanh", qk_norm=True, post_norms=True, window=100,
        window_period=6, embedding_scale=1.5, attention_scale=0.25, window_theta=1234.0, rope_interleaved=True,
    )  # fmt: skip
    found = plan.of_model(shape, "scalar")
    pack.write(tmp_path / "m.bgpk", synth.SynthCheckpoint(shape, 0), found, "int8")
    header = headers.declared("core/model.h").from_buffer("bg_header *", (tmp_path / "m.bgpk").read_bytes())
    numbers = {name: value for name, value in vars(shape).items() if hasattr(header, name)}
    numbers = {name: value for name, value in numbers.items() if name not in ("activation", "rope_dims")}
    assert len(numbers) > 16
    assert {name: getattr(header, name) for name in numbers} == {n: np.float32(v) for n, v in numbers.items()}
    version = headers.constants("core/model.h", "bg_packed")["PACKED_VERSION"]
    assert (header.activation, header.head, header.version) == (2, 2, version)
    assert (header.rope_dims, header.rope_magnitude) == (shape.head_dim, 1)
    assert headers.declared("core/model.h").string(header.layout).decode() == found.layout_key
    with pytest.raises(KeyError, match="model_offset"):
        headers.record("core/model.h", "bg_trailer", {"magic": b"BITGENST"})


def test_a_failed_packing_leaves_nothing(tmp_path: Path) -> None:
    class Broken(synth.SynthCheckpoint):
        def dense(self, name: str, rows: slice = ALL):  # type: ignore[no-untyped-def]
            if name.startswith("blk.1."):
                raise BitgenError("a damaged tensor")
            return super().dense(name, rows)

    shape = read_gguf(shipped_path()).shape
    with pytest.raises(BitgenError, match="damaged"):
        pack.write(tmp_path / "m.bgpk", Broken(shape, 0), plan.of_model(shape, library.host_isa()))
    assert list(tmp_path.iterdir()) == []


def test_many_processes_may_start_at_once() -> None:
    script = "import bitgen; print(''.join(bitgen.Model.load(threads=1).generate('A', 3, temperature=0)))"
    running = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({p.communicate(timeout=300)[0] for p in running}) == 1
