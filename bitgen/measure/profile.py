"""Where the time of a forward pass goes: the runtime's own clock around each step, beside the machine's limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bitgen.engine.model import Model
from bitgen.engine.session import Cache
from bitgen.kernels.formats import FORMATS
from bitgen.measure import bench
from bitgen.measure.bench import Case, Limits

OUTSIDE = "outside"
"""What the wall clock saw and the steps did not: the call itself, and Python between two of them."""


def profile(
    model: Model, report: dict[str, Any], listener: Callable[[str, int, int], None] = lambda *_: None
) -> list[dict[str, Any]]:
    """Profile every case of a report of `bench`, in runs of their own.

    Each entry names its case and holds "steps", longest first: share of the wall time, milliseconds per token,
    calls per run, and for what streams weights GB/s and GOP/s with their shares of the report's limits.
    """
    entries, host = [], report["host"]
    for done, row in enumerate(report["results"], 1):
        case = Case.of(row)
        machine = Limits(host["read_gb_s"][case.threads] * 1e9, host["peak_gop_s"][case.threads] * 1e9)
        entries.append({**asdict(case), "steps": _steps(model, machine, case, report["model"]["cache"])})
        listener("profiling", done, len(report["results"]))
    return entries


def _steps(model: Model, machine: Limits, case: Case, cache: Cache) -> list[dict[str, Any]]:
    with bench.runs(model, case, cache) as (session, timed):
        next(timed)  # this one warms up
        session.profile(True)
        seconds = list(timed)
        times = session.profile(False)
    wall, done = sum(seconds), case.tokens * case.batch * len(seconds)
    forwards = case.tokens * len(seconds) if case.kind == "decode" else len(seconds)
    times[OUTSIDE] = (round(wall * 1e9) - sum(ns for ns, _ in times.values()), forwards)
    steps = []
    for step, (ns, calls) in times.items():
        read, ops = _work(model, step, calls, done)
        steps.append(
            {
                "step": step,
                "share": ns / wall / 1e9,
                "ms_per_token": ns / done / 1e6,
                "calls": calls / len(seconds),
                "gb_s": read / ns if read else None,
                "gop_s": ops / ns if ops else None,
                "bandwidth_share": read / ns * 1e9 / machine.bytes_s if read else None,
                "ops_share": ops / ns * 1e9 / machine.ops_s if ops else None,
            }
        )
    return sorted(steps, key=lambda s: -s["ms_per_token"])


def _work(model: Model, step: str, calls: int, tokens: int) -> tuple[int, int]:
    """Bytes of weights that a step read, once a call, and integer operations that it did for all tokens."""
    matrices = model.shape.matrices_of(step)
    if matrices:
        layouts = {role: model.lookup.matrices[role].layout for role in matrices}
        packed = [FORMATS[at.format].geometry(matrices[role], at).weight_bytes for role, at in layouts.items()]
        return sum(packed) * calls, sum(2 * s.m * s.k for s in matrices.values()) * model.shape.layers * tokens
    return (model.head_bytes * calls, 0) if step == "head" else (0, 0)
