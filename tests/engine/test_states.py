"""Sessions of models with Gated DeltaNet: what rewinds, generates, proposes, batches and is kept on disk has the same
bits as tokens that are simply appended."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_lab as lab

import bitgen
from bitgen.checkpoints.synth import SynthCheckpoint
from bitgen.engine.batch import Batch
from bitgen.engine.prompt_lookup import PromptLookup
from bitgen.engine.session import Choice, Session, next_batch
from bitgen.errors import EngineError, FormatError
from bitgen.gguf.writer import write_gguf
from bitgen.spec import DeltaShape

GREEDY: dict[str, Any] = {"temperature": 0.0, "stop": False}


@pytest.fixture(scope="module", params=["qwen35", "qwen35-rotated"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bitgen.Model:
    delta = DeltaShape(period=4, key_heads=2, value_heads=4, key_dim=16, value_dim=64, taps=4)
    shape = replace(lab.SHAPES[request.param], name="hybrid", vocab=320, intermediate=256, delta=delta)
    path = tmp_path_factory.mktemp("hybrid") / "m.gguf"
    write_gguf(path, SynthCheckpoint(shape, 1))
    return bitgen.Model.load(path, threads=2)


@pytest.fixture(scope="module")
def ids(model: bitgen.Model) -> list[int]:
    return lab.tokens(model.shape, 300, 4)


@pytest.fixture(scope="module")
def want(model: bitgen.Model, ids: list[int]) -> np.ndarray:
    return model.logits(ids)


def text_of(model: bitgen.Model, prompt: list[int], n: int, **options: Any) -> list[int]:
    generation = model.generate(prompt, n, **{**GREEDY, **options})
    list(generation)
    return generation.token_ids


def test_rewind_to_any_position(model: bitgen.Model, ids: list[int], want: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    with model.session(context=300) as session:
        assert session.state_bytes >= model.shape.state_bytes > 0
        at = 0
        for _ in range(60):
            if at > 150 or (at and rng.random() < 0.4):
                at = int(rng.integers(0, at + 1))
                session.rewind(at)
                assert session.position == at and session.tokens == ids[:at]
            n = int(rng.choice([1, 2, 9, 16, 17, 60]))
            if rng.random() < 0.2:
                session._keep_state()
            if rng.random() < 0.3:  # other tokens, which are forgotten again
                session.append(lab.tokens(model.shape, n, n))
                session.rewind(at)
            assert np.array_equal(session.forward(ids[at : at + n], every=True), want[at : at + n])
            at += n


def test_the_file_gives_the_bits_that_its_checkpoint_has(model: bitgen.Model, ids: list[int]) -> None:
    checkpoint = SynthCheckpoint(model.shape, 1)
    assert np.array_equal(model.logits(ids[:40]), lab.logits(checkpoint, ids[:40]))


@pytest.mark.parametrize("most", [1, 8, 40])
def test_prompt_lookup_gives_the_same_text(model: bitgen.Model, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is proposed some is right and the rest is taken back; more than the log holds is never proposed."""
    prompt, rng, rooms = lab.tokens(model.shape, 60), np.random.default_rng(most), []
    plain = text_of(model, prompt, 60)

    def propose(self: PromptLookup, room: int) -> list[int]:
        rooms.append(room)
        at = len(self._tokens) - len(prompt)
        guess = plain[at : at + min(room, self.most)]
        for spoilt in rng.integers(0, len(guess), 1) if guess else ():
            guess[spoilt] ^= 1
        return guess

    monkeypatch.setattr(PromptLookup, "propose", propose)
    proposed = model.generate(prompt, 60, prompt_lookup=most, **GREEDY)
    list(proposed)
    assert proposed.token_ids == plain
    assert max(rooms) == 15 and proposed.timing.proposed > proposed.timing.accepted >= 0


@pytest.mark.parametrize("lookup", [0, 8])
def test_a_session_goes_on_with_prompts_that_begin_alike(model: bitgen.Model, lookup: int) -> None:
    prompt = lab.tokens(model.shape, 90, 7)
    with model.session(context=300) as session:
        first = text_of(model, prompt, 30, session=session, prompt_lookup=lookup)
        assert first == text_of(model, prompt, 30)
        for other in (prompt, [*prompt[:-3], 5, 6], [*prompt, *first, 9], prompt[:40] + [3] * 9, prompt[:2], prompt):
            held = model.generate(other, 20, session=session, prompt_lookup=lookup, **GREEDY)
            list(held)
            assert held.token_ids == text_of(model, other, 20), len(other)


def test_what_is_computed_again_is_little(model: bitgen.Model) -> None:
    """A prompt that changes a little before its end: the state that was kept there serves."""
    prompt = lab.tokens(model.shape, 90, 7)
    with model.session(context=300) as session:
        text_of(model, prompt, 40, session=session)
        again = model.generate([*prompt[:-3], 1, 2], 5, session=session, **GREEDY)
        list(again)
        assert again.timing.prompt_tokens <= session.rewindable


def test_texts_in_a_batch(model: bitgen.Model) -> None:
    """Prompts that begin alike take each other's places."""
    base = lab.tokens(model.shape, 50, 2)
    prompts = [base[:n] + [n] * 3 for n in (50, 20, 49, 3, 50, 33, 50)]
    with Batch(model, 2, context=200) as batch:
        requests = [batch.submit(prompt, 25, **GREEDY) for prompt in prompts]
        while not all(request.finished for request in requests):
            batch.step()
    assert [request.token_ids for request in requests] == [text_of(model, prompt, 25) for prompt in prompts]


def test_a_batch_of_which_one_fails(model: bitgen.Model, ids: list[int], want: np.ndarray) -> None:
    with model.session(context=200) as first, first.share(200) as second:
        first.append(ids[:40])
        greedy = bitgen.Sampling(temperature=0.0, repeat_penalty=1.0)
        with pytest.raises(EngineError):
            next_batch(
                [first, second], [ids[40:70], [1]],
                [Choice(greedy, ids[:70], 0), Choice(replace(greedy, repeat_penalty=2.0), [320], 0)],
            )  # fmt: skip
        assert (first.position, second.position) == (40, 0)
        assert np.array_equal(first.forward(ids[40:60], every=True), want[40:60])


@pytest.mark.parametrize("n", [0, 1, 50])
def test_saved_and_restored(model: bitgen.Model, ids: list[int], want: np.ndarray, n: int, tmp_path: Path) -> None:
    path = tmp_path / "prompt.kv"
    with model.session(context=100) as source:
        if n:
            source.append(ids[:n])
        source.save(path)
    raw = path.read_bytes()
    assert struct.unpack_from("<I", raw, 8) == (2,)
    with model.session(context=100, threads=1) as session:
        session.append(lab.tokens(model.shape, 30, 9))
        assert session.restore(path) == n == session.position
        assert np.array_equal(session.forward(ids[n : n + 20], every=True), want[n : n + 20])
        session.rewind(n // 2)
        assert np.array_equal(session.forward(ids[n // 2 : n + 20], every=True), want[n // 2 : n + 20])
        for wrong in (raw[:-1], raw + b"x", raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:], raw[:8] + b"\x01" + raw[9:]):
            path.write_bytes(wrong)
            with pytest.raises(FormatError):
                session.restore(path)
            assert session.position == n + 20


def test_a_file_serves_the_prompt_that_was_continued(model: bitgen.Model, tmp_path: Path) -> None:
    """And what follows its text: the state before the prompt's last tokens is kept, and so is the last."""
    prompt, path = lab.tokens(model.shape, 90, 7), tmp_path / "prompt.kv"
    with model.session(context=300) as session:
        text = text_of(model, prompt, 40, session=session)
        session.save(path)
    for other, most in ((prompt, 16), ([*prompt, *text, 5], 2), ([*prompt[:-9], 1], 10)):
        with model.session(context=300) as session:
            assert session.restore(path) == len(prompt) + 39
            again = model.generate(other, 20, session=session, **GREEDY)
            list(again)
            assert again.token_ids == text_of(model, other, 20)
            assert again.timing.prompt_tokens <= most
            session.rewind(10)  # before what was kept
            session.save(tmp_path / "short.kv")
            assert session.restore(tmp_path / "short.kv") == 10
            assert np.array_equal(session.forward(prompt[10:40]), model.logits(prompt[:40])[-1])


def test_a_model_without_a_state_refuses_the_file(model: bitgen.Model, ids: list[int], tmp_path: Path) -> None:
    with model.session(context=10) as session:
        session.append(ids[:5])
        session.save(tmp_path / "hybrid.kv")
    with bitgen.Model.load() as other, other.session(context=10) as session:
        with pytest.raises(FormatError, match="of another model"):
            session.restore(tmp_path / "hybrid.kv")
        assert session.state_bytes == 0


def test_scores_are_those_of_the_logits(model: bitgen.Model) -> None:
    text = "abcdefgh" * 5
    score = model.score(text)
    ids = model.tokenizer.encode(text)
    logits = model.logits(ids).astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert np.allclose(score.logprobs, [logp[i, ids[i + 1]] for i in range(len(ids) - 1)], atol=1e-5)


def test_it_is_the_state_that_matters(model: bitgen.Model, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewind that only forgets positions is noticed."""
    with model.session(context=100) as session:
        session.append(ids[:50])
        lib = session._lib

        class Forgetful:
            def __getattr__(self, name: str) -> Any:
                return getattr(lib, name)

            def bg_rewind(self, handle: Any, position: int) -> int:
                state = binding_buffer(session)
                return int(lib.bg_state_load(handle, position, state))

        def binding_buffer(of: Session) -> Any:
            return bitgen.compile.binding.ffi().from_buffer("uint8_t[]", of._state())

        monkeypatch.setattr(session, "_lib", Forgetful())
        session.rewind(20)
        assert not np.array_equal(session.forward(ids[20:30]), model.logits(ids[:30])[-1])
