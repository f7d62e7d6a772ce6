"""The order of value heads in layers with Gated DeltaNet: that of a checkpoint, and GGUF's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.errors import UnsupportedError
from bitgen.spec import DeltaShape

Values = npt.NDArray[Any]

BY_HEAD = ("ssm_beta", "ssm_alpha", "ssm_dt", "ssm_a")
"""Tensors with a row for each value head."""


class HeadOrder:
    """A checkpoint has the value heads of a key head side by side; GGUF has first heads of all key heads, then second.

    Value head r of key head g is head g * reps + r there, and head r * key_heads + g in a GGUF.
    """

    def __init__(self, delta: DeltaShape) -> None:
        self.delta = delta
        self._heads = np.arange(delta.value_heads).reshape(delta.key_heads, -1).T.reshape(-1)

    def rows(self, values: Values, part: str) -> Values:
        """The rows of a tensor of a layer, "attn_qkv" say, in GGUF's order."""
        d, order = self.delta, None
        if part in ("attn_qkv", "ssm_conv1d"):  # values stand behind queries and keys
            before = 2 * d.key_heads * d.key_dim
            order = np.concatenate([np.arange(before), before + self._elements(d.value_dim)])
        elif part == "attn_gate":
            order = self._elements(d.value_dim)
        elif part in BY_HEAD:
            order = self._heads
        return values if order is None else values[order]

    def columns(self, values: Values, part: str, of: int = 1) -> Values:
        """Columns in GGUF's order, each for `of` columns of the matrix. UnsupportedError: one is of several heads."""
        each, rest = divmod(self.delta.value_dim, of)
        if part != "ssm_out":
            return values
        if rest:
            raise UnsupportedError(f"a scale for {of} columns is one for several value heads of {self.delta.value_dim}")
        return values[:, self._elements(each)]

    def _elements(self, each: int) -> npt.NDArray[np.int64]:
        """The checkpoint's places of the elements of all heads, `each` of a head, in GGUF's order."""
        return (self._heads[:, None] * each + np.arange(each)).reshape(-1)
