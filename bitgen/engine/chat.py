"""Conversations: chat templates, and a dialogue whose KV cache outlives its turns.

A template is a Jinja2 program that comes with the model, so it runs in a sandbox and within limits
(bitgen/text/rendering.py). Tokens that mean something to the model (turn ends, headers) are taken from the template's
own text only: what a user types stays text.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from bitgen import data
from bitgen.engine import arguments
from bitgen.engine.generate import Generation
from bitgen.engine.opened import Cache, OpenedModel, check_model
from bitgen.engine.ownership import Uncopied
from bitgen.engine.sampling import Sampling
from bitgen.engine.session import Session
from bitgen.engine.stops import Stop, stops_of
from bitgen.errors import ArgumentError, ArgumentTypeError, BitgenError, FormatError, UnsupportedError
from bitgen.text.chat_templates import MISSING, NAMED, corrected
from bitgen.text.rendering import Template
from bitgen.text.tokenizer import Tokenizer

Message = Mapping[str, str]

ROLES = ("system", "user", "assistant")

MARKS = range(0xE000, 0xF8FF)
"""Private-use characters, of which one that no message holds marks what must stay text."""


class ChatModel(OpenedModel, Protocol):
    """What a dialogue needs of a model."""

    @property
    def about(self) -> str:
        """One line that says what it is."""

    @property
    def chat_template(self) -> str | None:
        """The template in its file, if there is one."""

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """All templates in its file, by name."""


def source_of(model: ChatModel, chosen: str | None = None) -> str:
    """The text of a model's template: `chosen` (a name of NAMED, a name in the model's file, or a file), else what the
    model's file carries by default, unless that is known to be wrong. UnsupportedError where there is none."""
    if chosen in NAMED:
        return NAMED[chosen]
    if chosen is not None:
        if chosen in model.chat_templates:
            return model.chat_templates[chosen]
        try:
            return data.regular(Path(chosen)).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, FormatError) as e:
            known = ", ".join([*NAMED, *model.chat_templates])
            raise BitgenError(f"chat template {chosen!r}: neither one of {known} nor a readable file ({e})") from None
    found = model.chat_template or MISSING.get((model.shape.architecture, model.shape.vocab))
    if found is None and model.chat_templates:
        raise UnsupportedError(
            f"this model carries chat templates, but none by default; choose one: "
            f"--chat-template {'|'.join(model.chat_templates)}"
        )
    if found is None:
        raise UnsupportedError(
            "this model carries no chat template: it continues texts (bitgen run). "
            f"If it was trained to answer, name its template: --chat-template {'|'.join(NAMED)} or a file"
        )
    return corrected(found)


def messages_of(name: str, value: Any) -> list[dict[str, str]]:
    """A conversation that ends with what is to be answered, as an argument gives it; ArgumentError where it is none."""
    messages = arguments.items(name, value, 'messages, {"role": ..., "content": ...}')
    for i, message in enumerate(messages):
        _check_message(f"{name}[{i}]", message)
    if not messages or messages[-1]["role"] == "assistant":
        ends = "ends with an answer" if messages else "is empty"
        raise ArgumentError(f"{name} {ends}, must be a conversation whose last message is to be answered")
    return [dict(message) for message in messages]


def _check_message(name: str, message: Any, roles: Sequence[str] = ROLES) -> None:
    """ArgumentError unless it is a role and what that said."""
    if not isinstance(message, Mapping):
        raise ArgumentTypeError(f'{name} is {arguments.shown(message)}, must be {{"role": ..., "content": ...}}')
    if set(message) != {"role", "content"}:
        keys = arguments.shown(list(message))
        raise ArgumentError(f'{name} has the keys {keys}, must be {{"role": ..., "content": ...}}, a text each')
    arguments.one_of(f"{name}['role']", message["role"], roles)
    arguments.text(f"{name}['content']", message["content"])


def template_of(model: ChatModel, chosen: str | None, compiled: dict[str, ChatTemplate]) -> ChatTemplate:
    """A model's chat template: `chosen` as of `source_of`. compiled: those that are, by their text."""
    source = source_of(model, None if chosen is None else arguments.text("template", chosen))
    if source not in compiled:
        name = "the model's chat template" if chosen is None else f"the chat template {chosen!r}"
        compiled[source] = ChatTemplate(source, model.tokenizer, name)
    return compiled[source]


class ChatTemplate:
    """Messages to token ids, by a Jinja2 template in the sandbox."""

    def __init__(self, source: str, tokenizer: Tokenizer, name: str = "the chat template") -> None:
        self._template, self._tokenizer = Template(source, name), tokenizer

    def render(self, messages: Sequence[Message], answer: bool = True) -> str:
        """The text of a conversation, as transformers' apply_chat_template makes it; with `answer`, up to where the
        model's answer begins."""
        context = {"messages": [dict(m) for m in messages], "add_generation_prompt": answer}
        return self._template.render({**context, "tools": None, "documents": None, **self._tokenizer.special_words})

    def encode(self, messages: Sequence[Message], answer: bool = True) -> list[int]:
        """Ids of a conversation, begin-of-text exactly once. What messages say is text, whatever it looks like."""
        if not any(self._special.search(text) for m in messages for text in m.values()):
            return self._tokenizer.encode(self.render(messages, answer))
        used = set("".join(text for m in messages for text in m.values()))
        mark = next((chr(c) for c in MARKS if chr(c) not in used), None)
        if mark is None:
            raise BitgenError("a message holds every private-use character of Unicode; leave some out")

        def disarm(text: str) -> str:
            return self._special.sub(lambda found: found[0][0] + mark + found[0][1:], text)

        rendered = self.render([{key: disarm(text) for key, text in m.items()} for m in messages], answer)
        ids: list[int] = []
        for i, part in enumerate(re.split(f"({self._special.pattern})", rendered)):
            if part:  # every second one is a control token
                ids += self._tokenizer.encode(part.replace(mark, ""), add_bos=False, parse_special=i % 2 == 1)
        bos = self._tokenizer.bos
        return [bos, *ids] if self._tokenizer.add_bos and bos is not None and ids[:1] != [bos] else ids

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Finds control tokens, the longest first."""
        words = sorted(self._tokenizer.control_words, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, words)) or r"(?!)")


@dataclass(eq=False, repr=False)
class Chat(Uncopied):
    """A dialogue with a model: `say` streams the answer. For one thread at a time; close it, or use it with `with`.

    Tokens that two turns begin with stay in the KV cache. Where the context is full, the oldest turns are forgotten,
    but not the system message; `dropped` counts them.
    """

    model: ChatModel
    system: str | None = None
    template: str | None = None  # a name of NAMED or in the model's file, or a file; None: the model's
    context: int | None = None
    cache: Cache = "f16"
    messages: list[Message] = field(default_factory=list)  # without the system message
    dropped: int = field(default=0, init=False)
    answer: Generation | None = field(default=None, init=False)  # the latest

    def __post_init__(self) -> None:
        check_model(self.model)
        if self.system is not None:
            arguments.text("system", self.system)
        for i, message in enumerate(arguments.items("messages", self.messages, "messages")):
            _check_message(f"messages[{i}]", message, ("user", "assistant"))
        self.messages = list(self.messages)  # not the caller's, which would grow
        self._template = template_of(self.model, self.template, {})
        self._session = Session(self.model, context=self.context, cache=self.cache)

    def say(
        self,
        text: str,
        max_tokens: int = 1024,
        sampling: Sampling | None = None,
        *,
        stop: Stop = True,
        **options: Any,
    ) -> Generator[str, None, None]:
        """Answer a message, piece by piece. sampling, options, stop: as of `Model.generate`; the n-th turn's seed is
        n - 1 more than the one given.

        The message and its answer join `messages` once the answer is complete, or broken off after its first token (the
        iterator is closed, an interrupt, an error): then with as much as was said. A turn that fails before leaves the
        dialogue as it was.
        """
        arguments.text("text", text)
        limit, first = arguments.checked("max_tokens", max_tokens), self.model.sampling.given(sampling, options)
        stops_of(stop, self.model.tokenizer)
        return self._say(text, limit, first, stop)

    def _say(self, text: str, max_tokens: int, first: Sampling, stop: Stop) -> Generator[str, None, None]:
        ids, kept, dropped = self._fit({"role": "user", "content": text}, max_tokens)
        turn = sum(m["role"] == "user" for m in kept) + dropped
        own = replace(first, seed=(first.seed + turn - 1) % 2**64)
        generation = Generation(self.model, ids, max_tokens, stop, own, session=self._session)
        self.answer, complete = generation, False
        try:
            yield from generation
            complete = True
        finally:
            if complete or generation.token_ids:
                self.messages[:] = [*kept, {"role": "assistant", "content": generation.text}]
                self.dropped = dropped

    @property
    def capacity(self) -> int:
        """Tokens of the context."""
        return self._session.context

    @property
    def position(self) -> int:
        """Tokens of the context that are in use."""
        return self._session.position

    def room(self, max_tokens: int) -> int:
        """Tokens that a conversation and its next message may have, so that an answer has room."""
        most: int = arguments.checked("max_tokens", max_tokens)
        return self.capacity - min(most, self.capacity // 4)

    def forgets(self, text: str, max_tokens: int = 1024) -> int:
        """Turns that a message would push out of the context. BitgenError where it cannot be answered at all."""
        return self._fit({"role": "user", "content": arguments.text("text", text)}, max_tokens)[2] - self.dropped

    def clear(self) -> None:
        """Forget all turns; the system message stays."""
        self.messages.clear()
        self.dropped = 0

    def close(self) -> None:
        """Free the session's buffers."""
        self._session.close()

    def _fit(self, message: Message, max_tokens: int) -> tuple[list[int], list[Message], int]:
        """Ids of the conversation with one more message, its oldest turns left out until an answer has room; the
        messages that stay, and how many turns are left out by now."""
        room = self.room(max_tokens)
        first: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        kept, dropped = [*self.messages, message], self.dropped
        while len(ids := self._template.encode([*first, *kept])) > room:
            if len(kept) <= 1:
                raise BitgenError(
                    f"the message has {len(ids)} tokens with its frame, the context of {self._session.context} "
                    f"has room for {room}; shorten it"
                )
            del kept[:2]
            dropped += 1
        return ids, kept, dropped

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        turns = sum(m["role"] == "user" for m in self.messages)
        return f"<Chat with {self.model.shape.name}: {turns} turns, {self.dropped} more forgotten, {self._session!r}>"
