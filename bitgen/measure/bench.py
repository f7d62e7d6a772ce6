"""Benchmarks of a whole model: prefill and decode rates beside the machine's own limits, measured in one run."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import numpy as np

from bitgen.compile import binding, library
from bitgen.engine import arguments
from bitgen.engine.model import Model
from bitgen.engine.opened import Cache
from bitgen.engine.sampling import NEUTRAL
from bitgen.engine.session import Choice, Session, next_batch
from bitgen.errors import BitgenError
from bitgen.headers import constants
from bitgen.kernels import plan
from bitgen.measure.report import BenchReport, Case, Kind, Limits, Machine, Rate, Subject
from bitgen.spec import Listener, Progress
from bitgen.targets import default_threads
from bitgen.tune.lab import stream_bytes

RUNS = 5
GREEDY = replace(NEUTRAL, temperature=0.0)
CACHE_BYTES: dict[Cache, tuple[int, int]] = {"f16": (2, 0), "f32": (4, 0), "int8": (1, 4)}
"""Bytes of a number, and of the scale of each position and head."""


def limits(model: Model, threads: int) -> Limits:
    """Sequential read bandwidth in bytes/s and peak integer operations/s, measured now."""
    lib, isa = model.lib, library.isa_index(model.lib, model.plan.isa)
    out, buffer = binding.ffi().new("double *"), np.ones(stream_bytes(), np.uint8)
    code = lib.bg_read_bandwidth(isa, binding.ffi().from_buffer(buffer), len(buffer), threads, 5, out)
    binding.check(lib, code, "cannot measure the read bandwidth")
    bandwidth = float(out[0])
    binding.check(lib, lib.bg_peak_ops(isa, threads, 5, out), "cannot measure the peak of integer operations")
    return Limits(bandwidth, float(out[0]))


def bench(
    model: Model,
    threads: Sequence[int],
    prompts: Sequence[int],
    generate: int,
    listener: Listener = lambda *_: None,
    *,
    contexts: Sequence[int] = (0,),
    batches: Sequence[int] = (1,),
    cache: Cache = "f16",
) -> BenchReport:
    """Measure every combination of thread counts, contexts, and prompts to prefill or batches to decode.

    threads: none are as many as there are CPUs. prompts: tokens of each prefill; generate: tokens to decode; contexts:
    tokens in the cache before each run, none: 0; batches: sequences decoded together, none: 1.
    """
    threads = arguments.counts("threads", threads, 1, arguments.MOST_THREADS) or [default_threads()]
    prompts, generate = arguments.counts("prompt", prompts), arguments.checked("gen", generate)
    contexts = arguments.counts("contexts", contexts) or [0]
    batches = arguments.counts("batches", batches, most=arguments.MOST_PLACES) or [1]
    longest = max([*prompts, generate, 1]) + max(contexts)
    if longest + 1 > model.shape.context:
        raise BitgenError(f"{longest} tokens do not fit into the model's context of {model.shape.context}")
    cases = cases_of(threads, prompts, generate, contexts, batches)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    machine = {}
    for count in dict.fromkeys(threads):
        listener(f"measuring the machine's limits, {_threads(count)}", 0, 0)
        machine[count] = limits(model, count)
    results = []
    for case, told in staged(cases, listener):
        results.append(_measure(model, machine[case.threads], case, cache, told))
    shape, isa = model.shape, model.plan.isa
    subject = Subject(shape.name, model.path.name, model.head, cache, isa, shape.activation)
    system, compiler = platform.platform(terse=True), str(model.artefact.spec["compiler"])
    return BenchReport(
        subject, Machine(plan.cpu_title(plan.cpu_name()), system, compiler, busy, machine), tuple(results)
    )


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def staged(cases: Sequence[Case], listener: Listener, stage: str = "") -> Iterator[tuple[Case, Progress]]:
    """Each case with what its runs tell the listener of: (runs done, RUNS). The stage is named after the case."""
    for number, case in enumerate(cases, 1):
        name = f"{stage}{case.title}, {_threads(case.threads)} ({number} of {len(cases)})"
        told = partial(listener, name)
        told(0, RUNS)
        yield case, told


def cases_of(
    threads: Sequence[int], prompts: Sequence[int], generate: int, contexts: Sequence[int], batches: Sequence[int]
) -> list[Case]:
    """All combinations; a length or a batch of 0 is left out."""
    tests: list[tuple[Kind, int, int]] = [("prefill", n, 1) for n in prompts]
    tests += [("decode", generate, batch) for batch in batches]
    return [Case(kind, n, t, batch, at) for t in threads for at in contexts for kind, n, batch in tests if n and batch]


def _measure(model: Model, machine: Limits, case: Case, cache: Cache, progress: Progress) -> Rate:
    rates: list[float] = []
    with runs(model, case, cache) as (_, timed):
        for seconds in timed:
            rates.append(case.batch * case.tokens / seconds)
            progress(len(rates), RUNS)
    rate, per_token = statistics.median(rates), _bytes_per_token(model, case, cache)
    return Rate(
        case,
        tok_s=rate,
        tok_s_min=min(rates),
        tok_s_max=max(rates),
        bytes_per_token=per_token,
        gb_s=per_token * rate / 1e9,
        bandwidth_share=per_token * rate / machine.bytes_s,
        ops_share=2 * model.ternary_weights * rate / machine.ops_s,
    )


def prompt(model: Model, tokens: int) -> list[int]:
    """Token ids that every engine is given: random, and the same at each call."""
    rng = np.random.default_rng(0)
    return [int(id) for id in rng.integers(0, model.shape.vocab, tokens)]


@contextmanager
def runs(model: Model, case: Case, cache: Cache = "f16") -> Iterator[tuple[Session, Iterator[float]]]:
    """The first of a case's sessions, and the seconds of each of RUNS runs, which are made as the iterator is read."""
    room = case.context + case.tokens + 1
    rows = max(room, case.batch)  # a pass takes as many as the first session holds
    with ExitStack() as opened:
        context = min(rows, model.shape.context)
        first = opened.enter_context(model.session(threads=case.threads, context=context, cache=cache))
        sessions = [first, *(opened.enter_context(first.share(room)) for _ in range(case.batch - 1))]
        for session in sessions if case.context else ():
            session.forward(prompt(model, case.context))
            session._keep_state()
        timed = _prefill if case.kind == "prefill" else _decode
        yield first, timed(sessions, prompt(model, case.tokens))


def _prefill(sessions: list[Session], ids: list[int]) -> Iterator[float]:
    """Seconds of each of RUNS prefills of ids, after one that warms up."""
    filled = sessions[0].position
    for run in range(RUNS + 1):
        sessions[0].rewind(filled)
        started = time.perf_counter()
        sessions[0].next(ids, GREEDY, ids, 0)
        if run:
            yield time.perf_counter() - started


def _decode(sessions: list[Session], ids: list[int]) -> Iterator[float]:
    """Seconds of each of RUNS decodes: ids one by one to all sessions, a greedy choice after each; one warms up."""
    filled = sessions[0].position
    for run in range(RUNS + 1):
        for session in sessions:
            session.rewind(filled)
        started = time.perf_counter()
        for token in ids:
            next_batch(sessions, [[token]] * len(sessions), [Choice(GREEDY, [token], 0)] * len(sessions))
        if run:
            yield time.perf_counter() - started


def _bytes_per_token(model: Model, case: Case, cache: Cache) -> float:
    """Bytes of weights, head and KV cache that a run reads, for each of its tokens."""
    read = model.weight_bytes * _weight_reads(case) + model.head_bytes * _head_reads(case)
    return read / (case.batch * case.tokens) + _cache_bytes(model, case, cache) / case.tokens


def _pass(limit: str) -> int:
    """A limit of one pass through the model, by its name in runtime/core/state.h."""
    return constants("core/state.h", "bg_pass")[limit]


def _weight_reads(case: Case) -> int:
    """How often a run reads the weights: in prefill once a chunk, in decode once a step and chunk of sequences."""
    chunk = _pass("CHUNK")
    return case.tokens * -(-case.batch // chunk) if case.kind == "decode" else -(-case.tokens // chunk)


def _head_reads(case: Case) -> int:
    """How often a run reads the head: in decode once for up to CHOICES sequences of a chunk, in prefill once."""
    if case.kind == "prefill":
        return 1
    chunk, choices = _pass("CHUNK"), _pass("CHOICES")
    return case.tokens * sum(-(-min(chunk, case.batch - at) // choices) for at in range(0, case.batch, chunk))


def _cache_bytes(model: Model, case: Case, cache: Cache) -> int:
    """Bytes of one sequence's KV cache that a run reads, and of its state where layers have Gated DeltaNet.

    A decoded token reads all positions up to its own, a chunk of prefill those before it, once; each reads the state.
    """
    shape, (number, scale) = model.shape, CACHE_BYTES[cache]
    position = 2 * shape.attending * shape.kv_heads * (shape.head_dim * number + scale)
    start, end = case.context, case.context + case.tokens
    passes = range(start + 1, end + 1) if case.kind == "decode" else range(start, end, _pass("CHUNK"))
    return position * sum(passes) + shape.state_bytes * len(passes)
