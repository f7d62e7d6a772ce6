"""Where candidate kernels are timed: a `Site` is a CPU, a `Lab` the compiled candidates of one matrix shape on it.

search.py knows only these two protocols, so this host and a device behind SSH (remote.py) use the same search, record
the same evidence and resume the same way.
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
from bitgen.compile import binding, library
from bitgen.compile.clang import BuildOptions
from bitgen.compile.compiler import find_compiler
from bitgen.errors import EngineError
from bitgen.kernels import plan
from bitgen.kernels.formats import FORMATS
from bitgen.kernels.layout import Bytes, Codes, with_steps
from bitgen.spec import GemmShape, KernelSpec, Layout, Listener
from bitgen.targets import default_threads
from bitgen.tune.bands import random_codes

PREFILL_TOKENS = 128
VERIFY_TOKENS = {"gemv": 1, "gemm": 37}  # prefill: one full tile of the look-up kernels, and a remainder by products
REPS = {"gemv": 24, "gemm": 2}  # timed calls per measurement

Activations = npt.NDArray[np.int8]


class Lab(Protocol):
    """The compiled candidates of one matrix shape. Kernels are verified before they are timed."""

    def verify(self, spec: KernelSpec) -> None:
        """Compare a kernel with the oracle, bit for bit; EngineError names a wrong kernel."""

    def seconds(self, spec: KernelSpec, threads: int | None = None) -> float:
        """Median seconds of one call: decode with weights that come from memory, prefill of PREFILL_TOKENS tokens."""

    def bandwidth(self) -> float:
        """Sequential read bandwidth, bytes per second, of the lab's threads together."""

    def peak(self) -> float:
        """Peak of the ISA level's integer dot product, operations per second, of the lab's threads together."""

    def weight_bytes(self, spec: KernelSpec) -> int:
        """Bytes of the packed matrix, which one decode call reads."""

    def close(self) -> None:
        """Release the lab's resources."""


class Site(Protocol):
    """A CPU to choose kernels for, and what its plans record about it."""

    @property
    def arch(self) -> str:
        """Its architecture."""

    @property
    def isas(self) -> tuple[str, ...]:
        """The ISA levels that it executes, best first."""

    @property
    def cpus(self) -> int:
        """Number of CPUs that may be used."""

    @property
    def cpu(self) -> str:
        """The CPU's own name, which keys its plans."""

    @property
    def basis(self) -> str:
        """Where the times come from, in words for the plan."""

    @property
    def compiler(self) -> str:
        """Version of the compiler that builds its kernels."""

    @property
    def load(self) -> float:
        """Load average before tuning began."""

    def lab(self, isa: str, specs: Sequence[KernelSpec], threads: int, listener: Listener) -> Lab:
        """Compile the candidates of one shape and prepare the data to run them on."""


class Host:
    """The machine that bitgen runs on."""

    def __init__(self, listener: Listener = lambda *_: None) -> None:
        self.arch = targets.host_arch()
        self.isas = library.host_isas(listener)
        self.cpus = default_threads()
        self.cpu = plan.cpu_name()
        self.basis = f"measured on {self.cpu}"
        self.compiler = find_compiler(targets.platform_of()).version
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0

    def lab(self, isa: str, specs: Sequence[KernelSpec], threads: int, listener: Listener) -> Lab:
        return HostLab(isa, specs, threads, listener)


class HostLab:
    """A library of candidates loaded into this process, and the data to run them on.

    Timing reads arbitrary bytes as weights: an integer kernel takes the same time on any, so one buffer serves all
    layouts.
    """

    def __init__(self, isa: str, specs: Sequence[KernelSpec], threads: int, listener: Listener) -> None:
        self._lib = binding.load(library.for_kernels(isa, specs, BuildOptions(listener=listener)).path)
        listener("preparing the data", 0, 0)
        self._isa, self._threads = library.isa_index(self._lib, isa), threads
        self._index = {spec: i for i, spec in enumerate(specs)}
        shape = specs[0].shape
        rng = np.random.default_rng(0)
        self._trial = Trial(shape, random_codes(shape, rng), PREFILL_TOKENS)
        self._rows = self._trial.rows(self._trial.q)
        self._stream = WeightStream(stream_bytes(), specs)
        self._bytes = np.resize(rng.integers(0, 256, 1 << 20, np.uint8), self._stream.size)

    def verify(self, spec: KernelSpec) -> None:
        """Compare with the oracle on random and extreme activations, with all threads."""
        if differs(self._lib, self._isa, self._index[spec], spec, self._trial, self._threads):
            raise wrong(spec)

    def seconds(self, spec: KernelSpec, threads: int | None = None) -> float:
        n, reps = PREFILL_TOKENS if spec.op == "gemm" else 1, REPS[spec.op]
        at, copies = self._stream.place(spec, reps)
        out = np.empty(reps)
        code = self._lib.bg_kernel_time(
            self._isa, self._index[spec], _at("uint8_t", self._bytes[at:]), copies, _at("int8_t", self._rows),
            n, threads or self._threads, reps, _at("double", out),
        )  # fmt: skip
        binding.check(self._lib, code, f"cannot time {spec.symbol}")
        return float(np.median(out))

    def bandwidth(self) -> float:
        out = binding.ffi().new("double *")
        code = self._lib.bg_read_bandwidth(self._isa, _at("char", self._bytes), len(self._bytes), self._threads, 5, out)
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
        pass  # a library stays loaded until the process ends


class WeightStream:
    """Positions of weight copies in a buffer larger than the last-level cache: decode reads them from memory."""

    def __init__(self, size: int, specs: Sequence[KernelSpec]) -> None:
        self.size = max(size, *map(weight_bytes, specs), PREFILL_TOKENS * 2 * specs[0].shape.k)
        self._cursor = 0

    def place(self, spec: KernelSpec, reps: int) -> tuple[int, int]:
        """(byte offset, number) of the next copies of a packed matrix: `reps`, or as many as the buffer holds."""
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
    """Bytes of the buffer that decode timing reads: three times the last-level cache, 256 MiB to 1.5 GiB.

    At most half of the free memory. `read` returns the text of a file, "" when there is none.
    """
    sizes = (re.match(r"\d{1,9}", read(f"/sys/devices/system/cpu/cpu0/cache/index{i}/size"), re.A) for i in range(8))
    cache = max(int(size[0]) << 10 if size else 0 for size in sizes)
    wanted = min(max(3 * cache, 256 << 20), 1536 << 20)
    free = re.search(r"^MemAvailable:\s*(\d{1,15}) kB", read("/proc/meminfo"), re.M | re.A)
    return min(wanted, int(free[1]) << 9) if free else wanted


class Trial:
    """The data of verification: codes int8 [m, k], q int8 [tokens, k]; with groups also scales float32 [m, k / group]
    and steps float32 [tokens, k / group].
    """

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
        """The matrix packed in a layout."""
        return FORMATS[layout.format].pack(self.codes, layout, self.scales)

    def rows(self, q: Activations) -> Activations:
        """Activations int8 [n, k] as kernels of the shape read them: with groups, each row is followed by its steps."""
        return with_steps(q, self.steps[: len(q)]) if self.shape.group else q

    def answer(self, q: Activations) -> npt.NDArray[np.int32]:
        """The oracle's y for activations int8 [n, k]: int32 [n, m], with groups the bits of float32."""
        if not self.shape.group:
            return gemm_int(self.codes, q)
        return gemm_groups(self.codes, self.scales, q, self.steps[: len(q)]).view(np.int32)

    def extremes(self, tokens: int) -> Iterator[Activations]:
        """Activations int8 [tokens, k]: random, all 127, all -128, and each token the largest sum of one row of W."""
        q = self.q[:tokens]
        yield q
        yield np.full_like(q, 127)
        yield np.full_like(q, -128)
        yield np.where(self.codes[np.arange(len(q)) % len(self.codes)] > 0, np.int8(127), np.int8(-128))


def differs(lib: Any, isa: int, index: int, spec: KernelSpec, trial: Trial, threads: int) -> str:
    """Run a kernel on random and extreme activations; "" if y equals the oracle's, else a text on the difference."""
    weights = trial.pack(spec.layout)
    m_pad = FORMATS[spec.layout.format].geometry(spec.shape, spec.layout).m_pad
    for q in trial.extremes(VERIFY_TOKENS[spec.op]):
        y, rows = np.full((len(q), m_pad), -1, np.int32), trial.rows(q)
        code = lib.bg_kernel_run(
            isa, index, _at("uint8_t", weights), _at("int8_t", rows), len(q), _at("int32_t", y), threads
        )
        binding.check(lib, code, f"cannot run {spec.symbol}")
        off = np.argwhere(y[:, : spec.shape.m] != trial.answer(q))
        if len(off):
            token, row = off[0]
            return f"{len(off)} of {len(q) * spec.shape.m} sums differ, the first in row {row} of token {token}"
    return ""


def weight_bytes(spec: KernelSpec) -> int:
    """Bytes of a kernel's packed matrix."""
    return FORMATS[spec.layout.format].geometry(spec.shape, spec.layout).weight_bytes


def wrong(spec: KernelSpec) -> EngineError:
    """The error for a kernel whose result is not the oracle's."""
    return EngineError(f"kernel {spec.symbol} differs from the oracle; please report it with your CPU's name")


def _at(ctype: str, array: npt.NDArray[Any]) -> Any:
    """An array, which must lie in C order, as C's array of a type."""
    return binding.ffi().from_buffer(f"{ctype}[]", array)
