"""Whether the I2_S tensors of a file have the layout by which they are read.

A wrong layout is no error, it gives garbage; but the weights of a trained model show it. A neuron with small incoming
weights has small outgoing ones, so the share of non-zero weights in a row of ffn_gate or ffn_up correlates with the
share in the same column of ffn_down. So do the rows of attn_v, and attn_sub_norm, with the columns of attn_output. A
wrong layout permutes columns and destroys the correlation: 0.94 becomes 0.18 or 0.03 in the model that ships. Random
weights have no such correlation, and give no warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.errors import FormatError
from bitgen.gguf.blocks import I2S_LAYOUTS, i2s_block
from bitgen.gguf.reader import GgufCheckpoint
from bitgen.kernels import layout
from bitgen.spec import GemmShape

Profile = npt.NDArray[np.floating[Any]]

NEURONS, ROWS = 1024, 256
"""Neurons of one layer, and rows of the matrices that they feed, that are read: some megabytes of any model."""

EVIDENCE, RATIO = 100.0, 4.0
"""Least evidence for another layout, and its least ratio to that of the declared one. Random weights: about 4 each."""


def warning(checkpoint: GgufCheckpoint) -> str | None:
    """Why the I2_S layout by which a checkpoint is read looks wrong, and what to do; None where it looks right."""
    declared = checkpoint.reading.i2s_layout
    if not any(t.type_name == "I2_S" for t in checkpoint.container.tensors.values()):
        return None
    found = {name: evidence(checkpoint, name) for name in I2S_LAYOUTS}
    best = max(found, key=lambda name: found[name])
    if found[best] < max(EVIDENCE, RATIO * found[declared]):
        return None
    return (
        f"{checkpoint.path}: the I2_S weights look laid out as {best}, not as {declared} (evidence "
        f"{found[best]:.0f} against {found[declared]:.0f}); if the text is garbage, try --i2s-layout {best}"
    )


def evidence(checkpoint: GgufCheckpoint, i2s_layout: str) -> float:
    """Sum of n r^2 over pairs of profiles of the same n neurons, read by a layout; 0 where it cannot be read so."""
    s = checkpoint.shape
    middle = next((n for n in range(s.layers // 2, s.layers) if s.attends(n)), s.layers // 2)
    try:
        pairs = _pairs(checkpoint, middle, i2s_layout)
        return sum(a.size * _correlation(a, b) ** 2 for a, b in pairs)
    except FormatError:  # a code 3, or rows that are not whole blocks: not this layout
        return 0.0


def _pairs(checkpoint: GgufCheckpoint, layer: int, i2s_layout: str) -> Iterator[tuple[Profile, Profile]]:
    """Pairs of profiles of the same neurons: of their incoming weights and of their outgoing ones."""
    s = checkpoint.shape

    def used(part: str, rows: int) -> npt.NDArray[np.bool_] | None:
        return _non_zero(checkpoint, f"blk.{layer}.{part}.weight", rows, i2s_layout)

    down, out, values = used("ffn_down", ROWS), used("attn_output", ROWS), used("attn_v", s.kv_heads * s.head_dim)
    for part in ("ffn_gate", "ffn_up"):
        into = used(part, NEURONS)
        if into is not None and down is not None:
            yield into.mean(axis=1), down.mean(axis=0)[: len(into)]
    if out is not None:
        if values is not None:  # heads share the values of their group
            heads = values.mean(axis=1).reshape(s.kv_heads, 1, s.head_dim)
            yield np.repeat(heads, s.heads // s.kv_heads, axis=1).reshape(-1), out.mean(axis=0)
        if s.sub_norms:
            yield np.abs(checkpoint.dense(f"blk.{layer}.attn_sub_norm.weight")), out.mean(axis=0)


def _non_zero(checkpoint: GgufCheckpoint, name: str, rows: int, i2s_layout: str) -> npt.NDArray[np.bool_] | None:
    """bool [rows, K]: which weights in the first rows of an I2_S matrix are not 0; None where there is none."""
    tensor = checkpoint.container.tensors.get(name)
    if tensor is None or tensor.type_name != "I2_S":
        return None
    m, k = min(rows, tensor.shape[0]), tensor.shape[1]
    block = i2s_block(i2s_layout, k)
    if m * k % block:
        raise FormatError("the rows are not whole blocks")
    codes = layout.unpack_i2_s(checkpoint.container.bytes_of(tensor), GemmShape(1, m * k), 1, block)
    return codes.reshape(m, k).astype(np.bool_)


def _correlation(a: Profile, b: Profile) -> float:
    """Spearman's rank correlation, which a single large value cannot cause; 0 where a profile is constant."""
    a, b = (np.unique(x, return_inverse=True)[1].astype(np.float64) for x in (a, b))
    return float(np.corrcoef(a, b)[0, 1]) if a.any() and b.any() else 0.0
