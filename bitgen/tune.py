"""The autotuner: candidates -> compile -> verify -> time -> choose.

For each distinct matrix shape the legal layouts and tiles are compiled into one library. Each kernel must
first give the oracle's integers; a wrong one stops the tuning, since a wrong kernel is a bug, not a slow
candidate. Then the candidates race: in every round all are timed in turn, so that drift of the machine hits
them alike, and the slower half drops out, until the medians of the finalists decide. Decode kernels stream
weights from memory (copies beyond the last-level cache are visited in turn), with all threads running.

Prefill tiles race within the layouts that decode best, and the pair that costs least in
    seconds per token of decode + seconds per token of prefill
wins: a request that reads as many tokens as it writes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from bitgen import compile, library, space, targets
from bitgen import plan as plans
from bitgen.engine import binding
from bitgen.errors import EngineError
from bitgen.formats import FORMATS
from bitgen.layout import with_steps
from bitgen.plan import Decision, Plan
from bitgen.reference import gemm_groups, gemm_int
from bitgen.spec import GemmShape, KernelSpec, MatrixPlan

PREFILL_TOKENS = 128
FINALIST_LAYOUTS = 3
ROUNDS = 5  # timed rounds before each halving, and of the final

T = TypeVar("T")
Effort = Literal["quick", "thorough"]


Listener = Callable[[str, int, int], None]
"""A progress display is told: stage, done, total."""


def race(
    candidates: Sequence[T], measure: Callable[[T], float], step: Callable[[], None] = lambda: None
) -> dict[T, float]:
    """Median seconds of every candidate; the slower half leaves after each ROUNDS rounds.

    Pure in `measure`, so recorded times replay a search. Those that left keep the median they left with.
    """
    samples: dict[T, list[float]] = {c: [] for c in candidates}
    field = list(candidates)
    while True:
        for _ in range(ROUNDS):
            for candidate in field:
                samples[candidate].append(measure(candidate))
        step()
        field.sort(key=lambda c: statistics.median(samples[c]))
        if len(field) <= 2:
            return {c: statistics.median(times) for c, times in samples.items()}
        field = field[: math.ceil(len(field) / 2)]


def race_rounds(candidates: int) -> int:
    """How often `race` calls step for a number of candidates."""
    rounds = 1
    while candidates > 2:
        candidates, rounds = math.ceil(candidates / 2), rounds + 1
    return rounds


def stream_bytes() -> int:
    """How much memory decode timing walks through: three times the last-level cache, 256 MiB to 1.5 GiB."""
    caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [int(file.read_text().strip().rstrip("K")) << 10 for file in caches]
    return min(max(3 * max(sizes, default=0), 256 << 20), 1536 << 20)


class Lab:
    """A compiled set of candidate kernels of one shape, and the data to run them on.

    Timing streams arbitrary bytes: integer kernels take the same time on any, so all layouts share one buffer.
    """

    def __init__(
        self, isa: str, specs: Sequence[KernelSpec], threads: int, progress: Callable[[int, int], None]
    ) -> None:
        self._lib = binding.load(library.for_kernels(isa, specs, progress=progress).path)
        self._isa, self.threads = library.isa_index(self._lib, isa), threads
        self._index = {spec: i for i, spec in enumerate(specs)}
        shape = specs[0].shape
        rng = np.random.default_rng(0)
        self._codes = rng.integers(-1, 2, (shape.m, shape.k), np.int8)
        self._q = rng.integers(-127, 128, (PREFILL_TOKENS, shape.k), np.int8)
        groups = shape.k // shape.group if shape.group else 0
        self._scales, self._steps = (
            rng.integers(1, 1 << 10, (rows, groups)).astype(np.float32) / np.float32(1 << 10)
            for rows in (shape.m, PREFILL_TOKENS)
        )
        self._stream = np.resize(rng.integers(0, 256, 1 << 20, np.uint8), stream_bytes())
        self._cursor = 0

    def verify(self, spec: KernelSpec) -> None:
        """Random and extreme activations against the oracle, all threads; EngineError names a wrong kernel."""
        n = 1 if spec.op == "gemv" else 5
        weights = FORMATS[spec.layout.format].pack(self._codes, spec.layout, self._scales)
        steps = self._steps[:n]
        for q in (
            self._q[:n],
            np.full_like(self._q[:n], 127),
            np.where(self._codes[:n] > 0, np.int8(127), np.int8(-127)),
        ):
            y, rows = np.full((n, self._info(spec).m_pad), -1, np.int32), with_steps(q, steps)
            code = self._lib.bg_kernel_run(
                *(self._isa, self._index[spec], _at("uint8_t *", weights), _at("int8_t *", rows)),
                *(n, _at("int32_t *", y), self.threads),
            )
            binding.check(self._lib, code, f"cannot run {spec.symbol}")
            want = gemm_int(self._codes, q)
            if spec.shape.group:
                want = gemm_groups(self._codes, self._scales, q, steps).view(np.int32)
            if not np.array_equal(y[:, : spec.shape.m], want):
                raise EngineError(
                    f"kernel {spec.symbol} differs from the oracle; please report it with your CPU's name"
                )

    def seconds(self, spec: KernelSpec, threads: int | None = None) -> float:
        """Median seconds of one call: decode on weights that stream from memory, prefill on PREFILL_TOKENS tokens."""
        n, reps = (1, 24) if spec.op == "gemv" else (PREFILL_TOKENS, 2)
        size = self._info(spec).weight_bytes
        copies = max(1, min(reps, len(self._stream) // size))
        if (self._cursor + copies) * size > len(self._stream):
            self._cursor = 0
        start = self._stream[self._cursor * size :]
        self._cursor += copies
        out, rows = np.empty(reps), with_steps(self._q, self._steps)
        code = self._lib.bg_kernel_time(
            *(self._isa, self._index[spec], _at("uint8_t *", start), copies, _at("int8_t *", rows)),
            *(n, threads or self.threads, reps, _at("double *", out)),
        )
        binding.check(self._lib, code, f"cannot time {spec.symbol}")
        return float(np.median(out))

    def bandwidth(self) -> float:
        """Sequential read bandwidth in bytes per second with the lab's threads."""
        out = binding.ffi().new("double *")
        code = self._lib.bg_read_bandwidth(
            self._isa, _at("void *", self._stream), len(self._stream), self.threads, 5, out
        )
        binding.check(self._lib, code, "cannot measure the read bandwidth")
        return float(out[0])

    def peak(self) -> float:
        """Peak integer operations per second of the ISA's dot product with the lab's threads."""
        out = binding.ffi().new("double *")
        code = self._lib.bg_peak_ops(self._isa, self.threads, 5, out)
        binding.check(self._lib, code, "cannot measure the peak of integer operations")
        return float(out[0])

    def weight_bytes(self, spec: KernelSpec) -> int:
        """Packed bytes of the matrix, which one decode call reads."""
        return int(self._info(spec).weight_bytes)

    def _info(self, spec: KernelSpec) -> Any:
        info = binding.ffi().new("bg_kernel_info *")
        binding.check(self._lib, self._lib.bg_kernel_get(self._isa, self._index[spec], info), spec.symbol)
        return info


def _at(ctype: str, array: npt.NDArray[Any]) -> Any:
    return binding.ffi().cast(ctype, array.ctypes.data)


def tune(
    shapes: Sequence[GemmShape],
    isa: str,
    threads: int,
    effort: Effort = "quick",
    listener: Listener = lambda *_: None,
) -> Plan:
    """Decide every shape that the host's plan does not decide yet; the plan is saved after each.

    So an interrupted run resumes where it was, and a second run with nothing changed returns at once.
    """
    path = plans.host_path(isa)
    plan = plans.load(path)
    compiler = compile.find_compiler(targets.host_arch()).version
    if plan is None or plan.stamp != plans.template_stamp() or plan.compiler != compiler:
        plan = Plan(isa, plans.cpu_name(), plans.template_stamp(), compiler)
    for shape in dict.fromkeys(shapes):
        known = plan.decisions.get(shape)
        if known and known.evidence["threads"] == threads and known.evidence["effort"] in (effort, "thorough"):
            continue
        plan.decisions[shape] = decide(shape, isa, threads, effort, listener)
        plans.save(plan, path)
    return plan


def candidates(shape: GemmShape, isa: str, effort: Effort) -> list[KernelSpec]:
    """Every kernel worth trying for a shape, those of the static default first."""
    thorough = effort == "thorough"
    found = [*space.default_plan(shape, isa).specs(shape, isa)]
    for layout in space.candidate_layouts(shape, isa, thorough):
        for op in ("gemv", "gemm"):
            tiles = space.candidate_tiles(op, shape, isa, layout, thorough)
            found += [KernelSpec(op, shape, isa, layout, tile) for tile in tiles]
    return list(dict.fromkeys(found))


def decide(shape: GemmShape, isa: str, threads: int, effort: Effort, listener: Listener) -> Decision:
    """Race the candidates of one shape; the decision with its evidence."""
    name = str(shape)
    default = space.default_plan(shape, isa)
    specs = candidates(shape, isa, effort)
    lab = Lab(isa, specs, threads, lambda done, total: listener(f"{name} compiling", done, total))
    for done, spec in enumerate(specs, 1):
        lab.verify(spec)
        listener(f"{name} verifying", done, len(specs))

    def run(stage: str, field: list[KernelSpec]) -> dict[KernelSpec, float]:
        steps = iter(range(1, race_rounds(len(field)) + 1))
        return race(field, lab.seconds, lambda: listener(f"{name} {stage}", next(steps), race_rounds(len(field))))

    decode = run("decode", [s for s in specs if s.op == "gemv"])
    layouts = dict.fromkeys(s.layout for s in sorted(decode, key=decode.__getitem__))
    finalists = {*list(layouts)[:FINALIST_LAYOUTS], default.layout}
    prefill = run("prefill", [s for s in specs if s.op == "gemm" and s.layout in finalists])

    def cost(pair: tuple[KernelSpec, KernelSpec]) -> float:
        return decode[pair[0]] + prefill[pair[1]] / PREFILL_TOKENS

    gemv, gemm = min(((v, g) for v in decode for g in prefill if v.layout == g.layout), key=cost)
    counts = [str(1 << i) for i in range(threads.bit_length()) if 1 << i < threads] + [str(threads)]
    bandwidth = lab.bandwidth()
    default_gemv, default_gemm = default.specs(shape, isa)
    operations = 2 * shape.m * shape.k * PREFILL_TOKENS / prefill[gemm]
    rate = lab.weight_bytes(gemv) / decode[gemv]
    evidence = {
        "threads": threads,
        "effort": effort,
        "bandwidth_gb_s": bandwidth / 1e9,
        "gemv": {
            "seconds": decode[gemv],
            "default_seconds": decode[default_gemv],
            "seconds_by_threads": race(counts, lambda count: lab.seconds(gemv, int(count))),
            "gb_s": rate / 1e9,
            "bandwidth_share": rate / bandwidth,
            "tried": {s.symbol: t for s, t in decode.items()},
        },
        "gemm": {
            "tokens": PREFILL_TOKENS,
            "seconds": prefill[gemm],
            "default_seconds": prefill[default_gemm],
            "gop_s": operations / 1e9,
            "peak_share": operations / lab.peak(),
            "tried": {s.symbol: t for s, t in prefill.items()},
        },
    }
    return Decision(MatrixPlan(gemv.layout, gemv.tile, gemm.tile), evidence)
