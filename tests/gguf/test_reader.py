"""What other engines wrote is read exactly; each type's definition is followed weight by weight."""

from __future__ import annotations

import dataclasses
import math
import struct
from pathlib import Path

import gguf
import numpy as np
import places
import pytest
from gguf_files import TINY, Q, changed, contents, floats, store

from bitgen.checkpoints import synth
from bitgen.checkpoints.checkpoint import ternary_floats
from bitgen.checkpoints.tensors import is_ternary, tensor_shapes
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.gguf import info, types
from bitgen.gguf.reader import GgufCheckpoint, read_gguf
from bitgen.gguf.tensors import QUANTISED


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    return dict(np.load(places.DATA / "truth-bitnet.npz"))


def assert_truth(checkpoint: GgufCheckpoint, truth: dict[str, np.ndarray]) -> None:
    matrices = [name for name in truth if not name.endswith(".scale")]
    assert len(matrices) == 7
    for name in matrices:
        codes, scale = checkpoint.ternary(name)
        assert codes.dtype == np.int8 and np.array_equal(codes, truth[name])
        assert np.float32(scale) == truth[f"{name}.scale"]


def test_bitnet_cpp_i2_s(truth: dict[str, np.ndarray]) -> None:
    checkpoint = read_gguf(places.DATA / "bitnetcpp-i2_s.gguf")
    assert_truth(checkpoint, truth)
    s = checkpoint.shape
    assert (s.hidden, s.intermediate, s.layers, s.heads, s.kv_heads, s.head_dim) == (256, 640, 1, 4, 2, 64)
    assert (s.vocab, s.architecture, s.activation, s.sub_norms, s.tied) == (320, "bitnet", "silu", True, True)
    assert (s.rope_theta, s.norm_eps, s.rope_interleaved) == (500000.0, 1e-5, False)
    assert checkpoint.dense("token_embd.weight").dtype == np.float16
    assert checkpoint.dense("output_norm.weight").dtype == np.float32


def test_ternary_floats_of_another_engine(fixtures: Path, truth: dict[str, np.ndarray]) -> None:
    checkpoint = read_gguf(fixtures / "src-b158-f32.gguf")
    assert_truth(checkpoint, truth)
    assert checkpoint.shape.activation == "relu2"


@pytest.mark.parametrize("file", ["ik-iq1_bn", "ik-iq2_bn", "ik-iq2_bn_r4"])
def test_ik_llama_cpp(fixtures: Path, truth: dict[str, np.ndarray], file: str) -> None:
    checkpoint = read_gguf(fixtures / f"{file}.gguf")
    assert_truth(checkpoint, truth)
    assert info.describe(fixtures / f"{file}.gguf")["tensors"][file[3:].upper()] == 7
    exact = read_gguf(fixtures / "src-b158-f32.gguf")
    assert checkpoint.shape == exact.shape
    for name in tensor_shapes(exact.shape):
        if not is_ternary(name) and name != "token_embd.weight":  # which that tool made Q6_K
            assert np.array_equal(checkpoint.dense(name), exact.dense(name))
    theirs, ours = checkpoint.dense("token_embd.weight"), exact.dense("token_embd.weight")
    assert np.abs(theirs - ours).max() < np.abs(ours).max() / 32


def placed(path: Path, m: int, k: int, type: int, data: bytes) -> Path:
    """A model whose attn_q, m x k, holds these bytes."""
    shape = dataclasses.replace(TINY, hidden=k, intermediate=128, heads=m // 64, kv_heads=m // 64, layers=1)
    metadata, tensors = contents(shape)
    tensors[Q] = ((m, k), type, data)
    return store(path, metadata, tensors)


@pytest.mark.parametrize("name", ["tl1-256x512", "tl1-512x256", "tl2-256x1024"])
def test_tl_tensors_of_bitnet_cpp(tmp_path: Path, foreign: dict[str, np.ndarray], name: str) -> None:
    m, k = foreign[f"{name}/trits"].shape
    path = placed(tmp_path / "m.gguf", m, k, getattr(types, name[:3].upper()), foreign[f"{name}/data"].tobytes())
    with pytest.raises(UnsupportedError, match=f"attn_q.weight: .* pass --tl-tiles {m}x{k}=BM/BK/bm"):
        read_gguf(path)
    tile = "/".join(str(foreign[f"{name}/{part}"]) for part in ("BM", "BK", "bm"))
    codes, scale = read_gguf(path, tl_tiles=f"1x1=2/3,{m}x{k}={tile}").ternary(Q)
    assert np.array_equal(codes, foreign[f"{name}/trits"]) and scale == foreign[f"{name}/scale"]
    with pytest.raises(UnsupportedError, match=r"attn_q.weight: TL[12] tiles of 96 x 96 do not"):
        read_gguf(path, tl_tiles=f"{m}x{k}=96/96").ternary(Q)


@pytest.mark.parametrize("group", [64, 128])
def test_q2_0_is_told_apart_by_its_size(tmp_path: Path, foreign: dict[str, np.ndarray], group: int) -> None:
    """One id, blocks of 64 or 128. With several scales the model has groups, with one it has none."""
    source = f"q2_0-g{group}-96x512"
    data, trits, scales = (foreign[f"{source}/{part}"] for part in ("data", "trits", "group_scales"))
    shape = dataclasses.replace(TINY, hidden=512, heads=4, kv_heads=3, head_dim=32, layers=1)
    metadata, tensors = contents(dataclasses.replace(shape, heads=3))
    second = Q.replace("attn_q", "attn_k")
    tensors[second] = ((96, 512), types.Q2_0, data.tobytes())
    with pytest.raises(FormatError, match=f"heads x head_dim, 96, is not a multiple of group, {group}"):
        read_gguf(store(tmp_path / "m.gguf", metadata, tensors))
    metadata, tensors = contents(dataclasses.replace(shape, heads=12))
    tensors[second] = ((96, 512), types.Q2_0, data.tobytes())
    checkpoint = read_gguf(store(tmp_path / "m.gguf", metadata, tensors))
    codes, got = checkpoint.ternary(second)
    assert np.array_equal(codes, trits) and np.array_equal(got, scales) and checkpoint.shape.group == group
    same = data.reshape(-1, 2 + group // 4).copy()
    same[:, :2] = np.array([0.5], "<f2").view(np.uint8)
    tensors[second] = ((96, 512), types.Q2_0, same.tobytes())
    codes, scale = read_gguf(store(tmp_path / "m.gguf", metadata, tensors)).ternary(second)
    assert np.array_equal(codes, trits) and scale == 0.5


@pytest.mark.parametrize("name", ["tq1_0", "tq2_0"])
def test_tq_tensors_of_the_gguf_package(fixtures: Path, tmp_path: Path, name: str) -> None:
    """Its blocks carry the model's scale themselves, in float16."""
    stored = np.load(fixtures / f"gguf-{name}-192x512.npz")
    shape = dataclasses.replace(TINY, hidden=512, heads=3, kv_heads=3, layers=1)
    metadata, tensors = contents(shape)
    tensors[Q] = ((192, 512), getattr(types, name.upper()), stored["data"].tobytes())
    codes, scale = read_gguf(store(tmp_path / "m.gguf", metadata, tensors)).ternary(Q)
    assert np.array_equal(codes, stored["trits"])
    assert scale == np.float16(stored["scale"])


def test_worked_example_in_both_i2_s_layouts(tmp_path: Path) -> None:
    """128 weights, all 0 but w0 +1, w1 -1, w32 +1, w64 -1, w96 +1, w127 +1, spelt out as bytes."""
    wanted = np.zeros(128, np.int8)
    wanted[[0, 32, 96, 127]], wanted[[1, 64]] = 1, -1
    x86, arm = bytearray(b"\x55" * 32), bytearray(b"\x55" * 32)
    x86[0], x86[1], x86[31] = 0xA2, 0x15, 0x56
    arm[0], arm[1], arm[16], arm[31] = 0x99, 0x15, 0x19, 0x56
    for name, packed in (("x86", x86), ("arm", arm)):
        metadata, tensors = contents()
        m, k = tensors[Q][0]
        data = bytes(packed) * (m * k // 128) + struct.pack("<f", 0.75) + bytes(28)
        tensors[Q] = ((m, k), types.I2_S, data)
        codes, scale = read_gguf(store(tmp_path / "m.gguf", metadata, tensors), i2s_layout=name).ternary(Q)
        assert np.array_equal(codes.reshape(-1, 128), np.tile(wanted, (m * k // 128, 1)))
        assert scale == 0.75


def test_filler_after_the_i2_s_scale_is_ignored(tmp_path: Path) -> None:
    def fill(metadata: dict, tensors: dict) -> None:
        shape, type, data = tensors[Q]
        tensors[Q] = (shape, type, data[:-28] + b"\xff" * 28)

    want = synth.SynthCheckpoint(TINY, 1).ternary(Q)
    codes, scale = read_gguf(changed(tmp_path / "m.gguf", fill)).ternary(Q)
    assert np.array_equal(codes, want[0]) and scale == want[1]


@pytest.mark.parametrize("type", [types.F32, types.F16, types.BF16])
@pytest.mark.parametrize("beside", [None, 0.375])
def test_ternary_floats(tmp_path: Path, type: int, beside: float | None) -> None:
    codes, _ = synth.SynthCheckpoint(TINY, 1).ternary(Q)
    s = np.float32(0.015625 * 1.25)  # exact in all three types

    def change(metadata: dict, tensors: dict) -> None:
        tensors[Q] = floats(codes * s, type)
        if beside is not None:
            tensors["blk.0.attn_q.scale"] = floats(np.array([beside]), types.F32)

    got, scale = read_gguf(changed(tmp_path / "m.gguf", change)).ternary(Q)
    assert np.array_equal(got, codes)
    assert scale == np.float32(s) * np.float32(1 if beside is None else beside)


def test_an_all_zero_matrix_is_ternary() -> None:
    codes, scale, other = ternary_floats((3, 8), np.zeros((3, 8), np.float16).__getitem__)
    assert not codes.any() and scale == 0 and other is None


@pytest.mark.parametrize("odd", [0.5, 0.99, math.nan, math.inf])
def test_floats_that_are_not_ternary(tmp_path: Path, odd: float) -> None:
    def change(metadata: dict, tensors: dict) -> None:
        values = np.ones((256, 256), np.float32)
        values[200, 7] = odd
        tensors[Q] = floats(values, types.F32)

    checkpoint = read_gguf(changed(tmp_path / "m.gguf", change))
    with pytest.raises(BitgenError, match=r"blk\.0\.attn_q\.weight.*(±0\.5 and ±1 in 16|0\.99|NaN)"):
        checkpoint.ternary(Q)


def test_float_types_agree(tmp_path: Path) -> None:
    """F32, F16 and BF16 embeddings, F16 norms."""
    rng = np.random.default_rng(5)
    values = (rng.integers(-64, 64, (TINY.vocab, TINY.hidden)) / 64).astype(np.float32)
    for type in (types.F32, types.F16, types.BF16):

        def change(metadata: dict, tensors: dict, type: int = type) -> None:
            tensors["token_embd.weight"] = floats(values, type)
            tensors["blk.1.ffn_norm.weight"] = floats(values[0], types.F16)

        checkpoint = read_gguf(changed(tmp_path / "m.gguf", change))
        assert np.array_equal(checkpoint.dense("token_embd.weight"), values)
        assert np.array_equal(checkpoint.dense("blk.1.ffn_norm.weight"), values[0])


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_embeddings(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the gguf package dequantises them, in one piece or in several."""
    type = gguf.GGMLQuantizationType[name]
    weights, nbytes = gguf.GGML_QUANT_SIZES[type]
    rng, rows = np.random.default_rng(5), TINY.vocab
    data = rng.integers(0, 60, (rows, TINY.hidden // weights * nbytes), np.uint8)  # below 60: no half is infinite

    def change(metadata: dict, tensors: dict) -> None:
        tensors["token_embd.weight"] = ((rows, TINY.hidden), int(type), data.tobytes())

    monkeypatch.setattr("bitgen.checkpoints.checkpoint.AT_ONCE", 1000)
    got = read_gguf(changed(tmp_path / "m.gguf", change)).dense("token_embd.weight")
    assert got.dtype == np.float32 and np.array_equal(got, gguf.quants.dequantize(data, type))


@pytest.mark.parametrize("group", [64, 128])
def test_an_embedding_of_ternary_groups(tmp_path: Path, foreign: dict[str, np.ndarray], group: int) -> None:
    data, trits, scales = (foreign[f"q2_0-g{group}-96x512/{p}"] for p in ("data", "trits", "group_scales"))
    shape = dataclasses.replace(TINY, hidden=512, heads=8, vocab=96, layers=1)

    def change(metadata: dict, tensors: dict) -> None:
        tensors["token_embd.weight"] = ((96, 512), types.Q2_0, data.tobytes())

    got = read_gguf(changed(tmp_path / "m.gguf", change, shape=shape)).dense("token_embd.weight")
    assert got.dtype == np.float16 and np.array_equal(got, trits * np.repeat(scales, group, axis=1))
