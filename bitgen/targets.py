"""The instruction-set levels and platforms that bitgen generates code for. Adding one is adding a row."""

from __future__ import annotations

import math
import os
import platform
import sysconfig
from pathlib import Path

from bitgen.cgroups import cpu_quota
from bitgen.errors import UnsupportedError
from bitgen.spec import Platform, System, Target

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

_STRIP = ("-Wl,-s",)
_ELF = ("-shared", "-Wl,-z,defs")
_AMX_LEVELS = ("amx",)  # only Linux is asked for permission to use tiles: templates/probe/amx.c.j2

SYSTEMS: dict[str, System] = {
    s.name: s
    for s in (
        System("linux", "libbitgen.so", "", _ELF, ("-static",), clang="sysroot"),
        System("musl", "libbitgen.so", "", (*_ELF, *_STRIP), ("-static", *_STRIP), clang="native"),
        System(
            name="macos",
            library="libbitgen.dylib",
            suffix="",
            shared=("-dynamiclib", "-Wl,-install_name,@rpath/libbitgen.dylib"),
            program=(),
            clang="native",
            lacks=_AMX_LEVELS,
        ),
        System(
            name="windows",
            library="bitgen.dll",
            suffix=".exe",
            shared=("-shared", "-Wl,--out-implib,bitgen.lib", *_STRIP),  # C programs link with the import library
            program=("-Wl,--out-implib,bitgen-runner.lib", *_STRIP),
            clang="never",
            flags=("-fms-extensions",),  # __try: runtime/os/windows.c
            lacks=_AMX_LEVELS,
        ),
    )
}
"""Operating system (Linux by its C library: glibc, or musl) -> names and link flags."""

PLATFORMS: dict[tuple[str, str], Platform] = {
    (arch, system): Platform(arch, SYSTEMS[system], triple)
    for arch, system, triple in (
        ("x86_64", "linux", "x86_64-linux-gnu"),
        ("x86_64", "musl", "x86_64-linux-musl"),
        ("x86_64", "macos", "x86_64-macos.11.0"),
        ("x86_64", "windows", "x86_64-windows-gnu"),
        ("arm64", "linux", "aarch64-linux-gnu"),
        ("arm64", "musl", "aarch64-linux-musl"),
        ("arm64", "macos", "aarch64-macos.11.0"),
        ("arm64", "windows", "aarch64-windows-gnu"),
        ("riscv64", "linux", "riscv64-linux-gnu"),
        ("riscv64", "musl", "riscv64-linux-musl"),
    )
}
"""(architecture, system) -> platform."""

ARCHES = tuple(dict.fromkeys(arch for arch, _ in PLATFORMS))

CORES: dict[tuple[str, str], str] = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd04"): "Cortex-A35",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0d"): "Cortex-A77",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd44"): "Cortex-X1",
    ("0x41", "0xd46"): "Cortex-A510",
    ("0x41", "0xd47"): "Cortex-A710",
    ("0x41", "0xd48"): "Cortex-X2",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4d"): "Cortex-A715",
    ("0x41", "0xd4e"): "Cortex-X3",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x61", "0x022"): "Apple M1 (Icestorm)",
    ("0x61", "0x023"): "Apple M1 (Firestorm)",
    ("0xc0", "0xac3"): "Ampere-1",
}
"""(implementer, part) -> core, as /proc/cpuinfo has them on ARM, where it gives no name."""

_MACHINES = {
    "x86_64": "x86_64",
    "amd64": "x86_64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "riscv64": "riscv64",
}


def host_arch() -> str:
    """The architecture of this machine, one of ARCHES."""
    return arch_of(platform.machine())


def arch_of(machine: str) -> str:
    """The one of ARCHES for an output of `uname -m`; UnsupportedError when there is none."""
    if machine.lower() not in _MACHINES:
        raise UnsupportedError(f"unknown machine {machine!r}; known: {', '.join(ARCHES)}")
    return _MACHINES[machine.lower()]


def host_system() -> str:
    """The system of this Python, as a key of SYSTEMS."""
    name = platform.system()
    if name == "Linux" and "musl" in str(sysconfig.get_config_var("SOABI")):
        return "musl"
    return {"Darwin": "macos", "Windows": "windows"}.get(name, "linux")


def platform_of(arch: str | None = None, system: str | None = None) -> Platform:
    """The row of PLATFORMS. The default architecture is this host's; the default system is this host's, or "linux" when
    the architecture is another. UnsupportedError lists the known ones.
    """
    arch = arch or host_arch()
    system = system or (host_system() if arch == host_arch() else "linux")
    if (arch, system) in PLATFORMS:
        return PLATFORMS[arch, system]
    if arch not in ARCHES:
        raise UnsupportedError(f"unknown architecture {arch!r}; known: {', '.join(ARCHES)}")
    known = ", ".join(s for a, s in PLATFORMS if a == arch)
    raise UnsupportedError(f"bitgen does not build for {system!r} on {arch}; systems of {arch}: {known}")


def is_host(where: Platform) -> bool:
    """Whether what is built for a platform runs (and may be compiled natively) on this machine."""
    return (where.arch, where.system.name) == (host_arch(), host_system())


def default_threads(root: Path = Path("/")) -> int:
    """CPUs that this process may run on; fewer where its control groups grant it less time than those have.

    A part of a CPU counts as none: threads wait for each other at every step, and one that is throttled stops all.
    root: as of `cgroups.cpu_quota`.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, max(1, math.floor(cpu_quota(root) or cpus)))


def levels(platform: Platform) -> list[Target]:
    """Every ISA level of a platform, best first, the portable fallback last."""
    return [t for t in TARGETS.values() if t.arch in (platform.arch, "any") and t.isa not in platform.system.lacks]


def fallbacks(isa: str) -> list[str]:
    """`isa` and the levels below it, best first: the order in which templates are looked for."""
    chain: list[str] = []
    at: str | None = isa
    while at is not None:
        chain.append(at)
        at = target(at).falls_back
    return chain


def target(isa: str) -> Target:
    """The row of TARGETS; UnsupportedError lists the known levels."""
    if isa not in TARGETS:
        raise UnsupportedError(f"unknown ISA {isa!r}; known: {', '.join(TARGETS)}")
    return TARGETS[isa]
