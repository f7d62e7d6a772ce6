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

from bitgen import compile, library, plan, targets
from bitgen.engine import binding
from bitgen.engine.model import default_threads
from bitgen.errors import EngineError
from bitgen.formats import FORMATS
from bitgen.layout import Codes
from bitgen.reference import gemm_int
from bitgen.spec import KernelSpec

PREFILL_TOKENS = 128
VERIFY_TOKENS = {"gemv": 1, "gemm": 37}  # prefill: a whole tile of the look-up kernels, and a rest by products
REPS = {"gemv": 24, "gemm": 2}  # timed runs behind one measurement

Progress = Callable[[int, int], None]
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
        self.compiler = compile.find_compiler(self.arch).version
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0

    def lab(self, isa: str, specs: Sequence[KernelSpec], threads: int, progress: Progress) -> Lab:
        return HostLab(isa, specs, threads, progress)


class HostLab:
    """A library of candidates, loaded here, and the data to run them on.

    Timing streams arbitrary bytes: integer kernels take the same time on any, so all layouts share one buffer.
    """

    def __init__(self, isa: str, specs: Sequence[KernelSpec], threads: int, progress: Progress) -> None:
        self._lib = binding.load(library.for_kernels(isa, specs, progress=progress).path)
        self._isa, self._threads = library.isa_index(self._lib, isa), threads
        self._index = {spec: i for i, spec in enumerate(specs)}
        shape = specs[0].shape
        rng = np.random.default_rng(0)
        self._codes = rng.integers(-1, 2, (shape.m, shape.k), np.int8)
        self._q = rng.integers(-127, 128, (PREFILL_TOKENS, shape.k), np.int8)
        self._stream = Stream(stream_bytes(), specs)
        self._bytes = np.resize(rng.integers(0, 256, 1 << 20, np.uint8), self._stream.size)

    def verify(self, spec: KernelSpec) -> None:
        """Random and extreme activations against the oracle, all threads."""
        n = VERIFY_TOKENS[spec.op]
        weights = FORMATS[spec.layout.format].pack(self._codes, spec.layout)
        for q in activations(self._codes, self._q[:n]):
            y = np.full((len(q), self._info(spec).m_pad), -1, np.int32)
            code = self._lib.bg_kernel_run(
                *(self._isa, self._index[spec], _at("uint8_t *", weights), _at("int8_t *", q)),
                *(len(q), _at("int32_t *", y), self._threads),
            )
            binding.check(self._lib, code, f"cannot run {spec.symbol}")
            if not np.array_equal(y[:, : spec.shape.m], gemm_int(self._codes, q)):
                raise wrong(spec)

    def seconds(self, spec: KernelSpec, threads: int | None = None) -> float:
        n, reps = PREFILL_TOKENS if spec.op == "gemm" else 1, REPS[spec.op]
        at, copies = self._stream.place(spec, reps)
        out = np.empty(reps)
        code = self._lib.bg_kernel_time(
            *(self._isa, self._index[spec], _at("uint8_t *", self._bytes[at:]), copies, _at("int8_t *", self._q)),
            *(n, threads or self._threads, reps, _at("double *", out)),
        )
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

    def _info(self, spec: KernelSpec) -> Any:
        info = binding.ffi().new("bg_kernel_info *")
        binding.check(self._lib, self._lib.bg_kernel_get(self._isa, self._index[spec], info), spec.symbol)
        return info


class Stream:
    """Places in a buffer larger than the last-level cache, so that decode kernels read weights from memory."""

    def __init__(self, size: int, specs: Sequence[KernelSpec]) -> None:
        self.size = max(size, *map(weight_bytes, specs), PREFILL_TOKENS * specs[0].shape.k)
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


def activations(codes: Codes, q: Activations) -> Iterator[Activations]:
    """What verification multiplies with, int8 [n, k] each: random q, the greatest sums, and rows that match codes."""
    yield q
    yield np.full_like(q, 127)
    yield np.full_like(q, -128)
    yield np.where(codes[np.arange(len(q)) % len(codes)] > 0, np.int8(127), np.int8(-128))


def weight_bytes(spec: KernelSpec) -> int:
    """Packed bytes of a kernel's matrix."""
    return FORMATS[spec.layout.format].geometry(spec.shape, spec.layout).weight_bytes


def wrong(spec: KernelSpec) -> EngineError:
    """What to raise when a kernel's integers are not the oracle's."""
    return EngineError(f"kernel {spec.symbol} differs from the oracle; please report it with your CPU's name")


def _at(ctype: str, array: npt.NDArray[Any]) -> Any:
    return binding.ffi().cast(ctype, array.ctypes.data)
