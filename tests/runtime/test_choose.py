"""The certified head: what it chooses is what all logits would have chosen, whatever the rows and the hidden states.

The models here have ternary weights of zero, so that a token's hidden state is its normed embedding: both sides of
the product with the output matrix are the test's to choose.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_lab as lab

from bitgen.checkpoints.checkpoint import ALL, dense_type, narrow_bf16, widen_bf16
from bitgen.checkpoints.synth import SynthCheckpoint
from bitgen.compile import head_rows, library, pack

VOCAB, HIDDEN = 2048, 128
SHAPE = lab.shape("choices", vocab=VOCAB, layers=1, tied=False)
RNG = np.random.default_rng(7)
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "repeat_penalty": 1.3},
    {"temperature": 0.0, "repeat_penalty": 0.7},
    {"temperature": 0.8, "top_k": 1},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 1.5, "top_k": 200, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 0.7, "top_k": 40, "repeat_penalty": 1.2, "repeat_last": 8},
    {"temperature": 20.0, "top_k": 300},
    {"temperature": 1.0, "top_k": 1000},
    {"temperature": 1.0, "top_p": 0.5},
)


BEYOND_FLOAT16 = {"float32": "f32", "bfloat16": "bf16", "small bfloat16": "bf16"}


def rows_of(kind: str) -> np.ndarray:
    """An output matrix float32 [VOCAB, HIDDEN]."""
    rows = RNG.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
    if kind == "near ties":
        rows = rows[:1] * (1 + 2.0**-10 * RNG.integers(0, 2, rows.shape).astype(np.float32))
    if kind == "some near ties":
        rows[100:160] = rows[100] * (1 + 2.0**-9 * RNG.integers(0, 2, (60, HIDDEN)).astype(np.float32))
    if kind == "duplicates":
        rows[1024:] = rows[:1024]
    if kind == "outliers":
        rows[np.arange(VOCAB), RNG.integers(0, HIDDEN, VOCAB)] *= 300
    if kind == "all magnitudes":
        rows *= 10.0 ** RNG.uniform(-5, 3, (VOCAB, 1)).astype(np.float32)
    if kind == "zeros":
        rows[::2] = 0
    if kind == "float32":
        return rows
    if kind.endswith("bfloat16"):
        sizes = RNG.uniform(-9, -3, rows.shape) if kind.startswith("small") else RNG.uniform(-5, 6, (VOCAB, 1))
        return widen_bf16(narrow_bf16(rows * 10**sizes))
    return rows.astype(np.float16).astype(np.float32)


KINDS = ("plain", "near ties", "some near ties", "duplicates", "outliers", "all magnitudes", "zeros", *BEYOND_FLOAT16)


def states_of(rows: np.ndarray) -> np.ndarray:
    """Embeddings float32 [VOCAB, HIDDEN]: random, along rows, along what int8 loses of rows, sparse, none, and such
    that their high digits say nothing of all elements but one."""
    states = RNG.standard_normal(rows.shape).astype(np.float32)
    scales, codes = head_rows.int8_rows(rows)
    lost = rows - codes[:, :HIDDEN] * scales[:VOCAB, None]
    states[1::5] = rows[1::5]
    states[2::5] = lost[2::5] / np.maximum(np.abs(lost[2::5]).max(axis=1, keepdims=True), 1e-30)
    states[3::5] *= RNG.random(states[3::5].shape) < 0.05
    states[4::50] = 0
    states[9::50] = np.sign(states[9::50]) * 0.49 / 127
    states[9::50, 5] = 1
    return states


class Crafted(SynthCheckpoint):
    """No ternary weights, and a given embedding, output matrix and last norm."""

    def __init__(self, embedding: np.ndarray, output: np.ndarray, norm: float) -> None:
        super().__init__(SHAPE, seed=1)
        last = np.full(HIDDEN, norm, np.float32)
        self._given = {"token_embd.weight": embedding, "output.weight": output, "output_norm.weight": last}

    def ternary(self, name: str) -> Any:
        """Zeros."""
        codes, scale = super().ternary(name)
        return np.zeros_like(codes), scale

    def dense(self, name: str, rows: slice = ALL) -> Any:
        """The given matrices; all norms but the last as they come."""
        return self._given[name][rows] if name in self._given else super().dense(name, rows)


def crafted(
    output: np.ndarray,
    embedding: np.ndarray | None = None,
    certificate: Callable[..., Any] | None = None,
    norm: float = 1,
) -> lab.Bench:
    """A packed model with a certified head, for the best level here."""
    checkpoint = Crafted(states_of(output) if embedding is None else embedding, output, norm)
    found = lab.lookup(SHAPE, library.host_isa())
    path = Path(tempfile.mkdtemp(prefix="bitgen-test-")) / "model.bgpk"
    with pytest.MonkeyPatch.context() as patch:
        if certificate:
            patch.setattr(head_rows, "certificate", certificate)
        pack.write(path, checkpoint, found, "certified")
    return lab.Bench(SHAPE, checkpoint, library.for_model(SHAPE, [found]), (path,))


def disagreements(bench: lab.Bench, tokens: list[int]) -> int:
    """Choices that differ from those of all logits, over every sampling; each token follows the ones before."""
    wrong = 0
    with bench.open(threads=2, context=SHAPE.context) as session:
        for how in SAMPLINGS:
            session.lib.bg_rewind(session.handle, 0)
            every = session.forward(tokens)
            session.lib.bg_rewind(session.handle, 0)
            for i, token in enumerate(tokens):
                got = session.next([token], tokens[: i + 1], i, **how)
                wrong += got != [session.sample(every[i], tokens[: i + 1], i, **how)]
    return wrong


@pytest.mark.parametrize("kind", KINDS)
def test_choices_are_those_of_all_logits(kind: str) -> None:
    tokens = [int(t) for t in np.random.default_rng(3).permutation(VOCAB)[:60]]
    assert disagreements(crafted(rows_of(kind)), tokens) == 0


@pytest.mark.parametrize("kind", BEYOND_FLOAT16)
def test_rows_are_kept_as_they_are(kind: str) -> None:
    """In the smallest type that holds them: the product with states in float64, to the rounding of float32."""
    output, tokens = rows_of(kind), list(range(0, VOCAB, 97))
    bench = crafted(output)
    assert dense_type(bench.checkpoint, "output.weight", output.shape) == BEYOND_FLOAT16[kind]
    states = np.concatenate([lab.states(bench.checkpoint, [token]) for token in tokens]).astype(np.float64)
    for token, state in zip(tokens, states, strict=True):
        terms = output.astype(np.float64) * state
        off = np.abs(bench.logits([token])[0] - terms.sum(1))
        assert (off <= 1e-6 * np.abs(terms).sum(1)).all()


def test_few_rows_are_computed_where_they_differ() -> None:
    with crafted(rows_of("plain")).open(threads=3) as session:
        tokens = list(range(0, 500, 5))  # random states
        for i, token in enumerate(tokens):
            session.next([token], tokens[: i + 1], temperature=0.0)
        assert len(tokens) <= session.lib.bg_rescored(session.handle) < len(tokens) * 20


@pytest.mark.parametrize(("claim", "choice"), [(1, 7), (0.5, 9)])
def test_the_bound_is_reached(claim: float, choice: int) -> None:
    """A state along what int8 lost of row 7: its screened logit is 0, its true one the whole bound. Row 9, which int8
    holds exactly, lies at 0.6 of it. Who claimed half the residual would choose row 9."""
    rows = np.zeros((VOCAB, HIDDEN), np.float32)
    rows[7] = rows_of("plain")[7]
    scales, codes = head_rows.int8_rows(rows)
    kept = codes[7, :HIDDEN] * scales[7]
    lost = rows[7] - kept
    state = lost - kept * (lost @ kept) / (kept @ kept)
    state /= np.abs(state).max()
    at = int(np.abs(state).argmax())
    rows[9, at] = 0.6 * (rows[7] @ state) / state[at]
    honest = head_rows.certificate

    def certificate(head: Any, scales: Any, codes: Any) -> Any:
        uppers, residuals, norms = honest(head, scales, codes)
        return uppers, residuals * np.float32(claim), norms

    with crafted(
        rows.astype(np.float16).astype(np.float32), state + np.zeros_like(rows), certificate
    ).open() as session:
        assert session.next([1], [1], temperature=0.0) == [choice]


@pytest.mark.parametrize(("claim", "choice"), [(1, 1500), (0.25, 3)])
def test_the_bound_by_the_high_digit_is_reached(claim: float, choice: int) -> None:
    """The same for what the high digit loses of a state: half of its elements, along which row 1500 lies. Its upper
    bits have a residual too, so that it takes a claim of a quarter."""
    rows, state = np.zeros((2, VOCAB, HIDDEN), np.float32)
    state[:, 0] = 127
    state[:, 64:] = 0.49
    rows[1500, 64:] = 1
    rows[3, 0] = 0.95 * 0.49 * 64 / 127
    honest = head_rows.certificate

    def certificate(head: Any, scales: Any, codes: Any) -> Any:
        uppers, residuals, norms = honest(head, scales, codes)
        return uppers, residuals, norms * np.float32(claim)

    with crafted(rows.astype(np.float16).astype(np.float32), state / 127, certificate).open() as session:
        many = [1] * 5  # as few as two would get both digits at once
        assert session.next(many, many, count=5, temperature=0.0) == [choice] * 5


@pytest.mark.parametrize(("claim", "choice"), [(1, 1500), (0.5, 3)])
@pytest.mark.parametrize("count", [1, 5])
def test_the_bound_by_the_upper_bits_is_reached(claim: float, choice: int, count: int) -> None:
    """The same for what the upper six bits lose of a row that int8 holds exactly: one half or one and a half of a
    code, along which the state lies. Row 3, which they hold as well as any, is nothing but the logit to beat."""
    rows, state = np.zeros((2, VOCAB, HIDDEN), np.float32)
    codes = np.tile([0, 3, 4, 7], HIDDEN // 4)
    off = codes - (codes // 4 * 4 + 1.5)
    kept = codes - off
    along = off - kept * (off @ kept) / (kept @ kept)
    state[:] = along / np.abs(along).max()
    rows[1500] = codes
    rows[1500, 0] = 127  # the scale is 1
    state[:, 0] = 0
    at = int(np.abs(state[0]).argmax())
    rows[3, at] = 0.75 * (rows[1500] @ state[0]) / state[0, at]
    honest = head_rows.certificate

    def certificate(head: Any, scales: Any, codes: Any) -> Any:
        uppers, residuals, norms = honest(head, scales, codes)
        return uppers * np.float32(claim), residuals, norms

    with crafted(rows.astype(np.float16).astype(np.float32), state, certificate).open() as session:
        many = [1] * count
        assert session.next(many, many, count=count, temperature=0.0) == [choice] * count


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["plain", "some near ties", "duplicates"])
@pytest.mark.parametrize("hows", [SAMPLINGS[:8], SAMPLINGS, SAMPLINGS[:1], SAMPLINGS[4:5]])
def test_sequences_choose_together_as_alone(kind: str, hows: tuple[dict[str, Any], ...], threads: int) -> None:
    """More of them than are chosen at once, at different positions, each with a sampling of its own; some prompts are
    cut by the end of a chunk, and some sequences choose after several tokens."""
    bench = crafted(rows_of(kind))
    rng = np.random.default_rng(11)
    texts = [[int(t) for t in rng.integers(0, VOCAB, n)] for n in (300, 20, 7, 250, *range(8, 48))]
    asked = [{"temperature": 0.0, **hows[i % len(hows)], "seed": i} for i in range(len(texts))]
    with bench.open(threads=threads) as session:
        every = []
        for text in texts:
            session.lib.bg_rewind(session.handle, 0)
            every.append(session.forward(text))
        session.lib.bg_rewind(session.handle, 0)
        handles = [session.handle, *(session.share(len(text)) for text in texts[1:])]
        done = [0] * len(texts)
        for turn in range(4):
            who = [i for i in rng.permutation(len(texts)) if done[i] < len(texts[i])]
            runs, asks, want = [], [], []
            for i in who:
                left = len(texts[i]) - done[i]
                n = left if turn == 3 else 1 + int(rng.integers(0, left))
                count = 1 + int(rng.integers(0, min(n, 4)))
                runs.append(texts[i][done[i] : done[i] + n])
                done[i] += n
                history = texts[i][: done[i]]
                asks.append({"how": asked[i], "history": history, "count": count, "step": done[i] - count})
                ends = range(done[i] - count + 1, done[i] + 1)
                want.append([session.sample(every[i][e - 1], texts[i][:e], e - 1, **asked[i]) for e in ends])
            assert session.next_batch([handles[i] for i in who], runs, asks) == want
        for handle in handles[1:]:
            bench.lib.bg_session_close(handle)


def test_few_rows_are_computed_for_many_sequences() -> None:
    tokens = list(range(0, 500, 5))
    with crafted(rows_of("plain")).open(threads=2) as session:
        handles = [session.handle, *(session.share(9) for _ in tokens[1:])]
        asks = [{"how": {"temperature": 0.0}, "history": [t], "count": 1, "step": 0} for t in tokens]
        chosen = session.next_batch(handles, [[t] for t in tokens], asks)
        assert isinstance(chosen, list) and all(isinstance(c, list) and len(c) == 1 for c in chosen)
        assert len(tokens) <= session.lib.bg_rescored(session.handle) < len(tokens) * 20
        for handle in handles[1:]:
            session.lib.bg_session_close(handle)


@pytest.mark.parametrize("how", SAMPLINGS[:7])
def test_many_choices_at_once_are_those_one_by_one(how: dict[str, Any]) -> None:
    bench = crafted(rows_of("plain"))
    tokens = [int(t) for t in np.random.default_rng(5).permutation(VOCAB)[:150]]
    with bench.open(threads=2) as session:
        alone = [session.next([t], tokens[: i + 1], 10 + i, **how)[0] for i, t in enumerate(tokens)]  # type: ignore[index]
        for count in (1, 2, 8, 9, 21, 128, 150):
            session.lib.bg_rewind(session.handle, 0)
            assert session.next(tokens, tokens, 10 + len(tokens) - count, count, **how) == alone[-count:]


def test_the_trained_model_chooses_the_same() -> None:
    """Through the Python API, with the head that ships with it and without the int8 copy."""
    from bitgen import Model, Sampling

    certified, plain = Model.load(head="certified"), Model.load(head="f16")
    for sampling in (Sampling(temperature=0, repeat_penalty=1), Sampling(seed=5)):
        texts = []
        for model in (certified, plain):
            run = model.generate("Once upon a time", 80, sampling=sampling)
            "".join(run)
            texts.append(run.token_ids)
        assert texts[0] == texts[1] and len(texts[0]) > 20


def test_wrong_calls_are_refused() -> None:
    with crafted(rows_of("plain")).open(context=20) as session:
        argument, token, context = (session.lib.BG_E_ARGUMENT, session.lib.BG_E_TOKEN, session.lib.BG_E_CONTEXT)
        assert session.next([1], [1], count=2) == argument  # more choices than tokens
        assert session.next([1, 2], [2], count=2) == argument  # a history without the tokens
        assert session.next([1], [1], temperature=-1.0) == argument
        assert session.next([VOCAB], [1]) == token
        assert session.next([1] * 21, [1] * 21) == context


def ask(history: list[int], count: int = 1, step: int = 0, **how: Any) -> dict[str, Any]:
    """A request, greedy where nothing is said."""
    return {"how": {"temperature": 0.0, **how}, "history": history, "count": count, "step": step}


def test_what_is_no_batch_changes_nothing() -> None:
    with crafted(rows_of("plain")).open(context=20) as session, crafted(rows_of("plain")).open() as stranger:
        lib, a, b, none = session.lib, session.handle, session.share(20), session.ffi.NULL
        for handles, runs in (
            ([a, a], [[1], [2]]),
            ([a, stranger.handle], [[1], [2]]),
            ([a, none], [[1], [2]]),
            ([a, b], [[1], []]),
            ([], [[1]]),
        ):
            assert session.next_batch(handles, runs, [ask([1]), ask([2])]) == lib.BG_E_ARGUMENT
            assert lib.bg_position(a) == lib.bg_position(b) == 0
        assert lib.bg_next_batch(none, 1, none, none, none, none) == lib.BG_E_ARGUMENT
        lib.bg_session_close(b)


def test_an_error_of_one_session_is_its_own() -> None:
    """Wrong sessions between good ones: they stay as they were, the others choose what they choose without them."""
    with crafted(rows_of("plain")).open(threads=2, context=600) as session:
        lib, small = session.lib, session.share(20)
        handles = [session.handle, small, session.share(600), session.share(600)]
        argument, token, context = lib.BG_E_ARGUMENT, lib.BG_E_TOKEN, lib.BG_E_CONTEXT
        good, penalty = [5, 6, 7], {"repeat_penalty": 1.2}
        for run, wrong, code in (
            ([1], ask([1], 2), argument),  # more choices than tokens
            ([2, 3], ask([3], 2), argument),  # a history without the tokens
            ([1], ask([1], -1), argument),
            ([1], ask([1], temperature=-1.0), argument),
            ([1], ask([1], top_p=np.nan), argument),
            ([VOCAB], ask([1]), token),
            ([1, -1], ask([1, -1], 0), token),  # nothing to choose, yet no token
            ([2] * 21, ask([2] * 21), context),
            ([2] * 21, ask([], 0), context),
            ([2] * 18, ask([VOCAB, *[2] * 18], 2, **penalty), token),  # found when the first of two is chosen
        ):
            for handle in handles:
                lib.bg_rewind(handle, 0)
            session.next_batch([small], [[9]], [ask([9])])
            asks = [ask(good, 2), wrong, ask([], 0), ask(good, 3, **penalty)]
            runs = [good, run, [3] * 520, good]  # 520: over two chunks
            got = session.next_batch(handles, runs, asks)
            assert [lib.bg_position(h) for h in handles] == [3, 1, 520, 3], (run, wrong)
            want = []
            for i in (0, 3):
                lib.bg_rewind(handles[i], 0)
                want += session.next_batch([handles[i]], [good], [asks[i]])  # type: ignore[arg-type,operator]
            assert got == [want[0], code, [], want[1]], (run, wrong)
            assert session.next_batch([small], [run], [wrong]) == [code] and lib.bg_position(small) == 1  # alone
        for handle in handles[1:]:
            lib.bg_session_close(handle)


def test_every_wrong_session_keeps_its_own_error() -> None:
    with crafted(rows_of("plain")).open(context=20) as session:
        lib, handles = session.lib, [session.handle, session.share(20), session.share(20)]
        asks = [ask([1], temperature=-1.0), ask([VOCAB]), ask([2] * 21)]
        codes = [lib.BG_E_ARGUMENT, lib.BG_E_TOKEN, lib.BG_E_CONTEXT]
        assert session.next_batch(handles, [[1], [VOCAB], [2] * 21], asks) == codes
        assert [lib.bg_position(h) for h in handles] == [0, 0, 0]
        for handle in handles[1:]:
            lib.bg_session_close(handle)


def test_logits_that_are_no_numbers_are_an_error_of_their_session() -> None:
    """A last norm so great that every state but zero overflows; its session is as it was."""
    rows = rows_of("plain")
    states = np.zeros_like(rows)
    states[1] = rows[1]
    with crafted(rows, states, norm=3e38).open() as session:
        lib, handles = session.lib, [session.handle, session.share(600), session.share(600)]
        runs, asks = [[0], [0, 1, 0], [0, 0]], [ask([0]), ask([0, 1, 0], 2), ask([0, 0], 2)]
        assert session.next_batch(handles, runs, asks) == [[0], lib.BG_E_VALUE, [0, 0]]
        assert [lib.bg_position(h) for h in handles] == [1, 0, 2]
        assert session.next([0, 1], [0, 1], temperature=0.0) == lib.BG_E_VALUE
        assert lib.bg_position(session.handle) == 1
        for handle in handles[1:]:
            lib.bg_session_close(handle)


def test_a_request_may_only_append() -> None:
    """Choices of the others stand where they would without it."""
    with crafted(rows_of("plain")).open(threads=2) as session:
        lib, handles = session.lib, [session.handle, *(session.share(600) for _ in range(4))]
        runs = [[1] * 7, [11, 12, 13], [2] * 300, [14], [3]]
        asks = [ask([], 0), ask([11, 12, 13], 2), ask([], 0), ask([14]), ask([], 0)]
        want = [session.next([t], [t], temperature=0.0)[0] for t in (12, 13, 14)]  # type: ignore[index]
        lib.bg_rewind(session.handle, 0)
        assert session.next_batch(handles, runs, asks) == [[], want[:2], [], want[2:], []]
        assert [lib.bg_position(h) for h in handles] == [7, 3, 300, 1, 1]
        assert session.next_batch(handles, runs, [ask([], 0)] * 5) == [[]] * 5
        assert session.next([5], [5], count=0) == []
        for handle in handles[1:]:
            lib.bg_session_close(handle)
