"""One text in the making: prefill, then a token or a few at a time, with prompt lookup or log probabilities."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

from bitgen.engine import arguments
from bitgen.engine.opened import CACHES, Cache, OpenedModel, check_model
from bitgen.engine.ownership import Uncopied
from bitgen.engine.prompt_lookup import PromptLookup
from bitgen.engine.sampling import Sampling
from bitgen.engine.score import TokenChoice
from bitgen.engine.session import Session
from bitgen.engine.stops import Stop, StoppedText, stops_of
from bitgen.errors import ArgumentError, BitgenError, EngineError

PREFILL_AT_ONCE = 512  # tokens of one call, so that an interrupt or a cancelled task is heard between two


Stopped = Literal["", "stop token", "stop string", "length", "context full"]
"""Why a text ended: length: it has as many tokens as were asked for; "": it has not ended."""


@dataclass
class Timing:
    """Seconds and token counts of one generation."""

    load_s: float = 0.0
    prompt_tokens: int = 0
    prefill_s: float = 0.0
    tokens: int = 0
    decode_s: float = 0.0
    proposed: int = 0  # tokens, by prompt lookup
    accepted: int = 0
    stopped: Stopped = ""

    @property
    def rates(self) -> str:
        """Tokens and how fast they came, where that was measured."""
        prefill = f"prefill {self.prompt_tokens} tokens{_rate(self.prompt_tokens, self.prefill_s, 0)}"
        # the first new token comes out of the prefill
        decode = f"decode {self.tokens} tokens{_rate(self.tokens - 1, self.decode_s, 1)}"
        lookup = f", lookup {self.accepted} of {self.proposed} accepted" if self.proposed else ""
        return f"{prefill} | {decode}{lookup}"

    def __str__(self) -> str:
        return f"load {self.load_s:.2f} s | {self.rates}"


def _rate(tokens: int, seconds: float, digits: int) -> str:
    return f" at {tokens / seconds:.{digits}f} tok/s" if tokens > 0 and seconds > 0 else ""


@dataclass(eq=False, repr=False)
class Continuation(Uncopied):
    """A prompt and the tokens that followed it so far. stop: as of `Model.generate`; sampling: None: the model's."""

    model: OpenedModel
    prompt: str | Sequence[int]
    max_tokens: int = 256
    stop: Stop = True
    sampling: Sampling | None = None
    timing: Timing = field(init=False)
    prompt_ids: list[int] = field(init=False, default_factory=list)
    token_ids: list[int] = field(init=False, default_factory=list)  # those that spell a stop string too

    def __post_init__(self) -> None:
        check_model(self.model)
        self.timing = Timing(self.model.load_s)
        arguments.check_fields(self, "max_tokens")
        self._stops = stops_of(self.stop, self.model.tokenizer)
        self._stream = self._text_stream()
        self.sampling = self._sampling = self.model.sampling.given(self.sampling, {})
        self.prompt_ids = self._encoded()
        if len(self.prompt_ids) >= self.room:
            raise BitgenError(f"the prompt has {len(self.prompt_ids)} tokens, the context holds {self.room}")
        self._note_length()

    def _encoded(self) -> list[int]:
        """The prompt's tokens."""
        prompt = arguments.prompt("prompt", self.prompt)
        ids = self.model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        if len(ids) == 0:
            raise BitgenError("the prompt is empty and this model has no begin-of-text token; give it some text")
        found: list[int] = arguments.ids("the prompt's tokens", ids, self.model.shape.vocab).tolist()
        return found

    @property
    def room(self) -> int:
        """Positions that the context has."""
        return self.model.shape.context

    @property
    def limit(self) -> int:
        """Most tokens to generate; the last of them need not fit into the context."""
        return min(self.max_tokens, self.room - len(self.prompt_ids) + 1)

    @property
    def context(self) -> int:
        """Positions that the session needs: a prompt does not fill it."""
        return min(self.room, len(self.prompt_ids) + max(self.limit, 1))

    @property
    def finished(self) -> bool:
        """Whether there is no more to come."""
        return bool(self.timing.stopped)

    @property
    def text(self) -> str:
        """The text so far, without the prompt and without the stop string that ended it."""
        stream = self._text_stream()
        return "".join(map(stream.push, self.token_ids)) + stream.flush()

    @property
    def history(self) -> list[int]:
        """The prompt's tokens and those that followed."""
        return self.prompt_ids + self.token_ids

    def accept(self, chosen: Sequence[int], proposed: Sequence[int] = ()) -> list[str]:
        """Take the first chosen token, and each further one if the one before it is as proposed.

        Returns the piece of text that each token gave which the text gained.
        """
        pieces: list[str] = []
        for token, guess in zip(chosen, [*proposed, None], strict=True):
            if token in self._stops.tokens:
                self.timing.stopped = "stop token"
                break
            self.token_ids.append(token)
            pieces.append(self._stream.push(token))
            if self._stream.found is not None:
                self.timing.stopped = "stop string"
            else:
                self._note_length()
            if token != guess or self.finished:
                break
        self.timing.tokens = len(self.token_ids)
        return pieces

    def flush(self) -> str:
        """The piece of text that was held back until now, at the end."""
        piece = self._stream.flush()
        if self._stream.found is not None:
            self.timing.stopped = "stop string"
        return piece

    def _note_length(self) -> None:
        """Note that the text has all the tokens that it may have, where it has."""
        if len(self.token_ids) >= self.limit:
            self.timing.stopped = "length" if len(self.token_ids) >= self.max_tokens else "context full"

    def _text_stream(self) -> StoppedText:
        return StoppedText(self.model.tokenizer, self._stops.strings)

    def __repr__(self) -> str:
        counts = f"{len(self.prompt_ids)} tokens of a prompt, {len(self.token_ids)} of at most {self.limit} after it"
        return f"<{type(self).__name__}: {counts}{', ' * self.finished}{self.timing.stopped}>"


@dataclass(eq=False, repr=False)
class Generation(Continuation):
    """Text in the making. Iterate for the pieces, once; `text`, `token_ids` and `timing` hold what happened so far."""

    cache: Cache = "f16"
    prompt_lookup: int = 0  # most tokens to propose at a time
    logprobs: int | None = None  # likeliest tokens to keep at each place; None: and no log probabilities
    session: Session | None = None  # None: one of its own
    choices: list[TokenChoice] = field(init=False, default_factory=list)  # with logprobs: of each token, and of a stop

    def __post_init__(self) -> None:
        self._begun = threading.Lock()  # by whoever iterates first
        arguments.one_of("cache", self.cache, CACHES)
        arguments.check_fields(self, "prompt_lookup", *([] if self.logprobs is None else ["logprobs"]))
        super().__post_init__()
        if self.session is not None:
            self.session._open()
            if self.session._model is not self.model:
                raise ArgumentError("session is one of another model, must be one of this model")
        if self.prompt_lookup and self.logprobs is not None:
            raise BitgenError("prompt lookup computes no log probabilities; ask for one of the two")

    @property
    def room(self) -> int:
        """Positions that the context has."""
        if self.session is None:
            return super().room
        return int(arguments.instance("session", self.session, Session, "a Session").context)

    def __iter__(self) -> Generator[str, None, None]:
        if not self._begun.acquire(blocking=False):
            raise EngineError("this generation was iterated before; `text` has what it gave, `generate` begins another")
        return self._pieces()

    def _pieces(self) -> Generator[str, None, None]:
        timing, prompt = self.timing, self.prompt_ids
        lookup = PromptLookup(self.prompt_lookup, prompt)
        opened: AbstractContextManager[Session] = nullcontext(self.session) if self.session is not None else self._own()
        with opened as session:
            if not self.finished:
                started = time.perf_counter()
                timing.prompt_tokens = len(prompt) - session._resume(prompt)
                last = self._last_at_once(session)
                while len(prompt) - session.position > last:
                    before_last = len(prompt) - session.position - (last if last < PREFILL_AT_ONCE else 0)
                    some = min(PREFILL_AT_ONCE, before_last)
                    session.append(prompt[session.position : session.position + some])
                    yield ""  # whoever iterates may end it here
                if last < PREFILL_AT_ONCE:
                    session._keep_state()
                pieces = self.accept(self._choose(session, prompt[session.position :], prompt))
                timing.prefill_s = time.perf_counter() - started
                lookup.extend(self.token_ids)
                yield from pieces
            while not self.finished:
                started = time.perf_counter()
                pieces = self._step(session, lookup)
                timing.decode_s += time.perf_counter() - started
                yield from pieces
        yield self.flush()

    def _last_at_once(self, session: Session) -> int:
        """How many of the prompt's tokens the last call takes at most, which chooses what follows.

        Few, where a session has a state and may be given a prompt that goes on a little before the end of this one: it
        is kept before these.
        """
        return session.rewindable if self.session is not None and session.state_bytes else PREFILL_AT_ONCE

    def _own(self) -> Session:
        return Session(self.model, context=self.context, cache=self.cache)

    def _choose(self, session: Session, tokens: Sequence[int], history: Sequence[int], count: int = 1) -> list[int]:
        """Append tokens, the end of the history, and choose what follows each of the last `count`."""
        if self.logprobs is None:
            found = session.next(tokens, self._sampling, history, len(self.token_ids), count)
        else:
            logits = session.forward(tokens)
            found = [session.sample(self._sampling, logits, history, len(self.token_ids))]
            self.choices.append(TokenChoice.of(logits, found[0], self.logprobs))
        self._changes = session._changes
        return found

    def _step(self, session: Session, lookup: PromptLookup) -> list[str]:
        """One forward pass: at least one token, unless the text ends. The piece of text that each gives."""
        if session._changes != self._changes:
            raise EngineError("another call changed the session of this generation; begin another")
        before = len(self.token_ids)
        most = session.rewindable - 1 if session.state_bytes else self.limit
        proposed = lookup.propose(min(self.limit - before - 1, most))
        history = self.history + proposed
        chosen = self._choose(session, history[-len(proposed) - 1 :], history, len(proposed) + 1)
        pieces = self.accept(chosen, proposed)
        accepted = sum(a == b for a, b in zip(self.token_ids[before:], proposed, strict=False))
        if accepted < len(proposed):
            session.rewind(session.position - (len(proposed) - accepted))
            self._changes = session._changes
        lookup.extend(self.token_ids[before:])
        lookup.learn(len(proposed), accepted)
        self.timing.proposed += len(proposed)
        self.timing.accepted += accepted
        return pieces
