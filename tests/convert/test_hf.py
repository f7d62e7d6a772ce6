"""Hugging Face directories: what is read is what was stored, and a bad directory is a clear error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the checkpoints are made with PyTorch")

import hf_models  # noqa: E402
from hf_models import (  # noqa: E402
    ATTN_Q,
    BITNET,
    GATE,
    LLAMA,
    ONEBIT,
    VOCAB,
    edit_config,
    edit_tensors,
)

from bitgen.checkpoints.checkpoint import widen_bf16  # noqa: E402
from bitgen.convert import HfCheckpoint, convert  # noqa: E402
from bitgen.convert.families import FAMILIES  # noqa: E402
from bitgen.errors import BitgenError, FormatError, UnsupportedError  # noqa: E402
from bitgen.gguf.reader import read_gguf  # noqa: E402

# ---- what is read ----


@pytest.mark.parametrize("shards", [1, 3])
def test_packed_weights_and_scales(tmp_path: Path, shards: int) -> None:
    """Row r + i*M/4 sits in bits 2i, 2i+1 of row r; autobitlinear's scale multiplies."""
    checkpoint = HfCheckpoint(hf_models.save(replace(BITNET, dtype=torch.bfloat16), tmp_path, shards))
    stored = hf_models.random_tensors(replace(BITNET, dtype=torch.bfloat16))
    codes, scale = checkpoint.ternary("blk.0.ffn_gate.weight")
    packed = stored[f"{GATE}.weight"].numpy()
    assert codes.dtype == np.int8 and codes.shape == (256, 128)
    for row in (0, 63, 64, 130, 255):
        assert (codes[row] == ((packed[row % 64] >> (2 * (row // 64))) & 3).astype(np.int8) - 1).all()
    assert scale == stored[f"{GATE}.weight_scale"].float().item()
    norm = checkpoint.dense("blk.0.ffn_sub_norm.weight")
    assert norm.dtype == np.float32
    assert (norm == stored["model.layers.0.mlp.ffn_sub_norm.weight"].float().numpy()).all()


def test_bitlinear_scales_divide(tmp_path: Path) -> None:
    checkpoint = HfCheckpoint(hf_models.save(LLAMA, tmp_path))
    stored = hf_models.random_tensors(LLAMA)[f"{GATE}.weight_scale"].numpy()
    assert checkpoint.ternary("blk.0.ffn_gate.weight")[1] == np.float32(1) / stored[0]


def test_llama_rows_of_q_and_k_are_permuted(tmp_path: Path) -> None:
    """GGUF row h*D + 2j + b is row h*D + b*D/2 + j of the checkpoint; v stays."""
    llama = HfCheckpoint(hf_models.save(LLAMA, tmp_path / "llama"))
    bitnet = HfCheckpoint(hf_models.save(BITNET, tmp_path / "bitnet"))  # the same random matrices
    assert llama.shape.rope_interleaved and not bitnet.shape.rope_interleaved
    for part, heads in (("attn_q", 2), ("attn_k", 1)):
        gguf, hf = (c.ternary(f"blk.0.{part}.weight")[0] for c in (llama, bitnet))
        for h in range(heads):
            for j in (0, 1, 31):
                for b in (0, 1):
                    assert (gguf[h * 64 + 2 * j + b] == hf[h * 64 + b * 32 + j]).all()
    assert (llama.ternary("blk.0.attn_v.weight")[0] == bitnet.ternary("blk.0.attn_v.weight")[0]).all()


def test_master_weights_become_ternary_by_absmean(tmp_path: Path) -> None:
    """W / mean|W| rounded half to even and clamped: a half goes to 0, one and a half to 1."""
    hf_models.save(ONEBIT, tmp_path)
    weight = torch.full((128, 128), 2.0)
    weight[0, :8] = torch.tensor([1, -1, 3, -3, 1.25, -1.25, 2.75, -2.75])  # the mean stays 2
    edit_tensors(tmp_path, lambda t: t.update({f"{ATTN_Q}.weight": weight.half()}))
    codes, scale = HfCheckpoint(tmp_path).ternary("blk.0.attn_q.weight")
    assert scale == 2
    assert codes[0, :8].tolist() == [0, 0, 1, -1, 1, -1, 1, -1] and (codes[1:] == 1).all()


def test_a_matrix_of_zeros_meets_the_floor(tmp_path: Path) -> None:
    hf_models.save(ONEBIT, tmp_path)
    edit_tensors(tmp_path, lambda t: t[f"{ATTN_Q}.weight"].zero_())
    codes, scale = HfCheckpoint(tmp_path).ternary("blk.0.attn_q.weight")
    assert not codes.any() and scale == pytest.approx(1e-5)


def test_shape(tmp_path: Path) -> None:
    shape = HfCheckpoint(hf_models.save(LLAMA, tmp_path / "my-model")).shape
    assert (shape.name, shape.architecture, shape.activation) == ("my-model", "llama", "silu")
    assert (shape.hidden, shape.intermediate, shape.layers, shape.vocab) == (128, 256, 1, VOCAB)
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.context) == (2, 1, 64, 128)
    assert (shape.sub_norms, shape.tied, shape.rope_theta, shape.norm_eps) == (False, False, 10000.0, 1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": None, "rope_parameters": {"rope_theta": 123.0, "rope_type": "default"}},
        {"rope_theta": 123, "rope_scaling": {"type": "linear", "factor": 1.0}},
        {"rope_theta": 123.0, "head_dim": None},
        {"rope_theta": 123.0, "num_key_value_heads": 1, "hidden_act": "relu2", "unknown_key": [1]},
    ],
)
def test_spellings_of_config(directory: Path, config: dict[str, Any]) -> None:
    edit_config(directory, **config)
    shape = HfCheckpoint(directory).shape
    assert (shape.rope_theta, shape.head_dim, shape.kv_heads) == (123.0, 64, 1)


def test_what_may_lie_beside(directory: Path) -> None:
    """A copy of the tied head, and RoPE tables as old checkpoints store them, change nothing."""
    edit_tensors(
        directory,
        lambda t: t.update(
            {"lm_head.weight": t["model.embed_tokens.weight"].clone(), "x.rotary_emb.inv_freq": torch.ones(4)}
        ),
    )
    assert HfCheckpoint(directory).shape.tied


def test_a_tied_model_with_another_head_keeps_it(directory: Path, tmp_path: Path) -> None:
    """As a merged adapter leaves it: one weight of the head differs, and the head is written."""

    def add_head(tensors: dict[str, Any]) -> None:
        head = tensors["model.embed_tokens.weight"].clone()
        head[-1, -1] += 1 / 1024
        tensors["lm_head.weight"] = head

    edit_tensors(directory, add_head)
    checkpoint = HfCheckpoint(directory)
    assert not checkpoint.shape.tied
    convert(directory, tmp_path / "m.gguf")
    written = read_gguf(tmp_path / "m.gguf")
    differ = written.dense("output.weight") != written.dense("token_embd.weight")
    assert differ[-1, -1] and differ.sum() == 1


def test_a_tied_model_may_have_its_embedding_as_the_head(directory: Path) -> None:
    want = HfCheckpoint(directory).dense("token_embd.weight")
    edit_tensors(directory, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    checkpoint = HfCheckpoint(directory)
    assert checkpoint.shape.tied and (checkpoint.dense("token_embd.weight") == want).all()


def differing(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


def equal(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def alone(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


@pytest.mark.transformers
@pytest.mark.parametrize("change", [differing, equal, alone])
@pytest.mark.parametrize("tiny", [BITNET, replace(LLAMA, tied=True)], ids=["bitnet", "llama"])
def test_heads_are_those_of_transformers(tiny: Any, change: Callable[..., None], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    directory = hf_models.save(tiny, tmp_path)
    edit_tensors(directory, change)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    checkpoint = HfCheckpoint(directory)
    head = "token_embd.weight" if checkpoint.shape.tied else "output.weight"
    assert (checkpoint.dense("token_embd.weight") == model.model.embed_tokens.weight.detach().numpy()).all()
    assert (checkpoint.dense(head) == model.lm_head.weight.detach().numpy()).all()


@pytest.mark.transformers
@pytest.mark.parametrize("architecture", [name for name in FAMILIES if "MiniCPM" not in name])  # which it has not
def test_absent_keys_have_the_value_of_transformers(architecture: str) -> None:
    family = FAMILIES[architecture]
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(family.model_type).get_text_config()
    rope = config.rope_parameters
    values = config.to_dict() | {
        "rope_theta": rope.get("full_attention", rope).get("rope_theta"),
        "rope_local_base_freq": rope.get("sliding_attention", {}).get("rope_theta"),
        "sliding_window_pattern": getattr(config, "_sliding_window_pattern", None),
    }
    if "full_attention_interval" in family.defaults:  # the class keeps what it makes of it
        values["full_attention_interval"] = config.layer_types.index("full_attention") + 1
        assert family.partial_rotary == rope["partial_rotary_factor"]
    assert {key: values[key] for key in family.defaults} == family.defaults


@pytest.mark.parametrize("dims", [(1,), (), (VOCAB, 64)])
def test_a_head_of_another_shape_is_refused(directory: Path, dims: tuple[int, ...]) -> None:
    edit_tensors(directory, lambda t: t.update({"lm_head.weight": torch.zeros(dims)}))
    with pytest.raises(FormatError, match=r"lm_head\.weight is \["):
        HfCheckpoint(directory)


def test_bf16_is_widened_exactly() -> None:
    values = torch.tensor([1.0, -2.5, 3.3895e38, 1e-40, 0.0]).bfloat16()
    assert (widen_bf16(values.view(torch.uint16).numpy()) == values.float().numpy()).all()


GEMMA3 = replace(BITNET, architecture="Gemma3ForCausalLM", act="gelu_pytorch_tanh", layers=4)
REFUSED_GEMMA3: dict[str, tuple[dict[str, Any], type[BitgenError], str]] = {
    "both ways": ({"use_bidirectional_attention": True}, UnsupportedError, "use_bidirectional_attention"),
    "soft caps": ({"final_logit_softcapping": 30.0}, UnsupportedError, "final_logit_softcapping"),
    "no period": (
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
        UnsupportedError,
        "follow no period",
    ),
    "unknown layers": ({"layer_types": ["chunked_attention"] * 4}, UnsupportedError, "layer_types"),
    "too few layers": ({"layer_types": ["full_attention"]}, FormatError, "layer_types has 1 entries"),
    "no window": ({"sliding_window": -1}, FormatError, "window is -1"),
    "scale": ({"query_pre_attn_scalar": 0}, FormatError, "query_pre_attn_scalar is 0"),
}


@pytest.mark.parametrize("case", REFUSED_GEMMA3.values(), ids=REFUSED_GEMMA3)
def test_refused_gemma3(case: tuple[dict[str, Any], type[BitgenError], str], tmp_path: Path) -> None:
    hf_models.save(GEMMA3, tmp_path)
    edit_config(tmp_path, **case[0])
    with pytest.raises(case[1], match=case[2]):
        HfCheckpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "want"),
    [
        ({"sliding_window": 9, "sliding_window_pattern": 2}, (9, 2, 1e4)),
        ({"sliding_window": 9, "layer_types": ["sliding_attention"] * 4, "rope_local_base_freq": 5.0}, (9, 5, 5.0)),
        ({"sliding_window": 9, "layer_types": ["full_attention"] * 4}, (0, 1, 1e4)),
        ({"sliding_window": 9}, (9, 6, 1e4)),
        ({}, (4096, 6, 1e4)),
    ],
)
def test_windows(config: dict[str, Any], want: tuple[int, int, float], tmp_path: Path) -> None:
    """What transformers takes where config.json is silent; and the same shape through a GGUF."""
    hf_models.save(replace(GEMMA3, extra=config), tmp_path)
    shape = HfCheckpoint(tmp_path).shape
    assert (shape.window, shape.window_period, shape.window_theta) == want
    assert shape.embedding_scale == 128**0.5 and shape.attention_scale == 256**-0.5  # 256: transformers' default
    convert(tmp_path, tmp_path / "m.gguf")
    assert read_gguf(tmp_path / "m.gguf").shape == shape


HUNYUAN = replace(LLAMA, architecture="HunYuanDenseV1ForCausalLM", plain=True)
ALPHA = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_alpha_stretches_the_base_of_rope(key: str, tmp_path: Path) -> None:
    """10000 * 1000^(64 / 62); and the same shape through a GGUF, where the base stands for both."""
    hf_models.save(replace(HUNYUAN, extra={key: ALPHA}), tmp_path)
    shape = HfCheckpoint(tmp_path).shape
    assert shape.rope_theta == pytest.approx(1e4 * 1000 ** (64 / 62), rel=1e-6) and shape.qk_norm_after_rope
    convert(tmp_path, tmp_path / "m.gguf")
    assert read_gguf(tmp_path / "m.gguf").shape == shape


MINICPM = replace(LLAMA, architecture="MiniCPMForCausalLM", plain=True)
MUP = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 96}


def test_the_scales_of_minicpm(tmp_path: Path) -> None:
    hf_models.save(replace(MINICPM, layers=2, extra=MUP), tmp_path)
    shape = HfCheckpoint(tmp_path).shape
    got = (shape.embedding_scale, shape.residual_scale, shape.logit_divisor)
    assert got == pytest.approx((12, 1.4 / 2**0.5, 128 / 96), rel=1e-6) and shape.rope_interleaved
    convert(tmp_path, tmp_path / "m.gguf")
    assert read_gguf(tmp_path / "m.gguf").shape == shape


REFUSED_MODELS: dict[str, tuple[Any, dict[str, Any], type[BitgenError], str]] = {
    "no alpha": (HUNYUAN, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, FormatError, "alpha is None"),
    "alpha and a factor": (HUNYUAN, {"rope_scaling": ALPHA | {"factor": 4.0}}, UnsupportedError, "factor beside alpha"),
    "alpha is text": (HUNYUAN, {"rope_scaling": ALPHA | {"alpha": "x"}}, FormatError, "alpha is 'x'"),
    "no norms of heads": (HUNYUAN, {"use_qk_norm": False}, UnsupportedError, "use_qk_norm = False"),
    "shared keys": (HUNYUAN, {"use_cla": True}, UnsupportedError, "use_cla = True"),
    "alpha elsewhere": (LLAMA, {"rope_scaling": ALPHA}, UnsupportedError, "dynamic"),
    "sparse": (MINICPM, MUP | {"sparse_config": {"topk": 64}}, UnsupportedError, "sparse_config"),
    "no scale": (MINICPM, MUP | {"scale_emb": 0}, FormatError, "scale_emb is 0"),
    "base is text": (MINICPM, MUP | {"dim_model_base": "256"}, FormatError, "dim_model_base is '256'"),
}


@pytest.mark.parametrize("case", REFUSED_MODELS.values(), ids=REFUSED_MODELS)
def test_refused_hunyuan_and_minicpm(case: tuple[Any, dict[str, Any], type[BitgenError], str], tmp_path: Path) -> None:
    tiny, changes, kind, message = case
    hf_models.save(tiny, tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(kind, match=message):
        HfCheckpoint(tmp_path)


# ---- floats with scales of groups ----

PLAIN = replace(LLAMA, plain=True, hidden=256, inter=512, layers=2, head_dim=128)
K_PROJ = "model.layers.0.self_attn.k_proj.weight"
LATE = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("group", [64, 128, 256])
def test_groups_are_found_in_floats(group: int, dtype: torch.dtype, architecture: str, tmp_path: Path) -> None:
    """Codes times scales are the stored numbers, in the type that is the default for such groups; rows of q and k are
    turned with their scales."""
    tiny = replace(PLAIN, architecture=architecture, group=group, dtype=dtype, fused=group == 64)
    checkpoint = HfCheckpoint(hf_models.save(tiny, tmp_path))
    assert checkpoint.shape.group == group
    convert(tmp_path, tmp_path / "m.gguf")
    copy = read_gguf(tmp_path / "m.gguf")
    assert copy.shape == checkpoint.shape
    assert {64: "Q2_0", 128: "Q2_0_G128", 256: "TQ2_0"}[group] == copy.container.tensors[
        "blk.1.attn_q.weight"
    ].type_name
    stored = hf_models.random_tensors(replace(tiny, fused=False)) if not tiny.fused else apart(tiny)
    for name, (module, heads) in {
        "blk.0.attn_q": (ATTN_Q, tiny.heads), "blk.0.attn_k": (K_PROJ.removesuffix(".weight"), tiny.kv_heads),
        "blk.0.ffn_gate": (GATE, 0), "blk.1.ffn_down": (LATE.removesuffix(".weight"), 0),
    }.items():  # fmt: skip
        want = stored[f"{module}.weight"].float().numpy()
        if heads and checkpoint.shape.rope_interleaved:
            want = want.reshape(heads, 2, tiny.head_dim // 2, -1).swapaxes(1, 2).reshape(want.shape)
        for of in (checkpoint, copy):
            codes, scales = of.ternary(f"{name}.weight")
            assert isinstance(scales, np.ndarray) and scales.shape == (len(want), want.shape[1] // group)
            assert (codes * scales.repeat(group, axis=1) == want).all(), name


@pytest.mark.parametrize("group", [0, 64, 128])
def test_floats_without_a_zero_are_binary(group: int, tmp_path: Path) -> None:
    """Every weight is looked at: with one 0 in the last layer the model is ternary. Groups of zeros are none."""
    hf_models.save(replace(PLAIN, group=group), tmp_path)

    def change(tensors: dict[str, Any]) -> None:
        for name, weight in tensors.items():
            if "_proj" in name:
                size = weight.abs().reshape(len(weight), -1, group or weight.shape[1]).amax(2, keepdim=True)
                size = size if group else torch.full_like(size, 1 / 64)
                signs = torch.where(weight < 0, -1, 1).reshape(*size.shape[:2], -1)
                tensors[name] = (signs * size).reshape(weight.shape)
        if group:
            tensors[LATE][3, :group] = 0

    edit_tensors(tmp_path, change)
    checkpoint = HfCheckpoint(tmp_path)
    assert (checkpoint.shape.binary, checkpoint.shape.group) == (True, group)
    convert(tmp_path, tmp_path / "m.gguf")
    copy = read_gguf(tmp_path / "m.gguf")
    named = "Q2_0" if group == 64 else "Q1_0"
    assert copy.container.tensors["blk.1.ffn_down.weight"].type_name == named
    assert copy.shape == replace(checkpoint.shape, binary=named == "Q1_0")
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight"):
        (codes, scales), (want, want_scales) = copy.ternary(name), checkpoint.ternary(name)
        assert np.array_equal(codes, want) and np.array_equal(scales, want_scales)
    edit_tensors(tmp_path, lambda t: t[LATE].__setitem__((-1, -1), 0))
    assert not HfCheckpoint(tmp_path).shape.binary


def apart(tiny: Any) -> dict[str, torch.Tensor]:
    """The tensors of a model with its fused matrices taken apart."""
    tensors, sizes = hf_models.random_tensors(tiny), replace(tiny, fused=False).matrices()
    for module in tiny.matrices():
        at, fused = module.rsplit(".", 2)[0], ".".join(module.rsplit(".", 2)[1:])
        for parts in (hf_models.FUSED[fused],) if fused in hf_models.FUSED else ():
            rows = [sizes[f"{at}.{part}"][0] for part in parts]
            pieces = tensors[f"{module}.weight"].split(rows)
            tensors |= {f"{at}.{part}.weight": piece for part, piece in zip(parts, pieces, strict=True)}
    return tensors


def test_a_scale_for_every_row_is_one_for_every_group(tmp_path: Path) -> None:
    """As ParetoQ's models have it."""
    hf_models.save(PLAIN, tmp_path)

    def change(tensors: dict[str, Any]) -> None:
        for name, weight in tensors.items():
            if "_proj" in name:
                tensors[name] = weight.sign() * (torch.arange(1, len(weight) + 1) / 4096)[:, None]

    edit_tensors(tmp_path, change)
    checkpoint = HfCheckpoint(tmp_path)
    codes, scales = checkpoint.ternary("blk.0.ffn_gate.weight")
    assert checkpoint.shape.group == 256
    assert (np.asarray(scales) == np.arange(1, len(codes) + 1)[:, None] / np.float32(4096)).all()


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize(
    ("ternary", "spoilt"),
    [((EMBEDDING, HEAD), ""), ((HEAD,), ""), ((EMBEDDING,), ""), ((EMBEDDING, HEAD), HEAD), ((), "")],
)
def test_an_embedding_and_a_head_in_groups(ternary: tuple[str, ...], spoilt: str, tmp_path: Path) -> None:
    """They are found as they are, and written in the matrices' type. One number that fits no group, in the last row,
    makes floats of them, and so does a scale that float16 does not hold."""
    hf_models.save(replace(PLAIN, group=128, tied=False), tmp_path)

    def change(tensors: dict[str, Any]) -> None:
        for name in ternary:
            codes = torch.arange(tensors[name].numel()).reshape(tensors[name].shape) % 7 % 3 - 1
            scales = torch.arange(1, codes.shape[1] // 128 + 1).repeat_interleave(128) / 1024
            tensors[name] = codes * scales
        if spoilt:
            tensors[spoilt][-1, -1] = 0.7

    edit_tensors(tmp_path, change)
    checkpoint = HfCheckpoint(tmp_path)
    convert(tmp_path, tmp_path / "m.gguf")
    copy = read_gguf(tmp_path / "m.gguf")
    assert copy.shape == checkpoint.shape
    for name, flag, stored in (
        ("token_embd.weight", checkpoint.shape.ternary_embedding, EMBEDDING),
        ("output.weight", checkpoint.shape.ternary_head, HEAD),
    ):
        assert flag == (stored in ternary and stored != spoilt)
        assert (copy.container.tensors[name].type_name == "Q2_0_G128") == flag
        want = checkpoint.dense(name)
        assert np.array_equal(copy.dense(name), want)
        for of in (checkpoint, copy) if flag else ():
            codes, scales = of.ternary_rows(name, slice(1, 9))
            assert np.array_equal(codes * scales.repeat(128, axis=1), want[1:9])


def test_matrices_of_one_scale_among_groups(tmp_path: Path) -> None:
    hf_models.save(replace(PLAIN, group=128), tmp_path)

    def change(tensors: dict[str, Any]) -> None:
        for name in (K_PROJ, LATE):
            tensors[name] = tensors[name].sign() / 64

    edit_tensors(tmp_path, change)
    checkpoint = HfCheckpoint(tmp_path)
    assert checkpoint.shape.group == 128
    for name in ("blk.0.attn_k.weight", "blk.1.ffn_down.weight"):
        assert (np.asarray(checkpoint.ternary(name)[1]) == 1 / 64).all()


NOT_TERNARY: dict[str, tuple[Callable[[Any], Any], str]] = {
    "noise": (lambda w: torch.randn(w.shape), "within|in 16 columns: the weights are not ternary"),
    "two in a group": (lambda w: w.sign() * torch.where(torch.arange(256) == 5, 2, 1), "holds ±1 and ±2 in 16 columns"),
    "groups of 32": (
        lambda w: w.sign() * (1 + torch.arange(256) // 32),
        "it has a scale for every 32 weights of a row; supported are scales of 256, 128, 64",
    ),
    "groups of 16": (lambda w: w.sign() * (1 + torch.arange(256) // 16), "a scale for every 16 weights of a row"),
}


@pytest.mark.parametrize("case", NOT_TERNARY.values(), ids=NOT_TERNARY)
def test_a_plain_model_must_be_ternary(case: tuple[Callable[[Any], Any], str], tmp_path: Path) -> None:
    hf_models.save(PLAIN, tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({K_PROJ: case[0](t[K_PROJ]).float()}))
    with pytest.raises(UnsupportedError, match=f"{K_PROJ}.*({case[1]}).*without quantization_config"):
        HfCheckpoint(tmp_path)


def test_groups_must_divide_the_model(tmp_path: Path) -> None:
    hf_models.save(replace(PLAIN, inter=320, group=64), tmp_path)
    assert HfCheckpoint(tmp_path).shape.group == 64
    hf_models.save(replace(PLAIN, inter=96 * 5), tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({K_PROJ: t[K_PROJ].sign() * (1.0 + torch.arange(256) // 64)}))
    with pytest.raises(UnsupportedError, match=r"every 64 weights of a row; .* none of 64, 128 and 256 divides all"):
        HfCheckpoint(tmp_path)


@pytest.mark.parametrize("group", [0, 128])
def test_two_tensors_that_disagree_are_named(group: int, tmp_path: Path) -> None:
    """A later layer with finer groups than the first one's."""
    hf_models.save(replace(PLAIN, group=group), tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({LATE: t[LATE].sign() * (1.0 + torch.arange(512) // 64)}))
    checkpoint = HfCheckpoint(tmp_path)
    of = "a scale for every 128 weights of a row" if group else "one scale"
    with pytest.raises(UnsupportedError, match=rf"{LATE}: .*; but {ATTN_Q}\.weight has {of}, and a model has one kind"):
        checkpoint.ternary("blk.1.ffn_down.weight")
    with pytest.raises(UnsupportedError, match=LATE):
        convert(tmp_path, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_scales_that_float16_does_not_hold(tmp_path: Path) -> None:
    hf_models.save(replace(PLAIN, group=128), tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({LATE: t[LATE] * 1.001}))
    with pytest.raises(UnsupportedError, match=r"blk\.1\.ffn_down\.weight.* not a finite float16 number"):
        convert(tmp_path, tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("value", "type"),
    [(1.5, "F16"), (65504, "F16"), (65536, "BF16"), (2.0**-24, "F16"), (2.0**-25, "BF16"), (1e5, "F32"), (0.1, "F32")],
)
def test_an_embedding_is_written_in_the_smallest_type_that_holds_it(
    directory: Path, tmp_path: Path, value: float, type: str
) -> None:
    edit_tensors(directory, lambda t: t["model.embed_tokens.weight"].fill_(value))
    convert(directory, tmp_path / "m.gguf")
    written = read_gguf(tmp_path / "m.gguf")
    assert written.container.tensors["token_embd.weight"].type_name == type
    assert (written.dense("token_embd.weight") == np.float32(value)).all()
