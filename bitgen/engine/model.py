"""Models and sessions: the runtime with Python's manners."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bitgen import data, i2s_guess, library, pack
from bitgen import plan as plans
from bitgen.compile import Artefact
from bitgen.engine import binding
from bitgen.engine.embed import embed, pooling_of
from bitgen.engine.lookup import PromptLookup
from bitgen.engine.tokenizer import Stream, Tokenizer
from bitgen.errors import BitgenError, EngineError
from bitgen.formats import FORMATS
from bitgen.gguf.reader import I2sLayout, read_gguf
from bitgen.score import Score, TokenChoice, score
from bitgen.spec import ModelShape

Cache = Literal["f16", "f32", "int8"]
CACHES: dict[Cache, int] = {"f16": 0, "f32": 1, "int8": 2}  # BG_CACHE_F16, BG_CACHE_F32, BG_CACHE_I8

CHOICES = 16  # tokens that are chosen in one pass over the head (runtime/session.h)
PREFILL_AT_ONCE = 512  # tokens of one call, so that an interrupt is heard between two

SHIPPED = "stories"
"""The model that ships with bitgen."""


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
    stopped: str = "length"  # or "stop token"

    def __str__(self) -> str:
        prefill = f"prefill {self.prompt_tokens} tokens at {self.prompt_tokens / max(self.prefill_s, 1e-9):.0f} tok/s"
        steps = max(self.tokens - 1, 0)  # the first new token comes out of the prefill
        decode = f"decode {self.tokens} tokens at {steps / max(self.decode_s, 1e-9):.1f} tok/s"
        lookup = f", lookup {self.accepted} of {self.proposed} accepted" if self.proposed else ""
        return f"load {self.load_s:.2f} s | {prefill} | {decode}{lookup}"


def shipped_path() -> Path:
    """The GGUF that ships with bitgen."""
    return data.folder("models") / f"{SHIPPED}.gguf"


def default_threads() -> int:
    """The CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _give_back_memory() -> None:
    """Return what is free to the system: building a tokenizer of 280,000 merges leaves glibc holding some 30 MB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim:
        trim(0)


class Session:
    """One conversation: a KV cache, buffers and threads. Not for use by two threads at once.

    Close it, or use it as a context manager. Tokens are appended by `forward`; `rewind` forgets the latest.
    Conversations that share buffers and threads (`share`) can go through the model together (`forward_batch`).
    """

    def __init__(
        self, model: Model, threads: int | None = None, context: int | None = None, cache: Cache = "f16",
        beside: Session | None = None,
    ) -> None:  # fmt: skip
        if cache not in CACHES:
            raise BitgenError(f"cache is {cache!r}, must be one of {', '.join(CACHES)}")
        self._lib, self._model = model.lib, model
        self.vocab = model.shape.vocab
        self.threads: int = beside.threads if beside else threads or model.threads
        self.context = model.shape.context if context is None else context
        out = binding.ffi().new("bg_session **")
        if beside:
            code = self._lib.bg_session_share(beside._open(), self.context, out)
        else:
            code = self._lib.bg_session_open(model._handle, self.threads, self.context, CACHES[cache], out)
        binding.check(self._lib, code, f"cannot open a session of {self.context} tokens on {self.threads} threads")
        self._handle = out[0]

    def share(self, context: int | None = None) -> Session:
        """Another conversation with a cache of the same type, served by the same buffers and threads.

        Sessions that share are not for use by two threads at once. They are closed one by one, in any order.
        """
        return Session(self._model, context=context, beside=self)

    @property
    def position(self) -> int:
        """Tokens in the KV cache."""
        return int(self._lib.bg_position(self._open()))

    def rewind(self, position: int) -> None:
        """Forget all tokens after the first `position`."""
        binding.check(self._lib, self._lib.bg_rewind(self._open(), position), f"cannot rewind to {position}")

    def forward(self, tokens: Sequence[int], *, every: bool = False) -> npt.NDArray[np.float32]:
        """Append tokens; logits float32 [vocab] of the last one, or [n, vocab] of all when `every`."""
        logits = forward_batch([self], [tokens], every=every)
        return logits if every else logits[0]

    def append(self, tokens: Sequence[int]) -> None:
        """Append tokens whose logits nobody asks for."""
        ids = self._ids(tokens)
        code = self._lib.bg_forward(self._open(), _ints(ids), len(ids), binding.ffi().NULL, 0)
        binding.check(self._lib, code, self._appending(len(ids)))

    def sample(self, how: Sampling, logits: npt.NDArray[np.float32], history: Sequence[int], step: int) -> int:
        """The next token from logits [vocab]; the same seed and step give the same draw on every host."""
        past = np.asarray(history[-how.repeat_last :] if how.repeat_last else [], np.int32)
        at = binding.ffi().cast("float *", logits.ctypes.data)
        code = self._lib.bg_sample(self._open(), _sampling(how), at, _ints(past), len(past), step)
        return binding.check(self._lib, code, "cannot sample")

    def next(
        self, tokens: Sequence[int], how: Sampling, history: Sequence[int], step: int, count: int = 1
    ) -> list[int]:
        """Append tokens and choose what follows each of the last `count` of them.

        history ends with `tokens`; the i-th choice sees it up to its own token, and draws at step + i. The result is
        what `forward` and `sample` give, but with a certified head greedy and top-k choices need few of the logits.
        """
        return next_batch([self], [tokens], [Choice(how, history, step, count)])[0]

    @property
    def rescored(self) -> int:
        """Rows of the float16 head that `next` has read so far."""
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

    def _ids(self, tokens: npt.ArrayLike) -> npt.NDArray[np.int32]:
        ids = np.asarray(tokens, np.int64)
        if ids.ndim != 1 or len(ids) == 0 or ids.min() < 0 or ids.max() >= self.vocab:
            raise EngineError(f"tokens must be a non-empty list of ids in [0, {self.vocab})")
        return ids.astype(np.int32)

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


def _ints(array: npt.NDArray[np.int32]) -> Any:
    return binding.ffi().cast("int32_t *", array.ctypes.data)


def _sampling(how: Sampling) -> Any:
    return binding.ffi().new("bg_sampling *", {name: getattr(how, name) for name in Sampling.__dataclass_fields__})


def forward_batch(
    sessions: Sequence[Session], tokens: Sequence[Sequence[int]], *, every: bool = False
) -> npt.NDArray[np.float32]:
    """Append each session's tokens in one pass, which reads the weights once for all of them.

    The sessions share (`Session.share`) and differ; each gets one token or more. Returns logits float32
    [len(sessions), vocab] of each one's last token, or [all tokens, vocab] when `every`: the same bits as from
    `forward` of each alone. EngineError, with no session changed, when tokens are wrong or do not fit.
    """
    if not sessions or len(tokens) != len(sessions) or not all(len(t) for t in tokens):
        raise EngineError("tokens must be a non-empty list of ids for each session")
    first = sessions[0]
    return _append(sessions, tokens, every, first.vocab, first._lib.bg_forward_batch)


@dataclass(frozen=True)
class Choice:
    """What `next_batch` is to choose in one session: the parameters of `Session.next`."""

    how: Sampling
    history: Sequence[int]
    step: int
    count: int = 1


def next_batch(
    sessions: Sequence[Session], tokens: Sequence[Sequence[int]], choices: Sequence[Choice]
) -> list[list[int]]:
    """Append each session's tokens in one pass and choose what follows, as `Session.next` of each alone would.

    The sessions are those of `forward_batch`. The weights and the codes of a certified head are read once for many
    choices.
    """
    if not sessions or not len(sessions) == len(tokens) == len(choices) or not all(len(t) for t in tokens):
        raise EngineError("tokens must be a non-empty list of ids for each session, with a choice for each")
    first, ffi = sessions[0], binding.ffi()
    ids = first._ids(np.concatenate([np.asarray(t, np.int64) for t in tokens]))
    chosen, asks, kept = np.empty(sum(c.count for c in choices), np.int32), ffi.new("bg_choice[]", len(choices)), []
    for ask, choice in zip(asks, choices, strict=True):
        past = np.asarray(choice.history[-choice.how.repeat_last - choice.count :], np.int32)
        ask.how, ask.history = how, at = _sampling(choice.how), _ints(past)
        ask.n_history, ask.count, ask.step = len(past), choice.count, choice.step
        kept += [past, how, at]  # alive until the call
    code = first._lib.bg_next_batch(
        ffi.new("bg_session *[]", [session._open() for session in sessions]),
        *(len(sessions), _ints(ids), ffi.new("int32_t[]", [len(t) for t in tokens]), asks, _ints(chosen)),
    )
    binding.check(first._lib, code, _appending(sessions, len(ids)))
    at_end = np.cumsum([c.count for c in choices])[:-1]
    return [[int(token) for token in part] for part in np.split(chosen, at_end)]


def states_batch(
    sessions: Sequence[Session], tokens: Sequence[Sequence[int]], *, every: bool = False
) -> npt.NDArray[np.float32]:
    """Like `forward_batch`, but without the output matrix: float32 [.., hidden], the states after the last norm."""
    first = sessions[0]
    return _append(sessions, tokens, every, first._model.shape.hidden, first._lib.bg_states_batch)


def _append(
    sessions: Sequence[Session], tokens: Sequence[Sequence[int]], every: bool, width: int, call: Any
) -> npt.NDArray[np.float32]:
    """What `call` makes of the tokens, float32 [.., width]."""
    first = sessions[0]
    ids = first._ids(np.concatenate([np.asarray(t, np.int64) for t in tokens]))
    rows = np.empty((len(ids) if every else len(sessions), width), np.float32)
    ffi = binding.ffi()
    code = call(
        ffi.new("bg_session *[]", [session._open() for session in sessions]),
        len(sessions),
        _ints(ids),
        ffi.new("int32_t[]", [len(t) for t in tokens]),
        ffi.cast("float *", rows.ctypes.data),
        int(every),
    )
    binding.check(first._lib, code, _appending(sessions, len(ids)))
    return rows


def _appending(sessions: Sequence[Session], n: int) -> str:
    """What failed."""
    if len(sessions) == 1:
        return sessions[0]._appending(n)
    return f"cannot append {n} tokens to {len(sessions)} sessions (which must differ, share and have room)"


class Model:
    """A model ready to run: its kernels compiled for this CPU, its weights packed and memory-mapped."""

    def __init__(
        self, path: Path, shape: ModelShape, tokenizer: Tokenizer, lookup: plans.Lookup, artefact: Artefact,
        packed: Path, head: pack.Head, threads: int | None,
    ) -> None:  # fmt: skip
        self.path, self.shape, self.tokenizer, self.lookup, self.packed = (
            path,
            shape,
            tokenizer,
            lookup,
            packed,
        )
        self.artefact = artefact
        self.threads = threads or lookup.threads or default_threads()
        self.head, self.load_s, self.pooling = head, 0.0, "last"
        self.chat_template: str | None = None  # as the file carries it
        self.doubt: str | None = None  # said when a file is packed that seems to be read by the wrong I2_S layout
        self.lib = binding.load(artefact.path)
        out = binding.ffi().new("bg_model **")
        index = library.isa_index(self.lib, lookup.isa)
        binding.check(self.lib, self.lib.bg_open(str(packed).encode(), index, out), f"cannot open {packed}")
        self._handle = binding.ffi().gc(out[0], self.lib.bg_close)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        threads: int | None = None,
        isa: str | None = None,
        head: pack.Head = "certified",
        i2s_layout: I2sLayout = "x86",
        activation: str | None = None,
        tl_tiles: str = "",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Model:
        """Open a GGUF file (None: the model that ships), building and packing what is not cached yet.

        head: "certified" chooses tokens from int8 codes of the head, of most rows only six bits, and exact float16 rows
            for those that can win: the same tokens as "f16", at 3/8 of the bytes per token. "f16" saves the codes'
            room on disk. "int8" has codes alone: logits within their rounding.
        i2s_layout, activation, tl_tiles: what the file does not say, or says wrongly; as in read_gguf.
        progress: called as (stage, done, total) while kernels compile and weights are packed.
        """
        started = time.perf_counter()
        source = Path(path) if path is not None else shipped_path()
        checkpoint = read_gguf(source, i2s_layout, activation, tl_tiles)
        lookup = plans.lookup(checkpoint.shape, isa or library.host_isa())
        report = progress or (lambda *_: None)
        artefact = library.for_model(checkpoint.shape, [lookup], progress=lambda d, t: report("compiling", d, t))
        packed, doubt = pack.path_for(source, lookup, head, f"{checkpoint.shape} {checkpoint.reading}"), None
        if not packed.exists():
            pack.write(packed, checkpoint, lookup, head, lambda d, t: report("packing", d, t))
            doubt = i2s_guess.doubt(checkpoint)
        tokenizer = Tokenizer.from_metadata(checkpoint.metadata)
        _give_back_memory()
        model = cls(source, checkpoint.shape, tokenizer, lookup, artefact, packed, head, threads)
        carried = checkpoint.metadata.get("tokenizer.chat_template")
        model.chat_template = carried if isinstance(carried, str) and carried.strip() else None
        model.pooling = pooling_of(checkpoint.metadata)
        model.load_s, model.doubt = time.perf_counter() - started, doubt
        return model

    @property
    def about(self) -> str:
        """One line: the model, the ISA it runs on, the head, the threads."""
        return f"{self.shape.name} on {self.lookup.isa}, {self.head} head, {self.threads} threads"

    @property
    def ternary_weights(self) -> int:
        """Ternary weights of the whole model."""
        return self.shape.layers * sum(s.m * s.k for s in self.shape.matrices.values())

    @property
    def weight_bytes(self) -> int:
        """Packed ternary bytes that one token reads."""
        matrices = self.lookup.matrices.items()
        layer = sum(
            FORMATS[p.layout.format].geometry(self.shape.matrices[r], p.layout).weight_bytes for r, p in matrices
        )
        return self.shape.layers * layer

    @property
    def head_bytes(self) -> int:
        """Bytes of the LM head read to choose up to CHOICES tokens (certified: besides the few rows that may win)."""
        hidden = self.shape.hidden
        upper = -(-hidden // 256) * 192  # runtime/ops.h
        return self.shape.vocab * {"f16": 2 * hidden, "int8": hidden + 4, "certified": upper + 12}[self.head]

    def session(self, threads: int | None = None, context: int | None = None, cache: Cache = "f16") -> Session:
        """A new conversation of at most `context` tokens (default: all the model was made for).

        cache: the type that keys and values are kept in: "f16"; "int8", half the bytes, with a scale for each position
        and head; or "f32", for comparisons with models that do not round them.
        """
        return Session(self, threads, context, cache)

    def logits(self, tokens: Sequence[int], *, cache: Cache = "f16") -> npt.NDArray[np.float32]:
        """Logits float32 [n, vocab] after each of n tokens, computed from an empty context."""
        with self.session(context=max(len(tokens), 1), cache=cache) as session:
            return session.forward(tokens, every=True)

    def embed(self, texts: Sequence[str], *, pooling: str | None = None) -> npt.NDArray[np.float32]:
        """Vectors float32 [len(texts), hidden] of length one, whose dot products say how alike texts are.

        pooling: "last" (the last token's state), "mean" (of all tokens) or "cls" (the first token's); None: what
            the file says, or else "last". Texts share passes through the layers; a vector does not depend on which.
        """
        return embed(self, texts, pooling)

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        *,
        stop: bool = True,
        sampling: Sampling | None = None,
        cache: Cache = "f16",
        lookup: int = 0,
        logprobs: int | None = None,
        session: Session | None = None,
        **how: Any,
    ) -> Generation:
        """Continue a prompt, a text or its token ids: an iterator over pieces of text as they come.

        Sampling parameters may be given one by one (temperature=0.8, seed=1) or as `sampling`.
        stop: end at the model's stop tokens. Ends at `max_tokens` or where the context is full.
        cache: as in `session`.
        lookup: try up to so many tokens at once that followed the last few before (engine/lookup.py). The text
            is the same; it comes faster where it repeats itself or the prompt.
        logprobs: keep each token's log probability and that many likeliest ones (`Generation.choices`).
        session: continue in a session whose cache holds the start of the prompt, instead of a new one.
        """
        return Generation(self, prompt, max_tokens, stop, sampling or Sampling(**how), cache, lookup, logprobs, session)

    def score(self, text: str, context: str = "", *, cache: Cache = "f16") -> Score:
        """Log probabilities of a text's tokens, given the context before it; see score.score."""
        return score(self, text, context, cache)

    def generate_many(
        self,
        prompts: Sequence[str],
        max_tokens: int = 256,
        *,
        batch: int = 16,
        stop: bool = True,
        sampling: Sampling | None = None,
        cache: Cache = "f16",
        **how: Any,
    ) -> list[str]:
        """Continue many prompts, up to `batch` of them at once: the texts that `generate` gives one by one.

        As one ends the next takes its place. Every text is drawn with the same seed.
        """
        if batch < 1:
            raise BitgenError(f"batch is {batch}, must be 1 or more")
        jobs = [Generation(self, prompt, max_tokens, stop, sampling or Sampling(**how)) for prompt in prompts]
        waiting = [job for job in reversed(jobs) if not job.finished]
        running: list[tuple[Session, Generation]] = []
        longest = max((job.context for job in waiting), default=1)
        with ExitStack() as opened:
            free: list[Session] = []
            for _ in range(min(batch, len(waiting))):
                session = free[0].share(longest) if free else self.session(context=longest, cache=cache)
                free.append(opened.enter_context(session))
            while waiting or running:
                while waiting and free:
                    free[-1].rewind(0)
                    running.append((free.pop(), waiting.pop()))
                chosen = next_batch(
                    [session for session, _ in running],
                    [job.token_ids[-1:] or job.prompt_ids for _, job in running],
                    [Choice(job.sampling, job.history, len(job.token_ids)) for _, job in running],
                )
                for (_, job), tokens in zip(running, chosen, strict=True):
                    job.accept(tokens)
                free += [session for session, job in running if job.finished]
                running = [(session, job) for session, job in running if not job.finished]
        return [job.text for job in jobs]


@dataclass
class Generation:
    """Text in the making. Iterate for the pieces; `timing` and `token_ids` hold what happened so far."""

    model: Model
    prompt: str | Sequence[int]
    max_tokens: int
    stop: bool
    sampling: Sampling
    cache: Cache = "f16"
    lookup: int = 0  # most tokens to propose at a time
    logprobs: int | None = None  # likeliest tokens to keep at each place; None: and no log probabilities
    session: Session | None = None  # holds the first `position` tokens of the prompt; None: one of its own
    timing: Timing = field(init=False)
    prompt_ids: list[int] = field(init=False)
    token_ids: list[int] = field(default_factory=list)
    choices: list[TokenChoice] = field(default_factory=list)  # of token_ids and the stop token, with logprobs

    def __post_init__(self) -> None:
        self.timing = Timing(self.model.load_s)
        prompt = self.prompt
        self.prompt_ids = self.model.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        context = self._most
        if not self.prompt_ids:
            raise BitgenError("the prompt is empty and this model has no begin-of-text token; give it some text")
        if len(self.prompt_ids) >= context:
            raise BitgenError(f"the prompt has {len(self.prompt_ids)} tokens, the model's context holds {context}")
        if self.lookup < 0 or (self.logprobs or 0) < 0:
            raise BitgenError(f"lookup is {self.lookup}, logprobs {self.logprobs}; both must be 0 or more")
        if self.lookup and self.logprobs is not None:
            raise BitgenError("prompt lookup computes no log probabilities; ask for one of the two")

    @property
    def limit(self) -> int:
        """Most tokens to generate; the last of them need not fit into the context."""
        return min(self.max_tokens, self._most - len(self.prompt_ids) + 1)

    @property
    def context(self) -> int:
        """Positions that the session needs."""
        return min(self._most, len(self.prompt_ids) + self.limit)

    @property
    def _most(self) -> int:
        """Positions that there can be."""
        return self.session.context if self.session else self.model.shape.context

    @property
    def finished(self) -> bool:
        """Whether there is no more to come."""
        return self.timing.stopped == "stop token" or len(self.token_ids) >= self.limit

    @property
    def text(self) -> str:
        """The text so far, without the prompt."""
        stream = Stream(self.model.tokenizer)
        return "".join(map(stream.push, self.token_ids)) + stream.flush()

    @property
    def history(self) -> list[int]:
        """The prompt's tokens and those that followed."""
        return self.prompt_ids + self.token_ids

    def accept(self, chosen: Sequence[int], proposed: Sequence[int] = ()) -> list[int]:
        """Take the first chosen token, and each further one if the one before it is as proposed.

        Returns the tokens that the text gained.
        """
        stops = self.model.tokenizer.stop_ids if self.stop else frozenset()
        before = len(self.token_ids)
        for token, guess in zip(chosen, [*proposed, None], strict=True):
            if token in stops:
                self.timing.stopped = "stop token"
                break
            self.token_ids.append(token)
            if token != guess or self.finished:
                break
        self.timing.tokens = len(self.token_ids)
        return self.token_ids[before:]

    def __iter__(self) -> Iterator[str]:
        model, timing, prompt = self.model, self.timing, self.prompt_ids
        stream, lookup = Stream(model.tokenizer), PromptLookup(self.lookup, prompt)
        opened: AbstractContextManager[Session] = (
            nullcontext(self.session) if self.session else model.session(context=self.context, cache=self.cache)
        )
        with opened as session:
            if not self.finished:
                started = time.perf_counter()
                timing.prompt_tokens = len(prompt) - session.position
                while len(prompt) - session.position > PREFILL_AT_ONCE:
                    session.append(prompt[session.position : session.position + PREFILL_AT_ONCE])
                tokens = self.accept(self._choose(session, prompt[session.position :], prompt))
                timing.prefill_s = time.perf_counter() - started
                yield from map(stream.push, tokens)
            while not self.finished:
                started = time.perf_counter()
                lookup.extend(tokens)
                tokens = self._step(session, lookup)
                timing.decode_s += time.perf_counter() - started
                yield from map(stream.push, tokens)
        yield stream.flush()

    def _choose(self, session: Session, tokens: Sequence[int], history: Sequence[int], count: int = 1) -> list[int]:
        """Append tokens, the end of the history, and choose what follows each of the last `count`."""
        if self.logprobs is None:
            return session.next(tokens, self.sampling, history, len(self.token_ids), count)
        logits = session.forward(tokens)
        token = session.sample(self.sampling, logits, history, len(self.token_ids))
        self.choices.append(TokenChoice.of(logits, token, self.logprobs))
        return [token]

    def _step(self, session: Session, lookup: PromptLookup) -> list[int]:
        """One forward pass: at least one token, unless the text ends."""
        proposed = lookup.propose(self.limit - len(self.token_ids) - 1)
        history = self.history + proposed
        chosen = self._choose(session, history[-len(proposed) - 1 :], history, len(proposed) + 1)
        tokens = self.accept(chosen, proposed)
        accepted = sum(a == b for a, b in zip(tokens, proposed, strict=False))
        session.rewind(session.position - (len(proposed) - accepted))
        lookup.learn(len(proposed), accepted)
        self.timing.proposed += len(proposed)
        self.timing.accepted += accepted
        return tokens
