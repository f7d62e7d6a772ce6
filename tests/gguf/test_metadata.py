"""What key-values say of a model, and which of them are refused."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf_files import SHAPES, SMALLEST, TINY, TINY_LLAMA, changed, floats

from bitgen.checkpoints.architectures import layer_period
from bitgen.errors import FormatError, UnsupportedError
from bitgen.gguf import types
from bitgen.gguf.reader import read_gguf


def renamed(architecture: str, **keys: object):
    """A change of architecture, with keys of it added."""

    def change(metadata: dict, tensors: dict) -> None:
        old = metadata["general.architecture"]
        for key in [k for k in metadata if k.startswith(f"{old}.")]:
            metadata[architecture + key.removeprefix(old)] = metadata.pop(key)
        metadata["general.architecture"] = architecture
        del metadata[f"{architecture}.hidden_activation"]
        metadata |= {f"{architecture}.{key}": value for key, value in keys.items()}

    return change


@pytest.mark.parametrize(
    ("architecture", "keys", "vocab", "override", "activation", "reason"),
    [
        ("bitnet", {}, 300, None, "silu", "architecture bitnet"),
        ("bitnet-25", {}, 300, None, "relu2", "architecture bitnet-25"),
        ("bitnet-b1.58", {}, 300, None, "relu2", "architecture bitnet-b1.58"),
        ("bitnet-b1.58", {}, 32002, None, "silu", "32002"),
        ("bitnet-b1.58", {"hidden_activation": "relu2"}, 32002, None, "relu2", "hidden_activation"),
        ("bitnet", {"hidden_activation": "relu2"}, 300, None, "relu2", "hidden_activation"),
        ("bitnet-b1.58", {"hidden_activation": "silu"}, 300, None, "silu", "hidden_activation"),
        ("bitnet-b1.58", {"hidden_activation": "silu"}, 300, "relu2", "relu2", "caller"),
    ],
)
def test_activation_rule(
    tmp_path: Path,
    architecture: str,
    keys: dict,
    vocab: int,
    override: str | None,
    activation: str,
    reason: str,
) -> None:
    shape = dataclasses.replace(SMALLEST, vocab=vocab)
    path = changed(tmp_path / "m.gguf", renamed(architecture, **keys), shape=shape)
    checkpoint = read_gguf(path, activation=override)
    assert checkpoint.shape.activation == activation and reason in checkpoint.activation_reason
    assert checkpoint.shape.sub_norms and not checkpoint.shape.rope_interleaved


def test_llama_files_turn_adjacent_pairs(tmp_path: Path) -> None:
    shape = read_gguf(changed(tmp_path / "m.gguf", lambda m, t: None, shape=TINY_LLAMA)).shape
    assert shape == TINY_LLAMA and shape.rope_interleaved and shape.activation == "silu" and not shape.tied


@pytest.mark.parametrize(
    ("keys", "window"),
    [
        ({"attention.sliding_window": 9}, (9, 6, 10000.0)),
        ({"attention.sliding_window": 9, "attention.sliding_window_pattern": np.array([True, False])}, (9, 2, 10000.0)),
        ({"attention.sliding_window": 9, "rope.freq_base_swa": 500.0}, (9, 6, 500.0)),
        ({}, (0, 1, 10000.0)),
        ({"attention.sliding_window": 0}, (0, 1, 10000.0)),
    ],
)
def test_windows_of_gemma3(keys: dict, window: tuple, tmp_path: Path) -> None:
    def change(metadata: dict, tensors: dict) -> None:
        metadata |= {f"gemma3.{key}": value for key, value in keys.items()}

    shape = read_gguf(changed(tmp_path / "m.gguf", change, shape=SHAPES["gemma3"])).shape
    assert (shape.window, shape.window_period, shape.window_theta) == window
    assert shape.embedding_scale == 16 and shape.qk_norm and shape.post_norms and not shape.input_norms


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("qwen3", "rope.scaling.type", "dynamic"),
        ("qwen3", "attention.sliding_window", 512),
        ("gemma3", "final_logit_softcapping", 30.0),
        ("gemma3", "attention.causal", False),
        ("gemma3", "attention.sliding_window_pattern", np.array([False, True])),
    ],
)
def test_variants_are_refused(name: str, key: str, value: object, tmp_path: Path) -> None:
    shape = dataclasses.replace(SHAPES[name], window=9 * (name == "gemma3"))
    path = changed(tmp_path / "m.gguf", lambda m, t: m.update({f"{name}.{key}": value}), shape=shape)
    with pytest.raises(UnsupportedError, match="not supported"):
        read_gguf(path)


def test_scales_of_minicpm(tmp_path: Path) -> None:
    """As llama.cpp's converter writes them. A file without one is refused: defaults would be a guess."""
    shape = SHAPES["minicpm"]
    path = changed(tmp_path / "m.gguf", lambda m, t: None, shape=shape)
    assert read_gguf(path).shape == shape
    for key in ("embedding_scale", "residual_scale", "logit_scale"):
        changed(path, lambda m, t, key=key: m.pop(f"minicpm.{key}"), shape=shape)
        with pytest.raises(FormatError, match=f"the key minicpm.{key} is missing"):
            read_gguf(path)
        for bad in (0.0, -1.0, math.inf):
            changed(path, lambda m, t, key=key, bad=bad: m.update({f"minicpm.{key}": bad}), shape=shape)
            with pytest.raises(FormatError, match=r"_scale|logit_divisor"):
                read_gguf(path)


def test_scales_of_other_models_are_refused(tmp_path: Path) -> None:
    for key, value in (("residual_scale", 0.5), ("logit_scale", 2.0), ("embedding_scale", 12.0)):
        path = changed(tmp_path / "m.gguf", lambda m, t, k=key, v=value: m.update({f"llama.{k}": v}), shape=TINY_LLAMA)
        with pytest.raises(UnsupportedError, match=f"llama.{key} = {value:g} is not supported"):
            read_gguf(path)
    path = changed(tmp_path / "m.gguf", lambda m, t: m.update({"llama.residual_scale": 1.0}), shape=TINY_LLAMA)
    assert read_gguf(path).shape == TINY_LLAMA


def test_a_hunyuan_file_of_llama_cpp(tmp_path: Path) -> None:
    """Its converter stretches the base of RoPE and says that nothing else is scaled."""
    shape, arch = SHAPES["hunyuan"], "hunyuan-dense"

    def change(metadata: dict, tensors: dict) -> None:
        del metadata[f"{arch}.hidden_activation"]
        metadata |= {
            f"{arch}.rope.scaling.type": "none",
            f"{arch}.rope.scaling.factor": 1.0,
            f"{arch}.rope.scaling.original_context_length": 262144,
            f"{arch}.attention.key_length": 64,
            f"{arch}.attention.value_length": 64,
        }

    assert read_gguf(changed(tmp_path / "m.gguf", change, shape=shape)).shape == shape


@pytest.mark.parametrize("windowed", [*itertools.product([False, True], repeat=6), [True] * 25, [1, 0, 1, 0]])
def test_the_period_of_windows_is_the_least_that_fits(windowed: Sequence[bool]) -> None:
    def fits(period: int) -> bool:
        return all(bool(flag) == ((i + 1) % period != 0) for i, flag in enumerate(windowed))

    least = next(filter(fits, range(1, len(windowed) + 2)), None)
    if least is None:
        with pytest.raises(UnsupportedError, match="follow no period"):
            layer_period(windowed, "m.gguf")
    else:
        assert layer_period(windowed, "m.gguf") == least


def test_a_flag_is_missing(tmp_path: Path) -> None:
    keys = {"gemma3.attention.sliding_window": 9, "gemma3.attention.sliding_window_pattern": np.array([True])}
    path = changed(tmp_path / "m.gguf", lambda m, t: m.update(keys), shape=SHAPES["gemma3"])
    with pytest.raises(FormatError, match="has 1 flags for 2 layers"):
        read_gguf(path)


def test_norms_may_be_float16(tmp_path: Path) -> None:
    """As the embedding models' files have them."""
    name, shape = "blk.1.attn_k_norm_in.weight", SHAPES["qwen3 inputs"]

    def change(metadata: dict, tensors: dict) -> None:
        tensors[name] = floats(np.linspace(0.5, 1.5, TINY.hidden), types.F16)

    checkpoint = read_gguf(changed(tmp_path / "m.gguf", change, shape=shape))
    assert checkpoint.shape == dataclasses.replace(shape, name=checkpoint.shape.name)
    assert checkpoint.dense(name).dtype == np.float16


def test_defaults_where_keys_are_absent(tmp_path: Path) -> None:
    def change(metadata: dict, tensors: dict) -> None:
        for key in ("rope.dimension_count", "attention.head_count_kv", "rope.freq_base", "vocab_size"):
            del metadata[f"bitnet-b1.58.{key}"]
        del metadata["general.name"]

    shape = dataclasses.replace(TINY, kv_heads=4)
    assert read_gguf(changed(tmp_path / "tiny.gguf", change, shape=shape)).shape == shape


@pytest.mark.parametrize(
    ("key", "value", "error", "reason"),
    [
        ("general.architecture", "qwen2", UnsupportedError, "architecture 'qwen2'"),
        ("general.architecture", 3, FormatError, "general.architecture is 3; expected str"),
        ("general.alignment", 33, FormatError, "general.alignment is 33"),
        ("bitnet-b1.58.hidden_activation", "gelu", UnsupportedError, "activation 'gelu'"),
        ("bitnet-b1.58.attention.head_count", np.array([4, 4]), UnsupportedError, "has 2 values; only one can be read"),
        ("bitnet-b1.58.block_count", "2", FormatError, "block_count is '2'"),
        ("bitnet-b1.58.block_count", 1 << 40, FormatError, "layers is 1099511627776"),
        ("bitnet-b1.58.block_count", 1, UnsupportedError, "blk.1.attn_norm.weight has no place"),
        ("bitnet-b1.58.block_count", 3, FormatError, "blk.2.attn_norm.weight is missing"),
        ("bitnet-b1.58.embedding_length", 128, FormatError, "cannot turn pairs of 64 elements of a head of 32"),
        ("bitnet-b1.58.feed_forward_length", 500, FormatError, "ffn_gate.weight"),
        ("bitnet-b1.58.attention.head_count", 0, FormatError, "head_count is 0"),
        ("bitnet-b1.58.attention.head_count", 3, FormatError, "3 heads are not a multiple of 2"),
        ("bitnet-b1.58.rope.dimension_count", 63, FormatError, "cannot turn pairs of 63 elements of a head of 64"),
        ("bitnet-b1.58.attention.key_length", 32, FormatError, "cannot turn pairs of 64 elements of a head of 32"),
        ("bitnet-b1.58.attention.value_length", 32, UnsupportedError, "heads of 64 and values of 32"),
        ("bitnet-b1.58.attention.layer_norm_rms_epsilon", math.nan, FormatError, "norm_eps is nan"),
        ("bitnet-b1.58.rope.freq_base", np.float64(1e300), FormatError, "rope_theta is inf"),
        ("bitnet-b1.58.expert_count", 8, UnsupportedError, "expert_count = 8"),
        ("bitnet-b1.58.vocab_size", 301, FormatError, "vocab_size is 301"),
        ("tokenizer.ggml.tokens", ["a"] * 301, FormatError, "301 tokens"),
    ],
)
def test_wrong_keys_are_named(tmp_path: Path, key: str, value: object, error: type, reason: str) -> None:
    path = changed(tmp_path / "m.gguf", lambda metadata, tensors: metadata.update({key: value}))
    with pytest.raises(error, match=reason) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)


def test_unknown_options_are_errors(tmp_path: Path) -> None:
    path = changed(tmp_path / "m.gguf", lambda m, t: None)
    with pytest.raises(UnsupportedError, match="I2_S layout 'avx'"):
        read_gguf(path, i2s_layout="avx")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="'gelu' \\(chosen by the caller\\)"):
        read_gguf(path, activation="gelu")
