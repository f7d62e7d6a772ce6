"""Hugging Face directories that are wrong or not supported: each is a clear error that names the file and the key."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the checkpoints are made with PyTorch")

import hf_models  # noqa: E402
from hf_models import (  # noqa: E402
    GATE,
    LLAMA,
    ONEBIT,
    edit_config,
    edit_quantization,
    edit_tensors,
)

from bitgen.convert import HfCheckpoint, convert  # noqa: E402
from bitgen.errors import BitgenError, FormatError, UnsupportedError  # noqa: E402

NULL = hf_models.NULL
REFUSED_CONFIG: dict[str, tuple[dict[str, Any], type[BitgenError], str]] = {
    "no architectures": ({"architectures": None}, FormatError, "architectures"),
    "two architectures": ({"architectures": ["A", "B"]}, FormatError, "architectures"),
    "unknown architecture": ({"architectures": ["GPT2LMHeadModel"]}, UnsupportedError, "'GPT2LMHeadModel'"),
    "unknown activation": ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act is 'gelu'"),
    "null size": ({"intermediate_size": NULL}, FormatError, "intermediate_size is null"),
    "null tie": ({"tie_word_embeddings": NULL}, FormatError, "tie_word_embeddings is null"),
    "another model_type": ({"model_type": "qwen3"}, UnsupportedError, "model_type is 'qwen3'"),
    "part of a head turns": ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor = 0.5"),
    "weights elsewhere": ({"transformers_weights": "other.safetensors"}, UnsupportedError, "transformers_weights"),
    "layers are a number": ({"layer_types": 1}, UnsupportedError, "layer_types"),
    "windows": ({"layer_types": ["sliding_attention"]}, UnsupportedError, "layer_types"),
    "two ropes": (
        {"rope_scaling": {"type": "linear", "factor": 1.0}, "rope_parameters": {"rope_theta": 1e4}},
        UnsupportedError,
        "rope_scaling and rope_parameters",
    ),
    "size of 5000 digits": ({"hidden_size": 10**4000}, FormatError, "hidden is 1000"),
    "theta of 400 digits": ({"rope_theta": 10**400}, FormatError, "rope_theta is 1000"),
    "theta is NaN": ({"rope_theta": float("nan")}, FormatError, "rope_theta is nan"),
    "eps is text": ({"rms_norm_eps": "1e-5"}, FormatError, "norm_eps is '1e-5'"),
    "a long text": ({"hidden_act": "x" * 10**6}, UnsupportedError, "hidden_act is 'xxx"),
    "size is text": ({"hidden_size": "128"}, FormatError, "hidden"),
    "size is zero": ({"num_hidden_layers": 0}, FormatError, "layers"),
    "size is true": ({"num_hidden_layers": True}, FormatError, "layers"),
    "heads do not divide": ({"num_key_value_heads": 3}, FormatError, "kv_heads"),
    "no heads": ({"num_attention_heads": 0, "head_dim": None}, FormatError, "head"),
    "eps is negative": ({"rms_norm_eps": -1e-5}, FormatError, "eps"),
    "dynamic rope": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        UnsupportedError,
        "rope_parameters asks for 'dynamic' RoPE, which is not supported; known: default",
    ),
    "incomplete llama3 rope": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        FormatError,
        "rope_scaling.low_freq_factor is None",
    ),
    "llama3 rope upside down": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 1}},
        FormatError,
        "low_freq_factor must be less",
    ),
    "linear rope without factor": ({"rope_scaling": {"type": "linear"}}, FormatError, "rope_scaling.factor is None"),
    "unknown key of rope": (
        {"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}},
        UnsupportedError,
        "'beta' has no meaning in linear RoPE",
    ),
    "shrinking rope": ({"rope_scaling": {"type": "linear", "factor": 0.5}}, FormatError, "factor is 0.5"),
    "short table": (
        {"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}},
        FormatError,
        "short_factor must be a list of",
    ),
    "original context": (
        {"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": "4k"}},
        FormatError,
        "original_max_position_embeddings is '4k'",
    ),
    "rope is text": ({"rope_scaling": "yarn"}, FormatError, "rope_scaling"),
    "not quantised": ({"quantization_config": None}, UnsupportedError, "quant_method must be 'bitnet'"),
    "bias": ({"attention_bias": True}, UnsupportedError, "attention_bias = True"),
    "other method": ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedError, "'bitnet'"),
}

REFUSED_QUANTIZATION: dict[str, tuple[dict[str, Any], str]] = {
    "inner norm": ({"use_rms_norm": True}, "use_rms_norm"),
    "some linears kept": ({"modules_to_not_convert": ["lm_head", "o_proj"]}, "modules_to_not_convert"),
    "head quantised too": ({"modules_to_not_convert": []}, "modules_to_not_convert"),
    "unknown class": ({"linear_class": "turbolinear"}, "'turbolinear'"),
    "online bitlinear": ({"linear_class": "bitlinear", "quantization_mode": "online"}, "'online'"),
}


@pytest.mark.parametrize("case", REFUSED_CONFIG.values(), ids=REFUSED_CONFIG)
def test_refused_config(case: tuple[dict[str, Any], type[BitgenError], str], directory: Path) -> None:
    changes, kind, message = case
    edit_config(directory, **changes)
    with pytest.raises(kind, match=message) as caught:
        HfCheckpoint(directory)
    assert "config.json" in str(caught.value) and len(str(caught.value)) < len(str(directory)) + 400


@pytest.mark.parametrize("case", REFUSED_QUANTIZATION.values(), ids=REFUSED_QUANTIZATION)
def test_refused_quantization(case: tuple[dict[str, Any], str], directory: Path) -> None:
    edit_quantization(directory, **case[0])
    with pytest.raises(UnsupportedError, match=case[1]):
        HfCheckpoint(directory)


def test_1bitllm_must_be_one_bit(tmp_path: Path) -> None:
    hf_models.save(ONEBIT, tmp_path)
    edit_config(tmp_path, weight_bits=4)
    with pytest.raises(UnsupportedError, match="weight_bits"):
        HfCheckpoint(tmp_path)


BROKEN_JSON = {
    "empty": b"",
    "cut": b"{",
    "array": b"[]",
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "half a pair": b'{"a": "\\ud800"}',
    "digits without end": b'{"a": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", BROKEN_JSON.values(), ids=BROKEN_JSON)
@pytest.mark.parametrize(
    "file",
    [
        "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "added_tokens.json",
        "special_tokens_map.json", "1_Pooling/config.json",
    ],
)  # fmt: skip
def test_broken_json(directory: Path, tmp_path: Path, file: str, content: bytes) -> None:
    path = directory / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(FormatError, match=re.escape(file)) as caught:
        convert(directory, tmp_path / "m.gguf")
    assert len(str(caught.value)) < 400 and not (tmp_path / "m.gguf").exists()


def test_a_folder_in_the_place_of_a_file(directory: Path, tmp_path: Path) -> None:
    (directory / "added_tokens.json").mkdir()
    with pytest.raises(FormatError, match=r"added_tokens\.json is not a file"):
        convert(directory, tmp_path / "m.gguf")


def test_an_adapter_is_not_ignored(directory: Path) -> None:
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="merge it"):
        HfCheckpoint(directory)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"config\.json is missing"):
        HfCheckpoint(tmp_path / "nowhere")


REFUSED_TENSORS: dict[str, tuple[Callable[[dict[str, Any]], Any], type[BitgenError], str]] = {
    "missing matrix": (lambda t: t.pop(f"{GATE}.weight"), FormatError, f"{GATE}.weight is missing"),
    "missing scale": (lambda t: t.pop(f"{GATE}.weight_scale"), FormatError, "weight_scale is missing"),
    "missing norm": (lambda t: t.pop("model.norm.weight"), FormatError, "model.norm.weight is missing"),
    "wrong shape": (lambda t: t.update({f"{GATE}.weight": t[f"{GATE}.weight"][:-1]}), FormatError, GATE),
    "scale per row": (
        lambda t: t.update({f"{GATE}.weight_scale": torch.ones(256)}),
        FormatError,
        "weight_scale",
    ),
    "a bias": (lambda t: t.update({f"{GATE}.bias": torch.ones(256)}), UnsupportedError, f"{GATE}.bias"),
    "norm in linear": (
        lambda t: t.update({f"{GATE}.rms_norm.weight": torch.ones(128)}),
        UnsupportedError,
        "rms_norm",
    ),
}


@pytest.mark.parametrize("case", REFUSED_TENSORS.values(), ids=REFUSED_TENSORS)
def test_refused_tensors(case: tuple[Callable[[dict[str, Any]], Any], type[BitgenError], str], directory: Path) -> None:
    """Missing, misshapen and unknown tensors are found on opening, before any work."""
    edit_tensors(directory, case[0])
    with pytest.raises(case[1], match=case[2]):
        HfCheckpoint(directory)


def test_untied_needs_a_head(directory: Path) -> None:
    edit_config(directory, tie_word_embeddings=False)
    with pytest.raises(FormatError, match=r"lm_head\.weight is missing"):
        HfCheckpoint(directory)


REFUSED_VALUES: dict[str, tuple[str, Any, str]] = {
    "code 3": (f"{GATE}.weight", torch.full((64, 128), 0b11010101, dtype=torch.uint8), "code 3"),
    "packed in another type": (f"{GATE}.weight", torch.ones(64, 128), "packed ternary weights are U8"),
    "neither packed nor ternary": (f"{GATE}.weight", torch.full((256, 128), 0.5), "not ternary"),
    "scale is NaN": (f"{GATE}.weight_scale", torch.tensor([float("nan")]), "NaN"),
    "scale is infinite": (f"{GATE}.weight_scale", torch.tensor([float("inf")]), "infinite"),
    "scale is zero": (f"{GATE}.weight_scale", torch.zeros(1), "is no scale"),
    "scale is an integer": (f"{GATE}.weight_scale", torch.ones(1, dtype=torch.int32), "not a float type"),
}


@pytest.mark.parametrize("case", REFUSED_VALUES.values(), ids=REFUSED_VALUES)
def test_refused_values(case: tuple[str, Any, str], directory: Path) -> None:
    name, value, message = case
    edit_tensors(directory, lambda t: t.update({name: value}))
    checkpoint = HfCheckpoint(directory)
    with pytest.raises(FormatError, match=message) as caught:
        checkpoint.ternary("blk.0.ffn_gate.weight")
    assert name in str(caught.value)


def test_scale_so_small_that_its_inverse_overflows(tmp_path: Path) -> None:
    hf_models.save(LLAMA, tmp_path)
    edit_tensors(tmp_path, lambda t: t[f"{GATE}.weight_scale"].fill_(1e-42))
    with pytest.raises(FormatError, match="weight_scale"):
        HfCheckpoint(tmp_path).ternary("blk.0.ffn_gate.weight")


def test_master_weights_with_nan(tmp_path: Path) -> None:
    hf_models.save(ONEBIT, tmp_path)
    edit_tensors(tmp_path, lambda t: t[f"{GATE}.weight"].fill_(float("nan")))
    with pytest.raises(FormatError, match=f"{GATE}.weight holds NaN"):
        HfCheckpoint(tmp_path).ternary("blk.0.ffn_gate.weight")


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.1.attn_q.weight", "nonsense", "output.weight"])
def test_unknown_names(directory: Path, name: str) -> None:
    checkpoint = HfCheckpoint(directory)
    for read in (checkpoint.ternary, checkpoint.dense):
        with pytest.raises(FormatError, match=r"no (ternary|float) tensor"):
            read(name)


def test_a_tensor_is_ternary_or_not(directory: Path) -> None:
    checkpoint = HfCheckpoint(directory)
    with pytest.raises(FormatError, match="no ternary tensor token_embd"):
        checkpoint.ternary("token_embd.weight")
    with pytest.raises(FormatError, match="no float tensor blk"):
        checkpoint.dense("blk.0.attn_q.weight")
