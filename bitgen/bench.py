"""Benchmarks of a whole model: prefill and decode rates beside the machine's own limits, measured in one run."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bitgen import library, plan
from bitgen.engine import binding
from bitgen.engine.model import Cache, Model, Sampling, Session
from bitgen.errors import BitgenError
from bitgen.tune import stream_bytes

RUNS = 5
GREEDY = Sampling(temperature=0)
CHUNK = 128  # tokens that the runtime takes through the layers at once (runtime/session.h)
CACHE_BYTES: dict[Cache, tuple[int, int]] = {"f16": (2, 0), "f32": (4, 0), "int8": (1, 4)}  # of a number, of its scale


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
    batch: int
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
    cache: Cache = "f16",
) -> dict[str, Any]:
    """Measure every combination; the result is what `bitgen bench --json` prints.

    contexts: tokens in the cache before each run.
    """
    longest = max([*prompts, generate, 1]) + max(contexts)
    if longest + 1 > model.shape.context:
        raise BitgenError(f"{longest} tokens do not fit into the model's context of {model.shape.context}")
    kinds = [("prefill", n) for n in prompts if n] + [("decode", generate)] * (generate > 0)
    cases = [(t, kind, n, context) for t in threads for context in contexts for kind, n in kinds]
    results, machine = [], {t: limits(model, t) for t in dict.fromkeys(threads)}
    for done, (count, kind, tokens, context) in enumerate(cases, 1):
        results.append(asdict(_measure(model, machine[count], kind, tokens, count, context, cache)))
        listener(f"{kind} {tokens}", done, len(cases))
    return {
        "model": {
            "name": model.shape.name,
            "file": model.path.name,
            "head": model.head,
            "cache": cache,
            "isa": model.lookup.isa,
        },
        "host": {
            "cpu": plan.cpu_name(),
            "system": platform.platform(terse=True),
            "compiler": model.artefact.spec["compiler"],
            "read_gb_s": {t: m.bytes_s / 1e9 for t, m in machine.items()},
            "peak_gop_s": {t: m.ops_s / 1e9 for t, m in machine.items()},
        },
        "results": results,
    }


def _measure(model: Model, machine: Limits, kind: str, tokens: int, threads: int, context: int, cache: Cache) -> Result:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, model.shape.vocab, context + tokens).tolist()
    with model.session(threads=threads, context=context + tokens + 1, cache=cache) as session:
        if context:
            session.forward(ids[:context])
        timed = _prefill if kind == "prefill" else _decode
        rates = [tokens / seconds for seconds in timed(session, ids[context:])]
    rate = statistics.median(rates)
    passes = 1 if kind == "prefill" else tokens
    read = model.weight_bytes * _chunks(kind, tokens) + model.head_bytes * passes
    per_token = (read + _cache_bytes(model, cache, kind, tokens, context)) / tokens
    ops = 2 * model.ternary_weights
    return Result(
        *(kind, tokens, threads, 1, context, rate, min(rates), max(rates)),
        bytes_per_token=per_token,
        gb_s=per_token * rate / 1e9,
        bandwidth_share=per_token * rate / machine.bytes_s,
        ops_share=ops * rate / machine.ops_s,
    )


def _prefill(session: Session, ids: list[int]) -> Iterator[float]:
    """Seconds of RUNS prefills of ids, after one that warms up."""
    filled = session.position
    for run in range(RUNS + 1):
        session.rewind(filled)
        started = time.perf_counter()
        session.next(ids, GREEDY, ids, 0)
        if run:
            yield time.perf_counter() - started


def _decode(session: Session, ids: list[int]) -> Iterator[float]:
    """Seconds of RUNS decodes: ids one by one, a greedy choice after each, after one run that warms up."""
    filled = session.position
    for run in range(RUNS + 1):
        session.rewind(filled)
        started = time.perf_counter()
        for token in ids:
            session.next([token], GREEDY, [token], 0)
        if run:
            yield time.perf_counter() - started


def _chunks(kind: str, tokens: int) -> int:
    """How often the weights are read: once a token in decode, once a chunk in prefill."""
    return tokens if kind == "decode" else -(-tokens // CHUNK)


def _cache_bytes(model: Model, cache: Cache, kind: str, tokens: int, context: int) -> int:
    """KV cache read: all positions up to its own for a decoded token, once those before it for a chunk of prefill."""
    shape, (number, scale) = model.shape, CACHE_BYTES[cache]
    position = 2 * shape.layers * shape.kv_heads * (shape.head_dim * number + scale)
    end = context + tokens
    return position * sum(range(context + 1, end + 1) if kind == "decode" else range(context, end, CHUNK))
