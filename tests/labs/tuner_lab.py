"""Few kernels of one small shape, and a tuner in a hurry, for the tests of tuning on devices."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from bitgen import data, targets
from bitgen.compile import library
from bitgen.compile.clang import BuildOptions
from bitgen.kernels import space
from bitgen.spec import GemmShape, KernelSpec
from bitgen.tune import lab, search

HOST = targets.host_arch()
ISA = targets.levels(targets.platform_of())[-2].isa if HOST != "riscv64" else "scalar"  # avx2, neon: the host has it
SHAPE = GemmShape(300, 256)  # three bands and zeros between them; panels of 8 and 64 rows do not fit evenly
QEMU = shutil.which("qemu-aarch64-static")


def few(shape: GemmShape, isa: str, effort: str = "quick") -> list[KernelSpec]:
    """The default and another layout: enough for a race, and quickly compiled."""
    layout = space.candidate_layouts(shape, isa)[-1]
    other = [KernelSpec(op, shape, isa, layout, space.candidate_tiles(op, shape, isa, layout)[0]) for op in OPS]
    return list(dict.fromkeys([*space.default_plan(shape, isa).specs(shape, isa), *other]))


OPS = ("gemv", "gemm")


def hurry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few candidates and rounds, a small stream, and plans of its own; objects are shared with the other tests."""
    monkeypatch.setattr(search, "candidates", few)
    monkeypatch.setattr(search, "ROUNDS", 2)
    monkeypatch.setattr(search, "REPEATS", 0)
    monkeypatch.setattr(lab, "stream_bytes", lambda read=None: 1 << 20)
    cached = data.cached
    monkeypatch.setattr(data, "cached", lambda kind: tmp_path / "cache" if kind == "plans" else cached(kind))


def program(specs: Sequence[KernelSpec], isa: str = ISA, arch: str = HOST) -> Path:
    return library.for_kernels(isa, specs, BuildOptions(targets.platform_of(arch), "tuner.c")).path
