"""Continuous batching: each text is the one that it would be alone, whoever comes, goes or fails beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bitgen
from bitgen.engine.batch import Batch, Request
from bitgen.errors import BitgenError, EngineError

PROMPTS = ["Once upon a time", "A", "One day, Tom went to the park with his mother. They", "The little dog", "Lily"]
LONG = "Once upon a time, there was a little girl named Lily. She had a big red ball. " * 12
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0, "repeat_penalty": 1},
    {"temperature": 1.0, "top_k": 0, "top_p": 1, "seed": 3, "repeat_penalty": 1.2},
    {"top_k": 40, "seed": 4, "repeat_penalty": 1.1},
    {"top_k": 0, "repeat_penalty": 1, "seed": 5},
    {"temperature": 0, "repeat_penalty": 1.3},
]


@pytest.fixture(scope="module")
def model() -> bitgen.Model:
    return bitgen.Model.load(threads=2)


def alone(model: bitgen.Model, request: Request) -> str:
    return "".join(model.generate(request.prompt_ids, request.max_tokens, stop=request.stop, sampling=request.sampling))


def finish(batch: Batch, pieces: dict[Request, str]) -> dict[Request, str]:
    """Step until nothing is left to do; what each request gained, behind what it had."""
    while batch.busy:
        for request, piece in batch.step():
            pieces[request] = pieces.get(request, "") + piece
    return pieces


@pytest.mark.parametrize("prefill", [1, 3, 128])
@pytest.mark.parametrize("size", [1, 2, 16])
def test_each_text_is_that_of_generate(model: bitgen.Model, size: int, prefill: int) -> None:
    """Prompts, limits and sampling all differ; there are more texts than places, or fewer."""
    with Batch(model, size, prefill=prefill) as batch:
        requests = [
            batch.submit(prompt, 12 + 9 * i, **how)
            for i, (prompt, how) in enumerate(zip(PROMPTS, OPTIONS, strict=True))
        ]
        pieces = finish(batch, {})
    for request in requests:
        assert request.finished and request.error is None
        assert pieces[request] == request.text == alone(model, request) != ""
        timing = request.timing
        assert 0 < timing.prompt_tokens <= len(request.prompt_ids) and timing.tokens == len(request.token_ids)
        assert timing.prefill_s > 0 and timing.decode_s > 0


def test_stop_tokens_end_a_text_and_free_its_place(model: bitgen.Model) -> None:
    with Batch(model, 1) as batch:
        stopped = batch.submit("The little dog", 200, temperature=0)
        endless = batch.submit("The little dog", 200, temperature=0, stop=False)
        empty = batch.submit("The little dog", 0)
        finish(batch, {})
    assert stopped.timing.stopped == "stop token" and 0 < len(stopped.token_ids) < 200
    assert endless.timing.stopped == "length" and len(endless.token_ids) == 200
    assert endless.token_ids[: len(stopped.token_ids)] == stopped.token_ids
    assert empty.finished and empty.text == "" and empty.error is None


def test_first_come_first_served(model: bitgen.Model) -> None:
    with Batch(model, 2) as batch:
        requests = [batch.submit("Lily", n, temperature=0, stop=False) for n in (2, 4, 1, 2)]
        order = [[requests.index(request) for request, _ in batch.step()] for _ in range(5)]
        assert not batch.busy and batch.step() == []
    assert order == [[0, 1], [0, 1], [1, 2], [1, 3], [3]]


def test_a_text_that_comes_later_changes_none(model: bitgen.Model) -> None:
    with Batch(model, 3) as batch:
        first = batch.submit(PROMPTS[0], 40, seed=1)
        pieces: dict[Request, str] = {}
        for _ in range(7):
            for request, piece in batch.step():
                pieces[request] = pieces.get(request, "") + piece
        assert len(first.token_ids) == 7
        second = batch.submit(PROMPTS[2], 20, seed=2)
        finish(batch, pieces)
        third = batch.submit(PROMPTS[3], 20, seed=3)  # in a place that had another text
        finish(batch, pieces)
    for request in (first, second, third):
        assert pieces[request] == alone(model, request)


def test_an_incomplete_character_shows_at_the_end(model: bitgen.Model) -> None:
    half = next(id for id in range(model.shape.vocab) if model.tokenizer.piece(id) == b"\xc3")
    cut, stopped = (Request(model, "A", 2, positions=10) for _ in range(2))
    assert cut.take([half]) == stopped.take([half]) == "" and not cut.finished
    assert cut.take([half]) == cut.text == "\ufffd\ufffd" and cut.finished
    assert stopped.take([min(model.tokenizer.stop_ids)]) == stopped.text == "\ufffd" and stopped.finished


def test_a_conversation_goes_on_from_what_its_place_holds(model: bitgen.Model) -> None:
    with Batch(model, 3) as batch:
        turns = [batch.submit(prompt, 20, seed=i, stop=False) for i, prompt in enumerate(PROMPTS[:3])]
        finish(batch, {})
        assert [turn.timing.prompt_tokens for turn in turns] == [len(turn.prompt_ids) for turn in turns]
        more = model.tokenizer.encode(" He ran away.", add_bos=False)
        replies = [batch.submit(turn.history + more, 20, seed=9, stop=False) for turn in turns[::-1]]
        finish(batch, {})
        again = batch.submit(PROMPTS[1], 20, seed=4)
        apart = batch.submit([*turns[0].prompt_ids, 7, 7, 7], 20, seed=5)
        finish(batch, {})
    assert [reply.timing.prompt_tokens for reply in replies] == [len(more) + 1] * 3  # a text's last token is not held
    assert again.timing.prompt_tokens == 1 and apart.timing.prompt_tokens == 3
    for request in (*replies, again, apart):
        assert request.text == alone(model, request)


def test_a_long_prompt_comes_in_pieces_while_others_go_on(model: bitgen.Model) -> None:
    with Batch(model, 4, prefill=32) as batch:
        others = [batch.submit(prompt, 100, temperature=0, stop=False) for prompt in PROMPTS[:2]]
        batch.step()
        late = batch.submit(LONG, 30, temperature=0.8, seed=9, stop=False)
        later = batch.submit("Lily", 30, temperature=0, stop=False)
        steps = -(-len(late.prompt_ids) // 32)
        assert steps > 6
        for n in range(1, steps):
            assert [request for request, _ in batch.step()] == others  # each gains a token in every step
            assert batch._running[late].position == 32 * n and not late.token_ids
            assert batch._running[later].position == 0  # its turn comes after
        gained = [request for request, _ in batch.step()]
        assert gained == [*others, late, later] and len(late.token_ids) == len(later.token_ids) == 1
        for request in (late, *others):  # what the caches hold, to the bit
            with model.session() as session:
                session.append(request.history[:-1])
                want = session.forward(request.history[-1:])
            held = batch._running[request]
            assert np.array_equal(held.forward(request.history[-1:]), want)
            held.rewind(held.position - 1)
        finish(batch, {})
    for request in (late, later, *others):
        assert request.text == alone(model, request)


def test_cancelling_frees_the_place_and_nothing_else(model: bitgen.Model) -> None:
    with Batch(model, 2, prefill=16) as batch:
        kept, reading = batch.submit(PROMPTS[0], 30, temperature=0), batch.submit(LONG, 30)
        waiting, last = batch.submit(PROMPTS[1], 30), batch.submit(PROMPTS[2], 20, seed=8)
        batch.step()
        batch.step()
        assert batch._running[reading].position > 0 and not reading.token_ids
        batch.cancel(reading)  # in its prompt
        batch.cancel(waiting)  # in the queue
        assert batch.step()[-1][0] is last and reading.finished and waiting.finished
        writing = batch.submit(PROMPTS[3], 25, temperature=0)
        while not last.finished:
            batch.step()
        batch.step()
        assert 0 < len(writing.token_ids) < 25
        batch.cancel(writing)  # in its text
        batch.cancel(writing)
        batch.cancel(last)  # which has ended
        begun = list(writing.token_ids)
        after = [batch.submit(PROMPTS[4], 10, temperature=0) for _ in range(3)]
        pieces = finish(batch, {})
    assert writing.token_ids == begun and writing not in pieces and not last.cancelled
    assert reading.token_ids == waiting.token_ids == []
    for request in (kept, last, *after):
        assert request.error is None and request.text == alone(model, request) != ""


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("word " * 600, "the prompt has .* tokens, the context holds 100"),
        ([1] * 100, "the prompt has 100 tokens, the context holds 100"),
        ([], "the prompt is empty"),
        ([1, 10**6], r"tokens must be .* ids in \[0, "),
        ([-1], r"tokens must be .* ids in \[0, "),
        ("\ud800", "surrogates"),
    ],
)
def test_a_wrong_prompt_fails_alone(model: bitgen.Model, prompt: str | list[int], words: str) -> None:
    with Batch(model, 2, context=100) as batch:
        good = batch.submit(PROMPTS[0], 10, temperature=0)
        batch.step()
        wrong = batch.submit(prompt, 10)
        also = batch.submit(PROMPTS[1], 10, temperature=0)
        assert wrong.finished and (wrong, "") in batch.step()
        finish(batch, {})
    with pytest.raises(BitgenError, match=words):
        raise wrong.error or AssertionError
    assert (good.text, also.text) == (alone(model, good), alone(model, also))


def test_a_session_that_fails_fails_alone(model: bitgen.Model) -> None:
    """The sampler refuses a history with a token that there is not."""
    with Batch(model, 3) as batch:
        requests = [batch.submit(prompt, 12, temperature=0) for prompt in PROMPTS[:3]]
        for _ in range(4):
            batch.step()
        requests[1].prompt_ids[0] = 10**6
        gained = dict(batch.step())
        assert isinstance(requests[1].error, EngineError) and gained[requests[1]] == ""
        assert [len(r.token_ids) for r in requests] == [5, 4, 5]
        later = batch.submit(PROMPTS[3], 12, temperature=0)  # in its place
        finish(batch, {})
    for request in (requests[0], requests[2], later):
        assert request.error is None and request.text == alone(model, request)


def test_a_text_ends_where_the_context_is_full(model: bitgen.Model) -> None:
    with Batch(model, 2, context=24) as batch:
        first, second = batch.submit(PROMPTS[2], 10**6, temperature=0, stop=False), batch.submit("A", 5, temperature=0)
        finish(batch, {})
    assert len(first.history) == 25 and first.error is None
    wanted = model.generate(PROMPTS[2], len(first.token_ids), temperature=0, stop=False)
    assert first.text == "".join(wanted) and second.text == alone(model, second)


def test_a_closed_batch_says_so(model: bitgen.Model) -> None:
    batch = Batch(model, 1)
    running, waiting = batch.submit("A", 10), batch.submit("A", 10)
    batch.step()
    (session,) = batch._running.values()
    batch.close()
    batch.close()
    assert running.finished and waiting.finished and not batch.busy
    for action in (batch.step, lambda: batch.submit("A")):
        with pytest.raises(EngineError, match="this batch is closed"):
            action()
    with pytest.raises(EngineError, match="this session is closed"):
        session.rewind(0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"size": 0}, "size is 0, must be a whole number from 1 to 4096"),
        ({"size": 1, "prefill": 0}, "prefill is 0, must be a whole number, 1 or more"),
        ({"size": 1, "cache": "int4"}, "cache is 'int4'"),
        ({"size": 2, "context": 0}, "context is 0, must be a whole number from 1 to 512"),
    ],
)
def test_wrong_batches_are_refused(model: bitgen.Model, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(BitgenError, match=words):
        Batch(model, **wrong)


@pytest.mark.parametrize("cache", ["f32", "int8"])
def test_caches(model: bitgen.Model, cache: Any) -> None:
    with Batch(model, 2, cache=cache) as batch:
        requests = [batch.submit(prompt, 20, temperature=0) for prompt in PROMPTS[:2]]
        finish(batch, {})
    for request in requests:
        assert request.text == "".join(model.generate(request.prompt_ids, 20, temperature=0, cache=cache))
