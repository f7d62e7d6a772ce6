"""The types that flow through the pipeline. This module imports nothing of bitgen.

Axes, fixed once: M = output features, K = input features, N = tokens. A weight matrix W is [M, K],
row-major, with ternary entries {-1, 0, +1}, times one float scale, or times one scale per row and group of columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

Progress = Callable[[int, int], None]
"""Progress of a job: called with (done, total)."""
Listener = Callable[[str, int, int], None]
"""Called with (stage, done, total) as a job of several stages goes on; total 0: unknown."""

Op = Literal["gemv", "gemm"]
Activation = Literal["relu2", "silu", "gelu_tanh"]
Stretch = Literal["linear", "yarn", "table"]
ROLES = ("qkv", "o", "gate_up", "down")
"""The four fused matrices of one transformer layer, in the order in which they run."""

DELTA_ROLES = {"qkv": "delta_in", "o": "delta_out"}
"""Role of an attending layer -> the matrix that stands there in a layer with Gated DeltaNet."""

HEAD_ROLE = "head"
"""Role of the head, where it is a ternary matrix; the embedding then lies as it does, and is read row by row."""

APART: dict[str, tuple[str, ...]] = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""Fused role -> roles of its parts, which are matrices of their own in models with input norms."""


def round_up(n: int, to: int) -> int:
    """The smallest multiple of `to` that is >= n."""
    return -(-n // to) * to


@dataclass(frozen=True)
class GemmShape:
    """One weight matrix: `m` output features by `k` input features.

    group: columns that share a scale, in a row of weights and in activations; 0: one scale for the matrix.
    binary: no weight is 0, but for those of groups whose scale is 0.
    """

    m: int
    k: int
    group: int = 0
    binary: bool = False

    def __str__(self) -> str:
        """The key of a plan: "2560x2560", "2560x2560_s128", "2560x2560_s128_b1"."""
        return f"{self.m}x{self.k}{self.traits}"

    @property
    def traits(self) -> str:
        """What a key and a symbol say behind the sizes: "_s128" with groups, "_b1" of binary weights."""
        return (f"_s{self.group}" if self.group else "") + "_b1" * self.binary

    @classmethod
    def parse(cls, text: str) -> GemmShape:
        """The inverse of str; ValueError for any other text."""
        found = re.fullmatch(r"(\d+)x(\d+)(?:_s(\d+))?(_b1)?", text)
        if found is None:
            raise ValueError(f"{text!r} is no matrix shape")
        m, k, group, binary = found.groups()
        return cls(int(m), int(k), int(group or 0), bool(binary))


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies of rotary positions are stretched: each is divided, and cos and sin are multiplied.

    linear: all are divided by `factor`. yarn: the slower, the more, up to `factor` (Peng et al. 2023). table: each by
    its own of `divisors` [rotary / 2].
    """

    kind: Stretch
    factor: float = 1.0
    original_context: int = 0  # positions that the model was trained for before (yarn)
    beta_fast: float = 32.0  # turns in them of the fastest pair that is stretched (yarn)
    beta_slow: float = 1.0  # turns of the slowest that is not stretched by all of `factor` (yarn)
    divisors: tuple[float, ...] = ()
    magnitude: float = 1.0  # multiplies cos and sin


@dataclass(frozen=True)
class DeltaShape:
    """Gated DeltaNet, which stands in for attention in all but every period-th layer (Yang et al. 2024).

    Value head h reads key head h % key_heads. A head's state is [key_dim, value_dim], whatever the position.
    """

    period: int  # every period-th layer attends
    key_heads: int  # of queries and of keys
    value_heads: int
    key_dim: int  # elements of a query or key head
    value_dim: int  # elements of a value head
    taps: int  # positions that the causal convolution spans, the last its own

    @property
    def channels(self) -> int:
        """Rows that the convolution runs over: queries, keys, values."""
        return 2 * self.key_heads * self.key_dim + self.inner

    @property
    def inner(self) -> int:
        """Elements of all value heads."""
        return self.value_heads * self.value_dim


@dataclass(frozen=True)
class Hadamard:
    """A rotation of what every ternary matrix multiplies, the head too: x becomes H (s x), block by block of columns.

    H is the Sylvester-Walsh-Hadamard matrix [block, block] over sqrt(block), s a vector of signs for each width. The
    matrices hold the inverse, and so do the embedding's rows z: what they stand for is s (H z).
    """

    block: int  # columns: a power of four, so that the scaling is exact
    signed: bool  # s is the checkpoint's hadamard_signs.WIDTH, float32 [WIDTH] of 1 and -1; else s is 1
    regrouped: bool  # ssm_out's input goes from value head (rep, key head) to (key head, rep) before


@dataclass(frozen=True)
class ModelShape:
    """What the kernels and the runtime need to know of a model besides its weights."""

    name: str
    architecture: str  # as in GGUF: "bitnet-b1.58", "bitnet", "llama", ...
    hidden: int  # elements of the residual stream
    intermediate: int  # elements between the FFN's matrices
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int  # rows of the embedding
    context: int  # positions that the model was trained for
    rope_theta: float
    norm_eps: float
    activation: Activation
    sub_norms: bool  # RMSNorm before the output and the down projection
    tied: bool  # the head is the embedding
    rope_interleaved: bool = False  # RoPE turns adjacent pairs (GGUF `llama`) instead of i and i + head_dim / 2
    qk_norm: bool = False  # RMSNorm of each head of q and k, before RoPE
    qk_norm_after_rope: bool = False  # that norm comes after RoPE
    input_norms: bool = False  # RMSNorm of the input of each of the seven matrices, each with its own weights
    post_norms: bool = False  # RMSNorm of what attention and FFN add to the residual stream
    embedding_scale: float = 1.0  # multiplies embedding rows
    residual_scale: float = 1.0  # multiplies what attention and FFN add to the residual stream
    logit_divisor: float = 1.0  # divides the final states before they are multiplied by the head
    attention_scale: float = 0.0  # multiplies q k^T; 0: 1 / sqrt(head_dim)
    window: int = 0  # positions that a token attends to in layers with a window, itself included; 0: no window
    window_period: int = 1  # every window_period-th layer is global: it has no window
    window_theta: float = 10000.0  # rope_theta of the layers with a window
    group: int = 0  # columns of a row that share a scale; 0: one scale for each part of a matrix
    binary: bool = False  # weights of the matrices are -1 and +1; none is 0, but for those of groups whose scale is 0
    rope_dims: int = 0  # elements of a head that RoPE turns, from its first; 0: all
    rope_scaling: RopeScaling | None = None  # in layers without a window
    attention_gate: bool = False  # each query head has a gate behind it: sigmoid(gate) multiplies the head's context
    delta: DeltaShape | None = None  # of the layers that do not attend; None: all do
    hadamard: Hadamard | None = None
    ternary_embedding: bool = False  # the embedding is codes and scales of groups, as the matrices of layers are
    ternary_head: bool = False  # so is the head, which is the embedding where tied

    @property
    def rotary(self) -> int:
        """Elements of a head that RoPE turns."""
        return self.rope_dims or self.head_dim

    @property
    def segments(self) -> dict[str, tuple[int, ...]]:
        """Role -> rows of each part of that matrix; every part has its own scale."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        fused: dict[str, tuple[int, ...]] = {
            "qkv": (q * (1 + self.attention_gate), kv, kv),
            "o": (self.hidden,),
            "gate_up": (self.intermediate, self.intermediate),
            "down": (self.hidden,),
        }
        if self.delta:
            fused |= {"delta_in": (self.delta.channels, self.delta.inner), "delta_out": (self.hidden,)}
        if not self.input_norms:
            return fused
        return {
            part: (rows,)
            for role, parts in fused.items()
            for part, rows in zip(APART.get(role, (role,)), parts, strict=True)
        }

    @property
    def matrices(self) -> dict[str, GemmShape]:
        """Role -> shape of each matrix of a layer: four, parts that share an input fused; with input norms seven.

        Where some layers have Gated DeltaNet these are the matrices of both kinds, of which a layer has
        `layer_roles`.
        """
        k = {"o": self.heads * self.head_dim, "down": self.intermediate}
        if self.delta:
            k["delta_out"] = self.delta.inner
        return {
            role: GemmShape(sum(parts), k.get(role, self.hidden), self.group, self.binary)
            for role, parts in self.segments.items()
        }

    @property
    def all_matrices(self) -> dict[str, GemmShape]:
        """Role -> shape of everything that has kernels: `matrices`, and "head" where embedding or head are ternary."""
        if not (self.ternary_embedding or self.ternary_head):
            return self.matrices
        return self.matrices | {HEAD_ROLE: GemmShape(self.vocab, self.hidden, self.group, self.binary)}

    def attends(self, layer: int) -> bool:
        """Whether a layer has attention; else it has Gated DeltaNet."""
        return self.delta is None or (layer + 1) % self.delta.period == 0

    def layer_roles(self, layer: int) -> list[str]:
        """The roles of `matrices` that a layer has, in the order in which they run."""
        if self.delta is None:
            return list(self.matrices)
        attends = self.attends(layer)
        return [role if attends else DELTA_ROLES.get(role, role) for role in ROLES]

    def layers_with(self, role: str) -> int:
        """How many layers have a matrix."""
        return sum(role in self.layer_roles(layer) for layer in range(self.layers))

    @property
    def ternary_weights(self) -> int:
        """Ternary weights of all layers."""
        return sum(self.layers_with(role) * gemm.m * gemm.k for role, gemm in self.matrices.items())

    @property
    def attending(self) -> int:
        """How many layers have attention, and so keys and values of every position."""
        return sum(map(self.attends, range(self.layers)))

    @property
    def state_bytes(self) -> int:
        """Bytes of what the layers with Gated DeltaNet keep of a sequence, in float32, whatever its length."""
        if self.delta is None:
            return 0
        d = self.delta
        floats = d.value_heads * d.key_dim * d.value_dim + (d.taps - 1) * d.channels
        return 4 * floats * (self.layers - self.attending)

    def matrices_of(self, stage: str) -> dict[str, GemmShape]:
        """The matrices of one stage of a layer, named by the fused role: that matrix, or its parts."""
        return {role: gemm for role, gemm in self.matrices.items() if role in (stage, *APART.get(stage, ()))}

    @property
    def norms(self) -> dict[str, int]:
        """The norms of a layer that attends: GGUF name -> length, in the packed file's order (runtime/core/model.c)."""
        attention = self.heads * self.head_dim
        table = (
            ("attn_norm", self.hidden, True),
            ("attn_q_norm_in", self.hidden, self.input_norms),
            ("attn_k_norm_in", self.hidden, self.input_norms),
            ("attn_v_norm_in", self.hidden, self.input_norms),
            ("attn_q_norm", self.head_dim, self.qk_norm),
            ("attn_k_norm", self.head_dim, self.qk_norm),
            ("attn_sub_norm", attention, self.sub_norms),
            ("attn_output_norm_in", attention, self.input_norms),
            ("post_attention_norm", self.hidden, self.post_norms),
            ("ffn_norm", self.hidden, True),
            ("ffn_gate_norm_in", self.hidden, self.input_norms),
            ("ffn_up_norm_in", self.hidden, self.input_norms),
            ("ffn_sub_norm", self.intermediate, self.sub_norms),
            ("ffn_down_norm_in", self.intermediate, self.input_norms),
            ("post_ffw_norm", self.hidden, self.post_norms),
        )
        return {name: length for name, length, has in table if has}

    def layer_norms(self, layer: int) -> dict[str, int]:
        """The norms of one layer: those of `norms`, or of a layer with Gated DeltaNet."""
        if self.delta is None or self.attends(layer):
            return self.norms
        return {"attn_norm": self.hidden, "ssm_norm": self.delta.value_dim, "ffn_norm": self.hidden}


@dataclass(frozen=True)
class Target:
    """An instruction-set level (ISA level): its compiler flags, and the level it falls back to."""

    isa: str
    arch: str  # "x86_64", "arm64", or "any"
    flags: tuple[str, ...]  # explicit compiler flags, never -march=native
    falls_back: str | None  # the next lower level, whose templates are used where this one has none
    about: str


@dataclass(frozen=True)
class System:
    """An operating system with its C library: file names and link flags."""

    name: str
    library: str  # file name of the shared library
    suffix: str  # of a program's file name
    shared: tuple[str, ...]  # link flags of a shared library
    program: tuple[str, ...]  # link flags of a program
    clang: Literal["never", "native", "sysroot"]  # a system clang serves: there, or elsewhere with BITGEN_SYSROOT too
    flags: tuple[str, ...] = ()  # compiler flags
    lacks: tuple[str, ...] = ()  # ISA levels that are not built for it: the system must grant their registers


@dataclass(frozen=True)
class Platform:
    """What a library or program is built for: an architecture and a system."""

    arch: str
    system: System
    triple: str  # target triple of the compiler

    def __str__(self) -> str:
        return f"{self.arch}-{self.system.name}"


@dataclass(frozen=True)
class Layout:
    """Memory layout of packed weights. The decode and the prefill kernel of a matrix read the same one.

    bm: rows of one panel, the unit of work that threads divide.
    bk: columns of one block (i2_s: 4 weights in each of bk/4 bytes; tl1, tl2: the K tile of one LUT pass; i1_s: those
        of one 16-bit sum; i1_g, i2_g, t5_g: the group that shares a scale).
    """

    format: str
    bm: int
    bk: int

    def __str__(self) -> str:
        return f"{self.format}_bm{self.bm}_bk{self.bk}"


@dataclass(frozen=True)
class Tile:
    """Blocking of a kernel over a layout; changing it never changes the packed bytes.

    nr: tokens of one register block (gemm). kc: columns of one cache block, 0 for all (gemm).
    lut_groups: groups of four columns whose look-up tables one pass over the rows uses, 0 for products only (gemm).
    mixed: half of the rows are multiplied while the others are looked up (gemm).
    prefetch: distance of the software prefetch in bytes, 0 for none (gemv).
    """

    nr: int = 1
    kc: int = 0
    prefetch: int = 0
    lut_groups: int = 0
    mixed: bool = False


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
        parts = (("nr", nr), ("kc", t.kc), ("g", t.lut_groups), ("pf", t.prefetch))
        tile = "".join(f"_{name}{v}" for name, v in parts if v) + "_mixed" * t.mixed
        of = f"m{self.shape.m}_k{self.shape.k}{self.shape.traits}"
        return f"bg_{lay.format}_{self.op}_{of}_bm{lay.bm}_bk{lay.bk}{tile}__{self.isa}"

    @classmethod
    def parse(cls, symbol: str) -> KernelSpec | None:
        """The inverse of `symbol`; None for any other text."""
        found = re.fullmatch(
            r"bg_(\w+)_(gemv|gemm)_m(\d+)_k(\d+)(?:_s(\d+))?(_b1)?_bm(\d+)_bk(\d+)"
            r"(?:_nr(\d+))?(?:_kc(\d+))?(?:_g(\d+))?(?:_pf(\d+))?(_mixed)?__(\w+)",
            symbol,
        )
        if found is None:
            return None
        format, op, m, k, scale_group, binary, bm, bk, nr, kc, lut_groups, pf, mixed, isa = found.groups()
        tile = Tile(int(nr or 1), int(kc or 0), int(pf or 0), int(lut_groups or 0), bool(mixed))
        shape = GemmShape(int(m), int(k), int(scale_group or 0), bool(binary))
        return cls(cast(Op, op), shape, isa, Layout(format, int(bm), int(bk)), tile)


@dataclass(frozen=True)
class MatrixPlan:
    """The decision for one matrix: a layout, the tile of its decode kernel, the tile of its prefill kernel."""

    layout: Layout
    gemv: Tile
    gemm: Tile

    def specs(self, shape: GemmShape, isa: str) -> tuple[KernelSpec, KernelSpec]:
        """The decode and the prefill kernel of this decision."""
        return (
            KernelSpec("gemv", shape, isa, self.layout, self.gemv),
            KernelSpec("gemm", shape, isa, self.layout, self.gemm),
        )
