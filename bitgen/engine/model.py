"""Models and sessions: the runtime with Python's manners."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bitgen import data, gguf_io, library, pack
from bitgen import plan as plans
from bitgen.compile import Artefact
from bitgen.engine import binding
from bitgen.engine.tokenizer import Stream, Tokenizer
from bitgen.errors import BitgenError, EngineError
from bitgen.formats import FORMATS
from bitgen.spec import ModelShape

Cache = Literal["f16", "f32"]
CACHES: dict[Cache, int] = {"f16": 0, "f32": 1}  # BG_CACHE_F16, BG_CACHE_F32

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
    stopped: str = "length"  # or "stop token"

    def __str__(self) -> str:
        prefill = f"prefill {self.prompt_tokens} tokens at {self.prompt_tokens / max(self.prefill_s, 1e-9):.0f} tok/s"
        steps = max(self.tokens - 1, 0)  # the first new token comes out of the prefill
        decode = f"decode {self.tokens} tokens at {steps / max(self.decode_s, 1e-9):.1f} tok/s"
        return f"load {self.load_s:.2f} s | {prefill} | {decode}"


def shipped_path() -> Path:
    """The GGUF that ships with bitgen."""
    return data.folder("models") / f"{SHIPPED}.gguf"


def default_threads() -> int:
    """The CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Session:
    """One conversation: a KV cache, buffers and threads. Not for use by two threads at once.

    Close it, or use it as a context manager. Tokens are appended by `forward`; `rewind` forgets the latest.
    """

    def __init__(
        self, model: Model, threads: int | None = None, context: int | None = None, cache: Cache = "f16"
    ) -> None:
        self._lib, self._model = model.lib, model
        self._vocab = model.shape.vocab
        self.threads = threads or model.threads
        self.context = model.shape.context if context is None else context
        out = binding.ffi().new("bg_session **")
        code = self._lib.bg_session_open(model._handle, self.threads, self.context, CACHES[cache], out)
        binding.check(self._lib, code, f"cannot open a session of {self.context} tokens on {self.threads} threads")
        self._handle = out[0]

    @property
    def position(self) -> int:
        """Tokens in the KV cache."""
        return int(self._lib.bg_position(self._open()))

    def rewind(self, position: int) -> None:
        """Forget all tokens after the first `position`."""
        binding.check(self._lib, self._lib.bg_rewind(self._open(), position), f"cannot rewind to {position}")

    def forward(self, tokens: Sequence[int], *, every: bool = False) -> npt.NDArray[np.float32]:
        """Append tokens; logits float32 [vocab] of the last one, or [n, vocab] of all when `every`."""
        ids = np.asarray(tokens, np.int64)
        if ids.ndim != 1 or len(ids) == 0 or ids.min() < 0 or ids.max() >= self._vocab:
            raise EngineError(f"tokens must be a non-empty list of ids in [0, {self._vocab})")
        logits = np.empty((len(ids), self._vocab) if every else self._vocab, np.float32)
        cast, ids32 = binding.ffi().cast, ids.astype(np.int32)
        code = self._lib.bg_forward(
            self._open(),
            cast("int32_t *", ids32.ctypes.data),
            len(ids32),
            cast("float *", logits.ctypes.data),
            int(every),
        )
        what = f"cannot append {len(ids32)} tokens at position {self.position} of a context of {self.context}"
        binding.check(self._lib, code, what)
        return logits

    def sample(self, how: Sampling, logits: npt.NDArray[np.float32], history: Sequence[int], step: int) -> int:
        """The next token from logits [vocab]; the same seed and step give the same draw on every host."""
        ffi, past = (
            binding.ffi(),
            np.asarray(history[-how.repeat_last :] if how.repeat_last else [], np.int32),
        )
        params = ffi.new("bg_sampling *", {name: getattr(how, name) for name in Sampling.__dataclass_fields__})
        code = self._lib.bg_sample(
            self._open(),
            params,
            ffi.cast("float *", logits.ctypes.data),
            ffi.cast("int32_t *", past.ctypes.data),
            len(past),
            step,
        )
        return binding.check(self._lib, code, "cannot sample")

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
        self.head, self.load_s = head, 0.0
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
        head: pack.Head = "f16",
        i2s_layout: gguf_io.I2sLayout = "x86",
        activation: str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Model:
        """Open a GGUF file (None: the model that ships), building and packing what is not cached yet.

        head: "f16", exact, or "int8", row-scaled: half the bytes, logits within its rounding.
        i2s_layout, activation: override what the file says, for files that say it wrongly.
        progress: called as (stage, done, total) while kernels compile and weights are packed.
        """
        started = time.perf_counter()
        source = Path(path) if path is not None else shipped_path()
        checkpoint = gguf_io.open(source, i2s_layout=i2s_layout, activation=activation)
        lookup = plans.lookup(checkpoint.shape, isa or library.host_isa())
        report = progress or (lambda *_: None)
        artefact = library.for_model(checkpoint.shape, [lookup], progress=lambda d, t: report("compiling", d, t))
        packed = pack.ensure(
            source, checkpoint, lookup, head, i2s_layout, progress=lambda d, t: report("packing", d, t)
        )
        tokenizer = Tokenizer.from_metadata(checkpoint.metadata)
        model = cls(source, checkpoint.shape, tokenizer, lookup, artefact, packed, head, threads)
        model.load_s = time.perf_counter() - started
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
        """Bytes of the LM head that one token's logits read."""
        return self.shape.vocab * self.shape.hidden * (2 if self.head == "f16" else 1)

    def session(self, threads: int | None = None, context: int | None = None, cache: Cache = "f16") -> Session:
        """A new conversation of at most `context` tokens (default: all the model was made for).

        cache: the type that keys and values are kept in; "f32" is for comparisons with models that do not round them.
        """
        return Session(self, threads, context, cache)

    def logits(self, tokens: Sequence[int], *, cache: Cache = "f16") -> npt.NDArray[np.float32]:
        """Logits float32 [n, vocab] after each of n tokens, computed from an empty context."""
        with self.session(context=max(len(tokens), 1), cache=cache) as session:
            return session.forward(tokens, every=True)

    def generate(
        self,
        prompt: str,
        max_tokens: int = 256,
        *,
        stop: bool = True,
        sampling: Sampling | None = None,
        **how: Any,
    ) -> Generation:
        """Continue a prompt: an iterator over pieces of text as they come.

        Sampling parameters may be given one by one (temperature=0.8, seed=1) or as `sampling`.
        stop: end at the model's stop tokens. Ends at `max_tokens` or where the context is full.
        """
        return Generation(self, prompt, max_tokens, stop, sampling or Sampling(**how))


@dataclass
class Generation:
    """Text in the making. Iterate for the pieces; `timing` and `token_ids` hold what happened so far."""

    model: Model
    prompt: str
    max_tokens: int
    stop: bool
    sampling: Sampling
    timing: Timing = field(init=False)
    prompt_ids: list[int] = field(init=False)
    token_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.timing = Timing(self.model.load_s)
        self.prompt_ids = self.model.tokenizer.encode(self.prompt)
        context = self.model.shape.context
        if not self.prompt_ids:
            raise BitgenError("the prompt is empty and this model has no begin-of-text token; give it some text")
        if len(self.prompt_ids) >= context:
            raise BitgenError(f"the prompt has {len(self.prompt_ids)} tokens, the model's context holds {context}")

    def __iter__(self) -> Iterator[str]:
        model, timing, prompt = self.model, self.timing, self.prompt_ids
        context = model.shape.context
        stops = model.tokenizer.stop_ids if self.stop else frozenset()
        stream = Stream(model.tokenizer)
        limit = min(self.max_tokens, context - len(prompt) + 1)
        with model.session(context=min(context, len(prompt) + limit)) as session:
            started = time.perf_counter()
            logits = session.forward(prompt)
            timing.prompt_tokens, timing.prefill_s = len(prompt), time.perf_counter() - started
            for step in range(limit):
                started = time.perf_counter()
                if step:
                    logits = session.forward(self.token_ids[-1:])
                token = session.sample(self.sampling, logits, prompt + self.token_ids, step)
                timing.decode_s += time.perf_counter() - started if step else 0.0  # step 0 samples the prefill
                if token in stops:
                    timing.stopped = "stop token"
                    break
                self.token_ids.append(token)
                timing.tokens += 1
                yield stream.push(token)
        yield stream.flush()
