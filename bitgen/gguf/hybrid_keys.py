"""Keys of hybrid models in a GGUF file <-> fields of ModelShape: Gated DeltaNet's, and those of a rotation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.checkpoints.checkpoint import Checkpoint
from bitgen.checkpoints.tensors import is_beyond, is_ternary, sign_shapes, tensor_shapes
from bitgen.errors import FormatError, UnsupportedError, brief, quoted
from bitgen.spec import ModelShape

Own = Callable[..., Any]
"""(key, type, default) -> the value of <architecture>.<key>, checked."""

# ---- Gated DeltaNet ------------------------------------------------------------------------------------------------

SECTIONS = "rope.dimension_sections"
"""Pairs of a head that turn by time, height, width and a fourth number: of a text all but the fourth are positions."""


def delta_fields(own: Own) -> dict[str, int]:
    """The field `delta` of a shape. FormatError of `own`: a key is missing."""
    inner, value_heads = own("ssm.inner_size", int), own("ssm.time_step_rank", int)
    return {
        "period": own("full_attention_interval", int, 4),
        "key_heads": own("ssm.group_count", int),
        "value_heads": value_heads,
        "key_dim": own("ssm.state_size", int),
        "value_dim": inner // value_heads if value_heads > 0 and inner % value_heads == 0 else 0,
        "taps": own("ssm.conv_kernel", int),
    }


def check_sections(metadata: Mapping[str, Any], architecture: str, rotary: int, where: str) -> None:
    """UnsupportedError: a pair of a head would not turn by a text's position.

    Pair i belongs to time, height or width by i % 3, while these have pairs left; what is left over is the fourth's.
    """
    sections = metadata.get(f"{architecture}.{SECTIONS}")
    if sections is None:
        return
    given = sections.tolist() if isinstance(sections, np.ndarray) else sections
    whole = isinstance(given, list) and len(given) == 4 and all(type(n) is int for n in given)
    if not whole or any(given[i % 3] <= i // 3 for i in range(rotary // 2)):
        raise UnsupportedError(f"{where}: {architecture}.{SECTIONS} = {quoted(given)} is not supported")


def delta_keys(s: ModelShape) -> dict[str, Any]:
    """The keys <arch>.*, without that prefix, of a shape with Gated DeltaNet."""
    if s.delta is None:
        return {}
    pairs = s.rotary // 2
    return {
        "full_attention_interval": s.delta.period,
        "ssm.conv_kernel": s.delta.taps,
        "ssm.state_size": s.delta.key_dim,
        "ssm.group_count": s.delta.key_heads,
        "ssm.time_step_rank": s.delta.value_heads,
        "ssm.inner_size": s.delta.inner,
        SECTIONS: np.array([*((pairs + 2 - i) // 3 for i in range(3)), 0], np.int32),
    }


# ---- rotation ------------------------------------------------------------------------------------------------------

PREFIX = "prism.hadamard."
"""Keys of models whose activations go through a Hadamard transform before their matrices, which hold its inverse."""

FIXED: dict[str, Any] = {
    "version": 1,
    "transform": "normalized-sylvester-walsh-hadamard",
    "axis": "input-last-dimension",
    "inverse_weight_names": ["token_embd.weight"],
}
"""Key, without PREFIX -> the one value that is known."""

MODES = {"explicit": True, "identity": False}
"""sign_mode -> whether there are signs."""

VARYING = ("block_size", "sign_mode", "sign_widths", "sign_values", "weight_names", "gdn_v_grouped")


def hadamard_fields(metadata: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """The field `hadamard` of a shape; None where a file has no key of it.

    UnsupportedError names a key that is not known, is missing, or has a value that is not known.
    """
    keys = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    if not keys:
        return None
    for name, value in keys.items():
        if name not in (*FIXED, *VARYING) or (name in FIXED and not _same(value, FIXED[name])):
            raise _unknown(where, name, value)
    for name in (*FIXED, "block_size", "sign_mode", "weight_names", "gdn_v_grouped"):
        if name not in keys:
            raise UnsupportedError(f"{where}: has keys {PREFIX}*, but not {PREFIX}{name}")
    for name, type in (("block_size", int), ("sign_mode", str), ("gdn_v_grouped", bool)):
        if not isinstance(keys[name], type) or (name == "sign_mode" and keys[name] not in MODES):
            raise _unknown(where, name, keys[name])
    signed, regrouped = MODES[keys["sign_mode"]], keys["gdn_v_grouped"]
    return {"block": keys["block_size"], "signed": signed, "regrouped": regrouped}


def check_hadamard(metadata: Mapping[str, Any], s: ModelShape, where: str) -> None:
    """The rotated matrices are all ternary ones and the head, and each width has signs, 1 and -1.

    UnsupportedError: others are rotated, or some are not. FormatError: the signs are not those of the widths.
    """
    if s.hadamard is None:
        return
    given, wanted = metadata[f"{PREFIX}weight_names"], _rotated(s)
    names = set(given) if isinstance(given, list) else set()
    missing, beyond = sorted(wanted - names), sorted(name for name in names - wanted if not is_beyond(name, s.layers))
    if missing or beyond or len(names) != len(given):
        what = f"lacks {missing[0]}" if missing else f"holds {brief(beyond[0])}" if beyond else "is no list of names"
        raise UnsupportedError(f"{where}: {PREFIX}weight_names {what}; expected all ternary matrices and the head")
    widths, values = (np.asarray(metadata.get(f"{PREFIX}{name}", [])) for name in ("sign_widths", "sign_values"))
    expected = [width for (width,) in sign_shapes(s).values()]
    if widths.tolist() != expected:
        raise FormatError(f"{where}: {PREFIX}sign_widths is {quoted(widths.tolist())}; expected {expected}")
    fit = values.shape == (sum(expected),) and (not expected or values.dtype.kind == "i")
    if not fit or not np.isin(values, (-1, 1)).all():
        raise FormatError(f"{where}: {PREFIX}sign_values is not a list of {sum(expected)} numbers, each 1 or -1")


def signs_of(metadata: Mapping[str, Any], width: int) -> npt.NDArray[np.float32]:
    """The signs of a width, float32 [width], of a file that `check_hadamard` has passed."""
    widths = metadata[f"{PREFIX}sign_widths"].tolist()
    start = sum(widths[: widths.index(width)])
    signs: npt.NDArray[np.float32] = metadata[f"{PREFIX}sign_values"][start : start + width].astype(np.float32)
    return signs


def hadamard_keys(checkpoint: Checkpoint) -> dict[str, Any]:
    """The keys of a checkpoint's rotation."""
    s = checkpoint.shape
    if s.hadamard is None:
        return {}
    names = tensor_shapes(s)
    keys = FIXED | {
        "block_size": s.hadamard.block,
        "sign_mode": next(mode for mode, signed in MODES.items() if signed == s.hadamard.signed),
        "weight_names": [name for name in names if name in _rotated(s)],
        "gdn_v_grouped": s.hadamard.regrouped,
    }
    if s.hadamard.signed:
        signs = {width: checkpoint.dense(name) for name, (width,) in sign_shapes(s).items()}
        keys["sign_widths"] = np.array(list(signs), np.int32)
        keys["sign_values"] = np.concatenate(list(signs.values())).astype(np.int8)
    return {f"{PREFIX}{name}": value for name, value in keys.items()}


def _rotated(s: ModelShape) -> set[str]:
    """The matrices whose input is rotated, by their names; a tied head is not among them."""
    return {name for name in tensor_shapes(s) if is_ternary(name) or name == "output.weight"}


def _same(value: Any, wanted: Any) -> bool:
    return type(value) is type(wanted) and bool(value == wanted)


def _unknown(where: str, name: str, value: Any) -> UnsupportedError:
    shown = quoted(value.tolist() if isinstance(value, np.ndarray) else value)
    return UnsupportedError(f"{where}: {PREFIX}{brief(name)} = {shown} is not supported")
