"""A model file described as data: what `bitgen info` prints."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from bitgen.checkpoints.tensors import is_ternary
from bitgen.errors import BitgenError, UnsupportedError
from bitgen.gguf import i2s_layout
from bitgen.gguf.container import Container
from bitgen.gguf.reader import GgufCheckpoint
from bitgen.spec import ModelShape
from bitgen.text.tokenizer import Tokenizer


def describe(path: str | Path) -> dict[str, Any]:
    """Facts about a GGUF file, ready to print or to dump as JSON.

    A sound file that bitgen cannot run is described as far as possible, with the reason under "unsupported".
    FormatError: the file is broken.
    """
    container = Container(path)
    architecture = container.metadata.get("general.architecture")
    facts: dict[str, Any] = {
        "file": str(container.path),
        "size": _size(container.size),
        "architecture": architecture if isinstance(architecture, str) else None,
        "tensors": _tensors(container),
    }
    try:
        checkpoint = GgufCheckpoint(container)
    except UnsupportedError as error:
        return facts | {"unsupported": str(error)}
    if warning := i2s_layout.warning(checkpoint):
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
        "heads": f"{s.heads} of {s.head_dim}, {s.kv_heads} for keys and values",
        "vocabulary": s.vocab,
        "context": s.context,
        "activation": f"{s.activation} ({why})",
        "norms in a layer": ", ".join(s.norms),
        "head": "tied to the embedding" if s.tied else "its own",
        **({"window": f"{s.window} positions, all in every {s.window_period}th layer"} if s.window else {}),
        "rope": f"{'adjacent pairs' if s.rope_interleaved else 'half-rotation'}, theta {s.rope_theta:g}",
        "norm epsilon": s.norm_eps,
    }


def _weights(container: Container) -> dict[str, Any]:
    """Numbers of parameters and of ternary weights, and the bits that they take."""
    ternary = [t for t in container.tensors.values() if is_ternary(t.name)]
    weights, nbytes = sum(t.elements for t in ternary), sum(t.nbytes or 0 for t in ternary)
    parameters = sum(t.elements for t in container.tensors.values())
    return {
        "parameters": parameters,
        "ternary weights": weights,
        "bits per ternary weight": round(8 * nbytes / weights, 3),
        "bits per parameter": round(8 * container.size / parameters, 3),
    }


def _tokenizer(container: Container) -> dict[str, Any]:
    """The kind of tokenizer, or why there is none."""
    try:
        return {"tokenizer": Tokenizer.from_metadata(container.metadata).kind}
    except BitgenError as error:
        return {"tokenizer": f"none: {error}"}


def _size(nbytes: int) -> str:
    """Bytes for people."""
    amount, unit = float(nbytes), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{nbytes} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
