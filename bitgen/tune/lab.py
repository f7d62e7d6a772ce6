"""Where candidate kernels race: a `Site` is a CPU, a `Lab` the compiled candidates of one matrix shape on it.

`tune` knows only these two protocols, so this host, a device behind SSH, and whatever else can tell how fast a
kernel is share the search, its evidence and its resuming.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bitgen import targets
from bitgen.checkpoints.reference import gemm_groups, gemm_int
from bitgen.compile import binding, clang, library
from bitgen.compile.clang import BuildOptions
from bitgen.errors import EngineError
from bitgen.kernels import plan
from bitgen.kernels.formats import FORMATS
from bitgen.kernels.layout import Bytes, Codes, with_steps
from bitgen.spec import GemmShape, KernelSpec, Layout, Progress
from bitgen.targets import default_threads

PREFILL_TOKENS = 128
VERIFY_TOKENS = {"gemv": 1, "gemm": 37}  # prefill: a whole tile of the look-up kernels, and a rest by products
REPS = {"gemv": 24, "gemm": 2}  # timed runs behind one measurement

Activations = npt.NDArray[np.int8]


class Lab(Protocol):
    """The candidates of one shape, ready to run. Kernels are verified before they are timed."""

    def verify(self, spec: KernelSpec) -> None:
        """Compare with the oracle; EngineError names a wrong kernel."""

    def seconds(self, spec: KernelSpec, threads: int | None = None) -> float:
        """Median seconds of one call: decode on weights that stream from memory, prefill on PREFILL_TOKENS tokens."""

    def bandwidth(self) -> float:
        """Sequential read bandwidth in bytes per second with the lab's threads."""

    def peak(self) -> float:
        """Peak integer operations per second of the ISA's dot product with the lab's threads."""

    def weight_bytes(self, spec: KernelSpec) -> int:
        """Packed bytes of the matrix, which one decode call reads."""

    def close(self) -> None:
        """Give back what the lab holds."""


class Site(Protocol):
    """A CPU to choose kernels for; what its plans record of it."""

    @property
    def arch(self) -> str:
        """Its architecture."""

    @property
    def isas(self) -> tuple[str, ...]:
        """The ISA levels that it executes, best first."""

    @property
    def cpus(self) -> int:
        """CPUs that may be used."""

    @property
    def cpu(self) -> str:
        """The CPU's own name, which keys its plans."""

    @property
    def basis(self) -> str:
        """Where the times come from, in words."""

    @property
    def compiler(self) -> str:
        """The version of the compiler that makes its kernels."""

    @property
    def load(self) -> float:
        """Processes that were busy there before the tuning began."""

    def lab(self, isa: str, specs: Sequence[KernelSpec], threads: int, progress: Progress) -> Lab:
        """Compile the candidates of one shape and get ready to run them."""


class Host:
    """The machine that bitgen runs on."""

    def __init__(self) -> None:
        self.arch = targets.host_arch()
        self.isas = library.host_isas()
        self.cpus = default_threads()
        self.cpu = plan.cpu_name()
        self.basis = f"measured on {self.cpu}"
        self.compiler = clang.find_compiler(targets.platform_of()).version
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0

    def lab(self, isa: str, specs: Sequence[KernelSpec], threads: int, progress: Progress) -> Lab:
        return HostLab(isa, specs, threads, progress)


class HostLab:
    """A library of candidates, loaded here, and the data to run them on.

    Timing streams arbitrary bytes: integer kernels take the same time on any, so all layouts share one buffer.
    """

    def __init__(self, isa: str, specs: Sequence[KernelSpec], threads: int, progress: Progress) -> None:
        self._lib = binding.load(library.for_kernels(isa, specs, BuildOptions(progress=progress)).path)
        self._isa, self._threads = library.isa_index(self._lib, isa), threads
        self._index = {spec: i for i, spec in enumerate(specs)}
        shape = specs[0].shape
        rng = np.random.default_rng(0)
        self._trial = Trial(shape, rng.integers(-1, 2, (shape.m, shape.k), np.int8), PREFILL_TOKENS)
        self._rows = self._trial.rows(self._trial.q)
        self._stream = WeightStream(stream_bytes(), specs)
        self._bytes = np.resize(rng.integers(0, 256, 1 << 20, np.uint8), self._stream.size)

    def verify(self, spec: KernelSpec) -> None:
        """Random and extreme activations against the oracle, all threads."""
        if differs(self._lib, self._isa, self._index[spec], spec, self._trial, self._threads):
            raise wrong(spec)

    def seconds(self, spec: KernelSpec, threads: int | None = None) -> float:
        n, reps = PREFILL_TOKENS if spec.op == "gemm" else 1, REPS[spec.op]
        at, copies = self._stream.place(spec, reps)
        out = np.empty(reps)
        code = self._lib.bg_kernel_time(
            self._isa, self._index[spec], _at("uint8_t *", self._bytes[at:]), copies, _at("int8_t *", self._rows),
            n, threads or self._threads, reps, _at("double *", out),
        )  # fmt: skip
        binding.check(self._lib, code, f"cannot time {spec.symbol}")
        return float(np.median(out))

    def bandwidth(self) -> float:
        out = binding.ffi().new("double *")
        code = self._lib.bg_read_bandwidth(
            self._isa, _at("void *", self._bytes), len(self._bytes), self._threads, 5, out
        )
        binding.check(self._lib, code, "cannot measure the read bandwidth")
        return float(out[0])

    def peak(self) -> float:
        out = binding.ffi().new("double *")
        code = self._lib.bg_peak_ops(self._isa, self._threads, 5, out)
        binding.check(self._lib, code, "cannot measure the peak of integer operations")
        return float(out[0])

    def weight_bytes(self, spec: KernelSpec) -> int:
        return weight_bytes(spec)

    def close(self) -> None:
        pass  # a loaded library stays


class WeightStream:
    """Places in a buffer larger than the last-level cache, so that decode kernels read weights from memory."""

    def __init__(self, size: int, specs: Sequence[KernelSpec]) -> None:
        self.size = max(size, *map(weight_bytes, specs), PREFILL_TOKENS * 2 * specs[0].shape.k)
        self._cursor = 0

    def place(self, spec: KernelSpec, reps: int) -> tuple[int, int]:
        """Where the next up to `reps` copies of a packed matrix begin, in bytes, and how many they are."""
        each = weight_bytes(spec)
        copies = min(reps, self.size // each)
        at = self._cursor if self._cursor + copies * each <= self.size else 0
        self._cursor = at + copies * each
        return at, copies


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def stream_bytes(read: Callable[[str], str] = _read) -> int:
    """How much memory decode timing walks through: three times the last-level cache, 256 MiB to 1.5 GiB.

    But never more than half of what is free. `read` gives the text of a file, "" for none.
    """
    sizes = [read(f"/sys/devices/system/cpu/cpu0/cache/index{i}/size").strip() for i in range(8)]
    cache = max(int(size.rstrip("K") or 0) << 10 for size in sizes)
    wanted = min(max(3 * cache, 256 << 20), 1536 << 20)
    free = re.search(r"^MemAvailable:\s*(\d+) kB", read("/proc/meminfo"), re.M)
    return min(wanted, int(free[1]) << 9) if free else wanted


class Trial:
    """What verification multiplies: a matrix of codes, and where it has groups scales and steps as well."""

    def __init__(self, shape: GemmShape, codes: Codes, tokens: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        groups = shape.k // shape.group if shape.group else 0
        self.shape, self.codes = shape, codes
        self.q = rng.integers(-128, 128, (tokens, shape.k), np.int16).astype(np.int8)
        self.scales, self.steps = (
            rng.integers(1, 1 << 10, (rows, groups)).astype(np.float32) / np.float32(1 << 10)
            for rows in (shape.m, tokens)
        )

    def pack(self, layout: Layout) -> Bytes:
        """The matrix for kernels of a layout."""
        return FORMATS[layout.format].pack(self.codes, layout, self.scales)

    def rows(self, q: Activations) -> Activations:
        """int8 [n, k] as kernels of the shape take it."""
        return with_steps(q, self.steps[: len(q)]) if self.shape.group else q

    def answer(self, q: Activations) -> npt.NDArray[np.int32]:
        """The oracle's y for int8 [n, k]: integers [n, m], or with groups the bits of floats."""
        if not self.shape.group:
            return gemm_int(self.codes, q)
        return gemm_groups(self.codes, self.scales, q, self.steps[: len(q)]).view(np.int32)

    def extremes(self, tokens: int) -> Iterator[Activations]:
        """Activations int8 [n, k] of so many tokens: random ones, the greatest sums, and rows that match codes."""
        q = self.q[:tokens]
        yield q
        yield np.full_like(q, 127)
        yield np.full_like(q, -128)
        yield np.where(self.codes[np.arange(len(q)) % len(self.codes)] > 0, np.int8(127), np.int8(-128))


def differs(lib: Any, isa: int, index: int, spec: KernelSpec, trial: Trial, threads: int) -> str:
    """Run a kernel of a library on random and extreme activations; "" or how its y differs from the oracle's."""
    weights = trial.pack(spec.layout)
    m_pad = FORMATS[spec.layout.format].geometry(spec.shape, spec.layout).m_pad
    for q in trial.extremes(VERIFY_TOKENS[spec.op]):
        y, rows = np.full((len(q), m_pad), -1, np.int32), trial.rows(q)
        code = lib.bg_kernel_run(
            isa, index, _at("uint8_t *", weights), _at("int8_t *", rows), len(q), _at("int32_t *", y), threads
        )
        binding.check(lib, code, f"cannot run {spec.symbol}")
        off = np.argwhere(y[:, : spec.shape.m] != trial.answer(q))
        if len(off):
            token, row = off[0]
            return f"{len(off)} of {len(q) * spec.shape.m} sums differ, the first in row {row} of token {token}"
    return ""


def weight_bytes(spec: KernelSpec) -> int:
    """Packed bytes of a kernel's matrix."""
    return FORMATS[spec.layout.format].geometry(spec.shape, spec.layout).weight_bytes


def wrong(spec: KernelSpec) -> EngineError:
    """What to raise when a kernel's integers are not the oracle's."""
    return EngineError(f"kernel {spec.symbol} differs from the oracle; please report it with your CPU's name")


def _at(ctype: str, array: npt.NDArray[Any]) -> Any:
    return binding.ffi().cast(ctype, array.ctypes.data)
