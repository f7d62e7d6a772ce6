"""The tensors of a model by their GGUF names: which of them it has, and their shapes."""

from __future__ import annotations

from bitgen.spec import ModelShape

ORDER = (
    "attn_norm", "attn_q_norm_in", "attn_q", "attn_k_norm_in", "attn_k", "attn_v_norm_in", "attn_v",
    "attn_q_norm", "attn_k_norm", "attn_sub_norm", "attn_output_norm_in", "attn_output", "post_attention_norm",
    "attn_qkv", "attn_gate", "ssm_conv1d", "ssm_beta", "ssm_alpha", "ssm_dt", "ssm_a", "ssm_norm", "ssm_out",
    "ffn_norm", "ffn_gate_norm_in", "ffn_gate", "ffn_up_norm_in", "ffn_up",
    "ffn_sub_norm", "ffn_down_norm_in", "ffn_down", "post_ffw_norm",
)  # fmt: skip
"""The tensors that a layer can have, in the order in which they are written and used."""

FUSED: dict[str, tuple[str, ...]] = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "o": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
    "delta_in": ("attn_qkv", "attn_gate"),
    "delta_out": ("ssm_out",),
    "q": ("attn_q",),
    "k": ("attn_k",),
    "v": ("attn_v",),
    "gate": ("ffn_gate",),
    "up": ("ffn_up",),
}
"""Role of a matrix -> the GGUF names of its parts, top to bottom."""

MATRICES = tuple(dict.fromkeys(part for parts in FUSED.values() for part in parts))
"""The ternary matrices that a layer can have."""

ENDINGS = {"ssm_dt": ".bias", "ssm_a": ""}
"""Tensors of a layer whose names do not end in ".weight" -> how they end."""

SIGNS = "hadamard_signs."
"""Before a width: the name of its signs, float32 [width] of 1 and -1. A file has them among its keys."""


def tensor_name(layer: int, part: str) -> str:
    """(3, "attn_q") -> "blk.3.attn_q.weight"."""
    return f"blk.{layer}.{part}{ENDINGS.get(part, '.weight')}"


def part_of(name: str) -> str:
    """ "blk.3.attn_q.weight" -> "attn_q"; "token_embd.weight" -> "token_embd"."""
    *_, part = name.removesuffix(".weight").removesuffix(".bias").split(".")
    return part


def tensor_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """GGUF name -> shape of every tensor of a model, in the order in which they are written."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape.vocab, shape.hidden),
        "output_norm.weight": (shape.hidden,),
    }
    if not shape.tied:
        shapes["output.weight"] = (shape.vocab, shape.hidden)
    for n in range(shape.layers):
        of = _matrices(shape, n) | _delta_floats(shape, n)
        of |= {name: (length,) for name, length in shape.layer_norms(n).items()}
        shapes |= {tensor_name(n, part): of[part] for part in ORDER if part in of}
    return shapes


def sign_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the signs of a model's rotation, by rising width; none where it has no signs."""
    signed = shape.hadamard is not None and shape.hadamard.signed
    widths = {gemm.k for gemm in shape.matrices.values()} if signed else ()
    return {f"{SIGNS}{width}": (width,) for width in sorted(widths)}


def _matrices(shape: ModelShape, layer: int) -> dict[str, tuple[int, ...]]:
    """The ternary matrices of one layer."""
    return {
        part: (rows, shape.matrices[role].k)
        for role in shape.layer_roles(layer)
        for part, rows in zip(FUSED[role], shape.segments[role], strict=True)
    }


def _delta_floats(shape: ModelShape, layer: int) -> dict[str, tuple[int, ...]]:
    """The float tensors of a layer with Gated DeltaNet, but for its norms."""
    if shape.delta is None or shape.attends(layer):
        return {}
    heads = shape.delta.value_heads
    return {
        "ssm_conv1d": (shape.delta.channels, shape.delta.taps),
        **dict.fromkeys(("ssm_beta", "ssm_alpha"), (heads, shape.hidden)),
        **dict.fromkeys(("ssm_dt", "ssm_a"), (heads,)),
    }


def head_name(shape: ModelShape) -> str:
    """The name of the matrix that gives logits."""
    return "token_embd.weight" if shape.tied else "output.weight"


def ternary_ends(shape: ModelShape) -> tuple[str, ...]:
    """The names of embedding and head, as far as they are ternary: `Checkpoint.ternary_rows` reads them."""
    found = (("token_embd.weight", shape.ternary_embedding), (head_name(shape), shape.ternary_head))
    return tuple(dict.fromkeys(name for name, has in found if has))


def is_ternary(name: str) -> bool:
    """Whether a tensor is one of the ternary matrices of a layer."""
    parts = name.split(".")
    return len(parts) == 4 and parts[0] == "blk" and parts[2] in MATRICES and parts[3] == "weight"


def is_beyond(name: str, layers: int) -> bool:
    """Whether a tensor is of a layer behind the first `layers`."""
    block, layer, *_ = (*name.split("."), "")
    return block == "blk" and layer.isdecimal() and int(layer) >= layers
