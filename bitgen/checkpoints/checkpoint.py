"""The one interface through which weights are read, whatever file they come from.

A GGUF file, a Hugging Face directory and the synthetic generator all look like this to the packer, to the
GGUF writer and to the NumPy reference, so every path from a model to tokens is the same path.
Tensors carry their GGUF names: `blk.3.attn_q.weight`, `token_embd.weight`, `output_norm.weight`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from bitgen.spec import ModelShape

Codes = npt.NDArray[np.int8]
Floats = npt.NDArray[np.floating[Any]]
Scales = npt.NDArray[np.float32]
Scale = float | Scales

ALL = slice(None)
DenseType = Literal["f16", "bf16", "f32"]
"""Types in which matrices of floats are kept."""

AT_ONCE = 1 << 20
"""Elements of a piece, where a whole tensor would take too much memory."""


def row_pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of consecutive rows that cover a tensor in pieces of at most AT_ONCE elements, or one row."""
    step = max(1, AT_ONCE // max(1, math.prod(shape[1:])))
    return (slice(at, min(at + step, shape[0])) for at in range(0, shape[0], step))


def widen_bf16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 bit patterns -> the same values as float32 (exact)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    """float32 values -> the bfloat16 bit patterns of their upper halves; the lower ones are dropped."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def ternary_floats(shape: tuple[int, ...], read: Callable[[slice], Floats]) -> tuple[Codes, np.float32, float | None]:
    """Floats [M, K] in {-s, 0, +s} -> codes {-1, 0, +1} int8 [M, K], s, and the first other value, None without one.

    `read` gives rows of the matrix. The tolerance, a ten-thousandth of s, is for rounding; master weights are far
    outside it.
    """
    scale = np.float32(max(float(np.abs(read(rows)).max()) for rows in row_pieces(shape)))
    codes = np.zeros(shape, np.int8)
    for rows in row_pieces(shape) if scale else ():
        values = read(rows).astype(np.float32)
        relative = values / scale
        np.rint(relative, out=codes[rows], casting="unsafe")
        wrong = ~(np.abs(relative - codes[rows]) <= 1e-4)  # NaN is wrong too
        if wrong.any():
            return codes, scale, float(values[wrong][0])
    return codes, scale, None


class Checkpoint(Protocol):
    """A model's weights. A ternary matrix is read whole, a float tensor by rows, so that memory stays small."""

    @property
    def shape(self) -> ModelShape:
        """Dimensions and architecture."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """GGUF key-values: tokenizer, chat template, names."""

    def ternary(self, name: str) -> tuple[Codes, Scale]:
        """Codes {-1, 0, +1} int8 [M, K] and the scale: W = scale * codes.

        Where the shape has a group, the scales are float32 [M, K / group], one for each group of a row.
        """

    def ternary_rows(self, name: str, rows: slice) -> tuple[Codes, Scales]:
        """Rows of an embedding or head that the shape says is ternary: codes int8 [n, K], scales [n, K / group].

        `dense` gives the same numbers as floats.
        """

    def dense(self, name: str, rows: slice = ALL) -> Floats:
        """Rows of a float tensor (embedding, head: [rows, cols]; norm: [n]) as float16 or float32."""


NARROW: dict[DenseType, Callable[[Floats], npt.NDArray[Any]]] = {
    "f16": lambda values: values.astype(np.float16, copy=False),
    "bf16": narrow_bf16,
    "f32": lambda values: values.astype(np.float32, copy=False),
}
"""Type -> what stores floats in it."""


def dense_type(checkpoint: Checkpoint, name: str, dims: tuple[int, ...]) -> DenseType:
    """The smallest type that holds every number of a float matrix [rows, cols] exactly; of two as small, float16."""
    exact: list[DenseType] = ["f16", "bf16"]
    for rows in row_pieces(dims):
        values = checkpoint.dense(name, rows)
        if values.dtype == np.float16:
            return "f16"
        exact = [type for type in exact if _holds(type, values)]
        if not exact:
            return "f32"
    return exact[0]


def _holds(type: DenseType, values: Floats) -> bool:
    with np.errstate(over="ignore"):
        kept = NARROW[type](values)
    return bool(((widen_bf16(kept) if type == "bf16" else kept) == values).all())
