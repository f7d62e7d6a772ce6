"""Sessions: conversations with an opened model, each alone or many in one pass that reads the weights once."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from bitgen.compile import binding
from bitgen.engine import arguments, prompt_cache
from bitgen.engine.arguments import check_fields, checked
from bitgen.engine.opened import Cache, FloatArray, Ids, OpenedModel, cache_type, check_model
from bitgen.engine.ownership import Turn, Uncopied
from bitgen.engine.sampling import Sampling
from bitgen.errors import ArgumentError, ArgumentTypeError, EngineError
from bitgen.headers import constants

AGAIN_AT_ONCE = 512
"""Tokens of one call, where they are computed again."""


@dataclass(frozen=True)
class Choice:
    """What `next_batch` is to choose in one session: the parameters of `Session.next`."""

    sampling: Sampling
    history: Sequence[int]
    step: int
    count: int = 1

    def __post_init__(self) -> None:
        arguments.instance("sampling", self.sampling, Sampling, "a Sampling")
        check_fields(self, "step", "count")


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens with which both begin."""
    return next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


class Session(Uncopied):
    """One conversation: a KV cache, and the buffers and threads that serve it.

    Close it, or use it as a context manager. `forward` appends tokens; `rewind` forgets the latest. In a model with
    Gated DeltaNet there is a state beside the cache, of `state_bytes` (and as much again for going back), which cannot
    forget: there `rewind` may have to compute what is to stay anew. Conversations that
    share buffers and threads (`share`) can go through the model in one pass (`forward_batch`).
    A session is for one thread at a time, and so are all sessions that share together; a second call is an error at
    once. Sessions that do not share are independent: threads may use them at once, on one model. After a fork the
    process made by it opens sessions of its own, of the same model.
    An interrupt (Ctrl-C) is heard when a pass is through: `position` says what the cache holds.
    """

    def __init__(
        self, model: OpenedModel, threads: int | None = None, context: int | None = None, cache: Cache = "f16",
        beside: Session | None = None,
    ) -> None:  # fmt: skip
        self._handle: Any = None
        check_model(model)
        type_of_cache, most = cache_type(cache), model.shape.context
        self._lib, self._model = model.lib, model
        self.vocab, self.hidden = model.shape.vocab, model.shape.hidden
        self.context: int = most if context is None else checked("context", context, most)
        self.threads: int = model.threads if threads is None else checked("threads", threads)
        self.cache, self._turn = cache, Turn("session")
        self._tokens = array("i")  # those in the cache; behind `position`, what a call was to append
        self._changes = 0  # calls that changed what the cache holds
        self._kept: tuple[int, bytes] | None = None  # a position, and the state there
        out = binding.ffi().new("bg_session **")
        if beside is None:
            code = self._lib.bg_session_open(model.handle, self.threads, self.context, type_of_cache, out)
        else:
            arguments.instance("beside", beside, Session, "a Session")
            self.threads, self.cache, self._turn = beside.threads, beside.cache, beside._turn
            with self._turn.take():
                code = self._lib.bg_session_share(beside._open(), self.context, out)
        binding.check(self._lib, code, f"cannot open a session of {self.context} tokens on {self.threads} threads")
        self._handle = binding.ffi().gc(out[0], _closing(self._lib, model.handle))

    def share(self, context: int | None = None) -> Session:
        """Another conversation with a cache of the same type, served by the same buffers and threads.

        Sessions that share are closed one by one, in any order.
        """
        return Session(self._model, context=context, beside=self)

    @property
    def position(self) -> int:
        """Tokens in the KV cache."""
        return int(self._lib.bg_position(self._open()))

    @property
    def tokens(self) -> list[int]:
        """The tokens in the KV cache, [position]."""
        return self._tokens[: self.position].tolist()

    def rewind(self, position: int) -> None:
        """Forget all tokens after the first `position`."""
        with self._turn.take():
            wanted = checked("position", position, self.position)
            held = self._tokens[:wanted]
            self._reach(wanted)
            while self.position < wanted:  # the state is computed anew
                some = held[self.position : self.position + AGAIN_AT_ONCE]
                code = self._lib.bg_forward(self._open(), _int32(np.asarray(some)), len(some), binding.ffi().NULL, 0)
                binding.check(self._lib, code, f"cannot rewind to {wanted}")

    def forward(self, tokens: Sequence[int], *, every: bool = False) -> FloatArray:
        """Append tokens; logits float32 [vocab] of the last one, or [n, vocab] of all when `every`.

        The array is the caller's: later calls do not change it.
        """
        logits = forward_batch([self], [tokens], every=every)
        return logits if every else logits[0]

    def append(self, tokens: Sequence[int]) -> None:
        """Append tokens without computing logits."""
        _pass("bg_forward_batch", [self], _appended([self], [tokens]), binding.ffi().NULL, 0)

    def sample(self, sampling: Sampling, logits: FloatArray, history: Sequence[int], step: int) -> int:
        """The next token from logits float32 [vocab]; the same seed and step give the same draw on every host."""
        arguments.instance("sampling", sampling, Sampling, "a Sampling")
        row, number = arguments.logits("logits", logits, self.vocab), checked("step", step)
        past = self._ids_of(history, sampling.repeat_last)
        options = binding.ffi().new("bg_sampling *", vars(sampling))
        with self._turn.take():
            code = self._lib.bg_sample(self._open(), options, _float32(row), _int32(past), len(past), number)
        return binding.check(self._lib, code, "cannot sample")

    def next(
        self, tokens: Sequence[int], sampling: Sampling, history: Sequence[int], step: int, count: int = 1
    ) -> list[int]:
        """Append tokens and choose what follows each of the last `count` of them.

        history ends with `tokens`; the i-th choice sees it up to its own token, and draws at step + i. The result is
        what `forward` and `sample` give, but with a certified head greedy and top-k choices need few of the logits.
        """
        return next_batch([self], [tokens], [Choice(sampling, history, step, count)])[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what the cache holds to a file, from which `restore` takes it; it appears whole or not at all."""
        place = arguments.path("path", path)
        with self._turn.take():
            kind, tokens = self._kind(), self._tokens[: self.position]
            prompt_cache.write(place, kind, tokens.tobytes(), self._saved(kind, len(tokens)))

    def restore(self, path: str | os.PathLike[str]) -> int:
        """Hold what a session of the same model and type of cache saved, instead of what is held now; the number of
        tokens. What follows has the same bits as if these tokens had been appended.

        FormatError: it is no such file, or damaged; EngineError: it holds more than the context. Nothing is changed
        then, unless somebody changes the file while it is read: then the session is empty.
        """
        place = arguments.path("path", path)
        with self._turn.take(), prompt_cache.opened(place, self._kind(), self.vocab, self.context) as saved:
            for _ in saved.pieces():
                pass  # to its end: it is sound
            self._load(saved)
        return self.position

    @property
    def state_bytes(self) -> int:
        """Bytes of the state beside the KV cache; 0 in models whose layers all attend."""
        return binding.check(self._lib, self._lib.bg_state_bytes(self._open()), "cannot save")

    @property
    def rewindable(self) -> int:
        """Tokens of the latest call that a session with a state can forget without computing anything anew."""
        return int(self._lib.REWINDABLE)

    @property
    def rescored(self) -> int:
        """Rows of the head's floats that `next` has read so far."""
        return int(self._lib.bg_rescored(self._open()))

    def profile(self, on: bool) -> dict[str, tuple[int, int]]:
        """Time every step of `forward` from now on (True), or stop; nanoseconds and calls by step until now.

        The keys are the names of `enum bg_step` in runtime/bitgen.h, as in "gate_up" or "enter_ffn".
        """
        ffi, switch = binding.ffi(), int(checked("on", on))
        names = ffi.typeof("enum bg_step").elements
        times = ffi.new("bg_step_time[]", self._lib.BG_STEPS)
        with self._turn.take():
            binding.check(self._lib, self._lib.bg_profile(self._open(), switch, times), "cannot profile")
        return {
            names[i].removeprefix("BG_STEP_").lower(): (int(times[i].nanoseconds), int(times[i].calls))
            for i in range(self._lib.BG_STEPS)
        }

    def close(self) -> None:
        """Free the buffers and stop the threads; further calls are errors.

        A call that is at work in another thread comes to its end first: the last reference to the handle frees it.
        """
        self._handle = None

    def _appending(self, n: int) -> str:
        return f"cannot append {n} tokens at position {self.position} of a context of {self.context}"

    def _open(self) -> Any:
        handle = self._handle
        if handle is None:
            raise EngineError("this session is closed")
        _ = self._model.handle  # an error where the model is closed
        return handle

    def _kind(self) -> prompt_cache.Kind:
        """What a prompt cache must be to be restored here."""
        size = binding.check(self._lib, self._lib.bg_position_bytes(self._open()), "cannot save")
        definition = constants("bitgen.h", "bg_definition")["BG_DEFINITION"]
        return prompt_cache.Kind(self._model.identity, definition, cache_type(self.cache), size, self.state_bytes)

    def _saved(self, kind: prompt_cache.Kind, count: int) -> Iterator[bytes]:
        """The bytes of the first `count` positions, in pieces."""
        for first in range(0, count, kind.at_once):
            some = min(kind.at_once, count - first)
            piece = bytearray(some * kind.position_bytes)
            buffer = binding.ffi().from_buffer("uint8_t[]", piece)
            binding.check(self._lib, self._lib.bg_session_save(self._open(), first, some, buffer), "cannot save")
            yield bytes(piece)
        if kind.state_bytes:
            at, state = self._kept if self._kept and self._kept[0] <= count else (count, b"")
            yield from (self._state(), at.to_bytes(8, "little"), state)

    def _state(self) -> bytes:
        """The state of the session's position."""
        state = bytearray(self.state_bytes)
        code = self._lib.bg_state_save(self._open(), binding.ffi().from_buffer("uint8_t[]", state))
        binding.check(self._lib, code, "cannot save")
        return bytes(state)

    def _load(self, saved: prompt_cache.PromptCache) -> None:
        self._lib.bg_rewind(self._open(), 0)
        self._note(saved.tokens)
        try:
            for count, piece in saved.pieces():
                buffer = binding.ffi().from_buffer("uint8_t[]", piece)
                binding.check(self._lib, self._lib.bg_session_load(self._open(), count, buffer), "cannot restore")
            for at, state in saved.states[:1]:
                buffer = binding.ffi().from_buffer("uint8_t[]", state)
                binding.check(self._lib, self._lib.bg_state_load(self._open(), at, buffer), "cannot restore")
            self._kept = saved.states[1] if saved.states[1:] else None
        except BaseException:
            self._lib.bg_rewind(self._open(), 0)
            raise

    def _note(self, appended: Ids) -> None:
        """Keep what a call is about to append. It counts as far as `position` moves, whatever becomes of the call."""
        del self._tokens[self.position :]
        self._tokens.frombytes(appended.tobytes())
        self._changes += 1
        if self._kept and self._kept[0] > self.position:
            self._kept = None

    def _keep_state(self) -> None:
        """Make it cheap to come back to this position, or to one after it; of the positions so kept the last counts."""
        with self._turn.take():
            if self.state_bytes:
                self._kept = self.position, self._state()

    def _reach(self, wanted: int) -> None:
        """Rewind to a position or, where its state is gone, to the next before it whose state is here."""
        self._changes += 1
        code = self._lib.bg_rewind(self._open(), wanted)
        if code == self._lib.BG_E_STATE:
            at, state = self._kept or (wanted + 1, b"")
            if at <= wanted:
                code = self._lib.bg_state_load(self._open(), at, binding.ffi().from_buffer("uint8_t[]", state))
            else:
                code = self._lib.bg_rewind(self._open(), 0)
        binding.check(self._lib, code, f"cannot rewind to {wanted}")

    def _resume(self, tokens: Sequence[int]) -> int:
        """Rewind to what the session holds of these tokens, of all but the last, and return how many those are."""
        with self._turn.take():
            self._reach(min(common_prefix(tokens, self._tokens[: self.position]), len(tokens) - 1))
        return self.position

    def _ids_of(self, history: Sequence[int], count: int) -> Ids:
        """The last `count` tokens of a history, int32 [n]."""
        sliced = arguments.is_list(history) and isinstance(history, (list, tuple, np.ndarray))
        known = history if sliced else arguments.items("history", history, "token ids")
        return arguments.whole_ids("history", known[max(len(known) - count, 0) :], self.vocab)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = self._model.shape.name
        try:
            return f"<Session of {name}: {self.position} of {self.context} tokens, {self.cache} cache>"
        except EngineError:
            return f"<Session of {name}: closed>"


def _closing(lib: Any, model: Any) -> Callable[[Any], None]:
    """What frees a session: it keeps the model open until then. In a forked process there are no threads to stop, and
    to wait for their end would be for ever."""
    getpid = os.getpid  # modules may be gone when Python ends
    process, free = getpid(), lib.bg_session_close

    def close(handle: Any, _model: Any = model) -> None:
        if getpid() == process:
            free(handle)

    return close


def forward_batch(sessions: Sequence[Session], tokens: Sequence[Sequence[int]], *, every: bool = False) -> FloatArray:
    """Append each session's tokens in one pass, which reads the weights once for all of them.

    The sessions share (`Session.share`) and differ; each gets one token or more. Returns logits float32
    [len(sessions), vocab] of each one's last token, or [all tokens, vocab] when `every`: the same bits as from
    `forward` of each alone. EngineError, with no session changed, when tokens are wrong or do not fit.
    """
    return _rows("bg_forward_batch", "vocab", sessions, tokens, every)


def states_batch(sessions: Sequence[Session], tokens: Sequence[Sequence[int]], *, every: bool = False) -> FloatArray:
    """Like `forward_batch`, but without the output matrix: float32 [.., hidden], the states after the last norm."""
    return _rows("bg_states_batch", "hidden", sessions, tokens, every)


def next_batch(
    sessions: Sequence[Session], tokens: Sequence[Sequence[int]], choices: Sequence[Choice]
) -> list[list[int]]:
    """Append each session's tokens in one pass and choose what follows, as `Session.next` of each alone would.

    The sessions are those of `forward_batch`. The weights and the codes of a certified head are read once for many
    choices; a choice of count 0 only appends. EngineError, with no session changed, when any of them fails.
    """
    found = _choose(sessions, _appended(sessions, tokens), choices)
    errors = [each for each in found if isinstance(each, EngineError)]
    if errors:
        for session, appended, each in zip(sessions, tokens, found, strict=True):
            if not isinstance(each, EngineError):
                session.rewind(session.position - len(appended))
        raise errors[0]
    return [each for each in found if not isinstance(each, EngineError)]


def try_next_batch(
    sessions: Sequence[Session], tokens: Sequence[Sequence[int]], choices: Sequence[Choice]
) -> list[list[int] | EngineError]:
    """`next_batch` that returns the error of a session that fails, and leaves that session as it was.

    An id outside the vocabulary is such an error; what is no list of ids is one of the call.
    """
    return _choose(sessions, _appended(sessions, tokens, arguments.whole_ids), choices)


def _choose(
    sessions: Sequence[Session], appended: Sequence[Ids], choices: Sequence[Choice]
) -> list[list[int] | EngineError]:
    """What follows, or why not, of each session."""
    if not arguments.is_list(choices) or not all(isinstance(each, Choice) for each in choices):
        raise ArgumentTypeError(f"choices is {arguments.shown(choices)}, must be a list with a Choice for each session")
    if len(choices) != len(appended):
        raise ArgumentError(f"there are {len(choices)} choices, must be a choice for each of {len(appended)} sessions")
    counts = [checked("count", choice.count, len(each)) for choice, each in zip(choices, appended, strict=True)]
    chosen = np.empty(sum(counts), np.int32)
    requests, kept = binding.ffi().new("bg_choice[]", len(counts)), []
    for session, request, choice in zip(sessions, requests, choices, strict=True):
        past = session._ids_of(choice.history, choice.sampling.repeat_last + choice.count)
        if len(past) < choice.count:
            raise ArgumentError(f"history has {len(past)} tokens, must be one for each of {choice.count} choices")
        sampling, history = binding.ffi().new("bg_sampling *", vars(choice.sampling)), _int32(past)
        request.sampling, request.history, request.n_history = sampling, history, len(past)
        request.count, request.step = choice.count, choice.step
        kept.append((sampling, history))  # alive until the call
    _pass("bg_next_batch", sessions, appended, requests, _int32(chosen))
    ids = iter(chosen.tolist())
    return [_outcome(*of, list(islice(ids, of[2].count))) for of in zip(sessions, appended, requests, strict=True)]


def _outcome(session: Session, appended: Ids, request: Any, chosen: list[int]) -> list[int] | EngineError:
    """The tokens that a request chose, or why it failed."""
    if request.code:
        return binding.error(session._lib, request.code, session._appending(len(appended)))
    return chosen


def _rows(
    call: str, width: str, sessions: Sequence[Session], tokens: Sequence[Sequence[int]], every: bool
) -> FloatArray:
    """What a function of the library computes of each session's last token, float32 [len(sessions), the sessions'
    `width`], or of all tokens."""
    appended, all_rows = _appended(sessions, tokens), checked("every", every)
    rows = np.empty((sum(map(len, appended)) if all_rows else len(appended), getattr(sessions[0], width)), np.float32)
    _pass(call, sessions, appended, _float32(rows), int(all_rows))
    return rows


def _appended(
    sessions: Sequence[Session],
    tokens: Sequence[Sequence[int]],
    read: Callable[[str, Any, int], Ids] = arguments.ids,
) -> list[Ids]:
    """The tokens for each session, int32 [n >= 1]."""
    if not arguments.is_list(sessions) or not all(isinstance(each, Session) for each in sessions):
        raise ArgumentTypeError(f"sessions is {arguments.shown(sessions)}, must be a list of Sessions")
    lists = arguments.items("tokens", tokens, "ids for each session")
    if not lists or len(lists) != len(sessions):
        found = f"{len(lists)} for {len(sessions)} sessions"
        raise ArgumentError(f"tokens must be a non-empty list of ids for each session; there are {found}")
    names = ["tokens"] if len(lists) == 1 else [f"tokens[{i}]" for i in range(len(lists))]
    return [read(name, each, session.vocab) for name, each, session in zip(names, lists, sessions, strict=True)]


def _pass(call: str, sessions: Sequence[Session], appended: Sequence[Ids], *results: Any) -> None:
    """Call a function of the library whose arguments are sessions, their tokens and `results`."""
    code = _run(call, sessions, appended, results)  # its frame, which an error keeps, holds no session open
    binding.check(sessions[0]._lib, code, _appending(sessions, sum(map(len, appended))))


def _run(call: str, sessions: Sequence[Session], appended: Sequence[Ids], results: Sequence[Any]) -> int:
    """The code that a function of the library returns."""
    first, ffi = sessions[0], binding.ffi()
    ids = appended[0] if len(appended) == 1 else np.concatenate(appended)
    with first._turn.take():
        held = [session._open() for session in sessions]  # open until the call returns, whoever closes them
        for session, each in zip(sessions, appended, strict=True):
            if session._turn is first._turn:  # others are refused, and may be at work
                session._note(each)
        handles, lengths = ffi.new("bg_session *[]", held), ffi.new("int32_t[]", [len(each) for each in appended])
        code: int = getattr(first._lib, call)(handles, len(held), _int32(ids), lengths, *results)
    return code


def _appending(sessions: Sequence[Session], n: int) -> str:
    """What failed."""
    if len(sessions) == 1:
        return sessions[0]._appending(n)
    return f"cannot append {n} tokens to {len(sessions)} sessions (which must differ, share and have room)"


def _int32(array: Ids) -> Any:
    """The array as C's `int32_t *`, which keeps it alive."""
    return binding.ffi().from_buffer("int32_t[]", array)


def _float32(array: FloatArray) -> Any:
    """The array as C's `float *`, which keeps it alive."""
    return binding.ffi().from_buffer("float[]", array)
