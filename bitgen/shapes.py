"""What the numbers of a model may be: the one check behind presets, GGUF metadata and config files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitgen.errors import FormatError, UnsupportedError
from bitgen.spec import Activation, ModelShape


@dataclass(frozen=True)
class Architecture:
    """What `general.architecture` of a GGUF implies."""

    activation: Activation  # of the FFN, where the file has no key for it
    sub_norms: bool  # RMSNorm before the output and the down projection
    rope_interleaved: bool  # rows of q and k are permuted so that RoPE turns adjacent pairs


ARCHITECTURES: dict[str, Architecture] = {
    "bitnet": Architecture("silu", sub_norms=True, rope_interleaved=False),
    "bitnet-25": Architecture("relu2", sub_norms=True, rope_interleaved=False),
    "bitnet-b1.58": Architecture("relu2", sub_norms=True, rope_interleaved=False),
    "llama": Architecture("silu", sub_norms=False, rope_interleaved=True),
}
"""bitnet: the 1bitLLM models. bitnet-25, then bitnet-b1.58: 2B4T. llama: Llama3-8B-1.58, Falcon3."""

INTEGERS: dict[str, tuple[int, int]] = {
    "hidden": (1, 1 << 16),
    "intermediate": (1, 1 << 18),
    "layers": (1, 512),
    "heads": (1, 1024),
    "kv_heads": (1, 1024),
    "head_dim": (2, 1024),
    "vocab": (1, 1 << 21),
    "context": (1, 1 << 24),
}
"""Field -> least and greatest value. Beyond any model, yet no product overflows int64."""

FLOATS: dict[str, tuple[float, float]] = {"rope_theta": (1.0, 1e12), "norm_eps": (1e-12, 1e-1)}
TEXTS = ("name", "architecture", "activation")
FLAGS = ("sub_norms", "tied", "rope_interleaved")
ACTIVATIONS: tuple[Activation, ...] = ("relu2", "silu")


def architecture(name: str, where: str) -> Architecture:
    """The row of ARCHITECTURES, or an error that names the unknown one."""
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedError(f"{where}: architecture {name!r} is not supported; known: {known}")
    return ARCHITECTURES[name]


def shape_from(values: Mapping[str, Any], where: str) -> ModelShape:
    """A ModelShape whose every field has been checked: type, range, and how the fields fit each other.

    `where` starts each message, which then names the field. FormatError for an impossible value,
    UnsupportedError for an unknown architecture or activation.
    """
    for field in (*TEXTS, *INTEGERS, *FLOATS, *FLAGS):
        if field not in values:
            raise FormatError(f"{where}: {field} is missing")
    for field, (low, high) in INTEGERS.items():
        value = values[field]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise FormatError(f"{where}: {field} is {value!r}; expected a whole number from {low} to {high}")
    for field, (least, most) in FLOATS.items():
        value = values[field]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not least <= value <= most:
            raise FormatError(f"{where}: {field} is {value!r}; expected a number from {least:g} to {most:g}")
    for field in FLAGS:
        if not isinstance(values[field], bool):
            raise FormatError(f"{where}: {field} is {values[field]!r}; expected true or false")
    for field in TEXTS:
        if not isinstance(values[field], str) or not values[field]:
            raise FormatError(f"{where}: {field} is {values[field]!r}; expected a text")
    architecture(values["architecture"], where)
    if values["activation"] not in ACTIVATIONS:
        raise UnsupportedError(
            f"{where}: activation {values['activation']!r} is not supported; known: {', '.join(ACTIVATIONS)}"
        )
    _check_heads(values, where)
    fields: dict[str, Any] = {field: values[field] for field in (*TEXTS, *INTEGERS, *FLAGS)}
    fields |= {field: float(values[field]) for field in FLOATS}
    return ModelShape(**fields)


def _check_heads(values: Mapping[str, Any], where: str) -> None:
    """Query heads share key-value heads evenly, and RoPE turns pairs."""
    if values["heads"] % values["kv_heads"]:
        raise FormatError(f"{where}: {values['heads']} heads are not a multiple of {values['kv_heads']} kv_heads")
    if values["head_dim"] % 2:
        raise FormatError(f"{where}: head_dim {values['head_dim']} is odd; RoPE turns pairs")
