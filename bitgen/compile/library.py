"""Assembles a library: its kernels, probes and runtime files, and the compiler flags of each.

    plans -> KernelSpecs -> generated C ┐
    runtime/*/*.c ──────────────────────┴-> source tree + units -> clang.build

A folder of runtime/ is a compile rule: simd/ is compiled once per ISA level from the same text, core/ and os/ once, for
the architecture's baseline, text/ and programs/ for programs only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from bitgen import data, targets
from bitgen.compile import binding, clang
from bitgen.compile.clang import Artefact, BuildOptions, Unit
from bitgen.errors import UnsupportedError
from bitgen.kernels import render
from bitgen.kernels.plan import ModelPlan
from bitgen.spec import KernelSpec, Listener, ModelShape

ONCE = ("core/*.c", "os/*.c")  # a file of os/ is empty on systems that it is not for
PROBES = ("core/isa.c", "os/*.c")  # what of ONCE a library without float operations needs
PER_LEVEL = "simd/*.c"
PROGRAMS: dict[str, tuple[str, ...]] = {
    "runner.c": ("programs/options.c",),
    "tuner.c": (),
    "run.c": ("text/*.c", "programs/options.c"),
}
"""File of runtime/programs with a `main` -> the files it needs beside the library's."""


@dataclass(frozen=True)
class Level:
    """What a library holds for one ISA level: kernels, and which of them multiply the matrices of a model."""

    isa: str
    kernels: tuple[KernelSpec, ...]
    roles: dict[str, tuple[KernelSpec, KernelSpec]]  # role -> (decode kernel, prefill kernel)
    layout_key: str
    ops: bool = True  # float operations too; a level without them only says whether it runs

    @classmethod
    def of_model(cls, shape: ModelShape, plan: ModelPlan) -> Level:
        """The level with the kernels that a plan gives to a model."""
        roles = {role: plan.matrices[role].specs(gemm, plan.isa) for role, gemm in shape.all_matrices.items()}
        kernels = tuple(dict.fromkeys(spec for pair in roles.values() for spec in pair))
        return cls(plan.isa, kernels, roles, plan.layout_key)

    @classmethod
    def of_kernels(cls, isa: str, kernels: Iterable[KernelSpec]) -> Level:
        """A bare kernel set, for tests and tuning."""
        return cls(isa, tuple(dict.fromkeys(kernels)), {}, "")


def for_model(shape: ModelShape, plans: Sequence[ModelPlan], options: BuildOptions | None = None) -> Artefact:
    """The library (or program) for a model's shape, with one ISA level per plan, best first."""
    levels = [Level.of_model(shape, plan) for plan in plans]
    spec = {
        "model": asdict(shape),
        "levels": {plan.isa: {role: asdict(matrix) for role, matrix in plan.matrices.items()} for plan in plans},
    }
    return assemble(shape.name, levels, spec, options)


def for_kernels(isa: str, kernels: Iterable[KernelSpec], options: BuildOptions | None = None) -> Artefact:
    """A library (or program) of bare kernels of one ISA level, in the order given."""
    level = Level.of_kernels(isa, kernels)
    return assemble("kernels", [level], {"kernels": [s.symbol for s in level.kernels]}, options)


def assemble(
    name: str, levels: Sequence[Level], spec: Mapping[str, object], options: BuildOptions | None = None
) -> Artefact:
    """Render, compile and link the source tree of the levels; `options.program` is a key of PROGRAMS, or None.

    UnsupportedError when the platform lacks a level, CompileError when the compiler fails.
    """
    options = options or BuildOptions()
    known = targets.levels(options.platform)
    for level in levels:
        if targets.target(level.isa) not in known:
            arch, system = options.platform.arch, options.platform.system.name
            raise UnsupportedError(f"ISA {level.isa!r} is not of architecture {arch!r} on {system}")
    main = options.program
    sources, units = tree(levels, *(("programs/system.c", f"programs/{main}", *PROGRAMS[main]) if main else ()))
    return clang.build(name, sources, units, spec, options)


def tree(levels: Sequence[Level], *more: str) -> tuple[dict[str, str], list[Unit]]:
    """The source tree of the levels, file name -> text, with more files of runtime/; and the units to compile."""
    once = runtime_files(*(ONCE if any(level.ops for level in levels) else PROBES), *more)
    per_level = runtime_files(PER_LEVEL)
    sources = {**runtime_files("**/*.h"), **once, **per_level, "registry.c": render.render_registry(levels)}
    units = [Unit(file, object_name(file)) for file in (*once, "registry.c")]
    for level in levels:
        flags = targets.target(level.isa).flags
        generated = {f"{kernel.symbol}.c": render.render_kernel(kernel) for kernel in level.kernels}
        generated[f"probe__{level.isa}.c"] = render.render_probe(level.isa)
        sources |= generated
        units += [Unit(file, object_name(file), flags) for file in generated]
        flags = (*flags, f"-DBG_ISA={level.isa}")
        units += [Unit(file, object_name(file, f"__{level.isa}"), flags) for file in per_level if level.ops]
    return sources, units


def runtime_files(*patterns: str) -> dict[str, str]:
    """Path within runtime/ -> text, of the files that match one of the patterns."""
    folder = data.folder("runtime")
    paths = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def object_name(source: str, suffix: str = "") -> str:
    """ "core/pool.c" -> "pool.o": file names are unique in runtime/."""
    return f"{PurePosixPath(source).stem}{suffix}.o"


def isa_index(lib: Any, isa: str) -> int:
    """Index of an ISA level within a library; UnsupportedError when it is missing or this CPU cannot execute it."""
    names = [binding.ffi().string(lib.bg_isa_name(i)).decode() for i in range(lib.bg_isa_count())]
    if isa not in names:
        raise UnsupportedError(f"the library holds no ISA level {isa!r}, only {', '.join(names)}")
    index = names.index(isa)
    if not lib.bg_isa_runs(index):
        raise UnsupportedError(f"this CPU cannot execute {isa!r}; leave --isa out and the best that runs is taken")
    return index


_found: list[tuple[str, ...]] = []
"""The levels of this host, once they are known."""


def host_isas(listener: Listener = lambda *_: None) -> tuple[str, ...]:
    """The ISA levels that this CPU executes, best first, found by running each level's probe."""
    if not _found:
        levels = [Level(t.isa, (), {}, "", ops=False) for t in targets.levels(targets.platform_of())]
        options = BuildOptions(listener=listener, stage="finding what this CPU executes: compiling probes")
        probes = assemble("probe", levels, {"purpose": "finds the ISA levels this CPU executes"}, options)
        lib = binding.load(probes.path)
        _found.append(tuple(level.isa for i, level in enumerate(levels) if lib.bg_isa_runs(i)))
    return _found[0]


def host_isa(listener: Listener = lambda *_: None) -> str:
    """The best ISA level that this CPU executes."""
    return host_isas(listener)[0]
