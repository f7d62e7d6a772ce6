"""Tiny random Qwen 3.5 checkpoints in the layouts of transformers, made without bitgen's code."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hf_models
import torch
import transformers
from hf_models import VOCAB, seeded
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Tiny35:
    """A tiny model: layers 0, 1 and 3 have Gated DeltaNet, layer 2 attends."""

    group: int = 64  # columns of a row that share a scale; 0: a matrix has one
    key_heads: int = 2
    value_heads: int = 6
    key_dim: int = 32
    value_dim: int = 64
    taps: int = 4
    tied: bool = False
    nested: bool = False  # the text model of a model that sees pictures, with some tensors of those, and of its MTP
    dtype: torch.dtype = torch.float32  # of all but A_log
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def text_config(self) -> dict[str, Any]:
        return {
            "model_type": "qwen3_5_text",
            "vocab_size": VOCAB,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": self.tied,
            "full_attention_interval": 3,
            "linear_conv_kernel_dim": self.taps,
            "linear_key_head_dim": self.key_dim,
            "linear_value_head_dim": self.value_dim,
            "linear_num_key_heads": self.key_heads,
            "linear_num_value_heads": self.value_heads,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.25,
                "mrope_section": [3, 3, 2],
                "mrope_interleaved": True,
            },
            "eos_token_id": VOCAB - 1,
            **self.extra,
        }

    def config(self) -> dict[str, Any]:
        text = self.text_config()
        if not self.nested:
            return {"architectures": ["Qwen3_5ForCausalLM"], **text}
        return {
            "architectures": ["Qwen3_5ForConditionalGeneration"],
            "model_type": "qwen3_5",
            "tie_word_embeddings": self.tied,
            "text_config": text,
            "vision_config": {"model_type": "qwen3_5", "depth": 1, "hidden_size": 64},
        }


def random_tensors(tiny: Tiny35) -> dict[str, torch.Tensor]:
    """The state dict of the text model, named as Qwen3_5ForCausalLM names it, ternary where its linears are."""
    rng, model = seeded(tiny.seed), empty(tiny)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=rng)

    tensors: dict[str, torch.Tensor] = {}
    for name, like in model.state_dict().items():
        module, shape = name.removesuffix(".weight"), like.shape
        if tiny.tied and module == "lm_head":
            continue
        if module.endswith(("in_proj_a", "in_proj_b")):
            value = 0.1 * normal(*shape)
        elif module.endswith(("_proj", "in_proj_qkv", "in_proj_z")):
            groups = (shape[0], shape[1] // tiny.group) if tiny.group else (1, 1)
            scales = torch.randint(64, 128, groups, generator=rng) / 1024  # float16 and bfloat16 hold them
            codes = torch.randint(-1, 2, shape, generator=rng)
            value = codes * scales.repeat_interleave(shape[1] // groups[1], dim=1)
        elif module.endswith("conv1d"):
            value = 0.5 * normal(*shape)
        elif module.endswith("A_log"):
            value = torch.log(0.05 + 2 * torch.rand(shape, generator=rng))
        elif module.endswith("dt_bias"):
            value = normal(*shape) - 1
        elif module.endswith("linear_attn.norm"):
            value = 1 + 0.2 * normal(*shape)
        elif module.endswith("norm"):
            value = 0.2 * normal(*shape)
        else:  # embedding and head
            value = torch.randint(-100, 101, shape, generator=rng) / 1024
        tensors[name] = value.to(torch.float32 if module.endswith("A_log") else tiny.dtype)
    return tensors


def save(tiny: Tiny35, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(tiny.config()))
    hf_models.save_tokenizer(directory)
    tensors = random_tensors(tiny)
    if tiny.nested:
        tensors = {
            name.replace("model.", "model.language_model.") if name.startswith("model.") else name: tensor
            for name, tensor in tensors.items()
        }
        tensors["model.visual.blocks.0.mlp.linear_fc1.weight"] = torch.ones(8, 4)
        tensors["model.visual.patch_embed.proj.weight"] = torch.ones(8, 3, 2, 4, 4)
        tensors["mtp.fc.weight"] = torch.ones(4, 8)
    save_file({name: t.contiguous() for name, t in tensors.items()}, directory / "model.safetensors", {"format": "pt"})
    return directory


def empty(tiny: Tiny35) -> Any:
    config = transformers.Qwen3_5TextConfig(**tiny.text_config())
    return transformers.Qwen3_5ForCausalLM._from_config(config, attn_implementation="eager").float().eval()


class Torch35:
    """A checkpoint in transformers, in float32."""

    def __init__(self, tiny: Tiny35, directory: Path) -> None:
        stored = load_file(directory / "model.safetensors")
        tensors = {name.replace(".language_model", ""): t.float() for name, t in stored.items()}
        self.model = empty(tiny)
        missing, unexpected = self.model.load_state_dict(tensors, strict=False)
        assert set(missing) <= {"lm_head.weight"} and all(n.startswith(("mtp.", "model.visual.")) for n in unexpected)
        self.model.tie_weights()

    def logits(self, tokens: list[int]) -> Any:
        """Logits float32 [n, vocab]."""
        with torch.no_grad():
            return self.model(torch.tensor(tokens)[None]).logits[0].numpy()
