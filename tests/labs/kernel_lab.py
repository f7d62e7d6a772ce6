"""Compiles generated kernels into one program per ISA and runs them on data: natively, under qemu, or emulated.

Where neither this CPU nor an emulator has an instruction that C can spell, instructions.h spells it.

Depends on kernel.h and the generated text alone, not on the runtime.
"""

from __future__ import annotations

import functools
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import emulate_avx512
import numpy as np
import numpy.typing as npt

from bitgen import data, targets
from bitgen.checkpoints.reference import gemm_groups, gemm_int
from bitgen.compile import clang
from bitgen.compile.clang import BuildOptions, Unit
from bitgen.errors import CompileError
from bitgen.kernels import render
from bitgen.kernels.formats import FORMATS
from bitgen.kernels.layout import with_steps
from bitgen.spec import KernelSpec

HERE = Path(__file__).parent
IN_C = ("amx", "avxvnni")  # levels whose every addition to the one below is in instructions.h
QEMU_CPU = {"i8mm": "max", "dotprod": "cortex-a76"}  # for other ARM levels the baseline, which traps what it lacks


class Unavailable(Exception):
    """This machine cannot run the ISA, and why."""


@dataclass(frozen=True)
class Run:
    """One call of a kernel: q int8 [n, k], steps float32 [n, k / group], the panels divided over `splits` calls."""

    q: npt.NDArray[np.int8]
    splits: int = 1
    steps: npt.NDArray[np.float32] | None = None

    @property
    def rows(self) -> npt.NDArray[np.int8]:
        """The rows of q as the kernel takes them."""
        return self.q if self.steps is None else with_steps(self.q, self.steps)


@dataclass(frozen=True)
class Job:
    """Some runs of a kernel over one matrix of codes int8 [m, k], and scales float32 [m, k / group]."""

    spec: KernelSpec
    codes: npt.NDArray[np.int8]
    runs: tuple[Run, ...]
    scales: npt.NDArray[np.float32] | None = None

    def oracle(self, run: Run) -> npt.NDArray[np.int32]:
        """What a run must give: int32 [n, m], or the bits of float32."""
        if self.scales is None or run.steps is None:
            return gemm_int(self.codes, run.q)
        return gemm_groups(self.codes, self.scales, run.q, run.steps).view(np.int32)


def run(isa: str, jobs: Sequence[Job]) -> list[list[npt.NDArray[np.int32]]]:
    """y int32 [n, m_pad] of every run of every job. Unavailable when this machine has no way to."""
    specs = tuple(dict.fromkeys(job.spec for job in jobs))
    return answers(command(isa, specs), isa, jobs, specs)


def answers(
    command: Sequence[str], isa: str, jobs: Sequence[Job], specs: Sequence[KernelSpec]
) -> list[list[npt.NDArray[np.int32]]]:
    """What the program of some kernels, started by a command, answers."""
    out = subprocess.run([*command, "run"], input=b"".join(_words(jobs, specs)), capture_output=True)
    if out.returncode:
        raise AssertionError(f"the kernels of {isa} failed ({out.returncode}): {out.stderr.decode()}")
    y, found = np.frombuffer(out.stdout, np.int32), list[list[npt.NDArray[np.int32]]]()
    for job in jobs:
        m_pad = FORMATS[job.spec.layout.format].geometry(job.spec.shape, job.spec.layout).m_pad
        found.append([])
        for each in job.runs:
            size = len(each.q) * m_pad
            found[-1].append(y[:size].reshape(len(each.q), m_pad))
            y = y[size:]
    assert y.size == 0
    return found


def unpacked(isa: str, jobs: Sequence[Job]) -> list[npt.NDArray[np.float32]]:
    """float32 [m, k] of every job with groups: what its kernel makes of each row of its matrix."""
    specs, out = tuple(dict.fromkeys(job.spec for job in jobs)), list[npt.NDArray[np.float32]]()
    words = b"".join(struct.pack("<i", specs.index(job.spec)) + _packed(job).tobytes() for job in jobs)
    done = subprocess.run([*command(isa, specs), "unpack"], input=words, capture_output=True)
    if done.returncode:
        raise AssertionError(f"the kernels of {isa} failed ({done.returncode}): {done.stderr.decode()}")
    rows = np.frombuffer(done.stdout, np.float32)
    for job in jobs:
        out.append(rows[: job.codes.size].reshape(job.codes.shape))
        rows = rows[job.codes.size :]
    assert rows.size == 0
    return out


def run_any_weights(program: Path, specs: Sequence[KernelSpec], tokens: int) -> str:
    """What a program of these kernels complains of when all weights and activations are random bytes."""
    rng, words = np.random.default_rng(0), list[bytes]()
    for i, spec in enumerate(specs):
        n, shape = tokens if spec.op == "gemm" else 1, spec.shape
        size = FORMATS[spec.layout.format].geometry(shape, spec.layout).weight_bytes
        row = shape.k + 4 * (shape.k // shape.group if shape.group else 0)
        words += [struct.pack("<2i", i, 1), rng.bytes(size), struct.pack("<2i", n, 3), rng.bytes(n * row)]
    done = subprocess.run([program, "run"], input=b"".join(words), capture_output=True)
    return done.stderr.decode() or f"exit code {done.returncode}" * (done.returncode != 0)


def _words(jobs: Iterable[Job], specs: Sequence[KernelSpec]) -> Iterable[bytes]:
    """The input of kernel_lab.c."""
    for job in jobs:
        yield struct.pack("<2i", specs.index(job.spec), len(job.runs))
        yield _packed(job).tobytes()
        for each in job.runs:
            yield struct.pack("<2i", len(each.q), each.splits) + each.rows.tobytes()


def _packed(job: Job) -> npt.NDArray[np.uint8]:
    return FORMATS[job.spec.layout.format].pack(job.codes, job.spec.layout, job.scales)


def command(isa: str, specs: Sequence[KernelSpec]) -> list[str]:
    """What runs the kernels here: the program itself, or an emulator before it."""
    below = targets.target(isa).falls_back
    try:
        for level in (isa, below) if isa in IN_C else (isa,):
            prefix = _way(level)
            if prefix is not None:
                return [*prefix, str(program(isa, tuple(specs), in_c=level != isa))]
    except CompileError as e:
        raise Unavailable(f"no program for {isa}: {str(e).splitlines()[0]}") from e
    raise Unavailable(f"neither this CPU nor an emulator here executes {isa} ({emulate_avx512.available()})")


@functools.cache
def _way(isa: str) -> list[str] | None:
    """The first command prefix with which the probe of an ISA succeeds here, or None."""
    probe = program(isa, ())
    for prefix in _ways(isa):
        if subprocess.run([*prefix, probe, "probe"], capture_output=True).returncode == 0:
            return prefix
    return None


def _ways(isa: str) -> list[list[str]]:
    """Command prefixes to try: none where the CPU is of the ISA's architecture, and the emulators that know it."""
    arch = targets.target(isa).arch
    ways: list[list[str]] = [[]] if arch in ("any", targets.host_arch()) else []
    if arch == "arm64" and (qemu := shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")):
        ways.append([qemu, "-cpu", QEMU_CPU.get(isa, "cortex-a53")])
    if arch == "x86_64" and emulate_avx512.available() is None:
        ways.append([sys.executable, str(HERE / "emulate_avx512.py")])
    if not ways:
        raise Unavailable(f"{isa} is of {arch}, and no qemu for it is installed (apt-get install qemu-user-static)")
    return ways


@functools.cache
def program(isa: str, specs: tuple[KernelSpec, ...], in_c: bool = False, sanitize: str | None = None) -> Path:
    """The program of some kernels, each compiled as a library would compile it, or with instructions in C or
    sanitizers."""
    target = targets.target(isa)
    arch = target.arch if target.arch != "any" else targets.host_arch()
    probed, flags, first = isa, target.flags, ""
    if in_c:
        probed = target.falls_back or isa
        # -O1: what machine code the compiler makes of such kernels says nothing, and -O3 takes twice as long
        flags, first = (*targets.target(probed).flags, "-O1"), '#include "instructions.h"\n'
    sources = {
        "kernel.h": (data.folder("runtime") / "kernel.h").read_text(),
        "lab.c": (HERE / "kernel_lab.c").read_text(),
        "instructions.h": (HERE / "instructions.h").read_text(),
        "probe.c": render.render_probe(probed),
        "table.c": _table(probed, specs),
        **{f"{spec.symbol}.c": first + render.render_kernel(spec) for spec in specs},
    }
    units = [
        Unit(file, file.replace(".c", ".o"), flags if file == "probe.c" or file.startswith("bg_") else ())
        for file in sources
        if file.endswith(".c")
    ]
    options = BuildOptions(targets.platform_of(arch), "lab.c", sanitize=sanitize)
    return clang.build(f"lab-{isa}{'-in-c' if in_c else ''}", sources, units, {}, options).path


def _table(isa: str, specs: Sequence[KernelSpec]) -> str:
    return "\n".join(
        [
            '#include "kernel.h"',
            f"int32_t bg_probe__{isa}(void);",
            "int32_t lab_probe(void);",
            f"int32_t lab_probe(void) {{ return bg_probe__{isa}(); }}",
            *(f"extern const bg_kernel {spec.symbol};" for spec in specs),
            f"const bg_kernel *const lab_kernels[] = {{{''.join(f'&{spec.symbol}, ' for spec in specs)}NULL}};",
            f"const int32_t lab_count = {len(specs)};",
            "",
        ]
    )
