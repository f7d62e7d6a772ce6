"""The types that flow through the pipeline. They import nothing of ours.

Axes, fixed once: M = output features, K = input features, N = tokens. A weight matrix W is [M, K],
row-major, with ternary entries {-1, 0, +1} times one float scale.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

Op = Literal["gemv", "gemm"]
Activation = Literal["relu2", "silu"]
ROLES = ("qkv", "o", "gate_up", "down")
"""The matrices of one transformer layer, fused as they run, in the order they run."""


@dataclass(frozen=True)
class GemmShape:
    """One weight matrix: `m` output features by `k` input features."""

    m: int
    k: int


@dataclass(frozen=True)
class ModelShape:
    """All that the kernels and the runtime need to know of a model besides its weights."""

    name: str
    architecture: str  # as in GGUF: "bitnet-b1.58", "bitnet", "llama", ...
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rope_theta: float
    norm_eps: float
    activation: Activation
    sub_norms: bool
    tied: bool
    rope_interleaved: bool = False  # adjacent pairs (GGUF `llama`) instead of half-rotation

    @property
    def segments(self) -> dict[str, tuple[int, ...]]:
        """Rows of each part of a fused matrix; every part has its own scale."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "qkv": (q, kv, kv),
            "o": (self.hidden,),
            "gate_up": (self.intermediate, self.intermediate),
            "down": (self.hidden,),
        }

    @property
    def matrices(self) -> dict[str, GemmShape]:
        """The four fused matrices of a layer by role."""
        k = {
            "qkv": self.hidden,
            "o": self.heads * self.head_dim,
            "gate_up": self.hidden,
            "down": self.intermediate,
        }
        return {role: GemmShape(sum(parts), k[role]) for role, parts in self.segments.items()}


@dataclass(frozen=True)
class Target:
    """An instruction-set level: what to compile with and what to fall back to."""

    isa: str
    arch: str  # "x86_64", "arm64", or "any"
    flags: tuple[str, ...]  # explicit compiler flags, never -march=native
    falls_back: str | None  # the next simpler level, whose templates serve where this has none
    about: str


@dataclass(frozen=True)
class System:
    """An operating system with its C library: what files are called there, and how they are linked."""

    name: str
    library: str  # file name of the shared library
    suffix: str  # of programs
    shared: tuple[str, ...]  # link flags of a shared library
    program: tuple[str, ...]  # link flags of a program
    clang: Literal["never", "native", "sysroot"]  # a system clang serves: there, or elsewhere with BITGEN_SYSROOT too
    flags: tuple[str, ...] = ()  # of the compiler
    lacks: tuple[str, ...] = ()  # ISA levels whose registers it is not asked for


@dataclass(frozen=True)
class Platform:
    """What a library or program is made for: an architecture and a system."""

    arch: str
    system: System
    triple: str  # of the compiler

    def __str__(self) -> str:
        return f"{self.arch}-{self.system.name}"


@dataclass(frozen=True)
class Layout:
    """How packed weights lie in memory. The decode and the prefill kernel of a matrix share one.

    bm: rows of one panel, the unit that threads divide.
    bk: columns of one block (i2_s: 4 weights in each of bk/4 bytes; tl1, tl2: the K tile of one LUT pass).
    """

    format: str
    bm: int
    bk: int

    def __str__(self) -> str:
        return f"{self.format}_bm{self.bm}_bk{self.bk}"


@dataclass(frozen=True)
class Tile:
    """How a kernel walks a layout; changing it never changes the packed bytes.

    nr: tokens of one register block (gemm). kc: columns of one cache block, 0 for all (gemm).
    groups: groups of four columns whose sums one pass over the rows looks up, 0 for products only (gemm).
    prefetch: bytes the software prefetch runs ahead, 0 for none (gemv).
    """

    nr: int = 1
    kc: int = 0
    prefetch: int = 0
    groups: int = 0


@dataclass(frozen=True)
class KernelSpec:
    """One kernel to generate: what it computes, on which ISA, over which layout, by which tile."""

    op: Op
    shape: GemmShape
    isa: str
    layout: Layout
    tile: Tile

    @property
    def symbol(self) -> str:
        """The C symbol, which spells the whole spec."""
        lay, t = self.layout, self.tile
        nr = t.nr if t.nr > 1 else 0
        parts = (("nr", nr), ("kc", t.kc), ("g", t.groups), ("pf", t.prefetch))
        how = "".join(f"_{name}{v}" for name, v in parts if v)
        return f"bg_{lay.format}_{self.op}_m{self.shape.m}_k{self.shape.k}_bm{lay.bm}_bk{lay.bk}{how}__{self.isa}"

    @classmethod
    def parse(cls, symbol: str) -> KernelSpec | None:
        """The inverse of `symbol`; None for any other text."""
        found = re.fullmatch(
            r"bg_(\w+)_(gemv|gemm)_m(\d+)_k(\d+)_bm(\d+)_bk(\d+)(?:_nr(\d+))?(?:_kc(\d+))?(?:_g(\d+))?(?:_pf(\d+))?__(\w+)",
            symbol,
        )
        if found is None:
            return None
        format, op, m, k, bm, bk, nr, kc, groups, pf, isa = found.groups()
        tile = Tile(int(nr or 1), int(kc or 0), int(pf or 0), int(groups or 0))
        return cls(cast(Op, op), GemmShape(int(m), int(k)), isa, Layout(format, int(bm), int(bk)), tile)


@dataclass(frozen=True)
class MatrixPlan:
    """The decision for one matrix: a layout, and a tile each for decode and prefill."""

    layout: Layout
    gemv: Tile
    gemm: Tile

    def specs(self, shape: GemmShape, isa: str) -> tuple[KernelSpec, KernelSpec]:
        """The decode and the prefill kernel of this decision."""
        return (
            KernelSpec("gemv", shape, isa, self.layout, self.gemv),
            KernelSpec("gemm", shape, isa, self.layout, self.gemm),
        )
