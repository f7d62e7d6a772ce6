"""Architectures and the ranges of a model's fields: the one check behind presets, GGUF metadata and config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitgen.checkpoints.hybrid import delta_of, hadamard_of, widths
from bitgen.checkpoints.rope import scaling_of
from bitgen.errors import FormatError, UnsupportedError, quoted
from bitgen.spec import Activation, ModelShape


@dataclass(frozen=True)
class Architecture:
    """What a value of `general.architecture` implies."""

    activation: Activation  # of the FFN, where the file has no key for it
    sub_norms: bool  # RMSNorm before the output and the down projection
    rope_interleaved: bool  # rows of q and k are permuted so that RoPE turns adjacent pairs
    qk_norm: bool = False  # RMSNorm of each head of q and k
    qk_norm_after_rope: bool = False  # that norm comes after RoPE
    post_norms: bool = False  # RMSNorm of what attention and FFN add to the residual stream
    scaled_embedding: bool = False  # embedding rows are multiplied by sqrt(hidden)
    windows: bool = False  # layers may attend to a window of positions
    own_scales: bool = False  # the fields SCALES are the model's own numbers
    attention_gate: bool = False  # a gate stands behind each query head
    delta: bool = False  # most layers have Gated DeltaNet in the place of attention


ARCHITECTURES: dict[str, Architecture] = {
    "bitnet": Architecture("silu", sub_norms=True, rope_interleaved=False),
    "bitnet-25": Architecture("relu2", sub_norms=True, rope_interleaved=False),
    "bitnet-b1.58": Architecture("relu2", sub_norms=True, rope_interleaved=False),
    "llama": Architecture("silu", sub_norms=False, rope_interleaved=True),
    "qwen3": Architecture("silu", sub_norms=False, rope_interleaved=False, qk_norm=True),
    "gemma3": Architecture(
        "gelu_tanh", sub_norms=False, rope_interleaved=False,
        qk_norm=True, post_norms=True, scaled_embedding=True, windows=True,
    ),
    "hunyuan-dense": Architecture(
        "silu", sub_norms=False, rope_interleaved=False, qk_norm=True, qk_norm_after_rope=True
    ),
    "minicpm": Architecture("silu", sub_norms=False, rope_interleaved=True, own_scales=True),
    "qwen35": Architecture(
        "silu", sub_norms=False, rope_interleaved=False, qk_norm=True, attention_gate=True, delta=True
    ),
}  # fmt: skip
"""bitnet: the 1bitLLM models. bitnet-25, then bitnet-b1.58: 2B4T. llama: Llama3-8B-1.58, Falcon3, Falcon-E, TriLM.
qwen3, gemma3: BitNet-embedding 0.6B and 270M, and ternary Qwen3. hunyuan-dense: Hy-MT. minicpm: BitCPM4. qwen35: Qwen
3.5 and what is made of it, as Ternary Bonsai 27B."""

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
"""Field -> least and greatest value: larger than in any model, and no product overflows int64."""

GROUP_MULTIPLE = 16
"""A group is a multiple of so many columns, which kernels take in one step."""

FLOATS: dict[str, tuple[float, float]] = {"rope_theta": (1.0, 1e12), "norm_eps": (1e-12, 1e-1)}
TEXTS = ("name", "architecture", "activation")
FLAGS = ("sub_norms", "tied", "rope_interleaved")
ACTIVATIONS: tuple[Activation, ...] = ("relu2", "silu", "gelu_tanh")

OPTIONAL_INTEGERS: dict[str, tuple[int, int]] = {
    "window": (0, 1 << 24),
    "window_period": (1, 1 << 16),
    "rope_dims": (0, 1024),
    "group": (0, 256),
}
SCALES: dict[str, tuple[float, float]] = {
    "embedding_scale": (1e-6, 1e6),
    "residual_scale": (1e-6, 1e6),
    "logit_divisor": (1e-6, 1e6),
}
"""Fields that models of some architectures must have, and others must not."""
OPTIONAL_FLOATS: dict[str, tuple[float, float]] = {
    "attention_scale": (0.0, 1e3),
    "window_theta": (1.0, 1e12),
    **SCALES,
}
OPTIONAL_FLAGS = ("input_norms", "binary", "ternary_embedding", "ternary_head")
OPTIONAL = (*OPTIONAL_INTEGERS, *OPTIONAL_FLOATS, *OPTIONAL_FLAGS, "rope_scaling", "delta", "hadamard")
"""Fields that few models need; absent, they have ModelShape's default. All others follow from the architecture."""
IMPLIED = ("qk_norm", "qk_norm_after_rope", "post_norms", "attention_gate")
"""Fields of a shape that its architecture says."""


def architecture(name: str, where: str) -> Architecture:
    """The row of ARCHITECTURES; UnsupportedError lists the known ones."""
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedError(f"{where}: architecture {quoted(name)} is not supported; known: {known}")
    return ARCHITECTURES[name]


def layer_period(others: Sequence[bool], where: str) -> int:
    """The n for which every n-th layer sees all positions and no other does; UnsupportedError: there is no such n.

    others: of each layer whether it has a window, or Gated DeltaNet.
    """
    period = next((i for i, other in enumerate(others, 1) if not other), len(others) + 1)
    if all(bool(other) == bool(i % period) for i, other in enumerate(others, 1)):
        return period
    raise UnsupportedError(f"{where}: the layers that see all positions follow no period; not supported")


def shape_from(values: Mapping[str, Any], where: str) -> ModelShape:
    """A ModelShape of checked fields: their types and ranges, and how they fit each other.

    where: begins each message, which then names the field.
    FormatError: an impossible value. UnsupportedError: an unknown architecture or activation.
    """
    for field in (*TEXTS, *INTEGERS, *FLOATS, *FLAGS):
        if field not in values:
            raise FormatError(f"{where}: {field} is missing")
    for field, (low, high) in (INTEGERS | OPTIONAL_INTEGERS).items():
        value = values.get(field, low)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise FormatError(f"{where}: {field} is {quoted(value)}; expected a whole number from {low} to {high}")
    for field, (least, most) in (FLOATS | OPTIONAL_FLOATS).items():
        value = values.get(field, least)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= value <= most:
            raise FormatError(f"{where}: {field} is {quoted(value)}; expected a number from {least:g} to {most:g}")
    for field in FLAGS + OPTIONAL_FLAGS:
        if not isinstance(values.get(field, False), bool):
            raise FormatError(f"{where}: {field} is {quoted(values[field])}; expected true or false")
    for field in TEXTS:
        if not isinstance(values[field], str) or not values[field]:
            raise FormatError(f"{where}: {field} is {quoted(values[field])}; expected a text")
    kind = architecture(values["architecture"], where)
    if values["activation"] not in ACTIVATIONS:
        raise UnsupportedError(
            f"{where}: activation {quoted(values['activation'])} is not supported; known: {', '.join(ACTIVATIONS)}"
        )
    values = {**values, "delta": delta_of(values, kind.delta, where)}
    values["hadamard"] = hadamard_of(values, where)
    _check_fit(values, where)
    given = (*TEXTS, *INTEGERS, *FLOATS, *FLAGS, *(field for field in OPTIONAL if field in values))
    fields: dict[str, Any] = {field: values[field] for field in given}
    fields |= {field: float(fields[field]) for field in (*FLOATS, *OPTIONAL_FLOATS) if field in fields}
    fields["rope_scaling"] = scaling_of(values, where)
    fields |= _scales(values, kind, where)
    return ModelShape(**fields, **{trait: getattr(kind, trait) for trait in IMPLIED})


def _scales(values: Mapping[str, Any], kind: Architecture, where: str) -> dict[str, float]:
    """The fields SCALES: a model's own, or those that its architecture implies, which it may state."""
    if kind.own_scales:
        for field in SCALES:
            if field not in values:
                raise FormatError(f"{where}: {field} is missing; models of {values['architecture']} have their own")
        return {field: float(values[field]) for field in SCALES}
    implied = dict.fromkeys(SCALES, 1.0)
    if kind.scaled_embedding:
        implied["embedding_scale"] = values["hidden"] ** 0.5
    for field, usual in implied.items():
        if values.get(field, usual) != usual:
            raise FormatError(f"{where}: {field} is {values[field]}; models of {values['architecture']} have {usual:g}")
    return implied


def _check_fit(values: Mapping[str, Any], where: str) -> None:
    """Heads share kv heads evenly, RoPE turns pairs, one input has one norm, rows are whole groups."""
    if values["heads"] % values["kv_heads"]:
        raise FormatError(f"{where}: {values['heads']} heads are not a multiple of {values['kv_heads']} kv_heads")
    turned = values.get("rope_dims") or values["head_dim"]
    if turned % 2 or turned > values["head_dim"]:
        raise FormatError(f"{where}: RoPE cannot turn pairs of {turned} elements of a head of {values['head_dim']}")
    if values["sub_norms"] and values.get("input_norms"):
        raise FormatError(f"{where}: sub_norms and input_norms are two norms of one input; a model has one of them")
    group = values.get("group", 0)
    if group % GROUP_MULTIPLE:
        raise FormatError(f"{where}: group is {group}; expected a multiple of {GROUP_MULTIPLE}")
    ends = values.get("ternary_embedding", False), values.get("ternary_head", False)
    if any(ends) and not group:
        raise FormatError(f"{where}: embedding or head are ternary, and group is 0; their scales are those of groups")
    if values["tied"] and ends[0] != ends[1]:
        raise FormatError(f"{where}: ternary_embedding and ternary_head differ, and the head is the embedding")
    for field, k in widths(values).items() if group else ():
        if k % group:
            raise FormatError(f"{where}: {field}, {k}, is not a multiple of group, {group}")
