"""The instruction-set levels bitgen generates for. Adding one is adding a row."""

from __future__ import annotations

import platform

from bitgen.errors import UnsupportedError
from bitgen.spec import Target

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_VNNI = (*_AVX2, *_AVX512, "-mavx512vnni")
_VBMI = (*_VNNI, "-mavx512vbmi")
_AMX = ("-mamx-tile", "-mamx-int8")

TARGETS: dict[str, Target] = {
    t.isa: t
    for t in (
        Target("amx", "x86_64", (*_VBMI, *_AMX), "avx512vbmi", "AMX int8 tiles, AVX-512 with VNNI and VBMI"),
        Target("avx512vbmi", "x86_64", _VBMI, "avx512vnni", "AVX-512 with VNNI and VBMI"),
        Target("avx512vnni", "x86_64", _VNNI, "avx2", "AVX-512 with VNNI"),
        Target("avxvnni", "x86_64", (*_AVX2, "-mavxvnni"), "avx2", "AVX2 with the 256-bit VNNI of AVX-VNNI"),
        Target("avx2", "x86_64", _AVX2, "scalar", "AVX2, FMA and F16C"),
        Target("i8mm", "arm64", ("-mcpu=generic+dotprod+i8mm",), "dotprod", "NEON with smmla and sdot (i8mm, Armv8.6)"),
        Target("dotprod", "arm64", ("-mcpu=generic+dotprod",), "neon", "NEON with sdot (Armv8.2)"),
        Target("neon", "arm64", ("-mcpu=generic",), "scalar", "baseline NEON (Armv8.0)"),
        Target("scalar", "any", (), None, "portable C"),
    )
}
"""Best first within each architecture; a library lists its levels in this order."""

ARCHES: dict[str, str] = {
    "x86_64": "x86_64-linux-gnu",
    "arm64": "aarch64-linux-gnu",
    "riscv64": "riscv64-linux-gnu",
}
"""Architecture -> target triple of the compiler."""

_MACHINES = {
    "x86_64": "x86_64",
    "amd64": "x86_64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "riscv64": "riscv64",
}


def host_arch() -> str:
    """The architecture of this machine, as a key of ARCHES."""
    machine = platform.machine().lower()
    if machine not in _MACHINES:
        raise UnsupportedError(f"unknown machine {machine!r}; known: {', '.join(ARCHES)}")
    return _MACHINES[machine]


def levels(arch: str) -> list[Target]:
    """Every ISA level of an architecture, best first, the portable fallback last."""
    if arch not in ARCHES:
        raise UnsupportedError(f"unknown architecture {arch!r}; known: {', '.join(ARCHES)}")
    return [t for t in TARGETS.values() if t.arch in (arch, "any")]


def fallbacks(isa: str) -> list[str]:
    """`isa` and the levels below it, best first: where a template is looked for."""
    chain: list[str] = []
    at: str | None = isa
    while at is not None:
        chain.append(at)
        at = target(at).falls_back
    return chain


def target(isa: str) -> Target:
    """The row of TARGETS, or a clear error."""
    if isa not in TARGETS:
        raise UnsupportedError(f"unknown ISA {isa!r}; known: {', '.join(TARGETS)}")
    return TARGETS[isa]
