"""Benchmarks of a whole model: prefill and decode rates beside the machine's own limits, measured in one run."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from bitgen import library, plan
from bitgen.engine import binding
from bitgen.engine.model import Model, Session
from bitgen.errors import BitgenError
from bitgen.tune import stream_bytes

RUNS = 5
CHUNK = 128  # tokens that the runtime takes through the layers at once (runtime/session.h)


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
) -> dict[str, Any]:
    """Measure every combination; the result is what `bitgen bench --json` prints."""
    longest = max([*prompts, generate, 1])
    if longest + 1 > model.shape.context:
        raise BitgenError(f"{longest} tokens do not fit into the model's context of {model.shape.context}")
    cases = [
        (t, kind, n) for t in threads for kind, ns in (("prefill", prompts), ("decode", (generate,))) for n in ns if n
    ]
    busy = os.getloadavg()[0]
    results, machine = [], {t: limits(model, t) for t in dict.fromkeys(threads)}
    for done, (count, kind, tokens) in enumerate(cases, 1):
        results.append(asdict(_measure(model, machine[count], kind, tokens, count)))
        listener(f"{kind} {tokens}", done, len(cases))
    return {
        "model": {
            "name": model.shape.name,
            "file": model.path.name,
            "head": model.head,
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


def _measure(model: Model, machine: Limits, kind: str, tokens: int, threads: int) -> Result:
    with runs(model, Case(kind, tokens, threads)) as (_, timed):
        rates = [tokens / seconds for seconds in timed]
    rate = statistics.median(rates)
    passes = 1 if kind == "prefill" else tokens
    read = model.weight_bytes * _chunks(kind, tokens) + model.head_bytes * passes + _cache_bytes(model, kind, tokens)
    per_token = read / tokens
    ops = 2 * model.ternary_weights
    return Result(
        *(kind, tokens, threads, 1, 0, rate, min(rates), max(rates)),
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
def runs(model: Model, case: Case) -> Iterator[tuple[Session, Iterator[float]]]:
    """A session, and the seconds of RUNS runs in it; a run is made when its time is asked for."""
    with model.session(threads=case.threads, context=case.tokens + 1) as session:
        timed = _prefill if case.kind == "prefill" else _decode
        yield session, timed(session, prompt(model, case.tokens))


def _prefill(session: Session, ids: list[int]) -> Iterator[float]:
    """Seconds of RUNS prefills of ids, after one that warms up."""
    for run in range(RUNS + 1):
        session.rewind(0)
        started = time.perf_counter()
        session.forward(ids)
        if run:
            yield time.perf_counter() - started


def _decode(session: Session, ids: list[int]) -> Iterator[float]:
    """Seconds of RUNS greedy-length decodes: ids one by one, after one run that warms up."""
    for run in range(RUNS + 1):
        session.rewind(0)
        started = time.perf_counter()
        for token in ids:
            session.forward([token])
        if run:
            yield time.perf_counter() - started


def _chunks(kind: str, tokens: int) -> int:
    """How often the weights are read: once a token in decode, once a chunk in prefill."""
    return tokens if kind == "decode" else -(-tokens // CHUNK)


def _cache_bytes(model: Model, kind: str, tokens: int) -> int:
    """KV cache read: every decoded token reads the positions before it; prefill works on cached blocks."""
    shape = model.shape
    position = 2 * 2 * shape.layers * shape.kv_heads * shape.head_dim
    return position * tokens * (tokens + 1) // 2 if kind == "decode" else 0
