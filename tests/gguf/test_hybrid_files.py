"""Files of hybrid models: keys and tensors of Gated DeltaNet, and of a rotation, read, written, and refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import SHAPES, Q, Stored, changed, contents, floats

from bitgen.checkpoints import reference, synth
from bitgen.checkpoints.tensors import is_ternary, sign_shapes, tensor_shapes
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.gguf import doubts, info, types
from bitgen.gguf.reader import read_gguf
from bitgen.gguf.writer import write_gguf
from bitgen.spec import DeltaShape, Hadamard

HYBRID, ROTATED = SHAPES["qwen35"], SHAPES["qwen35 rotated"]
TOKENS = [1, 17, 299, 5, 17]

Change = Callable[[dict[str, Any], dict[str, Stored]], None]


def keys(**values: Any) -> Change:
    """A change of keys: ssm__state_size is qwen35.ssm.state_size, hadamard__axis prism.hadamard.axis; None: gone."""

    def change(metadata: dict[str, Any], _: dict[str, Stored]) -> None:
        for name, value in values.items():
            start = "prism." if name.startswith("hadamard") else "qwen35."
            key = start + name.replace("__", ".")
            metadata.pop(key, None)
            if value is not None:
                metadata[key] = value

    return change


def test_the_keys_and_names_are_llama_cpps(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", synth.SynthCheckpoint(HYBRID, 1))
    file = read_gguf(tmp_path / "m.gguf").container
    own = {key.removeprefix("qwen35."): value for key, value in file.metadata.items()}
    wanted = {
        "full_attention_interval": 4, "ssm.conv_kernel": 4, "ssm.state_size": 32, "ssm.group_count": 2,
        "ssm.time_step_rank": 4, "ssm.inner_size": 256, "rope.dimension_count": 16, "block_count": 4,
    }  # fmt: skip
    assert {key: own[key] for key in wanted} == wanted
    assert own["rope.dimension_sections"].tolist() == [3, 3, 2, 0]
    layer = {name.removeprefix("blk.0."): t for name, t in file.tensors.items() if name.startswith("blk.0.")}
    assert {name: t.shape for name, t in layer.items()} == {
        "attn_norm.weight": (256,), "attn_qkv.weight": (384, 256), "attn_gate.weight": (256, 256),
        "ssm_conv1d.weight": (384, 4), "ssm_beta.weight": (4, 256), "ssm_alpha.weight": (4, 256),
        "ssm_dt.bias": (4,), "ssm_a": (4,), "ssm_norm.weight": (64,), "ssm_out.weight": (256, 256),
        "post_attention_norm.weight": (256,), "ffn_gate.weight": (512, 256), "ffn_up.weight": (512, 256),
        "ffn_down.weight": (256, 512),
    }  # fmt: skip
    assert layer["ssm_conv1d.weight"].type == layer["ssm_a"].type == types.F32
    assert file.tensors["blk.3.attn_q.weight"].shape == (2 * 256, 256)


@pytest.mark.parametrize("type", ["q2_0", "pq2_0", "ptq1_0"])
@pytest.mark.parametrize("rotation", [None, ROTATED.hadamard])
def test_a_file_is_what_was_written(tmp_path: Path, type: str, rotation: Hadamard | None) -> None:
    """By each type of the published files, whose type does not say whether there is a rotation."""
    shape = dataclasses.replace(HYBRID, hadamard=rotation, group=128)
    original = synth.SynthCheckpoint(shape, 2)
    write_gguf(tmp_path / "m.gguf", original, type)
    back = read_gguf(tmp_path / "m.gguf")
    assert back.shape == shape
    for name in (*tensor_shapes(shape), *sign_shapes(shape)):
        if not is_ternary(name):
            assert np.array_equal(back.dense(name), original.dense(name)), name
            assert np.array_equal(back.dense(name, slice(1, 3)), original.dense(name)[1:3]), name
    assert np.array_equal(reference.forward(back, TOKENS), reference.forward(original, TOKENS))
    write_gguf(tmp_path / "again.gguf", back, type)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()
    assert doubts.warning(back) is None


def test_floats_of_other_types_are_read_and_copied(tmp_path: Path) -> None:
    def change(_: dict[str, Any], tensors: dict[str, Stored]) -> None:
        for name, type in (("ssm_alpha", types.BF16), ("ssm_conv1d", types.F16), ("ssm_beta", types.F32)):
            at = f"blk.1.{name}.weight"
            tensors[at] = floats(np.full(tensors[at][0], 0.25), type)
        tensors["blk.2.ssm_a"] = floats(np.full(4, -0.5), types.F16)

    checkpoint = read_gguf(changed(tmp_path / "m.gguf", change, shape=HYBRID))
    write_gguf(tmp_path / "copy.gguf", checkpoint)
    copy = read_gguf(tmp_path / "copy.gguf")
    for name in ("blk.1.ssm_alpha.weight", "blk.1.ssm_conv1d.weight", "blk.1.ssm_beta.weight"):
        assert (checkpoint.dense(name) == 0.25).all() and (copy.dense(name) == 0.25).all()
        assert copy.container.tensors[name].type == checkpoint.container.tensors[name].type
    assert (copy.dense("blk.2.ssm_a") == -0.5).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (keys(ssm__state_size=None), "qwen35.ssm.state_size is missing"),
        (keys(ssm__inner_size=None), "qwen35.ssm.inner_size is missing"),
        (keys(ssm__group_count=3), "value_heads, 4, are not a multiple of its key_heads, 3"),
        (keys(ssm__group_count=0), "delta's key_heads is 0"),
        (keys(ssm__time_step_rank=3), "delta's value_dim is 0"),
        (keys(ssm__time_step_rank=0), "delta's value_heads is 0"),
        (keys(ssm__conv_kernel=0), "delta's taps is 0"),
        (keys(ssm__conv_kernel=3), r"ssm_conv1d.weight is \[384, 4\]; the metadata asks for \[384, 3\]"),
        (keys(ssm__state_size=64), r"attn_qkv.weight is \[384, 256\]; the metadata asks for \[512, 256\]"),
        (keys(ssm__time_step_rank=8), r"ssm_beta.weight is \[4, 256\]; the metadata asks for \[8, 256\]"),
        (keys(ssm__inner_size=512), "attn_qkv.weight is"),
        (keys(ssm__state_size="x"), "qwen35.ssm.state_size is 'x'; expected int"),
        (keys(full_attention_interval=1), "delta's period is 1"),
        (keys(full_attention_interval=2), "blk.1.attn_q.weight is missing"),
        (keys(full_attention_interval=8), "blk.3.attn_qkv.weight is missing"),
        (keys(rope__dimension_sections=np.array([2, 2, 2, 2], np.int32)), "dimension_sections = .* is not supported"),
        (keys(rope__dimension_sections=np.array([3, 3, 2], np.int32)), "dimension_sections = .* is not supported"),
        (keys(rope__dimension_sections="all"), "dimension_sections = 'all' is not supported"),
        (keys(nextn_predict_layers=1), "blk.3 is said to predict further tokens, but has no"),
        (keys(nextn_predict_layers=4), "layers is 0"),
        (keys(nextn_predict_layers=-1), "nextn_predict_layers is -1"),
        (keys(expert_count=8), "expert_count = 8 is not supported"),
        (lambda m, t: t.update({"blk.0.ssm_a": floats(np.full(4, np.nan), types.F32)}), "blk.0.ssm_a holds NaN"),
        (lambda m, t: t.pop("blk.2.post_attention_norm.weight"), "blk.2.post_attention_norm.weight is missing"),
        (lambda m, t: t.update({"blk.2.ffn_norm.weight": t["output_norm.weight"]}), "blk.2.ffn_norm.weight has no pl"),
        (lambda m, t: t.pop("blk.2.ssm_dt.bias"), "blk.2.ssm_dt.bias is missing"),
        (lambda m, t: t.update({"blk.3.ssm_a": t["blk.2.ssm_a"]}), "blk.3.ssm_a has no place"),
        (lambda m, t: t.update({"blk.0.attn_q.weight": t["blk.3.attn_q.weight"]}), "blk.0.attn_q.weight has no place"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(BitgenError, match=message):
        checkpoint = read_gguf(changed(tmp_path / "m.gguf", change, shape=HYBRID))
        for name in filter(lambda name: not is_ternary(name), tensor_shapes(checkpoint.shape)):
            checkpoint.dense(name)


def test_a_layer_that_predicts_further_tokens_is_left_out(tmp_path: Path) -> None:
    """Its matrices may have any type; the text is the same, and the file says what is not used."""

    def change(metadata: dict[str, Any], tensors: dict[str, Stored]) -> None:
        keys(block_count=5, nextn_predict_layers=1)(metadata, tensors)
        for name in [name for name in tensors if name.startswith("blk.3.")]:
            tensors[name.replace("blk.3", "blk.4")] = floats(np.ones(tensors[name][0]) / 3, types.F16)
        tensors["blk.4.nextn.eh_proj.weight"] = floats(np.ones((256, 512)), types.F16)

    with_it, plain = (
        read_gguf(changed(tmp_path / f"{name}.gguf", change, shape=HYBRID))
        for name, change in (("with", change), ("plain", lambda *_: None))
    )
    assert with_it.shape == plain.shape
    assert "blk.4.nextn.eh_proj.weight" in with_it.left_out and not plain.left_out
    assert np.array_equal(reference.forward(with_it, TOKENS), reference.forward(plain, TOKENS))
    assert "predicts further tokens is left out" in info.describe(tmp_path / "with.gguf")["warning"]
    assert doubts.warning(plain) is None
    write_gguf(tmp_path / "copy.gguf", with_it)
    copy = read_gguf(tmp_path / "copy.gguf")
    assert not copy.left_out and "qwen35.nextn_predict_layers" not in copy.metadata


def test_layers_ahead_of_other_architectures_are_refused(tmp_path: Path) -> None:
    path = changed(tmp_path / "m.gguf", lambda m, t: m.update({"bitnet-b1.58.nextn_predict_layers": 1}))
    with pytest.raises(UnsupportedError, match="nextn_predict_layers = 1 is not supported"):
        read_gguf(path)


# ---- the rotation ----


def test_the_keys_of_a_rotation_are_the_published_ones(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", synth.SynthCheckpoint(ROTATED, 1))
    checkpoint = read_gguf(tmp_path / "m.gguf")
    start = "prism.hadamard."
    found = {key.removeprefix(start): v for key, v in checkpoint.metadata.items() if key.startswith(start)}
    assert found.keys() == {
        "version", "block_size", "transform", "axis", "sign_mode", "sign_widths", "sign_values", "weight_names",
        "inverse_weight_names", "gdn_v_grouped",
    }  # fmt: skip
    assert (found["version"], found["block_size"], found["gdn_v_grouped"]) == (1, 64, True)
    assert (found["transform"], found["axis"]) == ("normalized-sylvester-walsh-hadamard", "input-last-dimension")
    assert found["sign_widths"].tolist() == [256, 512] and len(found["sign_values"]) == 768
    assert set(np.unique(found["sign_values"])) == {-1, 1}
    assert found["inverse_weight_names"] == ["token_embd.weight"]
    assert set(found["weight_names"]) == {*filter(is_ternary, checkpoint.container.tensors), "output.weight"}
    assert checkpoint.dense("hadamard_signs.512").tolist() == found["sign_values"][256:].tolist()
    for name in ("hadamard_signs.64", "hadamard_signs.x"):
        with pytest.raises(FormatError, match=f"this model has no {name}"):
            checkpoint.dense(name)


def names(change: Callable[[list[str]], Any]) -> Change:
    """A change of the names of the rotated matrices."""
    return lambda metadata, _: change(metadata["prism.hadamard.weight_names"])


def sign(value: Any) -> Change:
    """Another value of the fourth sign."""

    def change(metadata: dict[str, Any], _: dict[str, Stored]) -> None:
        values = metadata["prism.hadamard.sign_values"].astype(np.float32 if isinstance(value, float) else np.int32)
        values[3] = value
        metadata["prism.hadamard.sign_values"] = values

    return change


TERNARY = "blk.1.ffn_up.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            (keys(**{f"hadamard__{name}": None}), f"has keys prism.hadamard.*, but not prism.hadamard.{name}")
            for name in (
                *("version", "block_size", "transform", "axis", "sign_mode", "weight_names"),
                *("inverse_weight_names", "gdn_v_grouped"),
            )
        ),
        (keys(hadamard__version=2), "prism.hadamard.version = 2 is not supported"),
        (keys(hadamard__version=True), "prism.hadamard.version = True is not supported"),
        (keys(hadamard__version=np.array([1, 2], np.int32)), "prism.hadamard.version = [1, 2] is not supported"),
        (keys(hadamard__of_tomorrow=1), "prism.hadamard.of_tomorrow = 1 is not supported"),
        (keys(hadamard__transform="hadamard"), "prism.hadamard.transform = 'hadamard' is not supported"),
        (keys(hadamard__axis="output"), "prism.hadamard.axis = 'output' is not supported"),
        (keys(hadamard__block_size="64"), "prism.hadamard.block_size = '64' is not supported"),
        (keys(hadamard__block_size=32), "hadamard's block is 32; expected one of 4, 16, 64, 256, 1024"),
        (keys(hadamard__block_size=1024), "hidden, 256, is not a multiple of hadamard's block, 1024"),
        (keys(hadamard__sign_mode="random"), "prism.hadamard.sign_mode = 'random' is not supported"),
        (keys(hadamard__sign_mode="identity"), "prism.hadamard.sign_widths is [256, 512]; expected []"),
        (keys(hadamard__sign_widths=None), "prism.hadamard.sign_widths is []; expected [256, 512]"),
        (keys(hadamard__sign_widths=np.array([512, 256], np.int32)), "sign_widths is [512, 256]; expected [256, 512]"),
        (keys(hadamard__sign_values=None), "sign_values is not a list of 768 numbers, each 1 or -1"),
        (keys(hadamard__sign_values=np.ones(767, np.int8)), "sign_values is not a list of 768 numbers"),
        (keys(hadamard__sign_values=["1"] * 768), "sign_values is not a list of 768 numbers"),
        (sign(0), "sign_values is not a list of 768 numbers, each 1 or -1"),
        (sign(2), "sign_values is not a list of 768 numbers, each 1 or -1"),
        (sign(1.0), "sign_values is not a list of 768 numbers, each 1 or -1"),
        (keys(hadamard__gdn_v_grouped=1), "prism.hadamard.gdn_v_grouped = 1 is not supported"),
        (keys(hadamard__inverse_weight_names=[]), "prism.hadamard.inverse_weight_names = [] is not supported"),
        (
            keys(hadamard__inverse_weight_names=["token_embd.weight", "output.weight"]),
            "prism.hadamard.inverse_weight_names = ['token_embd.weight', 'output.weight'] is not supported",
        ),
        (names(lambda given: given.remove(TERNARY)), f"weight_names lacks {TERNARY}; expected all ternary matrices"),
        (names(lambda given: given.remove("output.weight")), "weight_names lacks output.weight"),
        (names(lambda given: given.append("blk.0.ssm_alpha.weight")), "weight_names holds blk.0.ssm_alpha.weight"),
        (names(lambda given: given.append(TERNARY)), "weight_names is no list of names"),
        (keys(hadamard__weight_names=1), "weight_names lacks blk.0.attn_gate.weight"),
    ],
)
def test_other_rotations_are_refused_by_key_and_value(tmp_path: Path, change: Change, message: str) -> None:
    path = changed(tmp_path / "m.gguf", change, shape=ROTATED)
    with pytest.raises(BitgenError, match=re.escape(message)) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)


def test_a_rotation_of_another_architecture_is_refused(tmp_path: Path) -> None:
    metadata, _ = contents(ROTATED)

    def change(of: dict[str, Any], tensors: dict[str, Stored]) -> None:
        of |= {key: value for key, value in metadata.items() if key.startswith("prism.")}
        of["prism.hadamard.weight_names"] = [name for name in tensors if is_ternary(name)]

    path = changed(tmp_path / "m.gguf", change)
    with pytest.raises(UnsupportedError, match="hadamard is known of models with delta only"):
        read_gguf(path)


def test_any_key_of_a_rotation_needs_the_others(tmp_path: Path) -> None:
    """Whatever the architecture."""
    path = changed(tmp_path / "m.gguf", lambda m, t: m.update({"prism.hadamard.version": 1}))
    with pytest.raises(UnsupportedError, match=r"but not prism\.hadamard\.transform"):
        read_gguf(path)
    assert "hadamard" in info.describe(path)["unsupported"]


# ---- faults are noticed ----


@pytest.mark.parametrize("kind", ["hadamard", "signs", "regrouped", "gate", "period"])
def test_a_file_read_wrongly_gives_other_logits(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transform, its signs, the order of value heads, and the gate, each left out."""
    write_gguf(tmp_path / "m.gguf", synth.SynthCheckpoint(ROTATED, 5))
    checkpoint = read_gguf(tmp_path / "m.gguf")
    right = reference.forward(checkpoint, TOKENS)
    assert ROTATED.hadamard and isinstance(ROTATED.delta, DeltaShape)
    faults: dict[str, dict[str, Any]] = {
        "hadamard": {"hadamard": None},
        "signs": {"hadamard": dataclasses.replace(ROTATED.hadamard, signed=False)},
        "regrouped": {"hadamard": dataclasses.replace(ROTATED.hadamard, regrouped=False)},
        "gate": {},
        "period": {"delta": dataclasses.replace(ROTATED.delta, key_heads=1, key_dim=64)},
    }
    if kind == "gate":  # beta is as wide as there are value heads
        sigmoid = reference.sigmoid
        monkeypatch.setattr(reference, "sigmoid", lambda x: sigmoid(x) if x.shape[1] == 4 else np.ones_like(x))
    monkeypatch.setattr(checkpoint, "_shape", dataclasses.replace(ROTATED, **faults[kind]))
    wrong = reference.forward(checkpoint, TOKENS)
    assert np.abs(wrong - right).max() > 0.2 * right.std()
    assert Q not in checkpoint.container.tensors
