"""The autotuner: candidates -> compile -> verify -> time -> choose.

For each distinct matrix shape the legal layouts and tiles are compiled into one library. Each kernel must first give
the oracle's integers; a wrong one ends the tuning, because a wrong kernel is a bug, not a slow candidate. The search is
successive halving: a round times every candidate once, so that drift of the machine affects all alike; after ROUNDS
rounds the slower half drops out; the medians of the last two decide. Decode kernels read weights from memory (they
rotate over copies larger than the last-level cache), with all threads running.

Prefill tiles are timed for the layouts that decode fastest. The pair of kernels with the least
    seconds per token of decode + seconds per token of prefill
wins, as for a request that reads as many tokens as it writes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar, get_args

from bitgen.errors import ArgumentError, BitgenError, quoted
from bitgen.kernels import plan as plans
from bitgen.kernels import space
from bitgen.kernels.evidence import Decode, Effort, Measured, Prefill
from bitgen.kernels.plan import Decision, Plan
from bitgen.spec import GemmShape, KernelSpec, Listener, MatrixPlan
from bitgen.tune.lab import PREFILL_TOKENS, Host, Lab, Site

FINALIST_LAYOUTS = 3
ROUNDS = 5  # timed rounds before each halving, and before the final decision
REPEATS = 3  # times that one race may repeat its rounds because they disagreed
SPREAD = 0.15  # rounds disagree when the interquartile range of a kernel's times exceeds this fraction of the median
BUSY = 0.5  # the machine was busy if its load average exceeded our threads by more than this

T = TypeVar("T")


@dataclass(frozen=True)
class Race(Generic[T]):
    """Median seconds of every candidate; `disturbed` when rounds still disagreed after all repeats."""

    medians: dict[T, float]
    disturbed: bool


def race(candidates: Sequence[T], measure: Callable[[T], float], step: Callable[[], None] = lambda: None) -> Race[T]:
    """Median seconds of every candidate, by successive halving: the slower half drops out after every ROUNDS rounds.

    ROUNDS rounds are discarded and measured again, at most REPEATS times in a race, when the times of one of these
    candidates disagree: the first, which is the reference, and those whose least time is not above the best median.
    A candidate that drops out keeps its median. `step` is called after every ROUNDS valid rounds. All times come from
    `measure`, so recorded times replay a search.
    """
    samples: dict[T, list[float]] = {c: [] for c in candidates}
    field, repeats, disturbed = list(candidates), REPEATS, False
    while True:
        latest: dict[T, list[float]] = {c: [] for c in field}
        for _ in range(ROUNDS):
            for candidate in field:
                latest[candidate].append(measure(candidate))
        best = min(map(statistics.median, latest.values()))
        watched = [c for c in field if min(latest[c]) <= best or c == candidates[0]]
        unsteady = any(disagree(latest[c]) for c in watched)
        if unsteady and repeats:
            repeats -= 1
            continue
        disturbed = disturbed or unsteady
        for candidate, times in latest.items():
            samples[candidate] += times
        step()
        field.sort(key=lambda c: statistics.median(samples[c]))
        if len(field) <= 2:
            return Race({c: statistics.median(times) for c, times in samples.items()}, disturbed)
        field = field[: math.ceil(len(field) / 2)]


def disagree(times: Sequence[float]) -> bool:
    """Whether the interquartile range of some times exceeds SPREAD times their median."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return high - low > SPREAD * median


def race_rounds(candidates: int) -> int:
    """Number of calls of `step` in a race of so many candidates."""
    rounds = 1
    while candidates > 2:
        candidates, rounds = math.ceil(candidates / 2), rounds + 1
    return rounds


def tune(
    shapes: Sequence[GemmShape],
    isa: str,
    threads: int,
    effort: Effort = "quick",
    listener: Listener = lambda *_: None,
    site: Site | None = None,
    path: Path | None = None,
) -> Plan:
    """Decide every shape that the plan of a site (default: this host) does not decide yet; save the plan after each.

    An interrupted run resumes after the last shape decided, and a second run without changes returns at once. A shape
    is measured again if the machine was disturbed or today's templates render other kernels; every shape is, if the
    compiler changed. `path` is the plan's file, by default the one that builds look for; BitgenError when that is the
    plan of another ISA or CPU.
    """
    site = site or Host()
    path = path or plans.path_of(site.cpu, isa)
    plan = plans.load(path)
    if plan is not None and (plan.isa, plan.cpu) != (isa, site.cpu):
        raise BitgenError(f"{path} is the plan of {plan.isa} on {plan.cpu}, not {isa} on {site.cpu}; name another file")
    if plan is None or plan.compiler != site.compiler:
        plan = Plan(isa, site.cpu, site.compiler, site.basis)
    missing = [shape for shape in dict.fromkeys(shapes) if not _serves(plan, shape, threads, effort)]
    for number, shape in enumerate(missing, 1):
        plan.decisions[shape] = decide(shape, isa, threads, effort, within(listener, shape, number, missing), site)
        plans.save(plan, path)
    return plan


def _serves(plan: Plan, shape: GemmShape, threads: int, effort: Effort) -> bool:
    """Whether a shape's kernels are today's, measured with these threads and this effort (or more), undisturbed."""
    known = plan.decisions.get(shape)
    evidence = known.evidence if known and known.is_current(shape, plan.isa) else None
    if not isinstance(evidence, Measured) or evidence.disturbed:
        return False
    return evidence.threads == threads and evidence.effort in (effort, "thorough")


def within(listener: Listener, shape: GemmShape, number: int, shapes: Sequence[GemmShape]) -> Listener:
    """The listener of one shape's stages, which names it and says how many there are."""
    return lambda stage, done, total: listener(f"{shape} ({number} of {len(shapes)}): {stage}", done, total)


def candidates(shape: GemmShape, isa: str, effort: Effort) -> list[KernelSpec]:
    """Every kernel to try for a shape; the two of the static default come first."""
    if effort not in get_args(Effort):
        raise ArgumentError(f"effort is {quoted(effort)}, must be one of {', '.join(get_args(Effort))}")
    thorough = effort == "thorough"
    found = [*space.default_plan(shape, isa).specs(shape, isa)]
    for layout in space.candidate_layouts(shape, isa, thorough):
        for op in ("gemv", "gemm"):
            tiles = space.candidate_tiles(op, shape, isa, layout, thorough)
            found += [KernelSpec(op, shape, isa, layout, tile) for tile in tiles]
    return list(dict.fromkeys(found))


def decide(shape: GemmShape, isa: str, threads: int, effort: Effort, listener: Listener, site: Site) -> Decision:
    """Verify and time the candidates of one shape, as its `space.trial_shape`; the decision with its evidence."""
    tried = candidates(space.trial_shape(shape), isa, effort)
    specs = [spec for spec in tried if space.legal(replace(spec, shape=shape)) is None]
    with closing(site.lab(isa, specs, threads, listener)) as lab:
        for done, spec in enumerate(specs):
            listener("verifying kernels", done, len(specs))
            lab.verify(spec)
        plan, found = _decide(lab, specs, threads, listener)
    disturbed = found.disturbed or site.load > threads + BUSY
    return Decision.of(plan, shape, isa, replace(found, effort=effort, load=site.load, disturbed=disturbed))


def _decide(lab: Lab, specs: Sequence[KernelSpec], threads: int, listener: Listener) -> tuple[MatrixPlan, Measured]:
    """Time the verified kernels of one shape; `specs` begins with the two of the static default."""

    def run(phase: str, field: list[KernelSpec]) -> Race[KernelSpec]:
        stage, rounds = f"timing {len(field)} {phase} kernels", race_rounds(len(field))
        steps = iter(range(1, rounds + 1))
        listener(stage, 0, rounds)
        return race(field, lab.seconds, lambda: listener(stage, next(steps), rounds))

    default_gemv, default_gemm, *_ = specs
    decoding = run("decode", [s for s in specs if s.op == "gemv"])
    decode = decoding.medians
    layouts = dict.fromkeys(s.layout for s in sorted(decode, key=decode.__getitem__))
    finalists = {*list(layouts)[:FINALIST_LAYOUTS], default_gemv.layout}
    prefilling = run("prefill", [s for s in specs if s.op == "gemm" and s.layout in finalists])
    prefill = prefilling.medians

    def cost(pair: tuple[KernelSpec, KernelSpec]) -> float:
        return decode[pair[0]] + prefill[pair[1]] / PREFILL_TOKENS

    gemv, gemm = min(((v, g) for v in decode for g in prefill if v.layout == g.layout), key=cost)
    listener("measuring the machine's limits", 0, 0)
    bandwidth, disturbed = lab.bandwidth(), decoding.disturbed or prefilling.disturbed
    listener("timing numbers of threads", 0, 0)
    counts = [str(1 << i) for i in range(threads.bit_length()) if 1 << i < threads] + [str(threads)]
    by_threads = race(counts, lambda count: lab.seconds(gemv, int(count))).medians
    of_decode = _decode_evidence(lab, gemv, decode, decode[default_gemv], by_threads, bandwidth)
    of_prefill = _prefill_evidence(lab, gemm, prefill, prefill[default_gemm])
    evidence = Measured(threads, bandwidth / 1e9, of_decode, of_prefill, disturbed=disturbed)
    return MatrixPlan(gemv.layout, gemv.tile, gemm.tile), evidence


def _decode_evidence(
    lab: Lab, chosen: KernelSpec, tried: Mapping[KernelSpec, float], default: float,
    by_threads: dict[str, float], bandwidth: float,
) -> Decode:  # fmt: skip
    """tried: kernel -> seconds of one call; bandwidth: bytes per second."""
    rate, times = lab.weight_bytes(chosen) / tried[chosen], {s.symbol: t for s, t in tried.items()}
    return Decode(tried[chosen], default, by_threads, rate / 1e9, rate / bandwidth, times)


def _prefill_evidence(lab: Lab, chosen: KernelSpec, tried: Mapping[KernelSpec, float], default: float) -> Prefill:
    """tried: kernel -> seconds of one call."""
    operations = 2 * chosen.shape.m * chosen.shape.k * PREFILL_TOKENS / tried[chosen]
    times = {s.symbol: t for s, t in tried.items()}
    return Prefill(PREFILL_TOKENS, tried[chosen], default, operations / 1e9, operations / lab.peak(), times)
