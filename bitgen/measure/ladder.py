"""The ladder: models of 125M to 100B weights, one after the other, each made, measured and removed again.

The random weights of a rung are packed as those of a file would be, without the file between: that is the one step of
a user's path that is left out. What was measured is kept in a file, and is not measured again with the same kernels on
the same CPU, so that a climb that was interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bitgen
from bitgen import data, store
from bitgen.checkpoints import ladder
from bitgen.checkpoints.synth import SynthCheckpoint
from bitgen.compile import library, pack
from bitgen.compile.clang import BuildOptions
from bitgen.engine import arguments
from bitgen.engine.model import Model
from bitgen.engine.opened import Cache
from bitgen.errors import ArgumentError, UnsupportedError
from bitgen.kernels import plan as plans
from bitgen.kernels import space
from bitgen.kernels.formats import FORMATS
from bitgen.kernels.plan import ModelPlan
from bitgen.measure import bench, energy, machine, machine_checks, rungs
from bitgen.measure.report import Case
from bitgen.measure.rungs import LadderReport, Misfit, RungRate
from bitgen.spec import GemmShape, Layout, Listener, ModelShape
from bitgen.targets import default_threads
from bitgen.text.tokenizer import Tokenizer

WORKING_BYTES = 256 << 20
"""Beside weights and KV cache: Python, the runtime's buffers."""


@dataclass(frozen=True)
class _Climb:
    """How every rung is run, and where."""

    isa: str
    threads: list[int]
    prompts: list[int]
    generate: int
    head: pack.Head
    cache: Cache
    results: Path
    folder: Path  # that packed models are in for a while

    @property
    def cases(self) -> list[Case]:
        """What is measured on a rung."""
        return bench.cases_of(self.threads, self.prompts, self.generate, [0], [1])


def climb(
    sizes: Sequence[str] = (),
    threads: Sequence[int] = (),
    prompts: Sequence[int] = (),
    generate: int = 64,
    *,
    isa: str | None = None,
    head: pack.Head = "certified",
    cache: Cache = "f16",
    results: Path | None = None,
    listener: Listener = lambda *_: None,
) -> LadderReport:
    """Measure the rungs of these sizes, none: all of them, the smallest first, and leave out those that do not fit.

    threads, prompts, generate: as of bench.bench. results: the file of results; None: one in the cache.
    """
    threads = arguments.counts("threads", threads, 1, arguments.MOST_THREADS) or [default_threads()]
    prompts, generate = arguments.counts("prompt", prompts), arguments.checked("gen", generate)
    wanted = {ladder.load(size).name for size in sizes or ladder.sizes()}
    shapes = [shape for shape in map(ladder.load, ladder.sizes()) if shape.name in wanted]
    folder = data.cached("ladder")
    results, level = results or folder / "results.jsonl", isa or library.host_isa(listener)
    how = _Climb(level, threads, prompts, generate, head, cache, results, folder)
    if not how.cases:
        raise ArgumentError("without a prompt, gen 0 leaves nothing to measure")
    found = []
    with store.alone(data.lock_of(results), lambda: listener(data.WAITING, 0, 0)):
        store.sweep(folder)
        for number, shape in enumerate(shapes, 1):
            found.append(_rung(shape, how, _titled(listener, f"{shape.name} ({number} of {len(shapes)})")))
    rates = [rate for each in found if not isinstance(each, Misfit) for rate in each]
    return LadderReport(results, tuple(rates), tuple(m for m in found if isinstance(m, Misfit)), _no_energy())


def _titled(listener: Listener, title: str) -> Listener:
    """A listener whose stages are told with a title before them."""
    return lambda stage, done, total: listener(f"{title}: {stage}", done, total)


def _no_energy() -> str | None:
    """Why joules cannot be counted here; None: they can."""
    try:
        energy.zones()
    except UnsupportedError as error:
        return str(error)
    return None


def _rung(shape: ModelShape, how: _Climb, listener: Listener) -> list[RungRate] | Misfit:
    """What is known of a rung: measured before, or now with the best plan that fits."""
    planned = [plans.of_model(shape, how.isa), smallest(shape, how.isa)]
    before = rungs.read(how.results)
    for plan in planned:
        told = [next((r for r in before if r.is_of(_identity(shape, plan, case, how))), None) for case in how.cases]
        if all(told):
            return [rate for rate in told if rate]
    for plan in planned:
        misfit = _misfit(shape, plan, how)
        if misfit is None:
            rates = _measured(shape, plan, how, listener)
            rungs.append(how.results, rates)
            return rates
    assert misfit is not None
    return misfit


def smallest(shape: ModelShape, isa: str) -> ModelPlan:
    """The plan of a model whose packed matrices take the fewest bytes, for want of room for a faster one."""

    def layouts(gemm: GemmShape) -> list[Layout]:
        found = space.candidate_layouts(gemm, isa)
        return sorted(found, key=lambda layout: FORMATS[layout.format].geometry(gemm, layout).weight_bytes)

    matrices = {role: space.default_plan(gemm, isa, layouts(gemm)) for role, gemm in shape.matrices.items()}
    return ModelPlan(isa, matrices, dict.fromkeys(matrices, "smallest"), None)


def _identity(shape: ModelShape, plan: ModelPlan, case: Case, how: _Climb) -> dict[str, Any]:
    """The fields of a RungRate that say what was measured."""
    symbols = [
        spec.symbol for role, each in plan.matrices.items() for spec in each.specs(shape.matrices[role], how.isa)
    ]
    kernels = hashlib.sha256(" ".join([bitgen.__version__, *symbols]).encode()).hexdigest()[:16]
    return {
        "rung": shape.name, "kernels": kernels, "cpu": plans.cpu_title(plans.cpu_name()), "isa": how.isa,
        "head": how.head, "cache": how.cache, "kind": case.kind, "tokens": case.tokens, "threads": case.threads,
    }  # fmt: skip


def _misfit(shape: ModelShape, plan: ModelPlan, how: _Climb) -> Misfit | None:
    """Why a rung cannot be measured with a plan, if so: all of it must be in memory, and its file on the disk."""
    weights, found = pack.expected_bytes(shape, plan, how.head), machine.memory()
    longest = max(case.tokens for case in how.cases) + 1
    cache = machine_checks.kv_bytes(replace(shape, context=longest), *bench.CACHE_BYTES[how.cache])
    needed = weights + cache + WORKING_BYTES
    if found and needed > found.available:
        return Misfit(shape.name, "memory", needed, found.available)
    free = shutil.disk_usage(how.folder).free
    return Misfit(shape.name, "disk", weights, free) if weights > free else None


def _measured(shape: ModelShape, plan: ModelPlan, how: _Climb, listener: Listener) -> list[RungRate]:
    """Make a rung, measure it, and leave nothing of it behind."""
    artefact = library.for_model(shape, [plan], BuildOptions(listener=listener))
    checkpoint = SynthCheckpoint(shape)
    with store.work_folder(how.folder) as work:
        packed = work / f"{shape.name}.bgpk"
        pack.write(packed, checkpoint, plan, how.head, lambda done, total: listener("making the model", done, total))
        tokenizer = Tokenizer.from_metadata(checkpoint.metadata)
        with closing(Model(packed, shape, tokenizer, plan, artefact, packed, how.head, None)) as model:
            report = bench.bench(model, how.threads, how.prompts, how.generate, listener, cache=how.cache)
            used = energy.energy(model, report, listener)
            bits = 8 * model.weight_bytes / model.ternary_weights
    joules = {row.case: row.joules_per_token for row in used.results}
    return [
        RungRate(
            **_identity(shape, plan, rate.case, how),
            parameters=ladder.parameters(shape),
            bits=bits,
            tok_s=rate.tok_s,
            tok_s_min=rate.tok_s_min,
            tok_s_max=rate.tok_s_max,
            bytes_per_token=rate.bytes_per_token,
            read_bytes_s=report.host.limits[rate.case.threads].bytes_s,
            joules_per_token=joules.get(rate.case),
        )
        for rate in report.results
    ]
