"""Continuous batching: texts come and go, and each pass through the model serves all that are there.

A pass reads the weights once for all texts. A text that runs adds its last token to the pass; a new one adds a piece of
its prompt, so that the others need not wait until a long prompt is through. Logits are the same bits however tokens are
batched, and draws are numbered by token, so each text is the one that it would be alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bitgen.engine.arguments import checked, instance
from bitgen.engine.arguments import prompt as prompt_of
from bitgen.engine.generate import Continuation
from bitgen.engine.opened import Cache, OpenedModel, check_model
from bitgen.engine.ownership import Turn, Uncopied
from bitgen.engine.sampling import Sampling
from bitgen.engine.session import Choice, Session, common_prefix, try_next_batch
from bitgen.engine.stops import Stop, stops_of
from bitgen.errors import ArgumentError, BitgenError, EngineError

PREFILL = 128
"""Most tokens of prompts in a step. More would be hardly faster, and would delay the texts that need one token."""


@dataclass(eq=False, repr=False)
class Request(Continuation):
    """One text of a batch. When it has `finished`, `error` says why it failed, or is None."""

    positions: int = field(kw_only=True)  # of its session
    error: BitgenError | None = field(init=False, default=None)
    cancelled: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._started = 0.0
        try:
            super().__post_init__()
        except BitgenError as error:
            self.error = error

    @property
    def room(self) -> int:
        """Positions that the context has."""
        return self.positions

    @property
    def finished(self) -> bool:
        """Whether there is no more to come."""
        return self.cancelled or self.error is not None or super().finished

    def begin(self, position: int) -> None:
        """Note the time: it has a session now, which holds the first `position` tokens of the prompt."""
        self._started, self.timing.prompt_tokens = time.perf_counter(), len(self.prompt_ids) - position

    def take(self, chosen: list[int] | EngineError) -> str:
        """The piece of text that a chosen token adds; none where none could be chosen."""
        seconds = time.perf_counter() - self._started
        if self.token_ids:
            self.timing.decode_s = seconds - self.timing.prefill_s
        else:
            self.timing.prefill_s = seconds
        if isinstance(chosen, EngineError):
            self.error = chosen
            return self.flush()
        piece = "".join(self.accept(chosen))
        return piece + self.flush() if self.finished else piece


class Batch(Uncopied):
    """Up to `size` texts generated together, and a queue of those that wait for a place: first come, first served.

        with Batch(model, 16, context=4096) as batch:
            request = batch.submit("Once upon a time", max_tokens=64, temperature=0)    # at any time
            while batch.busy:
                for request, piece in batch.step():
                    print(piece, end="")

    Not for use by two threads at once: a server calls submit, step and cancel from one thread, and a second call is an
    error at once. Any thread may close it; a step that is at work then ends in an error.

    The places are sessions that share buffers and threads, all opened at once, so that memory runs short here or not
    at all. Each has a cache of `context` positions (None: all that the model was made for), of which only those that
    a text reaches take memory where the system gives out pages on first use. A place that is free keeps its tokens: a
    prompt that begins with them, as the next turn of a conversation does, is computed from there on.
    """

    def __init__(
        self,
        model: OpenedModel,
        size: int,
        *,
        context: int | None = None,
        cache: Cache = "f16",
        threads: int | None = None,
        prefill: int = PREFILL,
    ) -> None:
        check_model(model)
        places = checked("size", size)
        self.model, self.prefill, self._closed = model, checked("prefill", prefill), False
        self._turn = Turn("batch")
        self._waiting: deque[Request] = deque()
        self._running: dict[Request, Session] = {}  # in the order that they came
        self._ended: list[Request] = []  # before they had a place
        with ExitStack() as opened:
            first = opened.enter_context(Session(model, threads, context, cache))
            others = (opened.enter_context(first.share(first.context)) for _ in range(places - 1))
            self._free = [first, *others]  # the one that is free longest first
            self.context = first.context
            self._opened = opened.pop_all()

    def submit(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        *,
        stop: Stop = True,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Request:
        """Queue a prompt; the parameters are those of `Model.generate`, and the text will be the same.

        A prompt that is too long or empty or has an id that is none is no exception: its request has an `error`, and
        the next step returns it.
        """
        limit, chosen = checked("max_tokens", max_tokens), self.model.sampling.given(sampling, options)
        stops_of(stop, self.model.tokenizer)
        prompt_of("prompt", prompt)
        with self._turn.take():
            self._check_open()
            request = Request(self.model, prompt, limit, stop, chosen, positions=self.context)
            (self._ended if request.finished else self._waiting).append(request)
        return request

    @property
    def busy(self) -> bool:
        """Whether there is anything to do for `step`."""
        return not self._closed and bool(self._waiting or self._running or self._ended)

    def step(self) -> list[tuple[Request, str]]:
        """One pass through the model for all that run, after those that wait have taken free places.

        Returns the requests whose text went on or that ended, each with the piece of text that it gained.
        """
        with self._turn.take():
            self._check_open()
            return self._step()

    def _step(self) -> list[tuple[Request, str]]:
        while self._waiting and self._free:
            self._begin(self._waiting.popleft())
        gained = [(request, "") for request in self._ended]
        self._ended.clear()
        work = list(self._work())
        if work:
            requests, tokens, choices = zip(*work, strict=True)
            chosen = try_next_batch([self._running[request] for request in requests], tokens, choices)
            self._check_open()
            gained += [(r, r.take(found)) for r, found in zip(requests, chosen, strict=True) if found]
        for request in [r for r in self._running if r.finished]:
            self._release(request)
        return gained

    def cancel(self, request: Request) -> None:
        """End a request before its time; its place is free in the next step, which does not return it."""
        known = instance("request", request, Request, "a Request of this batch")
        with self._turn.take():
            if known.finished:
                return
            if known in self._running:
                self._release(known)
            elif known in self._waiting:
                self._waiting.remove(known)
            else:
                raise ArgumentError("request is one of another batch, must be one of this batch")
            known.cancelled = True

    def close(self) -> None:
        """Cancel all requests and free the sessions; no step follows."""
        self._closed = True
        for request in [*self._waiting, *self._running]:
            request.cancelled = request.cancelled or not request.finished
        self._opened.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("this batch is closed")

    def _begin(self, request: Request) -> None:
        """Give a request the free session that holds most of its prompt; of equals, the one that is free longest."""
        ids = request.prompt_ids
        session = max(self._free, key=lambda session: common_prefix(session.tokens, ids))
        self._free.remove(session)
        request.begin(session._resume(ids))
        self._running[request] = session

    def _release(self, request: Request) -> None:
        """Free a request's session, which keeps its tokens for a prompt that begins alike."""
        self._free.append(self._running.pop(request))

    def _work(self) -> Iterator[tuple[Request, list[int], Choice]]:
        """What each request adds to a step: its latest token, or the next of its prompt while `prefill` lasts."""
        room = self.prefill
        for request, session in self._running.items():
            history = request.history
            if session.position == len(history):  # an interrupt took the choice of a step: it is made anew
                session.rewind(len(history) - 1)
            tokens = history[session.position :]
            if not request.token_ids:
                tokens = tokens[:room]
                room -= len(tokens)
            if tokens:
                last = session.position + len(tokens) == len(history)
                yield request, tokens, Choice(request._sampling, history, len(request.token_ids), int(last))

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        places = len(self._running) + len(self._free)
        state = f"{len(self._running)} of {places} places taken, {len(self._waiting)} texts waiting"
        return f"<Batch of {self.model.shape.name}: {'closed' if self._closed else state}>"
