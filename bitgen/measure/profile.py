"""Where the time of a forward pass goes: the runtime's own clock around each step, beside the machine's limits."""

from __future__ import annotations

from bitgen.engine.model import Model
from bitgen.engine.opened import Cache
from bitgen.kernels.formats import FORMATS
from bitgen.measure import bench
from bitgen.measure.report import BenchReport, Case, Limits, Profile, Step
from bitgen.spec import Listener

OUTSIDE = "outside"
"""The step of the time that the wall clock saw and the steps did not: the call, and Python between two calls."""


def profile(model: Model, report: BenchReport, listener: Listener = lambda *_: None) -> tuple[Profile, ...]:
    """Profile every case of a report of `bench`, in runs of their own."""
    entries = []
    for case, _ in bench.staged(report.cases, listener, "profiling "):
        machine = report.host.limits[case.threads]
        entries.append(Profile(case, _steps(model, machine, case, report.model.cache)))
    return tuple(entries)


def _steps(model: Model, machine: Limits, case: Case, cache: Cache) -> tuple[Step, ...]:
    """The steps of a case, the longest first."""
    with bench.runs(model, case, cache) as (session, timed):
        next(timed)  # this one warms up
        session.profile(True)
        seconds = list(timed)
        times = session.profile(False)
    wall, forwards = sum(seconds), case.tokens * len(seconds) if case.kind == "decode" else len(seconds)
    times[OUTSIDE] = (round(wall * 1e9) - sum(ns for ns, _ in times.values()), forwards)
    tokens = case.tokens * case.batch * len(seconds)
    steps = []
    taken = {name: time for name, time in times.items() if time[1]}  # a model has not every kind of layer
    for name, (ns, calls) in taken.items():
        read, ops = _work(model, name, calls, tokens)
        steps.append(
            Step(
                name,
                share=ns / wall / 1e9,
                ms_per_token=ns / tokens / 1e6,
                calls=calls / len(seconds),
                gb_s=read / ns if read else None,
                gop_s=ops / ns if ops else None,
                bandwidth_share=read / ns * 1e9 / machine.bytes_s if read else None,
                ops_share=ops / ns * 1e9 / machine.ops_s if ops else None,
            )
        )
    return tuple(sorted(steps, key=lambda step: -step.ms_per_token))


def _work(model: Model, step: str, calls: int, tokens: int) -> tuple[int, int]:
    """Bytes of weights that all calls of a step read, and integer operations that it did for all tokens."""
    matrices = model.shape.matrices_of(step)
    if matrices:
        layouts = {role: model.plan.matrices[role].layout for role in matrices}
        packed = [FORMATS[at.format].geometry(matrices[role], at).weight_bytes for role, at in layouts.items()]
        ops = sum(2 * s.m * s.k * model.shape.layers_with(role) for role, s in matrices.items())
        return sum(packed) * calls, ops * tokens
    return (model.head_bytes * calls, 0) if step == "head" else (0, 0)
