"""The tables of docs/performance.md about the cost model.

python benchmarks/cost_model.py instructions            the cost of every template on several cores
python benchmarks/cost_model.py compare --cpu znver3    its order of kernels beside the order measured here
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import click
import numpy as np
import numpy.typing as npt

from bitgen import targets
from bitgen.compile import binding, library
from bitgen.errors import BitgenError
from bitgen.kernels import space
from bitgen.kernels.formats import FORMATS
from bitgen.spec import GemmShape, KernelSpec, Layout
from bitgen.tune import cost_model
from bitgen.tune.cost_model import Core, Estimate
from bitgen.tune.lab import PREFILL_TOKENS, weight_bytes

CORES = {
    "x86_64": ("znver3", "alderlake", "icelake-server", "sapphirerapids"),
    "arm64": ("cortex-a53", "cortex-a76", "neoverse-n1", "apple-m1", "neoverse-v1"),
}
BUFFER = 384 << 20
"""Bytes of the buffer that streamed weights are read from: far larger than the last-level cache."""


@click.group()
def main() -> None:
    """Tables of the cost model."""


@main.command()
@click.option("--shape", type=(int, int), default=(2560, 2560), show_default=True, metavar="M K")
def instructions(shape: tuple[int, int]) -> None:
    """Instructions and cycles per weight (and token) of every template's first layout, as Markdown."""
    for arch, cpus in CORES.items():
        cores = [core for cpu in cpus if (core := _core(arch, cpu))]
        click.echo(f"\n| {arch} | instructions | of them in a loop of | {' | '.join(core.cpu for core in cores)} |")
        click.echo("|---|" + "---|" * (2 + len(cores)))
        for spec in _specs(arch, GemmShape(*shape)):
            found = {core: e for core in cores if isinstance(e := _estimate(spec, core), Estimate)}
            cells = [f"{e.cycles / e.products:.4f}" if (e := found.get(core)) else "" for core in cores]
            first = next(iter(found.values()), None)
            if first:
                weights = f" for {first.loop_products:,.0f}" if first.loop_products else ""
                loop = f"{len(first.loop.lines)}{weights} ({first.loop_share:.0%})"
                cells = [f"{first.instructions / first.products:.4f}", loop, *cells]
                click.echo(f"| {_name(spec)} | {' | '.join(cells)} |")
        for core in cores:
            click.echo(f"{core.basis}, level {cost_model.level(arch, core.cpu)}", err=True)


def _core(arch: str, cpu: str) -> Core | None:
    try:
        return Core.find(arch, cpu)
    except BitgenError as e:
        click.echo(str(e).split(";")[0], err=True)
        return None


def _specs(arch: str, shape: GemmShape) -> Iterator[KernelSpec]:
    """Kernels of every template of an architecture: decode, and prefill by products, by look-up and by both."""
    for (name, isa), template in space.TEMPLATES.items():
        if targets.target(isa).arch == arch:
            layout = Layout(name, template.bm[0], template.bk[0])
            shape = GemmShape(shape.m, shape.k, layout.bk if FORMATS[name].grouped else 0, FORMATS[name].binary)
            yield KernelSpec("gemv", shape, isa, layout, space.candidate_tiles("gemv", shape, isa, layout)[0])
            tiles = space.candidate_tiles("gemm", shape, isa, layout)
            kinds = {(tile.lut_groups, tile.mixed): tile for tile in reversed(tiles)}
            yield from (KernelSpec("gemm", shape, isa, layout, kinds[kind]) for kind in sorted(kinds))


def _estimate(spec: KernelSpec, core: Core) -> Estimate | None:
    """The estimate; None when the CPU lacks the level or the model the instructions."""
    if spec.isa not in targets.fallbacks(cost_model.level(core.arch, core.cpu)):
        return None
    try:
        return cost_model.estimate(spec, core)
    except BitgenError as e:
        click.echo(f"{spec.symbol}: {e}", err=True)
        return None


def _name(spec: KernelSpec) -> str:
    work = "decode" if spec.op == "gemv" else "prefill"
    if spec.tile.lut_groups:
        work += " by both" if spec.tile.mixed else " by look-up"
    return f"{spec.layout.format} {spec.isa}, {work}"


@main.command()
@click.option("--cpu", required=True, help="LLVM's name of this machine's CPU.")
@click.option("--shape", "shapes", type=(int, int), multiple=True, default=((640, 2560), (2560, 2560)), metavar="M K")
@click.option("--rounds", default=15, show_default=True)
def compare(cpu: str, shapes: Sequence[tuple[int, int]], rounds: int) -> None:
    """Rank the tuner's thorough candidates by estimate and by measurement, with one thread."""
    isa, core = library.host_isa(), Core.find(targets.host_arch(), cpu)
    click.echo(core.basis)
    click.echo("\n| shape | kernels | weights | candidates | rank correlation | its choice takes | the default takes |")
    click.echo("|---|---|---|---|---|---|---|")
    for shape in (GemmShape(*pair) for pair in shapes):
        specs = cost_model.candidates(shape, isa, "thorough")
        estimated = {s: cost_model.estimate(s, core).cycles for s in specs}
        lab = _Lab(isa, specs)
        for op, streamed in (("gemv", False), ("gemv", True), ("gemm", False)):
            field = [s for s in specs if s.op == op]
            times: dict[KernelSpec, list[float]] = {s: [] for s in field}
            for _ in range(rounds):
                for spec in field:
                    times[spec].append(lab.seconds(spec, streamed))
            measured = {s: statistics.median(t) for s, t in times.items()}
            best, chosen = min(measured.values()), min(field, key=estimated.__getitem__)
            rho = np.corrcoef(_ranks([estimated[s] for s in field]), _ranks([measured[s] for s in field]))[0, 1]
            what = "decode" if op == "gemv" else f"prefill of {PREFILL_TOKENS}"
            ratios = " | ".join(f"{measured[s] / best:.2f}x the best" for s in (chosen, field[0]))
            where = "from memory" if streamed else "in cache"
            click.echo(f"| {shape.m} x {shape.k} | {what} | {where} | {len(field)} | {rho:.2f} | {ratios} |")
            for s in sorted(field, key=measured.__getitem__):
                per = s.shape.m * s.shape.k * cost_model.tokens(s)
                line = f"  {s.symbol:60} {estimated[s] / per:.4f} cycles, {measured[s] / per * 1e12:8.2f} ps per weight"
                click.echo(line, err=True)


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Rank of each value in ascending order; equal values get their mean rank."""
    array = np.asarray(values)
    return np.array([(array < v).sum() + ((array == v).sum() - 1) / 2 for v in array])


class _Lab:
    """Times compiled kernels with one thread, on weights in the cache or streamed from memory."""

    def __init__(self, isa: str, specs: Sequence[KernelSpec]) -> None:
        self._lib = binding.load(library.for_kernels(isa, specs).path)
        self._isa, self._index = library.isa_index(self._lib, isa), {spec: i for i, spec in enumerate(specs)}
        rng = np.random.default_rng(0)
        self._weights = np.resize(rng.integers(0, 256, 1 << 20, np.uint8), BUFFER)
        self._q = rng.integers(-127, 128, (PREFILL_TOKENS, specs[0].shape.k), np.int8)

    def seconds(self, spec: KernelSpec, streamed: bool) -> float:
        """Median seconds of a call."""
        n, reps = (1, 24) if spec.op == "gemv" else (PREFILL_TOKENS, 2)
        copies = BUFFER // weight_bytes(spec) if streamed else 1
        first = int(np.random.default_rng().integers(copies - reps)) if streamed else 0
        out = np.empty(reps)
        cast = binding.ffi().cast
        weights = cast("uint8_t *", self._weights[first * weight_bytes(spec) :].ctypes.data)
        rows, seconds = cast("int8_t *", self._q.ctypes.data), cast("double *", out.ctypes.data)
        code = self._lib.bg_kernel_time(
            self._isa, self._index[spec], weights, reps if streamed else 1, rows, n, 1, reps, seconds
        )
        binding.check(self._lib, code, f"cannot time {spec.symbol}")
        return float(np.median(out))


if __name__ == "__main__":
    main()
