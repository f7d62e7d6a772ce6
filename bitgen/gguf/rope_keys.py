"""RoPE in a GGUF file: key-values and tables of divisors <-> fields of ModelShape. Their meaning is llama.cpp's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.checkpoints.rope import yarn_magnitude
from bitgen.errors import FormatError, UnsupportedError, quoted
from bitgen.gguf.container import Container
from bitgen.gguf.types import F32
from bitgen.spec import ModelShape, RopeScaling

TABLE, LONG, SHORT = TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors float32 [rotary / 2]: divisors of every context; of contexts longer than the original one, and of others."""

PREFIX = "rope.scaling."
READ = ("type", "factor", "original_context_length", "attn_factor", "yarn_beta_fast", "yarn_beta_slow")
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "finetuned": (True, False),
    "yarn_ext_factor": (1.0, -1.0),
    "yarn_attn_factor": (1.0,),
    "yarn_log_multiplier": (0.0,),
}
"""Keys rope.scaling.* that are read, and others -> the values that leave the arithmetic as it is."""

Own = Callable[..., Any]
"""(key, type, default) -> the value of <architecture>.<key>, checked."""


def rope_fields(container: Container, own: Own, arch: str, head_dim: int, context: int) -> dict[str, Any]:
    """The fields of a shape that say how RoPE turns heads, but for its theta.

    LongRoPE's second table is for texts longer than the original context; where the two differ, so that a token's
    vector would depend on how long the text becomes, the model is limited to that context.
    UnsupportedError: another kind of scaling, or a key that changes it. FormatError: a table of the wrong size.
    """
    _refuse_unknown(container, arch)
    rotary = own("rope.dimension_count", int, head_dim)
    if rotary == 0:
        raise FormatError(f"{container.path}: {arch}.rope.dimension_count is 0")
    kind = own(f"{PREFIX}type", str, "linear")
    factor = own(f"{PREFIX}factor", float, own("rope.scale_linear", float, 0.0)) or 1.0
    original = own(f"{PREFIX}original_context_length", int, context)
    magnitude = own(f"{PREFIX}attn_factor", float, 1.0)
    tables = {name: _table(container, name, rotary // 2) for name in TABLES if name in container.tensors}
    fields: dict[str, Any] = {"rope_dims": 0 if rotary == head_dim else rotary}
    if kind == "longrope":
        if not {LONG, SHORT} <= tables.keys() or TABLE in tables:
            raise FormatError(f"{container.path}: LongRoPE needs the tensors {LONG} and {SHORT}, and no {TABLE}")
        fields |= {"rope_scaling": _stretched("table", divisors=tables[SHORT], magnitude=magnitude)}
        return fields | ({} if tables[LONG] == tables[SHORT] else {"context": min(context, original)})
    if tables.keys() - {TABLE}:
        raise FormatError(f"{container.path}: has {LONG} or {SHORT}, but {PREFIX}type is not longrope")
    if tables and kind != "none" and factor != 1:
        raise UnsupportedError(f"{container.path}: {TABLE} beside {arch}.{PREFIX}factor = {factor:g} is not supported")
    if tables:
        return fields | {"rope_scaling": _stretched("table", divisors=tables[TABLE], magnitude=magnitude)}
    if kind == "yarn":
        betas = {f"beta_{end}": own(f"{PREFIX}yarn_beta_{end}", float, getattr(RopeScaling, f"beta_{end}"))
                 for end in ("fast", "slow")}  # fmt: skip
        by = magnitude * yarn_magnitude(factor)
        return fields | {
            "rope_scaling": _stretched("yarn", factor=factor, original_context=original, magnitude=by, **betas)
        }
    if kind not in ("none", "linear"):
        raise UnsupportedError(
            f"{container.path}: {arch}.{PREFIX}type = {quoted(kind)} is not supported; known: linear, yarn, longrope"
        )
    return fields | {
        "rope_scaling": _stretched("linear", factor=factor if kind == "linear" else 1.0, magnitude=magnitude)
    }


def _stretched(kind: str, **fields: Any) -> dict[str, Any] | None:
    """A mapping for `scaling_of`, None where it changes nothing."""
    plain = fields.get("factor", 1.0) == 1 and fields["magnitude"] == 1 and set(fields.get("divisors", (1.0,))) == {1.0}
    return None if plain else {"kind": kind, **fields}


def _table(container: Container, name: str, pairs: int) -> tuple[float, ...]:
    """A tensor of divisors; `scaling_of` checks their range."""
    tensor = container.tensors[name]
    if tensor.type != F32 or tensor.shape != (pairs,):
        raise FormatError(f"{container.path}: tensor {name}: expected {pairs} F32 values, one for each pair of a head")
    return tuple(container.bytes_of(tensor).view("<f4").tolist())


def _refuse_unknown(container: Container, arch: str) -> None:
    """UnsupportedError for a key that changes how RoPE turns, and is not read."""
    start = f"{arch}.{PREFIX}"
    for key, value in container.metadata.items():
        name = key.removeprefix(start)
        if not key.startswith(start) or name in READ:
            continue
        if isinstance(value, list | np.ndarray) or value not in NEUTRAL.get(name, ()):
            raise UnsupportedError(f"{container.path}: {quoted(key)} = {quoted(value)} is not supported")


def rope_keys(s: ModelShape) -> dict[str, Any]:
    """The keys <arch>.*, without that prefix, that say how a shape's frequencies are stretched."""
    keys: dict[str, Any] = {}
    scaling = s.rope_scaling
    if scaling is None:
        return keys
    usual = yarn_magnitude(scaling.factor) if scaling.kind == "yarn" else 1.0
    if scaling.magnitude != usual:
        keys[f"{PREFIX}attn_factor"] = scaling.magnitude / usual
    if scaling.kind != "table":
        keys |= {f"{PREFIX}type": scaling.kind, f"{PREFIX}factor": scaling.factor}
    if scaling.kind == "yarn":
        given = asdict(scaling)
        keys[f"{PREFIX}original_context_length"] = scaling.original_context
        keys |= {f"{PREFIX}yarn_{name}": given[name] for name in ("beta_fast", "beta_slow")
                 if given[name] != getattr(RopeScaling, name)}  # fmt: skip
    return keys


def rope_table(s: ModelShape) -> npt.NDArray[np.float32]:
    """The contents of the tensor TABLE: float32 [rotary / 2], or [0] where a shape has no divisors of its own."""
    scaling = s.rope_scaling
    return np.array(scaling.divisors if scaling is not None and scaling.kind == "table" else (), "<f4")
