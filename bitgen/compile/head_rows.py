"""Rows of a head as certificates need them: int8 codes and what bounds their errors, norms of ternary rows.

runtime/core/certified_head.c and ternary_head.c say what is bounded with these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.checkpoints.checkpoint import Codes, Floats, Scales
from bitgen.headers import constants
from bitgen.spec import round_up

LANES = 16
TINY = 2.0**-100


class RowNorms:
    """Norms of the rows of a ternary matrix, float32 [p(rows)], rounded up: runtime/core/ternary_head.c.

    A row's is at most sqrt(hidden) times the greatest float16 number, so it is finite.
    """

    def __init__(self, rows: int) -> None:
        self.of_rows = np.zeros(round_up(rows, LANES), np.float32)

    def add(self, rows: slice, codes: Codes, scales: Scales) -> None:
        """Some rows: codes int8 [n, K], scales float32 [n, G]."""
        weights = np.count_nonzero(codes.reshape(*scales.shape, -1), axis=2)
        self.of_rows[rows] = np.sqrt((weights * scales.astype(np.float64) ** 2).sum(axis=1)) * (1 + 2.0**-20) + TINY


def _columns(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Codes plus 128, uint8 [n, blocks, 4, 64]: rows padded to whole blocks of SCREEN_COLUMNS."""
    columns = constants("simd/ops.h", "bg_screen")["SCREEN_COLUMNS"]
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % columns)))
    return (padded.view(np.uint8) ^ np.uint8(128)).reshape(len(codes), -1, 4, columns // 4)


def upper_bits(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """The upper six bits of each code, uint8 [n, blocks, 192], as runtime/simd/ops.h says."""
    upper = _columns(codes) >> 2
    four, two = upper & 15, upper >> 4
    nibbles = four[:, :, ::2] | four[:, :, 1::2] << 4
    return np.concatenate([nibbles.reshape(*nibbles.shape[:2], 128), _two_bits(two)], axis=2)


def lower_bits(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """The lower two, uint8 [n, blocks, 64]."""
    return _two_bits(_columns(codes) & 3)


def _two_bits(two: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Columns 64 c + j at 2 c of byte j."""
    packed = two[:, :, 0] | two[:, :, 1] << 2 | two[:, :, 2] << 4 | two[:, :, 3] << 6
    return np.asarray(packed, np.uint8)


def int8_rows(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    """Row scales float32 [p(n)] and rows int8 [n, p(hidden)]: absmax of a row to 127, half to even."""
    n, hidden = rows.shape
    values = rows.astype(np.float32)
    scales = np.zeros(round_up(n, LANES), np.float32)
    scales[:n] = np.maximum(np.abs(values).max(axis=1), np.float32(1e-30)) / np.float32(127)
    values /= scales[:n, None]
    codes = np.zeros((n, round_up(hidden, LANES)), np.int8)
    np.rint(values, out=codes[:, :hidden], casting="unsafe")
    return scales, codes


def certificate(
    head: Floats, scales: npt.NDArray[np.float32], codes: npt.NDArray[np.int8]
) -> tuple[npt.NDArray[np.float32], ...]:
    """Residuals of the upper bits, residuals and norms, float32 [p(n)] of n rows, rounded up: what
    runtime/core/certified_head.c bounds logits with.

    For a row w with scale s and codes q, the norm is |s q| and the residual |w - s q| + gamma (|w| + |s q|), gamma
    being more than float arithmetic can add: (hidden / 16 + 32) 2^-23. The upper bits are codes u of their own, in
    the middle of the four that share them; the norm is the greater of both. TINY is more than numbers below the normal
    floats, which have fewer bits, can add.
    """
    n = len(head)
    uppers, residuals, norms = np.zeros((3, *scales.shape), np.float32)
    gamma, up = (head.shape[1] / 16 + 32) * 2.0**-23, 1 + 2.0**-20
    rows, steps = head.astype(np.float64), scales[:n, None].astype(np.float64)
    length, norm = _lengths(rows), np.zeros(n)
    off = []  # |w - s q|, |w - s u|
    for approximate in (lambda: codes, lambda: (codes & ~np.int8(3)) + 1.5):  # one after the other: memory may be short
        near = approximate() * steps
        norm = np.maximum(norm, _lengths(near))
        off.append(_lengths(np.subtract(rows, near, out=near)))
    with np.errstate(over="ignore"):
        norms[:n] = norm * up + TINY
        residuals[:n], uppers[:n] = ((each + gamma * (length + norm)) * up + TINY for each in off)
    return uppers, residuals, norms


def _lengths(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The Euclidean norm of each row, with no copy of them."""
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", rows, rows)))
