"""What `bitgen info` says of a model file in words; the data is gguf/info.py's and api.info's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Facts = Mapping[str, Any]

WORDED: dict[str, Callable[[Facts], str]] = {
    "bytes": lambda f: f"{size(f['bytes'])} ({f['bytes']:,} bytes)",
    "tensors": lambda f: ", ".join(f"{count} {name}" for name, count in f["tensors"].items()),
    "heads": lambda f: f"{f['heads']} of {f['head_dim']}, {f['kv_heads']} for keys and values",
    "activation": lambda f: f"{f['activation']} ({f['activation_reason']})",
    "layer_norms": lambda f: ", ".join(f["layer_norms"]),
    "attention_gate": lambda f: "a gate for each head",
    "delta": lambda f: delta(f["delta"]),
    "state_bytes": lambda f: f"{size(f['state_bytes'])}, of which a session holds two",
    "hadamard": lambda f: rotation(f["hadamard"]),
    "qk_norm_after_rope": lambda f: "after RoPE",
    "head_tied": lambda f: head(f),
    "window": lambda f: f"{f['window']} positions, all in every {f['window_period']}th layer",
    "rope_theta": lambda f: rope(f),
    "scale_group": lambda f: (
        f"one for every {f['scale_group']} weights of a row" if f["scale_group"] else "one for each matrix"
    ),
    "parameters": lambda f: f"{f['parameters']:,}",
    "ternary_weights": lambda f: f"{f['ternary_weights']:,}" + ", all -1 or +1: binary" * f["binary"],
    "tokenizer": lambda f: f["tokenizer"] or f"none: {f['tokenizer_error']}",
    "kernels": lambda f: "",
}
"""Key -> its text, where the value alone does not say it."""
NAMES = {
    "bytes": "size",
    "layer_norms": "norms of a layer",
    "attention_gate": "attention",
    "delta": "layers that do not attend",
    "state_bytes": "state of a sequence",
    "hadamard": "rotation",
    "qk_norm_after_rope": "norms of q and k",
    "head_tied": "LM head",
    "rope_theta": "RoPE",
    "scale_group": "scales",
    "isa": "runs on",
}
"""Key -> what it is called, where the key without underscores is not clear."""
WITHIN = {
    "head_dim",
    "kv_heads",
    "activation_reason",
    "window_period",
    "rope_interleaved",
    "rope_dims",
    "rope_scaling",
    "ternary_embedding",
    "ternary_head",
    "binary",
    "tokenizer_error",
    "warning",
}
"""Keys that another one's text includes, or that is said elsewhere."""


def head(f: Facts) -> str:
    """Whose matrix gives logits, and whether it and the embedding are ternary."""
    whose = "tied to the embedding" if f["head_tied"] else "its own"
    kinds = {(True, True): ", ternary", (True, False): "; the embedding is ternary", (False, True): ", ternary"}
    return whose + kinds.get((f["ternary_embedding"], f["ternary_head"]), "")


STRETCHED = {
    "linear": "stretched {factor:g} times",
    "yarn": "stretched {factor:g} times from {original_context} positions by YaRN",
    "table": "stretched by a table of its own",
}
"""Kind of `rope_scaling` -> its text."""


def rope(f: Facts) -> str:
    """How rotary positions turn a head."""
    parts = ["adjacent pairs" if f["rope_interleaved"] else "half-rotation", f"theta {f['rope_theta']:g}"]
    if f["rope_dims"] != f["head_dim"]:
        parts.append(f"{f['rope_dims']} of {f['head_dim']} elements")
    if f["rope_scaling"]:
        parts.append(STRETCHED[f["rope_scaling"]["kind"]].format(**f["rope_scaling"]))
    return ", ".join(parts)


def delta(of: Mapping[str, int]) -> str:
    """The layers with Gated DeltaNet."""
    heads = f"{of['value_heads']} heads of {of['key_dim']} x {of['value_dim']}, {of['key_heads']} for queries and keys"
    return f"Gated DeltaNet, in all but every {of['period']}th: {heads}"


def rotation(of: Mapping[str, Any]) -> str:
    """What the input of ternary matrices goes through."""
    return f"Hadamard, blocks of {of['block']} columns, {'with' if of['signed'] else 'without'} signs"


def lines(facts: Facts) -> Iterator[str]:
    """A line for each fact: what it is called, and its text."""
    pairs = [(NAMES.get(key, key.replace("_", " ")), _text(facts, key)) for key in facts if key not in WITHIN]
    for role, kernel in facts.get("kernels", {}).items():
        pairs.append((f"{role} kernel", f"{kernel['layout']} ({kernel['source']})"))
    pairs = [(name, text) for name, text in pairs if text]
    width = max(len(name) for name, _ in pairs)
    for name, text in pairs:
        yield f"{name:<{width}}  {text}".replace("\n", "\\n")


def _text(facts: Facts, key: str) -> str:
    value = facts[key]
    if key in WORDED:
        return WORDED[key](facts)
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {each}" for name, each in value.items())
    return "unknown" if value is None else str(value)


def size(count: int) -> str:
    """Bytes in a unit that people read: 340.9 KiB."""
    amount, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{count} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
