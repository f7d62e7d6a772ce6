"""Kernels ranked for a CPU that is not at hand, by LLVM's scheduling model of its core.

    spec -> C -> assembly -> trace: basic blocks and their counts -> llvm-mca: cycles of each path -> cycles of a call

The instruction counts are exact. The cycles are an estimate for a core that waits only for its execution units: every
load hits the L1 cache, every branch is predicted. Such a model does not rank tiles that differ only in prefetch
distance, in the cache block of K, or in the number of look-up tables that the cache must hold: of these the first in
the order of `space.py` is taken.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bitgen import targets
from bitgen.compile import clang
from bitgen.compile.compiler import find_compiler
from bitgen.errors import BitgenError, CompileError, UnsupportedError
from bitgen.kernels import render, space
from bitgen.kernels.evidence import Cost, Effort, Estimated
from bitgen.kernels.formats import FORMATS
from bitgen.kernels.plan import Decision, Plan
from bitgen.spec import GemmShape, KernelSpec, Listener, MatrixPlan
from bitgen.tune import search, trace
from bitgen.tune.lab import PREFILL_TOKENS, weight_bytes
from bitgen.tune.trace import Path, Profile

OLDEST, NEWEST = 13, 40  # versions of llvm-mca to look for; 13 is the first that writes JSON
ITERATIONS = 100

INSTALL_HINT = """the cost model needs LLVM's llvm-mca, which is not installed. Any one of these installs it:
  apt-get install llvm           (Debian, Ubuntu; llvm-19 and newer know more cores)
  dnf install llvm               (Fedora)
  brew install llvm              (macOS; then add $(brew --prefix llvm)/bin to PATH)"""


@dataclass(frozen=True)
class Core:
    """A CPU as one llvm-mca models it."""

    command: str
    version: str  # of LLVM
    arch: str
    cpu: str
    units: str  # prefix of the execution units' names, which tells the model: some CPUs share that of another

    @property
    def basis(self) -> str:
        """Where the figures come from, in words for the plan."""
        return f"estimated by llvm-mca of LLVM {self.version} for {self.cpu} (scheduling model {self.units})"

    @classmethod
    def find(cls, arch: str, cpu: str) -> Core:
        """The core of a CPU; BitgenError says what to install, UnsupportedError which CPUs llvm-mca knows."""
        command, version = _llvm_mca()
        known = cpus(arch)
        if cpu not in known:
            names = ", ".join(known)
            raise UnsupportedError(f"llvm-mca {version} does not know the {arch} CPU {cpu!r}; it knows: {names}")
        report = _run(command, arch, cpu, ["nop"])
        units = os.path.commonprefix(report["TargetInfo"]["Resources"])  # noqa: RUF071 (of any strings)
        return cls(command, version, arch, cpu, re.sub(r"(Unit|Port|P)?$", "", units) or "unnamed")

    def cycles(self, paths: Sequence[Path]) -> list[float]:
        """Cycles of one pass through each path.

        A loop costs its simulated time over many iterations, dependencies between iterations included. Other code
        overlaps with its surroundings: it costs the throughput of its instructions (BlockRThroughput).
        """
        pieces = [[line for line in path.lines if not _leaves(line)] for path in paths]
        report = _run(self.command, self.arch, self.cpu, *pieces)
        found = {region["Name"]: region["SummaryView"] for region in report["CodeRegions"]}
        costs = []
        for i, path in enumerate(paths):
            summary = found.get(f"p{i}", {"TotalCycles": 0, "BlockRThroughput": 0})  # a path of calls has none
            costs.append(summary["TotalCycles"] / ITERATIONS if path.loops else summary["BlockRThroughput"])
        return costs


@functools.cache
def _llvm_mca() -> tuple[str, str]:
    """(command, version) of the newest llvm-mca installed; BitgenError says what to install."""
    for name in (*(f"llvm-mca-{n}" for n in range(NEWEST, OLDEST - 1, -1)), "llvm-mca"):
        if command := shutil.which(name):
            text = subprocess.run([command, "--version"], capture_output=True, text=True).stdout
            if (found := re.search(r"LLVM version (\d+)\S*", text)) and int(found[1]) >= OLDEST:
                return command, found[0].split()[-1]
    raise BitgenError(INSTALL_HINT)


@functools.cache
def cpus(arch: str) -> list[str]:
    """The CPUs of an architecture that llvm-mca knows."""
    command, _ = _llvm_mca()
    out = subprocess.run([command, f"-mtriple={_triple(arch)}", "-mcpu=help"], input="", capture_output=True, text=True)
    listed = (out.stderr + out.stdout).split("Available features")[0]
    return re.findall(r"^\s+(\S+)\s+- Select the", listed, re.M)


def _triple(arch: str) -> str:
    return targets.platform_of(arch, "linux").triple


def _leaves(line: str) -> bool:
    """Whether an instruction is a call or a return, which llvm-mca cannot model."""
    return re.match(r"(bl|blr|ret|callq?|retq?)\b", line) is not None


def _run(command: str, arch: str, cpu: str, *regions: Sequence[str]) -> dict[str, Any]:
    """llvm-mca's JSON report on straight pieces of code, in regions named p0, p1, ...; UnsupportedError if it fails."""
    text = "".join(
        f"# LLVM-MCA-BEGIN p{i}\n" + "".join(f"{line}\n" for line in lines) + f"# LLVM-MCA-END p{i}\n"
        for i, lines in enumerate(regions)
        if lines
    )
    options = [f"-mtriple={_triple(arch)}", f"-mcpu={cpu}", f"-iterations={ITERATIONS}", "--json"]
    out = subprocess.run([command, *options], input=text, capture_output=True, text=True)
    errors = re.findall(r"error: (.*)", out.stderr)
    if errors or out.returncode != 0:  # older versions skip instructions they cannot read, and still exit with 0
        reason = errors[0] if errors else out.stderr.strip()
        raise UnsupportedError(f"llvm-mca cannot model this code on {cpu}: {reason}")
    report: dict[str, Any] = json.loads(out.stdout)
    if {region["Name"] for region in report["CodeRegions"]} != {f"p{i}" for i, lines in enumerate(regions) if lines}:
        raise UnsupportedError(f"{command} reports on other code than it was given; try another version of LLVM")
    return report


def level(arch: str, cpu: str) -> str:
    """The best ISA level that a CPU executes, by the macros that the compiler predefines for it."""
    platform = targets.platform_of(arch)
    try:
        has = clang.macros(platform, cpu=cpu)
    except CompileError as e:
        raise UnsupportedError(f"the compiler does not know the CPU {cpu!r}; name a level, like --isa neon") from e
    baseline = clang.macros(platform)
    return next(t.isa for t in targets.levels(platform) if clang.macros(platform, t.flags) - baseline <= has)


@dataclass(frozen=True)
class Estimate:
    """The cost of one call of a kernel on a core: one token of decode, or PREFILL_TOKENS of prefill."""

    spec: KernelSpec
    core: Core
    products: int  # m * k * tokens
    instructions: float
    cycles: float
    loop: Path  # the path that executes the most instructions
    loop_cycles: float  # of one iteration

    @property
    def loop_share(self) -> float:
        """Fraction of all executed instructions that are the loop's."""
        return self.loop.count * len(self.loop.lines) / self.instructions

    @property
    def loop_products(self) -> float | None:
        """Products of one iteration, if the loop does nearly all of the work; else None."""
        each = self.products / self.loop.count
        return each if self.loop_share > trace.NEARLY_ALWAYS and each == int(each) else None

    def to_json(self) -> dict[str, Any]:
        """What `bitgen gen SYMBOL --mca CPU --json` prints."""
        return {
            "symbol": self.spec.symbol,
            "cpu": self.core.cpu,
            "scheduling_model": self.core.units,
            "llvm": self.core.version,
            "tokens": tokens(self.spec),
            "products": self.products,
            "instructions": self.instructions,
            "cycles": self.cycles,
            "loop_label": self.loop.label,
            "loop_instructions": len(self.loop.lines),
            "loop_cycles": self.loop_cycles,
            "loop_products": self.loop_products,
            "loop_share": self.loop_share,
        }


def estimate(spec: KernelSpec, core: Core) -> Estimate:
    """The cost of one kernel; BitgenError when its branches depend on data or llvm-mca cannot model its code."""
    profile = call_profile(spec, core.arch)
    paths = profile.paths
    each = core.cycles(paths)
    cycles = sum(path.count * cost for path, cost in zip(paths, each, strict=True))
    products = spec.shape.m * spec.shape.k * tokens(spec)
    return Estimate(spec, core, products, profile.instructions, cycles, paths[0], each[0])


def tokens(spec: KernelSpec) -> int:
    """Tokens of the estimated call."""
    return 1 if spec.op == "gemv" else PREFILL_TOKENS


def kernel_program(spec: KernelSpec, arch: str) -> trace.Program:
    """A kernel's code, in the assembly syntax of Linux; the loops are the same on every system."""
    return trace.parse(clang.assembly(spec.isa, f"{spec.symbol}.c", render.render_kernel(spec), "linux"), arch)


def panels_per_block(spec: KernelSpec) -> int:
    """Panels that a kernel multiplies with all tokens before the next: those of one set of tables, or of a cache block.

    gemv has no such blocks: all panels.
    """
    sizes = space.blocks(spec)
    rows = 0 if spec.op == "gemv" else sizes.lut_mc if spec.tile.lut_groups else sizes.mc
    geometry = FORMATS[spec.layout.format].geometry(spec.shape, spec.layout)
    return rows // spec.layout.bm if rows else geometry.panels


@functools.cache
def call_profile(spec: KernelSpec, arch: str) -> Profile:
    """Profile of a call for a whole matrix, extrapolated from calls for few panels and few tokens.

    Within a block of panels the counts are linear in panels and in tokens.
    """
    program, max_panels = kernel_program(spec, arch), panels_per_block(spec)
    panels = FORMATS[spec.layout.format].geometry(spec.shape, spec.layout).panels
    # With look-ups the panels are divided into blocks of equal size, with products only the last block is smaller.
    block = panels // -(-panels // max_panels) if spec.tile.lut_groups else min(panels, max_panels)
    # Loops over rows take an unrolled panel, a strip, or with `mixed` two blocks at a time.
    rows = math.lcm(spec.layout.bm, space.STRIP_ROWS, 2 * space.MIXED_ROWS if spec.tile.mixed else 1)
    step = 1 if spec.op == "gemv" else rows // spec.layout.bm
    # Look-ups take tokens in tiles of `lanes`, products in register blocks of unequal size, the rest one by one.
    few = space.template_row(spec).lanes if spec.tile.lut_groups else tokens(spec) if spec.tile.nr > 1 else 1
    part = _extrapolate(program, (step, block), (few, tokens(spec)))
    return part.plus(part, panels / block - 1)


def _extrapolate(program: trace.Program, panels: tuple[int, int], tokens: tuple[int, int]) -> Profile:
    """Profile of a call for panels[1] panels and tokens[1] tokens, linear in both.

    The lines go through the profiles of calls for panels[0] and 2 panels[0], tokens[0] and 2 tokens[0].
    """

    def line(ends: tuple[int, int], call: Callable[[int], Profile]) -> Profile:
        start, to = ends
        if to <= 2 * start:
            return call(to)
        low, high = call(start), call(2 * start)
        return low.plus(high.plus(low, -1), to / start - 1)

    return line(tokens, lambda n: line(panels, lambda p: trace.follow(program, n, p)))


def candidates(shape: GemmShape, isa: str, effort: Effort) -> list[KernelSpec]:
    """The tuner's candidates, one of each set whose differences the model cannot see."""
    first: dict[tuple[Any, ...], KernelSpec] = {}
    for spec in search.candidates(shape, isa, effort):
        first.setdefault((spec.op, spec.layout, spec.tile.nr, spec.tile.lut_groups > 0, spec.tile.mixed), spec)
    return list(first.values())


def estimate_plan(
    shapes: Sequence[GemmShape],
    isa: str,
    core: Core,
    effort: Effort = "quick",
    bytes_per_cycle: float | None = None,
    listener: Listener = lambda *_: None,
) -> Plan:
    """A plan for a core by estimates alone.

    bytes_per_cycle: memory bandwidth of one core while all run, in bytes per cycle; a decode kernel then costs at least
    the time of reading its weights. None: only computation counts. UnsupportedError when no kernel of a shape can be
    estimated.
    """
    compiler = find_compiler(targets.platform_of(core.arch)).version
    plan = Plan(isa, core.cpu, compiler, core.basis)
    distinct = list(dict.fromkeys(shapes))
    for number, shape in enumerate(distinct, 1):
        told = search.within(listener, shape, number, distinct)
        plan.decisions[shape] = decide(shape, isa, core, effort, bytes_per_cycle, told)
    return plan


def decide(
    shape: GemmShape,
    isa: str,
    core: Core,
    effort: Effort,
    bytes_per_cycle: float | None,
    listener: Listener,
) -> Decision:
    """The layout and tiles with the least cycles for one token of decode plus one token of prefill."""
    specs = candidates(shape, isa, effort)
    costs: dict[KernelSpec, float] = {}
    estimates: dict[KernelSpec, Estimate] = {}
    failed: dict[str, str] = {}
    listener("estimating kernels", 0, len(specs))
    with ThreadPoolExecutor(targets.default_threads()) as pool:
        for done, (spec, found) in enumerate(zip(specs, pool.map(lambda s: _try(s, core), specs), strict=True), 1):
            if isinstance(found, Estimate):
                estimates[spec] = found
                streamed = weight_bytes(spec) / bytes_per_cycle if bytes_per_cycle and spec.op == "gemv" else 0.0
                costs[spec] = max(found.cycles, streamed) / tokens(spec)
            else:
                failed[spec.symbol] = str(found)
            listener("estimating kernels", done, len(specs))
    pairs = [(v, g) for v in costs for g in costs if (v.op, g.op) == ("gemv", "gemm") and v.layout == g.layout]
    if not pairs:
        reasons = "; ".join(dict.fromkeys(failed.values()))
        raise UnsupportedError(f"no kernel for {shape.m}x{shape.k} on {isa} could be estimated: {reasons}")
    gemv, gemm = min(pairs, key=lambda pair: costs[pair[0]] + costs[pair[1]])
    by_op = [_cost(chosen, specs, costs, estimates[chosen]) for chosen in (gemv, gemm)]
    evidence = Estimated(effort, bytes_per_cycle, failed, *by_op)
    return Decision.of(MatrixPlan(gemv.layout, gemv.tile, gemm.tile), shape, isa, evidence)


def _cost(
    chosen: KernelSpec, specs: Sequence[KernelSpec], costs: Mapping[KernelSpec, float], estimate: Estimate
) -> Cost:
    """The evidence of one kernel; costs: kernel -> cycles per token."""
    default = next(costs.get(spec) for spec in specs if spec.op == chosen.op)
    tried = {spec.symbol: costs[spec] for spec in sorted(costs, key=costs.__getitem__) if spec.op == chosen.op}
    return Cost(costs[chosen], default, estimate.instructions / estimate.products, tried)


def _try(spec: KernelSpec, core: Core) -> Estimate | BitgenError:
    """The estimate of a kernel, or the error that says why there is none."""
    try:
        return estimate(spec, core)
    except BitgenError as e:
        return e
