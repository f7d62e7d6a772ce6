"""Benchmarks of a whole model: prefill and decode rates beside the machine's own limits, measured in one run."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from bitgen.compile import binding, library
from bitgen.engine.model import Model
from bitgen.engine.session import CHOICES, Cache, Choice, Sampling, Session, next_batch
from bitgen.errors import BitgenError
from bitgen.kernels import plan
from bitgen.tune.lab import stream_bytes

RUNS = 5
GREEDY = Sampling(temperature=0)
CHUNK = 512  # most tokens that the runtime takes through the layers at once (runtime/core/state.h)
CACHE_BYTES: dict[Cache, tuple[int, int]] = {"f16": (2, 0), "f32": (4, 0), "int8": (1, 4)}  # of a number, of its scale


@dataclass(frozen=True)
class Case:
    """What is measured: the fields that name a row."""

    kind: str  # "prefill" or "decode"
    tokens: int
    threads: int
    batch: int = 1
    context: int = 0  # tokens in the cache before the run

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Case:
        """That of a row of a report."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})


def case_name(row: Mapping[str, Any]) -> str:
    """ "decode 64", "decode 64 x 4", "prefill 128 at 3500"."""
    batch = f" x {row['batch']}" if row["batch"] > 1 else ""
    context = f" at {row['context']}" if row["context"] else ""
    return f"{row['kind']} {row['tokens']}{batch}{context}"


@dataclass(frozen=True)
class Result:
    """One row: tokens per second over RUNS runs, and shares of what the machine was measured to do.

    bytes_per_token: weights, head and KV cache read per token; gb_s: that times the rate.
    bandwidth_share: gb_s over the read bandwidth of the same threads; ops_share: integer operations (two per
    ternary weight and token) over the peak of the ISA's dot product.
    """

    kind: str  # "prefill" or "decode"
    tokens: int
    threads: int
    batch: int  # sequences decoded together
    context: int  # tokens in the cache before the run
    tok_s: float
    tok_s_min: float
    tok_s_max: float
    bytes_per_token: float
    gb_s: float
    bandwidth_share: float
    ops_share: float


@dataclass(frozen=True)
class Limits:
    """What the machine can do with a number of threads."""

    bytes_s: float
    ops_s: float


def limits(model: Model, threads: int) -> Limits:
    """Sequential read bandwidth and peak integer operations, measured now."""
    lib, isa = model.lib, library.isa_index(model.lib, model.lookup.isa)
    out, buffer = binding.ffi().new("double *"), np.ones(stream_bytes(), np.uint8)
    at = binding.ffi().cast("void *", buffer.ctypes.data)
    code = lib.bg_read_bandwidth(isa, at, len(buffer), threads, 5, out)
    binding.check(lib, code, "cannot measure the read bandwidth")
    bandwidth = float(out[0])
    binding.check(lib, lib.bg_peak_ops(isa, threads, 5, out), "cannot measure the peak of integer operations")
    return Limits(bandwidth, float(out[0]))


def bench(
    model: Model,
    threads: Sequence[int],
    prompts: Sequence[int],
    generate: int,
    listener: Callable[[str, int, int], None] = lambda *_: None,
    *,
    contexts: Sequence[int] = (0,),
    batches: Sequence[int] = (1,),
    cache: Cache = "f16",
) -> dict[str, Any]:
    """Measure every combination; the result is what `bitgen bench --json` prints.

    contexts: tokens in the cache before each run.
    """
    longest = max([*prompts, generate, 1]) + max(contexts)
    if longest + 1 > model.shape.context:
        raise BitgenError(f"{longest} tokens do not fit into the model's context of {model.shape.context}")
    tests = [("prefill", n, 1) for n in prompts] + [("decode", generate, batch) for batch in batches]
    cases = [Case(kind, n, t, batch, at) for t in threads for at in contexts for kind, n, batch in tests if n and batch]
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    results, machine = [], {t: limits(model, t) for t in dict.fromkeys(threads)}
    for done, case in enumerate(cases, 1):
        results.append(asdict(_measure(model, machine[case.threads], case, cache)))
        listener(f"{case.kind} {case.tokens}", done, len(cases))
    return {
        "model": {
            "name": model.shape.name,
            "file": model.path.name,
            "head": model.head,
            "cache": cache,
            "isa": model.lookup.isa,
            "activation": model.shape.activation,
        },
        "host": {
            "cpu": plan.cpu_name(),
            "system": platform.platform(terse=True),
            "compiler": model.artefact.spec["compiler"],
            "load_before": busy,
            "read_gb_s": {t: m.bytes_s / 1e9 for t, m in machine.items()},
            "peak_gop_s": {t: m.ops_s / 1e9 for t, m in machine.items()},
        },
        "results": results,
    }


def _measure(model: Model, machine: Limits, case: Case, cache: Cache) -> Result:
    kind, tokens, batch = case.kind, case.tokens, case.batch
    with runs(model, case, cache) as (_, timed):
        rates = [batch * tokens / seconds for seconds in timed]
    rate = statistics.median(rates)
    read = model.weight_bytes * _chunks(kind, tokens, batch) + model.head_bytes * _choices(kind, tokens, batch)
    per_token = read / (batch * tokens) + _cache_bytes(model, cache, kind, tokens, case.context) / tokens
    ops = 2 * model.ternary_weights
    return Result(
        *(kind, tokens, case.threads, batch, case.context, rate, min(rates), max(rates)),
        bytes_per_token=per_token,
        gb_s=per_token * rate / 1e9,
        bandwidth_share=per_token * rate / machine.bytes_s,
        ops_share=ops * rate / machine.ops_s,
    )


def prompt(model: Model, tokens: int) -> list[int]:
    """The token ids that every engine is given: random, and the same ones each time."""
    rng = np.random.default_rng(0)
    return [int(id) for id in rng.integers(0, model.shape.vocab, tokens)]


@contextmanager
def runs(model: Model, case: Case, cache: Cache = "f16") -> Iterator[tuple[Session, Iterator[float]]]:
    """The first of the case's sessions, and the seconds of RUNS runs; a run is made when its time is asked for."""
    room = case.context + case.tokens + 1
    with ExitStack() as opened:
        most = min(max(room, case.batch), model.shape.context)  # a pass takes as many rows as the first session holds
        first = opened.enter_context(model.session(threads=case.threads, context=most, cache=cache))
        sessions = [first, *(opened.enter_context(first.share(room)) for _ in range(case.batch - 1))]
        for session in sessions if case.context else ():
            session.forward(prompt(model, case.context))
        timed = _prefill if case.kind == "prefill" else _decode
        yield first, timed(sessions, prompt(model, case.tokens))


def _prefill(sessions: list[Session], ids: list[int]) -> Iterator[float]:
    """Seconds of RUNS prefills of ids, after one that warms up."""
    filled = sessions[0].position
    for run in range(RUNS + 1):
        sessions[0].rewind(filled)
        started = time.perf_counter()
        sessions[0].next(ids, GREEDY, ids, 0)
        if run:
            yield time.perf_counter() - started


def _decode(sessions: list[Session], ids: list[int]) -> Iterator[float]:
    """Seconds of RUNS decodes: ids one by one to all sessions, a greedy choice after each; one run warms up."""
    filled = sessions[0].position
    for run in range(RUNS + 1):
        for session in sessions:
            session.rewind(filled)
        started = time.perf_counter()
        for token in ids:
            next_batch(sessions, [[token]] * len(sessions), [Choice(GREEDY, [token], 0)] * len(sessions))
        if run:
            yield time.perf_counter() - started


def _chunks(kind: str, tokens: int, batch: int) -> int:
    """How often the weights are read: once a step and chunk of sequences in decode, once a chunk in prefill."""
    return tokens * -(-batch // CHUNK) if kind == "decode" else -(-tokens // CHUNK)


def _choices(kind: str, tokens: int, batch: int) -> int:
    """How often the head is read: once for up to CHOICES sequences of a chunk, in prefill once."""
    if kind == "prefill":
        return 1
    return tokens * sum(-(-min(CHUNK, batch - at) // CHOICES) for at in range(0, batch, CHUNK))


def _cache_bytes(model: Model, cache: Cache, kind: str, tokens: int, context: int) -> int:
    """KV cache read: all positions up to its own for a decoded token, once those before it for a chunk of prefill."""
    shape, (number, scale) = model.shape, CACHE_BYTES[cache]
    position = 2 * shape.layers * shape.kv_heads * (shape.head_dim * number + scale)
    end = context + tokens
    return position * sum(range(context + 1, end + 1) if kind == "decode" else range(context, end, CHUNK))
