"""Classes of transformers that ternary models have: what each implies, and its defaults for absent keys."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

_BITNET_DEFAULTS: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 30,
    "num_attention_heads": 20,
    "num_key_value_heads": 5,
    "hidden_act": "relu2",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "tie_word_embeddings": False,
}
_LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
_QWEN3_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
_GEMMA3_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
}


_HUNYUAN_DEFAULTS: dict[str, Any] = {
    "vocab_size": 290943,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
_MINICPM_DEFAULTS: dict[str, Any] = {
    **_LLAMA_DEFAULTS,
    "tie_word_embeddings": True,
    "scale_emb": 1,
    "dim_model_base": 1,
    "scale_depth": 1,
}
_QWEN35_DEFAULTS: dict[str, Any] = {
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "full_attention_interval": 4,
}


@dataclass(frozen=True)
class Family:
    """What a value of `architectures` implies."""

    gguf: str  # general.architecture of the GGUF, a row of ARCHITECTURES
    model_type: str  # by which transformers chooses its classes
    quantised_by: Literal["quantization_config", "weight_bits"]  # the key that says that the model is ternary
    defaults: dict[str, Any]  # key -> value of an absent key, from transformers' configuration class of that model_type
    norms: dict[str, str] = field(default_factory=dict)  # GGUF name -> module, of the norms that are not Llama's
    may_be_plain: bool = False  # without quantization_config the stored floats may be ternary
    gain_offset: float = 0.0  # is added to the stored weights of norms
    ntk_alpha: bool = False  # "dynamic" RoPE has a fixed alpha, which stretches its base
    partial_rotary: float = 0.0  # share of a head that RoPE turns, where config.json does not say; 0: it is all
    nested: bool = False  # the text model's keys are within text_config
    spare: tuple[str, ...] = ()  # how tensors begin that a text does not need


_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_QWEN3 = Family("qwen3", "qwen3", "quantization_config", _QWEN3_DEFAULTS, _QK_NORMS, may_be_plain=True)
_GEMMA3 = Family(
    "gemma3",
    "gemma3_text",
    "quantization_config",
    _GEMMA3_DEFAULTS,
    {
        **_QK_NORMS,
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    may_be_plain=True,
    gain_offset=1.0,
)
_QWEN35 = Family(
    "qwen35",
    "qwen3_5_text",
    "quantization_config",
    _QWEN35_DEFAULTS,
    _QK_NORMS,
    may_be_plain=True,
    gain_offset=1.0,
    partial_rotary=0.25,
    spare=("mtp.", "model.visual."),
)
FAMILIES: dict[str, Family] = {
    "BitNetForCausalLM": Family(
        "bitnet-b1.58",
        "bitnet",
        "quantization_config",
        _BITNET_DEFAULTS,
        {"attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"},
    ),
    "BitnetForCausalLM": Family(
        "bitnet",
        "llama",
        "weight_bits",
        _LLAMA_DEFAULTS,
        {"attn_sub_norm": "self_attn.inner_attn_ln", "ffn_sub_norm": "mlp.ffn_layernorm"},
    ),
    "LlamaForCausalLM": Family("llama", "llama", "quantization_config", _LLAMA_DEFAULTS, may_be_plain=True),
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3Model": _QWEN3,
    "Qwen3_5ForCausalLM": _QWEN35,
    "Qwen3_5ForConditionalGeneration": replace(_QWEN35, model_type="qwen3_5", nested=True),
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3TextModel": _GEMMA3,
    "HunYuanDenseV1ForCausalLM": Family(
        "hunyuan-dense",
        "hunyuan_v1_dense",
        "quantization_config",
        _HUNYUAN_DEFAULTS,
        {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
        may_be_plain=True,
        ntk_alpha=True,
    ),
    "MiniCPMForCausalLM": Family("minicpm", "minicpm", "quantization_config", _MINICPM_DEFAULTS, may_be_plain=True),
}
"""`architectures` -> family: the class of 2B4T, the custom code of bitnet_b1_58-{large, xl, 3B}, and classes of other
models that have ternary variants."""
