"""The runtime weight formats: how many bits, how packed, how large. Adding one is adding a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bitgen.errors import UnsupportedError
from bitgen.kernels import layout as lay
from bitgen.kernels.layout import Bytes, Codes, Scales
from bitgen.spec import GemmShape, Layout, round_up

ALIGN = 64
"""Packed weights and activations are padded to cache lines."""

OPERAND_HEADER = 64
"""An i2_s or t5 operand starts with int32 sum(q), alone on its cache line."""

GROUP_BYTES = 8
"""An operand with groups starts with float steps of all groups, then their int32 sum(q); of i1_g sum |q|."""

BIT_COLUMN_BYTES = 8
"""Of each four activations an i1_s or i1_g operand holds 16 sums of two bytes."""

LUT_BYTES = 32
"""A table of 16 int16 sums for one pair or triple of activations."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of one packed matrix: padded rows and columns, units that threads divide, bytes."""

    m_pad: int
    k_pad: int
    panels: int
    weight_bytes: int
    operand_bytes: int


@dataclass(frozen=True)
class Format:
    """One way of storing ternary or binary weights for the kernels."""

    name: str
    bits: float  # per weight
    about: str
    bm_multiple: int  # a panel is a multiple of so many rows
    bk_multiple: int  # a block is a multiple of so many columns
    k_multiple: Callable[[int], int]  # bk -> what K is padded to
    matrix_bytes: Callable[[int, int, int], int]  # m_pad, k_pad, bk -> bytes
    activation_bytes: Callable[[int, int], int]  # k_pad, bk -> bytes of one token's operand
    packer: Callable[..., Bytes]  # codes, bm, bk, and scales where grouped
    unpacker: Callable[[Bytes, GemmShape, int, int], Codes]  # bytes, shape, bm, bk
    by_panels: bool = True  # panels lie one after the other: packed piece by piece, a matrix is the same bytes
    grouped: bool = False  # for matrices with a scale for every bk columns of a row, and no others
    binary: bool = False  # for binary matrices, and no others

    def illegal(self, layout: Layout) -> str | None:
        """Why this format has no such layout, or None."""
        for axis, value, multiple in (("bm", layout.bm, self.bm_multiple), ("bk", layout.bk, self.bk_multiple)):
            if value < 1 or value % multiple:
                return f"{self.name}: {axis} must be a positive multiple of {multiple}, not {value}"
        return None

    def geometry(self, shape: GemmShape, layout: Layout) -> Geometry:
        """Sizes of `shape` in `layout`; UnsupportedError when the layout is illegal."""
        reason = self.illegal(layout)
        if reason:
            raise UnsupportedError(reason)
        m_pad, k_pad = round_up(shape.m, layout.bm), round_up(shape.k, self.k_multiple(layout.bk))
        return Geometry(
            m_pad,
            k_pad,
            panels=m_pad // layout.bm,
            weight_bytes=round_up(self.matrix_bytes(m_pad, k_pad, layout.bk), ALIGN),
            operand_bytes=round_up(self.activation_bytes(k_pad, layout.bk), ALIGN),
        )

    def pack(self, codes: Codes, layout: Layout, scales: Scales | None = None) -> Bytes:
        """Codes int8 [M, K] -> uint8 [weight_bytes], zero filled beyond the packed matrix.

        scales: float32 [M, K / bk], where the format is grouped.
        """
        geometry = self.geometry(GemmShape(*codes.shape), layout)
        packed = self.packer(codes, layout.bm, layout.bk, *([scales] if self.grouped else []))
        if packed.size == geometry.weight_bytes:
            return packed
        return np.pad(packed, (0, geometry.weight_bytes - packed.size))

    def unpack(self, data: Bytes, shape: GemmShape, layout: Layout) -> Codes:
        """The inverse of pack: uint8 [weight_bytes] -> codes int8 [M, K]."""
        return self.unpacker(data, shape, layout.bm, layout.bk)


def _group_bytes(k: int, bk: int) -> int:
    """Steps and sums of the groups, alone on their cache lines, and k activations."""
    return round_up(k // bk * GROUP_BYTES, ALIGN) + k


def _lut_bytes(k_pad: int, bk: int) -> int:
    """Look-up tables of k_pad columns, in triples as far as whole blocks of bk go and in pairs beyond."""
    k3 = lay.tl2_triple_columns(k_pad, bk)
    return (k3 // 3 + (k_pad - k3) // 2) * LUT_BYTES


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(
            name="i1_s",
            bits=1.0,
            about="signs of eight columns to a byte, of binary weights",
            bm_multiple=1,
            bk_multiple=lay.BIT_STEP,
            k_multiple=lambda bk: bk,
            matrix_bytes=lambda m, k, bk: m * k // 8,
            activation_bytes=lambda k, bk: OPERAND_HEADER + k * BIT_COLUMN_BYTES,
            packer=lay.pack_i1_s,
            unpacker=lay.unpack_i1_s,
            binary=True,
        ),
        Format(
            name="i1_g",
            bits=1.0,
            about="signs of eight columns to a byte, and a float16 scale for every group of a row, of binary weights",
            bm_multiple=1,
            bk_multiple=lay.BIT_STEP,
            k_multiple=lambda bk: bk,
            matrix_bytes=lambda m, k, bk: m * k // 8 + m * (k // bk) * 2,
            activation_bytes=lambda k, bk: round_up(k // bk * GROUP_BYTES, ALIGN) + k * BIT_COLUMN_BYTES,
            packer=lay.pack_i1_g,
            unpacker=lay.unpack_i1_g,
            grouped=True,
            binary=True,
        ),
        Format(
            name="i2_s",
            bits=2.0,
            about="codes w + 1, four to a byte",
            bm_multiple=1,
            bk_multiple=4,
            k_multiple=lambda bk: bk,
            matrix_bytes=lambda m, k, bk: m * k // 4,
            activation_bytes=lambda k, bk: OPERAND_HEADER + k,
            packer=lay.pack_i2_s,
            unpacker=lay.unpack_i2_s,
        ),
        Format(
            name="i2_g",
            bits=2.0,
            about="codes w + 1, four to a byte, and a float16 scale for every group of a row",
            bm_multiple=1,
            bk_multiple=lay.GROUP_STEP,
            k_multiple=lambda bk: bk,
            matrix_bytes=lambda m, k, bk: m * k // 4 + m * (k // bk) * 2,
            activation_bytes=_group_bytes,
            packer=lay.pack_i2_g,
            unpacker=lay.unpack_i2_g,
            grouped=True,
        ),
        Format(
            name="t5_g",
            bits=8 / 5,
            about="codes w + 1 of five rows to a byte, and a float16 scale for every group of a row",
            bm_multiple=5,
            bk_multiple=lay.GROUP_STEP,
            k_multiple=lambda bk: bk,
            matrix_bytes=lambda m, k, bk: m * k // 5 + m * (k // bk) * 2,
            activation_bytes=_group_bytes,
            packer=lay.pack_t5_g,
            unpacker=lay.unpack_t5_g,
            grouped=True,
        ),
        Format(
            name="t5",
            bits=8 / 5,
            about="codes w + 1 of five rows to a byte",
            bm_multiple=5,
            bk_multiple=4,
            k_multiple=lambda bk: bk,
            matrix_bytes=lambda m, k, bk: m * k // 5,
            activation_bytes=lambda k, bk: OPERAND_HEADER + k,
            packer=lay.pack_t5,
            unpacker=lay.unpack_t5,
        ),
        Format(
            name="tl1",
            bits=2.0,
            about="look-up by pairs of weights",
            bm_multiple=32,
            bk_multiple=8,
            k_multiple=lambda bk: bk,
            matrix_bytes=lambda m, k, bk: m * k // 4,
            activation_bytes=lambda k, bk: k // 2 * LUT_BYTES,
            packer=lay.pack_tl1,
            unpacker=lay.unpack_tl1,
        ),
        Format(
            name="tl2",
            bits=5 / 3,
            about="look-up by triples of weights with a sign",
            bm_multiple=32,
            bk_multiple=96,
            k_multiple=lambda bk: lay.TL2_PAIR_TILE,
            matrix_bytes=lay.tl2_bytes,
            activation_bytes=_lut_bytes,
            packer=lay.pack_tl2,
            unpacker=lay.unpack_tl2,
            by_panels=False,  # all indices, then all signs, then all pairs
        ),
    )
}
