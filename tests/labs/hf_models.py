"""Tiny random Hugging Face checkpoints in the layouts of published models, made without bitgen's code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # transformers' BitNet code would compile itself, for minutes

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

torch.set_num_threads(1)  # tiny matrices: threads that wait for each other cost more than they give

VOCAB = 320
SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>"]


@dataclass(frozen=True)
class Tiny:
    """A tiny model: its config.json and how its linears are stored."""

    architecture: str
    linear: str  # "autobitlinear", "bitlinear", or "custom" for the 1bitLLM code
    hidden: int = 256
    inter: int = 384
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    act: str = "relu2"
    tied: bool = True
    eps: float = 1e-5
    theta: float = 10000.0
    online: bool = False
    unpacked: bool = False  # packed no more: transformers 4 saved loaded models as one float per code
    plain: bool = False  # no quantization_config: floats that are ternary
    group: int = 0  # columns of plain floats that share a scale; 0: a matrix has one
    input_norms: bool = False  # master weights and a norm in every linear, as in the embedding models
    fused: bool = False  # qkv_proj and gate_up_proj instead of their parts
    dtype: torch.dtype = torch.float32  # of the scales, norms and master weights on disk
    numbers: str = ""  # of embedding and head: a key of NUMBERS, or "" for multiples of 2**-10 that float16 holds
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def sub_norms(self) -> tuple[str, str] | None:
        return {
            "BitNetForCausalLM": ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm"),
            "BitnetForCausalLM": ("self_attn.inner_attn_ln", "mlp.ffn_layernorm"),
        }.get(self.architecture)

    @property
    def model_type(self) -> str:
        types = {"BitNetForCausalLM": "bitnet", "Qwen3": "qwen3", "Gemma3": "gemma3_text"}
        types |= {"HunYuanDense": "hunyuan_v1_dense", "MiniCPM": "minicpm"}
        return next((type for name, type in types.items() if self.architecture.startswith(name)), "llama")

    @property
    def prefix(self) -> str:
        """Classes without a head store their tensors without this."""
        return "model." if self.architecture.endswith("ForCausalLM") else ""

    def config(self) -> dict[str, Any]:
        """config.json in the spelling of transformers 4, as the published files have it."""
        config: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.inter,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": VOCAB,
            "max_position_embeddings": 128,
            "rope_theta": self.theta,
            "rms_norm_eps": self.eps,
            "hidden_activation" if self.model_type == "gemma3_text" else "hidden_act": self.act,
            "tie_word_embeddings": self.tied,
            "bos_token_id": VOCAB - 2,
            "eos_token_id": VOCAB - 1,
            "torch_dtype": "bfloat16",
        }
        if self.linear == "custom":
            config |= {"weight_bits": 1, "input_bits": 8}
        elif not (self.plain or self.input_norms):
            quantization = {"quant_method": "bitnet", "modules_to_not_convert": None}
            if self.linear == "autobitlinear":  # else absent, as in the published Llama files
                mode = "online" if self.online else "offline"
                quantization |= {"linear_class": "autobitlinear", "quantization_mode": mode}
            config["quantization_config"] = quantization
        return config | self.extra

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Module -> [M, K] of every ternary linear."""
        at = f"{self.prefix}layers."
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = {
            "self_attn.q_proj": (q, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, q),
            "mlp.gate_proj": (self.inter, self.hidden),
            "mlp.up_proj": (self.inter, self.hidden),
            "mlp.down_proj": (self.hidden, self.inter),
        }
        if self.fused:
            for module, parts in FUSED.items():
                m = sum(layer.pop(part)[0] for part in parts)
                layer[module] = (m, self.hidden)
        return {f"{at}{n}.{name}": mk for n in range(self.layers) for name, mk in layer.items()}

    def norms(self) -> dict[str, int]:
        """Module -> length of every norm."""
        lengths = {"input_layernorm": self.hidden, "post_attention_layernorm": self.hidden}
        if self.sub_norms:
            lengths |= dict(zip(self.sub_norms, (self.heads * self.head_dim, self.inter), strict=True))
        if self.model_type in ("qwen3", "gemma3_text"):
            lengths |= {"self_attn.q_norm": self.head_dim, "self_attn.k_norm": self.head_dim}
        if self.model_type == "hunyuan_v1_dense":
            lengths |= {"self_attn.query_layernorm": self.head_dim, "self_attn.key_layernorm": self.head_dim}
        if self.model_type == "gemma3_text":
            lengths |= {"pre_feedforward_layernorm": self.hidden, "post_feedforward_layernorm": self.hidden}
        at = f"{self.prefix}layers."
        layers = {f"{at}{n}.{name}": size for n in range(self.layers) for name, size in lengths.items()}
        inputs = {f"{module}.norm": k for module, (_, k) in self.matrices().items() if self.input_norms}
        return {**layers, **inputs, f"{self.prefix}norm": self.hidden}


FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


Numbers = Callable[[torch.Tensor], torch.Tensor]
NUMBERS: dict[str, tuple[Numbers, Numbers]] = {
    "f32": (lambda x: x, lambda x: x),
    "bf16-small": (
        lambda x: (1e-5 * x).bfloat16(),
        lambda x: (x * 10 ** (-6 * torch.rand(x.shape, generator=seeded(1)))).bfloat16(),
    ),
    "bf16-large": (lambda x: (x * 10 ** (7 * (torch.arange(len(x))[:, None] % 2))).bfloat16(), lambda x: x.half()),
}
"""What embedding and head make of normal numbers [rows, columns] of size 0.06, so that float16 does not hold them: of
their type, or bfloat16 below the normal range of float16, and above its range. Of a large head logits would be too."""


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_tensors(tiny: Tiny) -> dict[str, torch.Tensor]:
    """A state dict as on disk: packed linears with scales, or master weights; the rest in `tiny.dtype`.

    Embedding and head are multiples of 2**-10 that float16 and bfloat16 hold, so storing them costs nothing, unless
    `tiny.numbers` says otherwise.
    """
    rng = seeded(tiny.seed)
    packed = not (tiny.online or tiny.plain or tiny.input_norms) and tiny.linear != "custom"
    tensors: dict[str, torch.Tensor] = {}
    for module, (m, k) in tiny.matrices().items():
        if packed:
            scale = 0.02 + 0.02 * torch.rand(1, generator=rng)
            codes = torch.randint(-1, 2, (m, k), generator=rng)
            tensors[f"{module}.weight"] = codes.to(tiny.dtype) if tiny.unpacked else pack(codes)
            tensors[f"{module}.weight_scale"] = (scale if tiny.linear == "autobitlinear" else 1 / scale).to(tiny.dtype)
        elif tiny.group:  # scales that float16 and bfloat16 hold
            scales = torch.randint(64, 128, (m, k // tiny.group), generator=rng) / 4096
            codes = torch.randint(-1, 2, (m, k), generator=rng)
            tensors[f"{module}.weight"] = (codes * scales.repeat_interleave(tiny.group, dim=1)).to(tiny.dtype)
        elif tiny.plain:
            scale = 0.02 + 0.02 * torch.rand(1, generator=rng)
            tensors[f"{module}.weight"] = (torch.randint(-1, 2, (m, k), generator=rng) * scale).to(tiny.dtype)
        else:
            tensors[f"{module}.weight"] = (0.03 * torch.randn(m, k, generator=rng)).to(tiny.dtype)
    for module, size in tiny.norms().items():
        middle = 0 if tiny.model_type == "gemma3_text" and module not in {f"{m}.norm" for m in tiny.matrices()} else 1
        tensors[f"{module}.weight"] = (middle + 0.2 * torch.randn(size, generator=rng)).to(tiny.dtype)
    tables = [f"{tiny.prefix}embed_tokens"] + ([] if tiny.tied else ["lm_head"])
    for module in tables:
        steps = torch.randint(-100, 101, (VOCAB, tiny.hidden), generator=rng)
        tensors[f"{module}.weight"] = (steps / 1024).to(tiny.dtype)
        if tiny.numbers:
            made = NUMBERS[tiny.numbers][module == "lm_head"]
            tensors[f"{module}.weight"] = made(0.06 * torch.randn(VOCAB, tiny.hidden, generator=rng))
    return tensors


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Codes [M, K] -> uint8 [M/4, K], four quarters of the rows in the four bit pairs, low pair first."""
    quarters = (codes + 1).to(torch.uint8).chunk(4, dim=0)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def save(tiny: Tiny, directory: Path, shards: int = 1) -> Path:
    """Write config.json, the tokenizer and the weights in `shards` files; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    save_config(tiny, directory)
    save_tokenizer(directory)
    tensors = {name: t.contiguous() for name, t in random_tensors(tiny).items()}
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[i::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def save_config(tiny: Tiny, directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps(tiny.config()))


def save_tokenizer(directory: Path) -> None:
    """A byte-level BPE tokenizer of exactly VOCAB ids, the two specials last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = [" ".join(f"{a}{b}{a}" for a in "abcdefgh" for b in "aeiou") * 4]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=VOCAB - 2, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(SPECIALS)
    assert tokenizer.get_vocab_size() == VOCAB
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[0],
        "eos_token": SPECIALS[1],
        "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


BITNET = Tiny("BitNetForCausalLM", "autobitlinear", hidden=128, inter=256, layers=1, heads=2, kv_heads=1)
LLAMA = replace(BITNET, architecture="LlamaForCausalLM", linear="bitlinear", act="silu", tied=False)
ONEBIT = replace(BITNET, architecture="BitnetForCausalLM", linear="custom", act="silu")
TABLES = ("model.embed_tokens", "lm_head")
ATTN_Q, GATE = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate_proj"


NULL = object()
"""In edit_config: JSON's null."""


def edit_config(directory: Path, **changes: Any) -> None:
    """Set keys of config.json; None removes one, NULL sets null."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    kept = {key: None if value is NULL else value for key, value in config.items() if value is not None}
    path.write_text(json.dumps(kept))


def edit_quantization(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    edit_config(directory, quantization_config=config["quantization_config"] | changes)


def edit_tensors(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
