"""A model file described as data: what `bitgen info --json` prints, and cli/facts.py puts into words."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitgen.checkpoints.architectures import ARCHITECTURES, SCALES
from bitgen.checkpoints.tensors import is_ternary
from bitgen.errors import BitgenError, UnsupportedError
from bitgen.gguf import doubts
from bitgen.gguf.container import Container
from bitgen.gguf.reader import GgufCheckpoint
from bitgen.spec import ModelShape, RopeScaling
from bitgen.text.tokenizer import Tokenizer


def describe(path: str | Path) -> dict[str, Any]:
    """Facts about a GGUF file, ready to dump as JSON: keys without blanks, numbers as numbers.

    A sound file that bitgen cannot run is described as far as possible, with the reason under "unsupported".
    FormatError: the file is broken.
    """
    container = Container(path)
    architecture = container.metadata.get("general.architecture")
    facts: dict[str, Any] = {
        "file": str(container.path),
        "bytes": container.size,
        "architecture": architecture if isinstance(architecture, str) else None,
        "tensors": _tensors(container),
    }
    try:
        checkpoint = GgufCheckpoint(container)
        warning = doubts.warning(checkpoint)
    except UnsupportedError as error:
        return facts | {"unsupported": str(error)}
    if warning:
        facts["warning"] = warning
    facts |= _shape(checkpoint.shape, checkpoint.activation_reason)
    return facts | _weights(container) | _tokenizer(container)


def _tensors(container: Container) -> dict[str, int]:
    """Type -> number of tensors, most first."""
    return dict(Counter(t.type_name for t in container.tensors.values()).most_common())


def _shape(s: ModelShape, why: str) -> dict[str, Any]:
    """The model's dimensions and architecture."""
    return {
        "name": s.name,
        "layers": s.layers,
        "hidden": s.hidden,
        "intermediate": s.intermediate,
        "heads": s.heads,
        "head_dim": s.head_dim,
        "kv_heads": s.kv_heads,
        "vocabulary": s.vocab,
        "context": s.context,
        "activation": s.activation,
        "activation_reason": why,
        "layer_norms": list(s.norms),
        **({"attention_gate": True} if s.attention_gate else {}),
        **({"delta": asdict(s.delta), "state_bytes": s.state_bytes} if s.delta else {}),
        **({"hadamard": asdict(s.hadamard)} if s.hadamard else {}),
        **({"qk_norm_after_rope": True} if s.qk_norm_after_rope else {}),
        "head_tied": s.tied,
        "ternary_embedding": s.ternary_embedding,
        "ternary_head": s.ternary_head,
        **({field: getattr(s, field) for field in SCALES} if ARCHITECTURES[s.architecture].own_scales else {}),
        **({"window": s.window, "window_period": s.window_period} if s.window else {}),
        "rope_interleaved": s.rope_interleaved,
        "rope_theta": s.rope_theta,
        "rope_dims": s.rotary,
        "rope_scaling": _scaling(s.rope_scaling),
        "norm_epsilon": s.norm_eps,
        "scale_group": s.group,
        "binary": s.binary,
    }


def _scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """How RoPE's frequencies are stretched, without the numbers of a table."""
    if scaling is None:
        return None
    fields = {"kind": scaling.kind, "factor": scaling.factor, "original_context": scaling.original_context}
    return {name: value for name, value in fields.items() if value not in (0, 1)} | {"magnitude": scaling.magnitude}


def _weights(container: Container) -> dict[str, Any]:
    """Numbers of parameters and of ternary weights, and the bits that they take."""
    ternary = [t for t in container.tensors.values() if is_ternary(t.name)]
    weights, nbytes = sum(t.elements for t in ternary), sum(t.nbytes or 0 for t in ternary)
    parameters = sum(t.elements for t in container.tensors.values())
    return {
        "parameters": parameters,
        "ternary_weights": weights,
        "bits_per_ternary_weight": round(8 * nbytes / weights, 3),
        "bits_per_parameter": round(8 * container.size / parameters, 3),
    }


def _tokenizer(container: Container) -> dict[str, Any]:
    """The kind of tokenizer, or None and why there is none."""
    try:
        return {"tokenizer": Tokenizer.from_metadata(container.metadata).kind}
    except BitgenError as error:
        return {"tokenizer": None, "tokenizer_error": str(error)}
