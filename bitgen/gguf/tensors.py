"""Tensor type -> reader: one table for ternary codes and scales, one for floats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bitgen.checkpoints.checkpoint import Floats, row_pieces, ternary_floats, widen_bf16
from bitgen.checkpoints.groups import float_runs
from bitgen.errors import FormatError, UnsupportedError
from bitgen.gguf import blocks
from bitgen.gguf.blocks import Scaled
from bitgen.gguf.tl_tiles import Tiles, tile_of
from bitgen.kernels.layout import Bytes


@dataclass(frozen=True)
class Reading:
    """How to read what a file does not describe itself."""

    i2s_layout: str = "x86"  # of blocks.I2S_LAYOUTS
    tiles: Tiles = field(default_factory=dict)  # of TL1 and TL2 tensors

    def __post_init__(self) -> None:
        if self.i2s_layout not in blocks.I2S_LAYOUTS:
            known = ", ".join(blocks.I2S_LAYOUTS)
            raise UnsupportedError(f"unknown I2_S layout {self.i2s_layout!r}; known: {known}")


def scale_name(name: str) -> str:
    """blk.0.attn_q.weight -> blk.0.attn_q.scale, the tensor that multiplies the matrix where a file has it."""
    return name.removesuffix("weight") + "scale"


RENAMED: dict[str, dict[str, str]] = {
    "qwen35": {"ffn_norm": "post_attention_norm", "post_attention_norm": "ffn_norm"},
}
"""Architecture -> our name of a layer's tensor and the file's, and the other way round."""


def renamed(architecture: str, name: str) -> str:
    """The file's name of a tensor by ours, or ours by the file's."""
    block, _, ending = name.rpartition(".")
    start, _, part = block.rpartition(".")
    other = RENAMED.get(architecture, {}).get(part)
    return f"{start}.{other}.{ending}" if other and start else name


# ---- ternary -------------------------------------------------------------------------------------------------------

TERNARY: dict[str, Callable[[Bytes, int, int, Reading], Scaled]] = {
    "F32": lambda raw, m, k, _: _scaled_floats(raw.view("<f4").reshape(m, k)),
    "F16": lambda raw, m, k, _: _scaled_floats(raw.view("<f2").reshape(m, k)),
    "BF16": lambda raw, m, k, _: _scaled_floats(widen_bf16(raw.view("<u2")).reshape(m, k)),
    "I2_S": lambda raw, m, k, reading: blocks.unpack_i2_s_tensor(raw, m, k, reading.i2s_layout),
    "TL1": lambda raw, m, k, reading: blocks.unpack_tl1_tensor(raw, m, k, *tile_of("TL1", m, k, reading.tiles)),
    "TL2": lambda raw, m, k, reading: blocks.unpack_tl2_tensor(raw, m, k, *tile_of("TL2", m, k, reading.tiles)),
    "TQ1_0": lambda raw, m, k, _: blocks.unpack_tq1_0(raw, m, k),
    "TQ2_0": lambda raw, m, k, _: blocks.unpack_tq2_0(raw, m, k),
    "Q1_0": lambda raw, m, k, _: blocks.unpack_q1_0(raw, m, k),
    "Q2_0": lambda raw, m, k, _: blocks.unpack_q2_0(raw, m, k, 64),
    "Q2_0_G128": lambda raw, m, k, _: blocks.unpack_q2_0(raw, m, k, 128),
    "PQ2_0": lambda raw, m, k, _: blocks.unpack_q2_0(raw, m, k, 128, "PQ2_0"),
    "PTQ1_0": lambda raw, m, k, _: blocks.unpack_ptq1_0(raw, m, k),
    "STQ1_0": lambda raw, m, k, _: blocks.unpack_stq1_0(raw, m, k),
    "IQ1_BN": lambda raw, m, k, _: blocks.unpack_iq1_bn(raw, m, k),
    "IQ2_BN": lambda raw, m, k, _: blocks.unpack_iq2_bn(raw, m, k),
    "IQ2_BN_R4": lambda raw, m, k, _: blocks.unpack_iq2_bn_r4(raw, m, k),
    "T5": lambda raw, m, k, _: blocks.unpack_t5_tensor(raw, m, k),
}
"""Type name -> (bytes, M, K, reading) -> codes [M, K] and scales [R, G], as blocks.py defines them."""


def _scaled_floats(values: Floats) -> Scaled:
    """Floats [M, K] in {-s, 0, +s} -> codes int8 [M, K] and scales: [1, 1], or float_runs' where s is not one for all.

    FormatError: a value is not finite. UnsupportedError: the weights are not ternary.
    """
    codes, scale, other = ternary_floats(values.shape, values.__getitem__)
    if not np.isfinite(scale):
        raise FormatError("it holds NaN or infinite values")
    return (codes, np.array([[scale]])) if other is None else float_runs(values.shape, values.__getitem__)


# ---- floats --------------------------------------------------------------------------------------------------------

VECTORS: dict[str, Callable[[Bytes], Floats]] = {
    "F32": lambda raw: raw.view("<f4"),
    "F16": lambda raw: raw.view("<f2"),
    "BF16": lambda raw: widen_bf16(raw.view("<u2")),
}
"""Type name -> bytes -> values. F32 and F16 are views of the file."""

GROUPED = ("Q1_0", "Q2_0", "Q2_0_G128", "PQ2_0", "PTQ1_0", "STQ1_0")
QUANTISED = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "TQ2_0", "TQ1_0")
"""Types of embeddings and heads that the gguf package dequantises."""

EMBEDDINGS = (*VECTORS, *QUANTISED, *GROUPED)
"""Types that an embedding or a head may have."""


def floats(type: str, raw: Bytes, shape: tuple[int, ...]) -> Floats:
    """Values of a tensor: any shape where its type is in VECTORS, [rows, columns] where it is in EMBEDDINGS."""
    if type in VECTORS:
        return VECTORS[type](raw).reshape(shape)
    if type in GROUPED:
        codes, scales = TERNARY[type](raw, shape[0], shape[1], Reading())
        return (codes.reshape(*scales.shape, -1) * scales.astype(np.float16)[:, :, None]).reshape(shape)
    return _dequantised(type, raw, shape)


def _dequantised(type: str, raw: Bytes, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A quantised matrix as float32 [rows, columns]. The gguf package works on some rows at a time."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    blocks_of, values = raw.reshape(shape[0], -1), np.empty(shape, np.float32)
    for rows in row_pieces(shape):
        values[rows] = dequantize(blocks_of[rows], GGMLQuantizationType[type])
    return values
