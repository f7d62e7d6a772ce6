"""The verbs of the command line as functions: each resolves its model and calls one stage."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen import compile, gguf_io, library, plan, presets, render, space, targets
from bitgen import info as _info
from bitgen import synth as _synth
from bitgen import tune as _tune
from bitgen.compile import Artefact
from bitgen.convert import source as _source
from bitgen.engine.model import default_threads
from bitgen.errors import BitgenError, UnsupportedError
from bitgen.spec import KernelSpec, ModelShape

Progress = Callable[[int, int], None]


def shape_of(model: str | Path) -> ModelShape:
    """The shape of a GGUF file (anything that exists or ends in .gguf) or of a preset."""
    path = Path(model)
    if path.suffix == ".gguf" or path.is_file():
        return gguf_io.open(path).shape
    return presets.load(str(model))


@dataclass(frozen=True)
class TuneReport:
    """What tuning decided, as rows for a table, and where the plan was written."""

    model: str
    isa: str
    threads: int
    path: Path
    rows: list[tuple[str, ...]]  # matrix, shape, phase, kernel, time, rate, share, gain over the default


def tune(
    model: str | Path,
    *,
    threads: int | None = None,
    effort: _tune.Effort = "quick",
    isa: str | None = None,
    listener: _tune.Listener = lambda *_: None,
) -> TuneReport:
    """Tune every matrix of a model on this host and save the plan."""
    shape, isa, threads = shape_of(model), isa or library.host_isa(), threads or default_threads()
    made = _tune.tune(list(shape.matrices.values()), isa, threads, effort, listener)
    rows: list[tuple[str, ...]] = []
    for role, gemm in shape.matrices.items():
        decision = made.decisions[gemm]
        for phase, op, spec in zip(
            ("decode", "prefill"), ("gemv", "gemm"), decision.plan.specs(gemm, isa), strict=True
        ):
            e = decision.evidence[op]
            rate = f"{e['gb_s']:.1f} GB/s" if op == "gemv" else f"{e['gop_s']:.0f} GOP/s"
            share = e["bandwidth_share"] if op == "gemv" else e["peak_share"]
            gain = f"{e['default_seconds'] / e['seconds']:.2f}x"
            time = f"{e['seconds'] * 1e6:.0f} us"
            rows.append((role, f"{gemm.m}x{gemm.k}", phase, _short(spec), time, rate, f"{share:.0%}", gain))
    return TuneReport(shape.name, isa, threads, plan.host_path(isa), rows)


def _short(spec: KernelSpec) -> str:
    """A kernel's symbol without what the table says elsewhere."""
    how = spec.symbol.split(f"_k{spec.shape.k}_")[1].split("__")[0]
    return f"{spec.layout.format} {how.replace('_', ' ')}"


def build(
    model: str | Path,
    *,
    arch: str = "native",
    isa: str | None = None,
    root: Path = Path("build"),
    progress: Progress | None = None,
    program: bool = False,
) -> Artefact:
    """Generate and compile the library of a model for an architecture, one ISA level or all of them."""
    shape = shape_of(model)
    arch = targets.host_arch() if arch == "native" else arch
    isas = [isa] if isa else [t.isa for t in targets.levels(arch)]
    lookups = [plan.lookup(shape, name) for name in isas]
    return library.for_model(shape, lookups, arch=arch, root=root, progress=progress, program=program)


def synth(
    preset: str,
    output: Path,
    *,
    seed: int = 0,
    type: gguf_io.TernaryType | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a model of a preset's shape with random ternary weights."""
    _synth.write(presets.load(preset), output, seed, type=type, progress=progress)


open_source = _source.open_source


def convert(
    source: str | Path | _source.Source,
    output: Path,
    *,
    type: gguf_io.TernaryType | None = None,
    progress: Progress | None = None,
) -> None:
    """Convert a checkpoint to GGUF: a folder, a GGUF, "hf:owner/name", a preset's name, or what open_source gave."""
    _source.convert(source, output, type, progress)


def save_array(path: Path, array: npt.NDArray[np.float32]) -> None:
    """Write a .npy file; it appears whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as f:
            np.save(f, array)
        partial.replace(path)
    except OSError as error:
        raise BitgenError(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def info(file: Path) -> dict[str, Any]:
    """What a model file is, and the kernels it would run with on this host."""
    facts = _info.describe(file)
    if "unsupported" in facts:
        return facts
    lookup = plan.lookup(gguf_io.open(file).shape, library.host_isa())
    runs = {role: f"{p.layout} ({lookup.sources[role]})" for role, p in lookup.matrices.items()}
    return {**facts, "runs on": lookup.isa, **{f"{role} kernel": text for role, text in runs.items()}}


def kernels(model: str | Path, *, isa: str | None = None) -> list[str]:
    """Symbols of the kernels that a model would run with."""
    shape, isa = shape_of(model), isa or library.host_isa()
    matrices = plan.lookup(shape, isa).matrices
    return list(dict.fromkeys(s.symbol for role, p in matrices.items() for s in p.specs(shape.matrices[role], isa)))


def gen(symbol: str, *, asm: bool = False) -> str:
    """The generated C of a kernel named by its symbol, or its assembly."""
    spec = KernelSpec.parse(symbol)
    if spec is None:
        raise UnsupportedError(
            f"{symbol!r} is not a kernel symbol; bitgen gen --model NAME lists those of a model, "
            "like bg_i2_s_gemv_m2560_k2560_bm4_bk128_pf1024__avx2"
        )
    reason = space.legal(spec)
    if reason:
        raise BitgenError(f"{symbol} cannot be generated: {reason}")
    text = render.render_kernel(spec)
    return compile.assembly(spec.isa, f"{symbol}.c", text) if asm else text
