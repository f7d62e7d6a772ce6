"""RoPE in a config.json: `rope_parameters` of transformers 5, `rope_scaling` before it -> fields of ModelShape.

The equations are those of transformers' modeling_rope_utils.
"""

from __future__ import annotations

from math import isfinite, log, sqrt
from pathlib import Path
from typing import Any

from bitgen.checkpoints.rope import llama3_divisors, yarn_divisors, yarn_magnitude
from bitgen.errors import FormatError, UnsupportedError, quoted
from bitgen.spec import RopeScaling

COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned")
GRIDS = ("mrope_section", "mrope_interleaved")
"""Keys about pictures in a text: which pairs turn by a row, and which by a column. Of a text both are the position."""
ORIGINAL = "original_max_position_embeddings"
KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "yarn": (
        "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", ORIGINAL,
    ),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor", ORIGINAL),
}  # fmt: skip
"""Value of rope_type -> the keys that it has besides COMMON."""


class Rope:
    """The object that describes RoPE in one kind of layer. Errors name the file and the key."""

    def __init__(self, path: Path, key: str, values: Any, partial: bool = False) -> None:
        """partial: RoPE may turn a part of each head, and pictures may have positions of their own."""
        self.where, self.values = f"{path}: {key}", values
        if not isinstance(values, dict):
            raise FormatError(f"{self.where} must be an object, not {quoted(values)}")
        self.kind = values.get("rope_type", values.get("type", "default"))
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise UnsupportedError(
                f"{self.where} asks for {quoted(self.kind)} RoPE, which is not supported; known: {', '.join(KINDS)}"
            )
        for name, value in values.items():
            known = COMMON + GRIDS if partial else COMMON
            if value is not None and name not in known and name not in KINDS[self.kind]:
                raise UnsupportedError(f"{self.where}.{quoted(name)} has no meaning in {self.kind} RoPE; not supported")
        if not partial and values.get("partial_rotary_factor") not in (None, 1.0):
            raise UnsupportedError(f"{self.where}.partial_rotary_factor is not supported")

    def rotary(self, head_dim: int, share: Any) -> int:
        """Elements of a head that RoPE turns. share: the key of that name outside of the object, which comes second."""
        share = share if self.values.get("partial_rotary_factor") is None else self.values["partial_rotary_factor"]
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise FormatError(f"{self.where}: partial_rotary_factor is {quoted(share)}; expected a share of 1")
        return int(head_dim * share)

    def fields(self, theta: float, head_dim: int, context: int, original: int | None) -> dict[str, Any]:
        """Fields of the shape: how frequencies are stretched, and a shorter context where LongRoPE needs one.

        original: the key of that name outside of the object, which comes first.
        """
        before = self._whole(ORIGINAL, context) if original is None else original
        if self.kind == "linear":
            factor = self._number("factor")
            return {} if factor == 1 else {"rope_scaling": RopeScaling("linear", factor)}
        if self.kind == "llama3":
            low, high = self._number("low_freq_factor"), self._number("high_freq_factor")
            if low >= high:
                raise FormatError(f"{self.where}.low_freq_factor must be less than high_freq_factor")
            table = llama3_divisors(theta, head_dim, self._number("factor"), low, high, before)
            return {"rope_scaling": RopeScaling("table", divisors=tuple(table))}
        if self.kind == "yarn":
            return {"rope_scaling": self._yarn(theta, head_dim, context, before)}
        return self._longrope(head_dim // 2, context, before) if self.kind == "longrope" else {}

    def _yarn(self, theta: float, head_dim: int, context: int, original: int) -> RopeScaling:
        factor = self._number("factor", context / original)
        fast, slow = self._number("beta_fast", 32), self._number("beta_slow", 1)
        one, all_dims = self._number("mscale", 0), self._number("mscale_all_dim", 0)
        usual = yarn_magnitude(factor)
        if one and all_dims:
            usual = yarn_magnitude(factor, one) / yarn_magnitude(factor, all_dims)
        magnitude = self._number("attention_factor", usual)
        if self.values.get("truncate", True) is not True:  # GGUF has no key for a ramp between pairs
            table = yarn_divisors(theta, head_dim, factor, fast, slow, original, whole=False)
            return RopeScaling("table", divisors=tuple(table), magnitude=magnitude)
        return RopeScaling("yarn", factor, original, fast, slow, magnitude=magnitude)

    def _longrope(self, pairs: int, context: int, original: int) -> dict[str, Any]:
        """transformers takes the long factors once a text is longer than the original context, for all of its tokens:
        vectors that are in the cache would then be wrong. The model is limited to that context instead."""
        short, long = self._table("short_factor", pairs), self._table("long_factor", pairs)
        factor = self._number("factor", context / original)
        magnitude = self._number("attention_factor", sqrt(1 + log(factor) / log(original)) if factor > 1 else 1)
        scaling = {"rope_scaling": RopeScaling("table", divisors=short, magnitude=magnitude)}
        return scaling | ({} if short == long else {"context": min(context, original)})

    def _number(self, name: str, default: float | None = None) -> float:
        """A key's number; where it is absent or null, the default."""
        value = self.values.get(name)
        if value is None and default is not None:
            return float(default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9 or not isfinite(value):
            raise FormatError(f"{self.where}.{name} is {quoted(value)}; expected a number above 0")
        return float(value)

    def _whole(self, name: str, default: int) -> int:
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 < value <= 1 << 24:
            raise FormatError(f"{self.where}.{name} is {quoted(value)}; expected a number of positions")
        return value

    def _table(self, name: str, pairs: int) -> tuple[float, ...]:
        value = self.values.get(name)
        if not isinstance(value, list) or len(value) != pairs:
            raise FormatError(f"{self.where}.{name} must be a list of {pairs} numbers, one for each pair of a head")
        return tuple(float(each) if isinstance(each, int | float) else 0.0 for each in value)
