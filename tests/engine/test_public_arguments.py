"""Every argument of every public call, by its name: values of wrong types and beyond what is allowed are refused with
one sentence that names it. A parameter without a row here fails the test."""

from __future__ import annotations

import inspect
import math
import pydoc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitgen
from bitgen import api
from bitgen.errors import ArgumentError

NOT_WHOLE: list[Any] = [1.5, "2", True, None, math.nan, [1]]
NOT_TEXT: list[Any] = [5, b"a", ["a"], None]
NOT_IDS: list[Any] = ["text", b"ids", None, 5, [1.5], ["a"], [True], [-1], [10**9], [None]]
NOT_FLAG: list[Any] = [1, "yes", None]
SESSIONS: list[Any] = [None, 5, "ab", [5]]


def whole(least: int, *more: Any, none: bool = False) -> list[Any]:
    """Values that are no whole numbers from `least` on."""
    return [*(value for value in NOT_WHOLE if value is not None or not none), least - 1, -(2**70), *more]


def real(*more: Any) -> list[Any]:
    return ["0.5", None, True, math.nan, math.inf, -1, *more]


WRONG: dict[str, list[Any]] = {
    "model": [None, 5, "stories.gguf", object()],
    "path": [5, b"m.gguf", "", ["m.gguf"]],
    "threads": whole(1, 10**6, none=True),
    "isa": [5, b"avx2", ["avx2"]],
    "head": ["f32", "", None, 5],
    "i2s_layout": ["arm64", "", None, 5],
    "activation": ["relu", "", 5, b"silu"],
    "tl_tiles": [None, 5, b""],
    "download": NOT_FLAG,
    "progress": [5, "bar", ["bar"]],
    "context": whole(1, 10**6, none=True),
    "cache": ["f64", "", None, 5],
    "beside": [5, "session"],
    "tokens": NOT_IDS,
    "texts": ["a", None, 5, [5], [b"a"], {"a": 1}],
    "pooling": ["max", "", 5],
    "prompt": [None, 5, 2.5, {1}, *NOT_IDS[4:]],
    "prompts": [None, 5, "a", b"a", [None], [5]],
    "max_tokens": whole(0),
    "stop": [None, 5, b"a", [b"a"], "", [], [""]],
    "sampling": ["greedy", {"temperature": 0}, 0.7],
    "prompt_lookup": whole(0),
    "logprobs": whole(0, none=True),
    "session": [5, "session"],
    "messages": [None, "hello", {"role": "user"}, ["hello"], [{"role": "user"}]],
    "template": [5, b"llama3"],
    "system": [5, b"be kind"],
    "text": NOT_TEXT,
    "batch": whole(1, 10**6),
    "size": whole(1, 10**6),
    "prefill": whole(1),
    "request": [None, 5, "first"],
    "every": NOT_FLAG,
    "on": NOT_FLAG,
    "position": whole(0, 10**6),
    "step": whole(0, 2**64),
    "count": whole(0, 10**6),
    "history": [None, 5, "ab", b"ab", {1}],
    "logits": [None, [0.0], np.zeros(3, np.float32), np.full(4096, np.nan, np.float32)],
    "sessions": SESSIONS,
    "choices": [None, 5, [5], "a"],
    "generation": [None, 5, "text"],
    "temperature": real(1e39, 10**400),
    "top_k": whole(0, 2**31),
    "top_p": real(0, 1e-50, 1.5),
    "min_p": real(1.5),
    "repeat_penalty": real(0, 1e39, 1e31),
    "repeat_last": whole(0, 2**31),
    "seed": whole(0, 2**64),
    "ctx": whole(4, 10**6),
    "stride": whole(0, 10**6),
}
"""Parameter -> values that no call takes."""
OTHERWISE: dict[tuple[str, str], list[Any]] = {
    ("Model.score", "context"): NOT_TEXT,
    ("Session.next", "sampling"): [None, "greedy", {}],
    ("Session.sample", "sampling"): [None, "greedy", {}],
    ("Choice", "sampling"): [None, "greedy", {}],
    ("Choice", "count"): whole(0, 2**31),
    ("Batch.submit", "prompt"): [None, 5, 2.5, {1}],  # ids that are none are the request's error
    ("forward_batch", "tokens"): [None, 5, "ab", [["a"]], [[1.5]], [[-1]]],
    ("next_batch", "tokens"): [None, 5, "ab", [["a"]], [[1.5]], [[-1]]],
    ("Chat", "messages"): [None, "hello", ["hello"], [{"role": "system", "content": "a"}]],
    ("api.load", "model"): [5, b"m.gguf", ""],
    ("api.generate", "model"): [5, b"m.gguf", ""],
    ("api.chat", "model"): [5, b"m.gguf", ""],
    ("api.embed", "model"): [5, b"m.gguf", ""],
    ("api.perplexity", "model"): [5, b"m.gguf", ""],
}
"""Where a call gives a name another meaning."""
LATER = {("Choice", "history")}
"""Looked at when they are used."""


@pytest.fixture(scope="module")
def model() -> bitgen.Model:
    return bitgen.Model.load(threads=1)


@pytest.fixture(scope="module")
def opened(model: bitgen.Model) -> Iterator[dict[str, Any]]:
    with model.session(context=16) as session, bitgen.Batch(model, 1, context=16) as batch:
        session.append([1, 2])
        yield {"session": session, "batch": batch, "chat": bitgen.Chat(model, template="llama3", context=64)}


def calls(model: bitgen.Model, of: dict[str, Any]) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Name -> (public call, arguments that it takes)."""
    session, batch, chat = of["session"], of["batch"], of["chat"]
    greedy = bitgen.Sampling(temperature=0)
    message = [{"role": "user", "content": "a"}]
    one_of_each = {"tokens": [1], "sampling": greedy, "history": [1, 2, 1], "step": 0}
    return {
        "Model.load": (bitgen.Model.load, {}),
        "Model.session": (model.session, {}),
        "Model.logits": (model.logits, {"tokens": [1]}),
        "Model.embed": (model.embed, {"texts": ["a"]}),
        "Model.score": (model.score, {"text": "a b"}),
        "Model.generate": (model.generate, {"prompt": "a"}),
        "Model.agenerate": (model.agenerate, {"prompt": "a"}),
        "Model.chat": (model.chat, {"messages": message, "template": "llama3"}),
        "Model.generate_many": (model.generate_many, {"prompts": ["a"], "max_tokens": 1}),
        "Session": (bitgen.Session, {"model": model, "context": 8}),
        "Session.append": (session.append, {"tokens": [1]}),
        "Session.forward": (session.forward, {"tokens": [1]}),
        "Session.next": (session.next, one_of_each),
        "Session.sample": (
            session.sample,
            {"sampling": greedy, "logits": np.zeros(4096, np.float32), "history": [], "step": 0},
        ),
        "Session.rewind": (session.rewind, {"position": 1}),
        "Session.share": (session.share, {}),
        "Session.profile": (session.profile, {"on": False}),
        "Session.save": (session.save, {"path": "x"}),
        "Session.restore": (session.restore, {"path": "x"}),
        "Batch": (bitgen.Batch, {"model": model, "size": 1, "context": 8}),
        "Batch.submit": (batch.submit, {"prompt": "a"}),
        "Batch.cancel": (batch.cancel, {"request": None}),
        "Chat": (bitgen.Chat, {"model": model, "template": "llama3", "context": 64}),
        "Chat.say": (chat.say, {"text": "a"}),
        "Chat.room": (chat.room, {"max_tokens": 1}),
        "Chat.forgets": (chat.forgets, {"text": "a"}),
        "AsyncGeneration": (bitgen.AsyncGeneration, {"generation": model.generate("a")}),
        "Generation": (bitgen.Generation, {"model": model, "prompt": "a"}),
        "Choice": (bitgen.Choice, {"sampling": greedy, "history": [1], "step": 0}),
        "Sampling": (bitgen.Sampling, {}),
        "forward_batch": (bitgen.forward_batch, {"sessions": [session], "tokens": [[1]]}),
        "next_batch": (
            bitgen.next_batch,
            {"sessions": [session], "tokens": [[1]], "choices": [bitgen.Choice(greedy, [1], 0)]},
        ),
        "api.load": (api.load, {}),
        "api.generate": (api.generate, {"model": model, "prompt": "a"}),
        "api.chat": (api.chat, {"model": model, "template": "llama3", "context": 64}),
        "api.embed": (api.embed, {"model": model, "texts": ["a"]}),
        "api.perplexity": (api.perplexity, {"model": model, "text": "a b c d", "ctx": 4}),
    }


NAMES = [
    "Model.load", "Model.session", "Model.logits", "Model.embed", "Model.score", "Model.generate", "Model.agenerate",
    "Model.chat", "Model.generate_many", "Session", "Session.append", "Session.forward", "Session.next",
    "Session.sample", "Session.rewind", "Session.share", "Session.profile", "Session.save", "Session.restore", "Batch",
    "Batch.submit", "Batch.cancel", "Chat", "Chat.say", "Chat.room", "Chat.forgets", "AsyncGeneration", "Generation",
    "Choice", "Sampling",
    "forward_batch", "next_batch", "api.load", "api.generate", "api.chat", "api.embed", "api.perplexity",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_argument(model: bitgen.Model, opened: dict[str, Any], name: str) -> None:
    call, right = calls(model, opened)[name]
    before = opened["session"].tokens
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD or (name, parameter.name) in LATER:
            continue
        for value in OTHERWISE.get((name, parameter.name)) or WRONG[parameter.name]:
            if value is None and parameter.default is None:
                continue
            with pytest.raises(ArgumentError) as caught:
                call(**{**right, parameter.name: value})
            text = str(caught.value)
            assert parameter.name in text and "must be" in text, (parameter.name, value, text)
            assert "\n" not in text and len(text) < 400
    assert opened["session"].tokens == before and not list(Path.cwd().glob("x"))


def test_the_table_has_every_public_call(model: bitgen.Model, opened: dict[str, Any]) -> None:
    known = calls(model, opened)
    assert list(known) == NAMES
    for name in bitgen.__all__:
        of = getattr(bitgen, name)
        if isinstance(of, type) and issubclass(of, BaseException):
            continue
        assert name in known or name == "Model", f"{name} is public: add it"
        for method, value in vars(of).items() if isinstance(of, type) else ():
            takes = callable(value) or isinstance(value, classmethod)
            if takes and not method.startswith("_") and len(inspect.signature(getattr(of, method)).parameters) > 1:
                assert f"{name}.{method}" in known or method in ("accept", "given"), f"{name}.{method}: add it"


@pytest.mark.parametrize("name", ["Model.generate", "Model.chat", "Batch.submit", "Chat.say", "Model.generate_many"])
def test_parameters_of_sampling(model: bitgen.Model, opened: dict[str, Any], name: str) -> None:
    call, right = calls(model, opened)[name]
    for field in bitgen.Sampling.__dataclass_fields__:
        for value in WRONG[field]:
            with pytest.raises(ArgumentError, match=f"^{field} is"):
                call(**right, **{field: value})
    with pytest.raises(TypeError, match="there is no heat; the parameters of sampling are temperature, top_k"):
        call(**right, heat=1)


def test_help_lists_what_is_there() -> None:
    text = pydoc.plain(pydoc.render_doc(bitgen))
    for name in bitgen.__all__:
        assert hasattr(bitgen, name) and name in text
    verbs = str(bitgen.__doc__).partition("has the verbs of the command line: ")[2].partition(".")[0]
    named = [verb.strip() for verb in verbs.replace("\n", " ").split(",")]
    assert len(named) > 10 and all(callable(getattr(api, verb)) for verb in named)
