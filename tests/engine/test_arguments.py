"""Arguments of wrong types and values: each is refused by its name, and none is taken for something else."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import places
import pytest

import bitgen
from bitgen import api
from bitgen.engine import arguments
from bitgen.errors import ArgumentError, BitgenError, EngineError

GREEDY = bitgen.Sampling(temperature=0)


@pytest.fixture(scope="module")
def model() -> bitgen.Model:
    return bitgen.Model.load(threads=1)


@pytest.fixture
def session(model: bitgen.Model):  # type: ignore[no-untyped-def]
    with model.session(context=8) as opened:
        opened.append([1, 2])
        yield opened


def refused(call: Callable[[], Any], name: str, kind: type[Exception] = ArgumentError) -> str:
    """The one sentence of the error, which names the argument and says what is allowed."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert isinstance(caught.value, BitgenError) and len(text) < 300 and "\n" not in text
    assert re.match(rf"(the )?{name}", text) and ("must be" in text), text
    return text


WRONG_WHOLE: list[Any] = [2.5, "2", None, True, np.True_, math.nan, math.inf, [1], 1j, np.array(1), Fraction(2, 1)]
WRONG_REAL: list[Any] = ["0.7", None, True, [1.0], 1j, np.array(1.0)]
BEYOND: list[Any] = [-1, -(2**70), 2**70, 10**5000]


@pytest.mark.parametrize("value", WRONG_WHOLE[:2] + WRONG_WHOLE[3:])
@pytest.mark.parametrize("name", ["max_tokens", "prompt_lookup", "logprobs", "top_k", "repeat_last", "seed"])
def test_whole_numbers_of_a_generation(model: bitgen.Model, name: str, value: Any) -> None:
    if name != "logprobs" or value is not None:
        refused(lambda: model.generate("A", **{name: value}), name, TypeError)
    refused(lambda: model.generate("A", **{name: -1}), name, ValueError)


@pytest.mark.parametrize("value", WRONG_WHOLE + BEYOND + [0], ids=arguments.shown)
def test_threads_positions_and_places(model: bitgen.Model, session: bitgen.Session, value: Any) -> None:
    """None is the default of threads and of context."""
    calls: dict[str, list[Callable[[], Any]]] = {
        "threads": [lambda: model.session(threads=value), lambda: bitgen.Model.load(threads=value)],
        "context": [lambda: model.session(context=value), lambda: session.share(value)],
        "batch": [lambda: model.generate_many(["A"], 1, batch=value)],
        "size": [lambda: bitgen.Batch(model, value, context=8)],
        "position": [lambda: session.rewind(value)] if value != 0 else [],
        "step": [lambda: session.next([1], GREEDY, [1], value)] if value != 0 else [],
        "count": [lambda: session.next([1], GREEDY, [1], 0, value)] if value != 0 else [],
    }
    for name, several in calls.items():
        for call in several if value is not None or name not in ("threads", "context") else []:
            refused(call, name)
    assert session.position == 2


def test_limits_are_said(model: bitgen.Model, session: bitgen.Session) -> None:
    assert "from 1 to 512" in refused(lambda: model.session(context=513), "context")
    assert "from 1 to 1024" in refused(lambda: model.session(threads=1025), "threads")
    assert "from 0 to 2" in refused(lambda: session.rewind(3), "position")
    assert "from 0 to 1" in refused(lambda: session.next([1], GREEDY, [1], 0, 2), "count")
    pool = (places.REPO / "runtime" / "core" / "pool.h").read_text()
    assert f"MAX_THREADS = {arguments.MOST_THREADS} " in pool


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repeat_penalty"])
def test_numbers_of_a_sampling(name: str) -> None:
    """What is finite in double is refused where float32 makes it infinite, or a 0 that means something else."""
    for value in WRONG_REAL:
        refused(lambda value=value: bitgen.Sampling(**{name: value}), name, TypeError)
    wrong: list[Any] = [math.nan, math.inf, -math.inf, -1, 1e39, 10**5000]
    wrong += [0, 1e-50] if name in ("top_p", "repeat_penalty") else []
    wrong += [1.0000001, 2] if name in ("top_p", "min_p") else []
    for value in wrong:
        refused(lambda value=value: bitgen.Sampling(**{name: value}), name, ValueError)
    for value in (np.float32(0.5), np.float16(1), np.int64(1), 1, 1e-20, Fraction(1, 2)):
        assert getattr(bitgen.Sampling(**{name: value}), name) == float(value)


def test_numpy_numbers_are_numbers(model: bitgen.Model) -> None:
    """Small types too, in which sums of them would not fit."""
    want = "".join(model.generate([5] * 100, 100, temperature=0, top_k=3, seed=7, stop=False))
    sampling = bitgen.Sampling(np.float32(0), np.int8(3), seed=np.uint64(7))  # type: ignore[arg-type]
    assert "".join(model.generate(np.full(100, 5, np.uint8), np.int8(100), sampling=sampling, stop=np.False_)) == want  # type: ignore[arg-type]
    with model.session(threads=np.int64(1), context=np.int16(8)) as session:  # type: ignore[arg-type]
        assert session.forward(np.array([1, 2], np.uint16)).shape == (model.shape.vocab,)  # type: ignore[arg-type]
        session.rewind(np.int8(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "stop", [None, 1, b"x", ["x", b"y"], [5], {"x"}, {"x": 1}, [["x"]], "", [], [""], ["a", ""], "\ud800"]
)
def test_wrong_stops(model: bitgen.Model, stop: Any) -> None:
    kind = ValueError if stop in ("", [], [""], ["a", ""], "\ud800") else TypeError
    refused(lambda: model.generate("A", stop=stop), "stop", kind)
    refused(lambda: model.generate_many(["A"], stop=stop), "stop", kind)
    refused(lambda: model.chat([{"role": "user", "content": "A"}], template="llama3", stop=stop), "stop", kind)
    with bitgen.Batch(model, 1, context=8) as batch:
        refused(lambda: batch.submit("A", stop=stop), "stop", kind)
    with bitgen.Chat(model, template="llama3") as chat:
        refused(lambda: chat.say("A", stop=stop), "stop", kind)


@pytest.mark.parametrize("value", ["Once", b"Once", None, 5, {"a": 1}, {"a"}, itertools.repeat("a"), np.array("a")])
def test_what_is_no_list_of_texts(model: bitgen.Model, value: Any) -> None:
    refused(lambda: model.embed(value), "texts", TypeError)
    refused(lambda: model.generate_many(value, 1), "prompts", TypeError)
    refused(lambda: api.embed(model, value), "texts", TypeError)


@pytest.mark.parametrize("value", [5, None, b"a", ["a"]])
def test_what_is_no_text(model: bitgen.Model, value: Any) -> None:
    refused(lambda: model.embed(["a", value]), r"texts\[1\]", TypeError)
    refused(lambda: model.generate_many(["a", value], 1), "prompt", TypeError)
    refused(lambda: model.score(value), "text", TypeError)
    refused(lambda: model.score("a", value), "context", TypeError)
    refused(lambda: api.perplexity(model, value), "text", TypeError)


TYPES: list[Any] = [
    *(None, 5, 2.5, b"Once", bytearray(b"a"), memoryview(b"a"), {1: 2}, {1}, itertools.count(), np.array(5)),
    *([1.0, 2.5, 3], [1, True], [np.True_, 2], [None], ["a"], [[1, 2]], [[1], [1, 2]], [math.nan], [1j]),
    *(np.array([1.0]), np.array([True]), np.array([[1, 2]]), np.array(["a"]), np.array([None, 1])),
]  # fmt: skip
OUTSIDE: list[Any] = [[-1], [4096], [0, 2**40], [2**70], [-(2**70)], np.array([2**64 - 1], np.uint64), [2**63, -1]]


@pytest.mark.parametrize("ids", TYPES + OUTSIDE, ids=lambda ids: type(ids).__name__)  # addresses differ by worker
def test_what_is_no_list_of_ids(model: bitgen.Model, session: bitgen.Session, ids: Any) -> None:
    kind = ValueError if any(ids is each for each in OUTSIDE) else TypeError
    refused(lambda: model.generate(ids), "prompt", kind)
    refused(lambda: model.logits(ids), "tokens", kind)
    for call in (session.forward, session.append, lambda t: session.next(t, GREEDY, t, 0)):
        refused(lambda call=call: call(ids), "tokens", kind)
    if kind is TypeError:
        refused(lambda: session.next([1], GREEDY, ids, 0), "history")
        refused(lambda: session.sample(GREEDY, np.zeros(4096, np.float32), ids, 0), "history")
    assert session.position == 2


@pytest.mark.parametrize("ids", [[], (), np.array([], np.int64), np.array([])])
def test_no_ids(model: bitgen.Model, session: bitgen.Session, ids: Any) -> None:
    with pytest.raises(BitgenError, match="the prompt is empty"):
        model.generate(ids)
    with pytest.raises(ArgumentError, match="tokens must be a non-empty list of ids"):
        session.forward(ids)


@pytest.mark.parametrize("ids", [(1, 2), range(1, 3), np.array([1, 2], np.uint8), [np.int16(1), 2]])
def test_lists_of_ids(model: bitgen.Model, session: bitgen.Session, ids: Any) -> None:
    assert np.array_equal(session.forward(ids), model.logits([1, 2, 1, 2])[-1])
    assert session.next([5], bitgen.Sampling(0, repeat_penalty=1e9), ids, 0) not in ([1], [2])


LOGITS = np.zeros(4096, np.float32)


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        (np.zeros(3, np.float32), r"float32 \[3\]"),
        (np.zeros(4097, np.float32), r"float32 \[4097\]"),
        (LOGITS[None], r"float32 \[1, 4096\]"),
        (np.float32(0), "0.0"),
        ([0.0] * 4096, r"\[0.0, 0.0,"),
        (None, "None"),
        (LOGITS.astype(np.float64), r"float64 \[4096\]"),
        (LOGITS.astype(np.float16), r"float16 \[4096\]"),
        (LOGITS.astype(LOGITS.dtype.newbyteorder()), r"f4 \[4096\]"),
        (np.zeros(8192, np.float32)[::2], r"strides of \(8,\) bytes"),
        (LOGITS[::-1], r"strides of \(-4,\) bytes"),
        (np.zeros(4096 * 4 + 1, np.uint8)[1:].view(np.float32), "strides"),
        (np.full(4096, np.nan, np.float32), "NaN"),
        (np.where(np.arange(4096) == 4000, np.float32(np.nan), LOGITS), "NaN"),
        (np.where(np.arange(4096) == 4000, np.float32(np.inf), LOGITS), "infinity"),
        (np.full(4096, -np.inf, np.float32), "no token is possible"),
    ],
)
def test_wrong_logits(session: bitgen.Session, logits: Any, words: str) -> None:
    for sampling in (GREEDY, bitgen.Sampling()):
        text = refused(lambda sampling=sampling: session.sample(sampling, logits, [], 0), "logits")
        assert re.search(words, text) and "float32 [4096]" in text


def test_logits_may_mask_tokens(session: bitgen.Session) -> None:
    masked = np.where(np.arange(4096) == 7, np.float32(-3), np.float32(-np.inf))
    masked.flags.writeable = False  # they are only read
    for sampling in (GREEDY, bitgen.Sampling(1e30), bitgen.Sampling(1e-40), bitgen.Sampling(top_p=1e-44)):
        assert session.sample(sampling, masked, [7], 0) == 7


def test_results_are_the_callers(session: bitgen.Session) -> None:
    """Arrays that later calls do not change, and which may be written to."""
    first, rows = session.forward([1]), session.forward([2, 3], every=True)
    kept = first.copy(), rows.copy()
    session.forward([9, 9], every=True)
    assert np.array_equal(first, kept[0]) and np.array_equal(rows, kept[1])
    first[:], rows[:] = 0, 0
    session.rewind(2)
    assert np.array_equal(session.forward([1]), kept[0])


def test_lists_of_sessions(model: bitgen.Model, session: bitgen.Session) -> None:
    choice = bitgen.Choice(GREEDY, [1], 0)
    for call, name in (
        (lambda: bitgen.forward_batch(session, [[1]]), "sessions"),  # type: ignore[arg-type]
        (lambda: bitgen.forward_batch([session, 5], [[1], [1]]), "sessions"),  # type: ignore[list-item]
        (lambda: bitgen.forward_batch([session], None), "tokens"),  # type: ignore[arg-type]
        (lambda: bitgen.forward_batch([session], [[1], [2]]), "tokens"),
        (lambda: bitgen.forward_batch([session], [[1]], every="no"), "every"),  # type: ignore[arg-type]
        (lambda: bitgen.next_batch([session], [[1]], None), "choices"),  # type: ignore[arg-type]
        (lambda: bitgen.next_batch([session], [[1]], [GREEDY]), "choices"),  # type: ignore[list-item]
        (lambda: bitgen.next_batch([session], [[1]], [choice, choice]), "there are 2 choices"),
        (lambda: session.next([1, 2], GREEDY, [1], 0, 2), "history"),
        (lambda: session.next([1], None, [1], 0), "sampling"),  # type: ignore[arg-type]
        (lambda: session.sample({"top_k": 1}, LOGITS, [], 0), "sampling"),  # type: ignore[arg-type]
        (lambda: session.profile("on"), "on"),  # type: ignore[arg-type]
    ):
        refused(call, name)
    with model.session(context=8) as other, pytest.raises(EngineError, match="differ, share"):
        bitgen.forward_batch([session, other], [[1], [1]])
    assert session.position == 2


def test_sampling_is_given_once(model: bitgen.Model) -> None:
    with bitgen.Batch(model, 1, context=8) as batch:
        for call in (model.generate, model.generate_many, batch.submit):
            prompt: Any = ["A"] if call == model.generate_many else "A"
            with pytest.raises(ArgumentError, match="give temperature or sampling, not both"):
                call(prompt, sampling=GREEDY, temperature=1)
            with pytest.raises(TypeError, match=r"there is no temprature; .* are temperature, top_k"):
                call(prompt, temprature=1)
            refused(lambda call=call, prompt=prompt: call(prompt, sampling={"temperature": 0}), "sampling", TypeError)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"head": "f32"}, "head"),
        ({"head": ["f16"]}, "head"),
        ({"tl_tiles": None}, "tl_tiles"),
        ({"isa": []}, "isa"),
        ({"progress": 5}, "progress"),
        ({"path": 5}, "path"),
        ({"path": b"model.gguf"}, "path"),
        ({"path": ""}, "path"),
    ],
)
def test_loading(wrong: dict[str, Any], name: str) -> None:
    refused(lambda: bitgen.Model.load(**wrong), name)


@pytest.mark.parametrize("cache", ["f8", None, 5, ["f16"], b"f16"])
def test_caches(model: bitgen.Model, cache: Any) -> None:
    calls = (
        model.session,
        lambda cache: model.generate("A", cache=cache),
        lambda cache: model.logits([1], cache=cache),
    )
    for call in (*calls, lambda cache: bitgen.Batch(model, 1, cache=cache)):
        assert "one of f16, f32, int8" in refused(lambda call=call: call(cache=cache), "cache")


@pytest.mark.parametrize("pooling", ["max", 5, ["mean"], ""])
def test_poolings(model: bitgen.Model, pooling: Any) -> None:
    assert "one of mean, cls, last" in refused(lambda: model.embed(["a"], pooling=pooling), "pooling")


def test_a_prompt_beyond_the_context(model: bitgen.Model) -> None:
    with pytest.raises(ArgumentError, match="tokens has 513 ids, the model's context holds 512"):
        model.logits([1] * 513)


def test_the_verbs(model: bitgen.Model, tmp_path: Path) -> None:
    for wrong, name in (
        ({"threads": 2}, "threads"),
        ({"threads": [0]}, "threads"),
        ({"threads": [10**6]}, "threads"),
        ({"prompt": 128}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"gen": 2.5}, "gen"),
        ({"contexts": "12"}, "contexts"),
        ({"batches": [10**6]}, "batches"),
    ):
        refused(lambda wrong=wrong: api.bench(model, **wrong), name)
    refused(lambda: api.perplexity(model, "a b", ctx=2.5), "ctx")  # type: ignore[arg-type]
    refused(lambda: api.perplexity(model, "a b", ctx=16, stride=16), "stride")
    refused(lambda: api.synth("2B4T", tmp_path / "m.gguf", seed=1.5), "seed")  # type: ignore[arg-type]
    refused(lambda: api.tune("2B4T", effort="slow"), "effort")  # type: ignore[arg-type]
    refused(lambda: api.tune("2B4T", threads=0), "threads")
    refused(lambda: api.standalone("2B4T", head="f32"), "head")  # type: ignore[arg-type]
    refused(lambda: api.shape_of(5), "model")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="isa, threads: the model is open already"):
        api.generate(model, "A", threads=4, isa="scalar")
    assert api.load(model, progress=print) is model


def test_values_of_errors_are_short() -> None:
    class Loud:
        def __repr__(self) -> str:
            raise RuntimeError

    for value in ("x" * 10**6, [1] * 10**6, 10**5000, Loud(), {"a": ["x" * 10**5] * 100}):
        refused(lambda value=value: bitgen.Sampling(seed=value), "seed")
