"""The tensors of a model by their GGUF names: which of them it has, and their shapes."""

from __future__ import annotations

from bitgen.spec import ModelShape

ORDER = (
    "attn_norm", "attn_q_norm_in", "attn_q", "attn_k_norm_in", "attn_k", "attn_v_norm_in", "attn_v",
    "attn_q_norm", "attn_k_norm", "attn_sub_norm", "attn_output_norm_in", "attn_output", "post_attention_norm",
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

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def tensor_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """GGUF name -> shape of every tensor of a model, in the order in which they are written."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    h, inter = shape.hidden, shape.intermediate
    matrices = {
        "attn_q": (q, h),
        "attn_k": (kv, h),
        "attn_v": (kv, h),
        "attn_output": (h, q),
        "ffn_gate": (inter, h),
        "ffn_up": (inter, h),
        "ffn_down": (h, inter),
    }
    norms = {name: (length,) for name, length in shape.norms.items()}
    layer: dict[str, tuple[int, ...]] = {name: (norms | matrices)[name] for name in ORDER if name in norms | matrices}
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocab, h), "output_norm.weight": (h,)}
    if not shape.tied:
        shapes["output.weight"] = (shape.vocab, h)
    return shapes | {f"blk.{n}.{name}.weight": dims for n in range(shape.layers) for name, dims in layer.items()}


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
