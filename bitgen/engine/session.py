"""Sessions: conversations with an opened model, each alone or many in one pass that reads the weights once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from bitgen.compile import binding
from bitgen.errors import BitgenError, EngineError
from bitgen.headers import constants
from bitgen.spec import ModelShape
from bitgen.text.tokenizer import Tokenizer

Cache = Literal["f16", "f32", "int8"]
CACHES: dict[Cache, str] = {"f16": "BG_CACHE_F16", "f32": "BG_CACHE_F32", "int8": "BG_CACHE_I8"}

FloatArray = npt.NDArray[np.float32]


def cache_type(cache: Cache) -> int:
    """The number of `enum bg_cache` for a type of keys and values."""
    return constants("bitgen.h", "bg_cache")[CACHES[cache]]


class OpenedModel(Protocol):
    """What sessions, and what is built on them, need of a model: `Model` is one."""

    @property
    def lib(self) -> Any:
        """The library that holds the model's kernels."""

    @property
    def handle(self) -> Any:
        """The library's `bg_model *`."""

    @property
    def shape(self) -> ModelShape:
        """Its dimensions."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""

    @property
    def threads(self) -> int:
        """Threads of a session, unless the caller says how many."""

    @property
    def load_s(self) -> float:
        """Seconds that it took to open."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults of the fields switch each step off but the temperature's."""

    temperature: float = 0.8  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    repeat_penalty: float = 1.0  # 1: off
    repeat_last: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, ok, want in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", 0 <= self.top_k < 2**31, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("repeat_penalty", 0 < self.repeat_penalty < float("inf"), "above 0"),
            ("repeat_last", 0 <= self.repeat_last < 2**31, "0 or more"),
            ("seed", 0 <= self.seed < 2**64, "in [0, 2**64)"),
        ):
            if not ok:
                raise BitgenError(f"{name} is {getattr(self, name)!r}, must be {want}")


@dataclass(frozen=True)
class Choice:
    """What `next_batch` is to choose in one session: the parameters of `Session.next`."""

    sampling: Sampling
    history: Sequence[int]
    step: int
    count: int = 1


def checked_ids(tokens: npt.ArrayLike, vocab: int) -> npt.NDArray[np.int32]:
    """The tokens, int32 [n]; EngineError where they are not ids below `vocab`."""
    ids = np.asarray(tokens, np.int64)
    if ids.ndim != 1 or len(ids) == 0 or ids.min() < 0 or ids.max() >= vocab:
        raise EngineError(f"tokens must be a non-empty list of ids in [0, {vocab})")
    return ids.astype(np.int32)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens with which both begin."""
    return next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


class Session:
    """One conversation: a KV cache, and the buffers and threads that serve it.

    Close it, or use it as a context manager. `forward` appends tokens; `rewind` forgets the latest. Conversations that
    share buffers and threads (`share`) can go through the model in one pass (`forward_batch`).
    A session is for one thread at a time, and so are all sessions that share together. Sessions that do not share are
    independent: threads may use them at once, on one model.
    """

    def __init__(
        self, model: OpenedModel, threads: int | None = None, context: int | None = None, cache: Cache = "f16",
        beside: Session | None = None,
    ) -> None:  # fmt: skip
        if cache not in CACHES:
            raise BitgenError(f"cache is {cache!r}, must be one of {', '.join(CACHES)}")
        self._lib, self._model = model.lib, model
        self.vocab, self.hidden = model.shape.vocab, model.shape.hidden
        self.threads: int = beside.threads if beside else threads or model.threads
        self.context = model.shape.context if context is None else context
        out = binding.ffi().new("bg_session **")
        if beside:
            code = self._lib.bg_session_share(beside._open(), self.context, out)
        else:
            code = self._lib.bg_session_open(model.handle, self.threads, self.context, cache_type(cache), out)
        binding.check(self._lib, code, f"cannot open a session of {self.context} tokens on {self.threads} threads")
        self._handle = out[0]

    def share(self, context: int | None = None) -> Session:
        """Another conversation with a cache of the same type, served by the same buffers and threads.

        Sessions that share are closed one by one, in any order.
        """
        return Session(self._model, context=context, beside=self)

    @property
    def position(self) -> int:
        """Tokens in the KV cache."""
        return int(self._lib.bg_position(self._open()))

    def rewind(self, position: int) -> None:
        """Forget all tokens after the first `position`."""
        binding.check(self._lib, self._lib.bg_rewind(self._open(), position), f"cannot rewind to {position}")

    def forward(self, tokens: Sequence[int], *, every: bool = False) -> FloatArray:
        """Append tokens; logits float32 [vocab] of the last one, or [n, vocab] of all when `every`."""
        logits = forward_batch([self], [tokens], every=every)
        return logits if every else logits[0]

    def append(self, tokens: Sequence[int]) -> None:
        """Append tokens without computing logits."""
        ids = checked_ids(tokens, self.vocab)
        code = self._lib.bg_forward(self._open(), _int32(ids), len(ids), binding.ffi().NULL, 0)
        binding.check(self._lib, code, self._appending(len(ids)))

    def sample(self, sampling: Sampling, logits: FloatArray, history: Sequence[int], step: int) -> int:
        """The next token from logits [vocab]; the same seed and step give the same draw on every host."""
        past = np.asarray(history[-sampling.repeat_last :] if sampling.repeat_last else [], np.int32)
        options = binding.ffi().new("bg_sampling *", vars(sampling))
        code = self._lib.bg_sample(self._open(), options, _float32(logits), _int32(past), len(past), step)
        return binding.check(self._lib, code, "cannot sample")

    def next(
        self, tokens: Sequence[int], sampling: Sampling, history: Sequence[int], step: int, count: int = 1
    ) -> list[int]:
        """Append tokens and choose what follows each of the last `count` of them.

        history ends with `tokens`; the i-th choice sees it up to its own token, and draws at step + i. The result is
        what `forward` and `sample` give, but with a certified head greedy and top-k choices need few of the logits.
        """
        return next_batch([self], [tokens], [Choice(sampling, history, step, count)])[0]

    @property
    def rescored(self) -> int:
        """Rows of the head's floats that `next` has read so far."""
        return int(self._lib.bg_rescored(self._open()))

    def profile(self, on: bool) -> dict[str, tuple[int, int]]:
        """Time every step of `forward` from now on (True), or stop; nanoseconds and calls by step until now.

        The keys are the names of `enum bg_step` in runtime/bitgen.h, as in "gate_up" or "enter_ffn".
        """
        ffi = binding.ffi()
        names = ffi.typeof("enum bg_step").elements
        times = ffi.new("bg_step_time[]", self._lib.BG_STEPS)
        binding.check(self._lib, self._lib.bg_profile(self._open(), int(on), times), "cannot profile")
        return {
            names[i].removeprefix("BG_STEP_").lower(): (int(times[i].nanoseconds), int(times[i].calls))
            for i in range(self._lib.BG_STEPS)
        }

    def close(self) -> None:
        """Free the buffers and stop the threads; further calls are errors."""
        if self._handle is not None:
            self._lib.bg_session_close(self._handle)
            self._handle = None

    def _appending(self, n: int) -> str:
        return f"cannot append {n} tokens at position {self.position} of a context of {self.context}"

    def _open(self) -> Any:
        if self._handle is None:
            raise EngineError("this session is closed")
        return self._handle

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


def forward_batch(sessions: Sequence[Session], tokens: Sequence[Sequence[int]], *, every: bool = False) -> FloatArray:
    """Append each session's tokens in one pass, which reads the weights once for all of them.

    The sessions share (`Session.share`) and differ; each gets one token or more. Returns logits float32
    [len(sessions), vocab] of each one's last token, or [all tokens, vocab] when `every`: the same bits as from
    `forward` of each alone. EngineError, with no session changed, when tokens are wrong or do not fit.
    """
    if not sessions or len(tokens) != len(sessions) or not all(len(t) for t in tokens):
        raise EngineError("tokens must be a non-empty list of ids for each session")
    return _rows(sessions[0]._lib.bg_forward_batch, sessions, tokens, sessions[0].vocab, every)


def states_batch(sessions: Sequence[Session], tokens: Sequence[Sequence[int]], *, every: bool = False) -> FloatArray:
    """Like `forward_batch`, but without the output matrix: float32 [.., hidden], the states after the last norm."""
    return _rows(sessions[0]._lib.bg_states_batch, sessions, tokens, sessions[0].hidden, every)


def next_batch(
    sessions: Sequence[Session], tokens: Sequence[Sequence[int]], choices: Sequence[Choice]
) -> list[list[int]]:
    """Append each session's tokens in one pass and choose what follows, as `Session.next` of each alone would.

    The sessions are those of `forward_batch`. The weights and the codes of a certified head are read once for many
    choices; a choice of count 0 only appends. EngineError, with no session changed, when any of them fails.
    """
    found = try_next_batch(sessions, tokens, choices)
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
    """`next_batch` that returns the error of a session that fails, and leaves that session as it was."""
    if not sessions or not len(sessions) == len(tokens) == len(choices) or not all(len(t) for t in tokens):
        raise EngineError("tokens must be a non-empty list of ids for each session, with a choice for each")
    ends = np.cumsum([max(choice.count, 0) for choice in choices])
    chosen = np.empty(ends[-1], np.int32)
    requests, kept = binding.ffi().new("bg_choice[]", len(choices)), []
    for request, choice in zip(requests, choices, strict=True):
        past = np.asarray(choice.history[-choice.sampling.repeat_last - choice.count :], np.int32)
        sampling, history = binding.ffi().new("bg_sampling *", vars(choice.sampling)), _int32(past)
        request.sampling, request.history, request.n_history = sampling, history, len(past)
        request.count, request.step = choice.count, choice.step
        kept.append((sampling, history))  # alive until the call
    _pass(sessions[0]._lib.bg_next_batch, sessions, tokens, requests, _int32(chosen))
    return list(map(_outcome, sessions, tokens, requests, np.split(chosen, ends[:-1])))


def _outcome(
    session: Session, appended: Sequence[int], request: Any, chosen: npt.NDArray[np.int32]
) -> list[int] | EngineError:
    """The tokens that a request chose, or why it failed."""
    if request.code:
        return binding.error(session._lib, request.code, session._appending(len(appended)))
    ids: list[int] = chosen.tolist()
    return ids


def _rows(
    call: Any, sessions: Sequence[Session], tokens: Sequence[Sequence[int]], width: int, every: bool
) -> FloatArray:
    """What `call` computes of each session's last token, float32 [len(sessions), width], or of all tokens."""
    rows = np.empty((sum(map(len, tokens)) if every else len(sessions), width), np.float32)
    _pass(call, sessions, tokens, _float32(rows), int(every))
    return rows


def _pass(call: Any, sessions: Sequence[Session], tokens: Sequence[Sequence[int]], *results: Any) -> None:
    """Call a function of the library whose arguments are sessions, their tokens and `results`."""
    first, ffi = sessions[0], binding.ffi()
    ids = checked_ids(np.concatenate([np.asarray(t, np.int64) for t in tokens]), first.vocab)
    handles = ffi.new("bg_session *[]", [session._open() for session in sessions])
    lengths = ffi.new("int32_t[]", [len(t) for t in tokens])
    code = call(handles, len(sessions), _int32(ids), lengths, *results)
    binding.check(first._lib, code, _appending(sessions, len(ids)))


def _appending(sessions: Sequence[Session], n: int) -> str:
    """What failed."""
    if len(sessions) == 1:
        return sessions[0]._appending(n)
    return f"cannot append {n} tokens to {len(sessions)} sessions (which must differ, share and have room)"


def _int32(array: npt.NDArray[np.int32]) -> Any:
    """The array as C's `int32_t *`, which keeps it alive."""
    return binding.ffi().from_buffer("int32_t[]", array)


def _float32(array: FloatArray) -> Any:
    """The array as C's `float *`, which keeps it alive."""
    return binding.ffi().from_buffer("float[]", array)
