"""The checked fields of hybrid models: Gated DeltaNet's dimensions, and the rotation before matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitgen.errors import FormatError, UnsupportedError, quoted
from bitgen.spec import DeltaShape, Hadamard

DELTA: dict[str, tuple[int, int]] = {
    "period": (2, 1 << 16),
    "key_heads": (1, 1024),
    "value_heads": (1, 1024),
    "key_dim": (1, 1024),
    "value_dim": (1, 1024),
    "taps": (1, 64),
}
"""Field of DeltaShape -> least and greatest value."""

BLOCKS = (4, 16, 64, 256, 1024, 4096)
"""Columns of a block of the rotation: powers of four, whose H is scaled by a power of two, which is exact."""


def delta_of(values: Mapping[str, Any], needed: bool, where: str) -> DeltaShape | None:
    """The checked `delta` of a model's fields: a DeltaShape, or a mapping of its fields as presets have it.

    needed: whether the architecture has Gated DeltaNet. FormatError: a field is missing, unknown or out of its range,
    does not fit the others, or the architecture has none.
    """
    given = values.get("delta")
    if given is None and not needed:
        return None
    fields = _fields(given)
    if not needed or fields.keys() != DELTA.keys():
        wanted = f"the fields {', '.join(DELTA)}" if needed else f"none, as models of {values['architecture']} have it"
        raise FormatError(f"{where}: delta is {quoted(given)}; expected {wanted}")
    for name, (low, high) in DELTA.items():
        value = fields[name]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            allowed = f"a whole number from {low} to {high}"
            raise FormatError(f"{where}: delta's {name} is {quoted(value)}; expected {allowed}")
    delta = DeltaShape(**fields)
    if delta.value_heads % delta.key_heads:
        raise FormatError(
            f"{where}: delta's value_heads, {delta.value_heads}, are not a multiple of its key_heads, {delta.key_heads}"
        )
    return delta


def hadamard_of(values: Mapping[str, Any], where: str) -> Hadamard | None:
    """The checked `hadamard` of a model's fields: a Hadamard, or a mapping of its fields as presets have it.

    `delta` is checked. FormatError: a field is missing, unknown or of another type, or does not fit the others.
    UnsupportedError: the model has no Gated DeltaNet.
    """
    given = values.get("hadamard")
    if given is None:
        return None
    fields = _fields(given)
    if fields.keys() != Hadamard.__dataclass_fields__.keys():
        known = ", ".join(Hadamard.__dataclass_fields__)
        raise FormatError(f"{where}: hadamard is {quoted(given)}; expected the fields {known}")
    for name in ("signed", "regrouped"):
        if not isinstance(fields[name], bool):
            raise FormatError(f"{where}: hadamard's {name} is {quoted(fields[name])}; expected true or false")
    block = fields["block"]
    if not isinstance(block, int) or isinstance(block, bool) or block not in BLOCKS:
        allowed = ", ".join(map(str, BLOCKS))
        raise FormatError(f"{where}: hadamard's block is {quoted(block)}; expected one of {allowed}")
    for field, k in widths(values).items():
        if k % block:
            raise FormatError(f"{where}: {field}, {k}, is not a multiple of hadamard's block, {block}")
    if values.get("delta") is None:  # no such file is known, and what it would mean for other norms is not either
        raise UnsupportedError(f"{where}: hadamard is known of models with delta only")
    return Hadamard(**fields)


def widths(values: Mapping[str, Any]) -> dict[str, int]:
    """What the columns of the ternary matrices are -> how many there are. `delta` is checked."""
    delta = values.get("delta")
    return {
        "hidden": values["hidden"],
        "heads x head_dim": values["heads"] * values["head_dim"],
        **({"delta's value_heads x value_dim": delta.inner} if delta else {}),
        "intermediate": values["intermediate"],
    }


def _fields(given: Any) -> dict[str, Any]:
    """A mapping's fields, or those of a DeltaShape or a Hadamard; none of anything else."""
    if isinstance(given, DeltaShape | Hadamard):
        return dict(vars(given))
    return dict(given) if isinstance(given, Mapping) else {}
