"""Hugging Face checkpoints of real size, sharded, written without PyTorch: sparse files, so they take no disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from bitgen.checkpoints import presets
from bitgen.spec import ModelShape

SHARD = 4 << 30
SAMPLE = 1 << 18
"""Random values at the start of every tensor; the rest are zeros, which a sparse file does not store."""


def save(preset: str, directory: Path) -> Path:
    """Master weights in bfloat16 of a Llama preset's shape, in shards of 4 GiB."""
    shape = presets.load(preset)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(_config(shape)))
    _save_tokenizer(directory)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = SHARD
    for name, dims in _tensors(shape):
        if room < 2 * int(np.prod(dims)):
            shards.append({})
            room = SHARD
        shards[-1][name] = dims
        room -= 2 * int(np.prod(dims))
    weight_map: dict[str, str] = {}
    for i, tensors in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        _save_shard(directory / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def _tensors(s: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    yield "model.embed_tokens.weight", (s.vocab, s.hidden)
    for n in range(s.layers):
        for name, dims in (
            ("self_attn.q_proj", (q, s.hidden)),
            ("self_attn.k_proj", (kv, s.hidden)),
            ("self_attn.v_proj", (kv, s.hidden)),
            ("self_attn.o_proj", (s.hidden, q)),
            ("mlp.gate_proj", (s.intermediate, s.hidden)),
            ("mlp.up_proj", (s.intermediate, s.hidden)),
            ("mlp.down_proj", (s.hidden, s.intermediate)),
            ("input_layernorm", (s.hidden,)),
            ("post_attention_layernorm", (s.hidden,)),
        ):
            yield f"model.layers.{n}.{name}.weight", dims
    yield "model.norm.weight", (s.hidden,)
    yield "lm_head.weight", (s.vocab, s.hidden)


def _save_shard(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    header, at = {}, 0
    for name, dims in tensors.items():
        end = at + 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    values = np.random.default_rng(len(tensors)).normal(0, 0.02, SAMPLE).astype(np.float32)
    sample = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        start = f.tell()
        for entry in header.values():
            begin, end = entry["data_offsets"]
            f.seek(start + begin)
            f.write(sample[: end - begin])
        f.truncate(start + at)


def _config(s: ModelShape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": s.hidden,
        "intermediate_size": s.intermediate,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "vocab_size": s.vocab,
        "max_position_embeddings": s.context,
        "rope_theta": s.rope_theta,
        "rms_norm_eps": s.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online",
        },
    }


def _save_tokenizer(directory: Path) -> None:
    """The 256 bytes and no merges; the ids beyond become fillers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: id for id, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(directory / "tokenizer.json"))
