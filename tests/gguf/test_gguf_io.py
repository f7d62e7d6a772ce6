"""Model files: what other engines wrote is read exactly, what we write is read back, and bad files say so."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import places
import pytest
from gguf_files import SMALLEST, TINY, TINY_LLAMA, changed, contents, floats, store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitgen.checkpoints import synth
from bitgen.checkpoints.checkpoint import ALL, ternary_floats
from bitgen.checkpoints.tensors import is_ternary, tensor_shapes
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.gguf import container, i2s_layout, info, tensors, tl_tiles, types
from bitgen.gguf.reader import GgufCheckpoint, read_gguf
from bitgen.gguf.writer import FILE_TYPES, write_gguf
from bitgen.kernels import layout
from bitgen.text.tokenizer import Tokenizer

DATA = places.DATA
Q = "blk.0.attn_q.weight"
SHAPES = {"bitnet-b1.58": TINY, "llama": TINY_LLAMA}
SHAPES["bitnet"] = dataclasses.replace(TINY, architecture="bitnet", activation="silu")
SHAPES["odd heads"] = dataclasses.replace(TINY, head_dim=128)
SHAPES["qwen3"] = dataclasses.replace(TINY_LLAMA, architecture="qwen3", rope_interleaved=False, qk_norm=True)
SHAPES["qwen3 inputs"] = dataclasses.replace(SHAPES["qwen3"], input_norms=True, tied=True)
SHAPES["gemma3"] = dataclasses.replace(
    SHAPES["qwen3"], architecture="gemma3", activation="gelu_tanh", post_norms=True, embedding_scale=16.0, tied=True
)
SHAPES["gemma3 inputs"] = dataclasses.replace(
    SHAPES["gemma3"], input_norms=True, attention_scale=0.1, window=7, window_period=2, window_theta=500.0
)


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / "truth-bitnet.npz"))


# ---- what other engines wrote ----


def assert_truth(checkpoint: GgufCheckpoint, truth: dict[str, np.ndarray]) -> None:
    matrices = [name for name in truth if not name.endswith(".scale")]
    assert len(matrices) == 7
    for name in matrices:
        codes, scale = checkpoint.ternary(name)
        assert codes.dtype == np.int8 and np.array_equal(codes, truth[name])
        assert np.float32(scale) == truth[f"{name}.scale"]


def test_bitnet_cpp_i2_s(truth: dict[str, np.ndarray]) -> None:
    checkpoint = read_gguf(DATA / "bitnetcpp-i2_s.gguf")
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
    """One id, blocks of 64 or 128. With one scale the matrix is read; with several it says so, unless the first of the
    model has several."""
    source = f"q2_0-g{group}-96x512"
    data, trits, scales = (foreign[f"{source}/{part}"] for part in ("data", "trits", "group_scales"))
    shape = dataclasses.replace(TINY, hidden=512, heads=3, kv_heads=3, head_dim=32, layers=1)
    metadata, tensors = contents(shape)
    second = Q.replace("attn_q", "attn_k")
    tensors[second] = ((96, 512), types.Q2_0, data.tobytes())
    checkpoint = read_gguf(store(tmp_path / "m.gguf", metadata, tensors))
    codes, got = checkpoint.scaled(second)
    assert np.array_equal(codes, trits) and np.array_equal(got, scales) and checkpoint.shape.group == 0
    with pytest.raises(UnsupportedError, match=f"attn_k.weight: it has a scale for every {group} weights of a row"):
        checkpoint.ternary(second)
    same = data.reshape(-1, 2 + group // 4).copy()
    same[:, :2] = np.array([0.5], "<f2").view(np.uint8)
    tensors[Q] = ((96, 512), types.Q2_0, same.tobytes())
    codes, scale = read_gguf(store(tmp_path / "m.gguf", metadata, tensors)).ternary(Q)
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
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.weight.*(0\.5|0\.99|NaN)"):
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


@pytest.mark.parametrize("name", tensors.QUANTISED)
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


# ---- what we write ----


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("type", [type for type in FILE_TYPES if type != "q2_0"])
def test_written_files_are_read_back_identically(tmp_path: Path, name: str, type: str) -> None:
    original, path = synth.SynthCheckpoint(SHAPES[name], 7), tmp_path / "m.gguf"
    steps: list[tuple[int, int]] = []
    write_gguf(path, original, type, progress=lambda done, total: steps.append((done, total)))
    back = read_gguf(path)
    assert back.shape == original.shape
    for tensor in tensor_shapes(original.shape):
        if is_ternary(tensor):
            (codes, scale), (want, want_scale) = back.ternary(tensor), original.ternary(tensor)
            assert np.array_equal(codes, want) and scale == want_scale
        else:
            assert np.array_equal(back.dense(tensor), original.dense(tensor))
    for key, value in original.metadata.items():
        assert np.array_equal(back.metadata[key], value), key
    assert [d for d, _ in steps] == sorted(d for d, _ in steps) and steps[-1][0] == steps[-1][1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_copied_through_write_keeps_the_bits_of_bitnet_cpp(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "m.gguf", DATA / "bitnetcpp-i2_s.gguf"
    write_gguf(ours, read_gguf(theirs))
    a, b = container.Container(ours), container.Container(theirs)
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        assert (tensor.shape, tensor.type) == (b.tensors[name].shape, b.tensors[name].type)
        used = tensor.elements // 4 + 4 if tensor.type == types.I2_S else tensor.nbytes
        assert np.array_equal(a.bytes_of(tensor)[:used], b.bytes_of(b.tensors[name])[:used]), name
    assert {k for k in b.metadata if k not in a.metadata} == set()


@pytest.mark.parametrize("source", ["ik-iq1_bn", "ik-iq2_bn_r4", "src-b158-f32", "bitnetcpp-i2_s"])
@pytest.mark.parametrize("type", ["i2_s", "t5"])
def test_files_of_other_engines_are_converted_without_loss(
    fixtures: Path, tmp_path: Path, source: str, type: str
) -> None:
    """Codes and scales are the same, norms too, and the embedding keeps its bytes, whatever their type."""
    theirs, path = read_gguf(fixtures / f"{source}.gguf"), tmp_path / "m.gguf"
    write_gguf(path, theirs, type)
    ours = read_gguf(path)
    assert ours.shape == dataclasses.replace(theirs.shape, name=ours.shape.name)
    for name in tensor_shapes(theirs.shape):
        if is_ternary(name):
            (codes, scale), (want, want_scale) = ours.ternary(name), theirs.ternary(name)
            assert np.array_equal(codes, want) and scale == want_scale
        else:
            assert np.array_equal(ours.dense(name), theirs.dense(name))
    a, b = ours.container, theirs.container
    name = "token_embd.weight"
    assert a.tensors[name].type == b.tensors[name].type
    assert np.array_equal(a.bytes_of(a.tensors[name]), b.bytes_of(b.tensors[name]))


def test_conversions_there_and_back_give_the_same_file(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.gguf" for n in range(5)]
    write_gguf(paths[0], synth.SynthCheckpoint(TINY_LLAMA, 4), "i2_s")
    for before, after, type in zip(paths, paths[1:], ("tq1_0", "t5", "tq2_0", "i2_s"), strict=False):
        write_gguf(after, read_gguf(before), type)
    assert paths[4].read_bytes() == paths[0].read_bytes()


def test_an_embedding_of_ternary_groups_becomes_f16(tmp_path: Path, foreign: dict[str, np.ndarray]) -> None:
    """Its type id does not say its blocks, so a copy writes its exact values."""
    shape = dataclasses.replace(TINY, hidden=512, heads=8, vocab=96, layers=1)

    def change(metadata: dict, tensors: dict) -> None:
        tensors["token_embd.weight"] = ((96, 512), types.Q2_0, foreign["q2_0-g128-96x512/data"].tobytes())

    source = read_gguf(changed(tmp_path / "a.gguf", change, shape=shape))
    write_gguf(tmp_path / "b.gguf", source)
    copy = read_gguf(tmp_path / "b.gguf")
    assert copy.container.tensors["token_embd.weight"].type == types.F16
    assert np.array_equal(copy.dense("token_embd.weight"), source.dense("token_embd.weight"))


def test_a_copy_of_spoilt_floats_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path / "a.gguf", spoil("token_embd.weight", slice(4, 6), b"\xff\xff"))
    with pytest.raises(FormatError, match=r"token_embd\.weight holds NaN"):
        write_gguf(tmp_path / "b.gguf", read_gguf(path))
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize("type", ["tq1_0", "tq2_0"])
@pytest.mark.parametrize("name", ["bitnet", "llama"])
def test_the_gguf_package_reads_our_tq_files(tmp_path: Path, name: str, type: str) -> None:
    """As llama.cpp would: offsets are the running sum of padded sizes, the scale is beside the matrix."""
    original, path = synth.SynthCheckpoint(SHAPES[name], 3), tmp_path / "m.gguf"
    write_gguf(path, original, type)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == name
    tensors = {t.name: t for t in reader.tensors}
    at = reader.data_offset
    for tensor in reader.tensors:
        assert tensor.data_offset == at
        at += -(-tensor.n_bytes // 32) * 32
    assert at == path.stat().st_size
    for tensor_name in filter(is_ternary, tensor_shapes(original.shape)):
        codes, scale = original.ternary(tensor_name)
        tensor = tensors[tensor_name]
        assert np.array_equal(gguf.quants.dequantize(tensor.data, tensor.tensor_type), codes.astype(np.float32))
        assert tensors[tensor_name.replace("weight", "scale")].data[0] == np.float32(scale)


def test_metadata_types_are_those_other_readers_insist_on(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", synth.SynthCheckpoint(TINY, 1), "tq2_0")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    types = gguf.GGUFValueType
    for key, type in (
        ("general.file_type", [types.UINT32]),
        ("bitnet-b1.58.block_count", [types.UINT32]),
        ("bitnet-b1.58.attention.layer_norm_rms_epsilon", [types.FLOAT32]),
        ("bitnet-b1.58.hidden_activation", [types.STRING]),
        ("tokenizer.ggml.tokens", [types.ARRAY, types.STRING]),
        ("tokenizer.ggml.token_type", [types.ARRAY, types.INT32]),
        ("tokenizer.ggml.bos_token_id", [types.UINT32]),
        ("tokenizer.ggml.add_bos_token", [types.BOOL]),
    ):
        assert fields[key].types == type, key


def test_every_kind_of_metadata_value_comes_back(tmp_path: Path) -> None:
    values = {
        "a.u8": np.uint8(200), "a.i8": np.int8(-3), "a.u16": np.uint16(40000), "a.i16": np.int16(-30000),
        "a.i32": -5, "a.u64": 1 << 40, "a.i64": np.int64(-(1 << 40)), "a.f64": np.float64(0.1), "a.f32": 0.5,
        "a.yes": True, "a.no": False, "a.text": "naïve ▁", "a.empty": "", "a.list": [1, -2],
        "a.wide": [1 << 40],
        "a.floats": [0.5, 0.25], "a.flags": np.array([True, False]), "a.texts": ["a", "", "é"], "a.none": [],
    }  # fmt: skip
    back = container.Container(store(tmp_path / "m.gguf", values, {})).metadata
    assert list(back) == list(values)
    for key, value in values.items():
        assert np.array_equal(back[key], value) and isinstance(back[key], bool) == isinstance(value, bool), key


@pytest.mark.parametrize(
    ("change", "type", "reason"),
    [
        ({"hidden": 192, "head_dim": 48}, "tq2_0", "rows of 192 are not whole tq2_0 blocks of 256"),
        ({"hidden": 12, "head_dim": 2, "intermediate": 20}, "i2_s", "not whole I2_S blocks"),
        ({"sub_norms": False}, "i2_s", "has no GGUF form"),
        ({"rope_interleaved": True}, "i2_s", "has no GGUF form"),
        ({"architecture": "qwen3"}, "i2_s", "has no GGUF form"),
        ({}, "q4_0", "unknown file type 'q4_0'; known: i2_s, tq1_0, tq2_0"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, change: dict, type: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        write_gguf(tmp_path / "m.gguf", synth.SynthCheckpoint(dataclasses.replace(TINY, **change)), type)
    assert not list(tmp_path.iterdir())


class Spoilt(synth.SynthCheckpoint):
    """A checkpoint with one tensor gone wrong."""

    def __init__(self, name: str, wrong: object) -> None:
        super().__init__(TINY, 1)
        self.name, self.wrong = name, wrong

    def ternary(self, name: str) -> tuple[np.ndarray, float]:
        return self.wrong if name == self.name else super().ternary(name)  # type: ignore[return-value]

    def dense(self, name: str, rows: slice = ALL) -> np.ndarray:
        return self.wrong[rows] if name == self.name else super().dense(name, rows)  # type: ignore[index]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        (Q, (np.full((256, 256), 2, np.int8), 1.0)),
        (Q, (np.zeros((256, 128), np.int8), 1.0)),
        (Q, (np.zeros((256, 256), np.int8), math.nan)),
        (Q, (np.zeros((256, 256), np.int8), -1.0)),
        ("output_norm.weight", np.full(256, math.inf, np.float32)),
        ("output_norm.weight", np.ones(255, np.float32)),
        ("token_embd.weight", np.full((300, 256), 1e6, np.float32)),
    ],
)
def test_spoilt_weights_are_refused_and_leave_nothing_behind(tmp_path: Path, name: str, wrong: object) -> None:
    (tmp_path / "m.gguf").write_bytes(b"before")
    with pytest.raises(FormatError):
        write_gguf(tmp_path / "m.gguf", Spoilt(name, wrong))
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == b"before"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BitgenError, match="cannot write"):
        write_gguf(tmp_path / "none" / "m.gguf", synth.SynthCheckpoint(TINY))


# ---- what the metadata says ----


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
        ("qwen3", "rope.scaling.type", "yarn"),
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


def test_norms_may_be_halves(tmp_path: Path) -> None:
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
        ("bitnet-b1.58.block_count", "2", FormatError, "block_count is '2'"),
        ("bitnet-b1.58.block_count", 1 << 40, FormatError, "layers is 1099511627776"),
        ("bitnet-b1.58.block_count", 1, UnsupportedError, "blk.1.attn_norm.weight has no place"),
        ("bitnet-b1.58.block_count", 3, FormatError, "blk.2.attn_norm.weight is missing"),
        (
            "bitnet-b1.58.embedding_length",
            128,
            FormatError,
            r"token_embd.weight is \[300, 256\].*\[300, 128\]",
        ),
        ("bitnet-b1.58.feed_forward_length", 500, FormatError, "ffn_gate.weight"),
        ("bitnet-b1.58.attention.head_count", 0, FormatError, "head_count is 0"),
        ("bitnet-b1.58.attention.head_count", 3, FormatError, "3 heads are not a multiple of 2"),
        ("bitnet-b1.58.rope.dimension_count", 63, FormatError, "head_dim 63 is odd"),
        ("bitnet-b1.58.attention.key_length", 32, UnsupportedError, "heads of 32 with RoPE over 64"),
        ("bitnet-b1.58.attention.layer_norm_rms_epsilon", math.nan, FormatError, "norm_eps is nan"),
        ("bitnet-b1.58.rope.freq_base", np.float64(1e300), FormatError, "rope_theta is inf"),
        ("bitnet-b1.58.rope.scaling.type", "yarn", UnsupportedError, "rope.scaling.type = 'yarn'"),
        ("bitnet-b1.58.rope.scaling.factor", 8.0, UnsupportedError, "rope.scaling.factor = 8.0"),
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


@pytest.mark.parametrize("key", ["rope.scaling.type", "rope.scaling.factor"])
def test_a_rope_scaling_that_does_nothing_is_accepted(tmp_path: Path, key: str) -> None:
    value = "linear" if key.endswith("type") else 1.0
    read_gguf(changed(tmp_path / "m.gguf", lambda m, t: m.update({f"bitnet-b1.58.{key}": value})))


def test_unknown_options_are_errors(tmp_path: Path) -> None:
    path = changed(tmp_path / "m.gguf", lambda m, t: None)
    with pytest.raises(UnsupportedError, match="I2_S layout 'avx'"):
        read_gguf(path, i2s_layout="avx")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="'gelu' \\(chosen by the caller\\)"):
        read_gguf(path, activation="gelu")


# ---- what the tensors say ----


def spoil(name: str, at: slice, data: bytes):
    """A change of some bytes of a tensor."""

    def change(metadata: dict, tensors: dict) -> None:
        shape, type, old = tensors[name]
        new = bytearray(old)
        new[at] = data
        tensors[name] = (shape, type, bytes(new))

    return change


@pytest.mark.parametrize("scale", [math.nan, math.inf, -0.5, 0.0])
def test_wrong_scales_are_errors(tmp_path: Path, scale: float) -> None:
    path = changed(tmp_path / "m.gguf", spoil(Q, slice(-32, -28), struct.pack("<f", scale)))
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.weight: the scale is"):
        read_gguf(path).ternary(Q)


def test_the_unused_code_is_an_error(tmp_path: Path) -> None:
    path = changed(tmp_path / "m.gguf", spoil(Q, slice(5, 6), b"\xff"))
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.weight: .*code 3"):
        read_gguf(path).ternary(Q)


def test_t5_is_laid_out_as_documented(tmp_path: Path) -> None:
    """docs/formats.md: a byte is a column of five rows; the last rows are filled with zeros; the scale ends it."""
    original, path = synth.SynthCheckpoint(TINY, 7), tmp_path / "m.gguf"
    write_gguf(path, original, "t5")
    file = container.Container(path)
    codes, scale = original.ternary(Q)
    raw = file.bytes_of(file.tensors[Q])
    assert file.tensors[Q].type == 0x62670005 and raw.size == 52 * 256 + 4
    assert raw[-4:].view("<f4")[0] == np.float32(scale)
    padded = np.zeros((260, 256), np.int64)
    padded[:256] = codes
    for block, column in ((0, 0), (0, 255), (17, 3), (51, 100)):
        c = padded[5 * block : 5 * block + 5, column] + 1
        pair, rest = 3 * c[0] + c[1], 9 * c[2] + 3 * c[3] + c[4]
        assert raw[256 * block + column] == (8 * rest + 8 - pair if pair else 216 + rest)


def test_a_byte_that_no_t5_holds_is_an_error(tmp_path: Path) -> None:
    path = changed(tmp_path / "m.gguf", spoil(Q, slice(5, 6), b"\xf3"), type="t5")
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.weight: .*above 242"):
        read_gguf(path).ternary(Q)


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.ffn_sub_norm.weight"])
def test_nan_in_float_tensors_is_an_error(tmp_path: Path, name: str) -> None:
    path = changed(tmp_path / "m.gguf", spoil(name, slice(4, 8), b"\xff" * 4))
    with pytest.raises(FormatError, match=f"{name} holds NaN"):
        read_gguf(path).dense(name)


@pytest.mark.parametrize("type", ["tq1_0", "tq2_0"])
def test_tq_blocks_of_different_scales_are_refused(tmp_path: Path, type: str) -> None:
    half = np.float16(0.5).tobytes()
    path = changed(tmp_path / "m.gguf", spoil(Q, slice(-2, None), half), type=type)
    with pytest.raises(UnsupportedError, match=r"attn_q\.weight: it has a scale for every row, from"):
        read_gguf(path).ternary(Q)


@pytest.mark.parametrize(
    ("type", "size", "named"),
    [
        (39, 256 // 32 * 17 * 256, "is of type MXFP4"),
        (20, 36864, "is of type IQ4_NL"),
        (12, 256 * 144, "is of type Q4_K: which cannot"),
        (142, 17408, "is of type PQ2_0: its activations must go through a Hadamard transform"),
        (143, 14336, "is of type PTQ1_0: its activations must go through a Hadamard transform"),
        (9999, 100, "is of type 9999: which cannot"),
    ],
)
def test_types_that_cannot_be_read_are_named(tmp_path: Path, type: int, size: int, named: str) -> None:
    path = changed(tmp_path / "m.gguf", lambda _, tensors: tensors.update({Q: ((256, 256), type, bytes(size))}))
    with pytest.raises(UnsupportedError, match=f"blk.0.attn_q.weight {named}"):
        read_gguf(path)
    assert "unsupported" in info.describe(path)


@pytest.mark.parametrize(
    ("type", "size", "error", "reason"),
    [
        (
            types.TL2,
            1000,
            FormatError,
            r"256 x 256, has room for 1024 bytes \(TL2: 16416, TL2: 16448, MXFP4: 34816",
        ),
        (types.Q2_0, 18432 - 32, FormatError, "tensors of type 42 fit neither Q2_0 or Q2_0_G128"),
        (types.TL1, 16416, UnsupportedError, "pass --tl-tiles 256x256=BM/BK/bm"),
        (types.TL2, 16416, UnsupportedError, "pass --tl-tiles 256x256=BM/BK/bm"),
        (types.TL2, 16448, UnsupportedError, "pass --tl-tiles 256x256=BM/BK/bm"),
    ],
)
def test_types_of_several_forms_need_a_size_that_fits(
    tmp_path: Path, type: int, size: int, error: type, reason: str
) -> None:
    path = changed(tmp_path / "m.gguf", lambda _, tensors: tensors.update({Q: ((256, 256), type, bytes(size))}))
    with pytest.raises(error, match=reason):
        read_gguf(path)


def test_a_form_that_sizes_do_not_tell_is_refused(tmp_path: Path) -> None:
    """512 weights: 144 bytes in blocks of 64, 136 in blocks of 128, and 160 of room for either."""
    tensors = {"a": ((1, 512), types.Q2_0, bytes(144)), "b": ((8,), types.F32, bytes(32))}
    with pytest.raises(UnsupportedError, match="could be any of Q2_0 or Q2_0_G128"):
        container.Container(store(tmp_path / "m.gguf", {}, tensors))
    tensors["c"] = ((64, 128), types.Q2_0, bytes(64 * 34))
    file = container.Container(store(tmp_path / "m.gguf", {}, tensors))
    assert [(t.type_name, t.nbytes) for t in file.tensors.values()] == [
        ("Q2_0_G128", 136),
        ("F32", 32),
        ("Q2_0_G128", 64 * 34),
    ]


def test_tiles_as_text() -> None:
    assert tl_tiles.parse("") == {}
    assert tl_tiles.parse("3200x8640=160/64/32, 320x960=160/192") == {
        (3200, 8640): (160, 64, 32),
        (320, 960): (160, 192, 32),
    }
    for text in ("x", "3200x8640", "3200x8640=160", "0x1=2/3/4", "1x2=3/4/0", "1x2=3/4/5/6", "1x-2=3/4", "1x2=3/4;"):
        with pytest.raises(BitgenError, match="expected MxK=BM/BK/bm"):
            tl_tiles.parse(text)


def test_tiles_of_known_shapes() -> None:
    assert tl_tiles.tile_of("TL1", 3200, 8640, {}) == (160, 64, 32)
    assert tl_tiles.tile_of("TL2", 14336, 4096, {}) == (256, 96, 32)
    assert tl_tiles.tile_of("TL2", 14336, 4096, {(14336, 4096): (1, 2, 3)}) == (1, 2, 3)
    with pytest.raises(UnsupportedError, match="4096x4096=128/64/32 or --tl-tiles 4096x4096=128/64/64"):
        tl_tiles.tile_of("TL1", 4096, 4096, {})
    for type, shapes in tl_tiles.SCRIPTS.items():
        for (m, k), tiles in shapes.items():
            for bm, bk, rows in tiles:
                assert m % bm == 0 and bm % rows == 0 and (k % bk == 0 if type == "TL1" else k % bk % 32 == 0)


def test_an_embedding_in_a_ternary_type_is_refused(tmp_path: Path) -> None:
    def change(metadata: dict, tensors: dict) -> None:
        dims, _, _ = tensors["token_embd.weight"]
        tensors["token_embd.weight"] = (dims, types.I2_S, bytes(dims[0] * dims[1] // 4 + 32))

    with pytest.raises(UnsupportedError, match=r"token_embd\.weight is of type I2_S"):
        read_gguf(changed(tmp_path / "m.gguf", change))


@pytest.mark.parametrize(
    ("name", "shape", "type", "nbytes", "reason"),
    [
        (Q, (256, 128), types.I2_S, None, r"\[256, 128\]; the metadata asks for \[256, 256\]"),
        (Q, (256, 256), types.F32, None, "the file is cut short|overlap"),
        ("blk.0.attn_q.bias", (256,), types.F32, 1024, "blk.0.attn_q.bias has no place"),
        ("rope_freqs.weight", (32,), types.F32, 128, "rope_freqs.weight has no place"),
        ("blk.0.attn_q.scale", (2,), types.F32, 8, "expected one F32 value"),
        (Q, (1 << 31, 1 << 31), types.I2_S, None, "do not fit"),
        (Q, (1 << 62, 1 << 62), 12, None, "do not fit"),
        (Q, (2, 100), types.TQ2_0, None, "rows of 100 are not whole TQ2_0 blocks"),
        (Q, (0, 256), types.F32, None, "dimension of 0"),
        (Q, (1, 1, 1, 1, 1), types.F32, None, "5 dimensions"),
        (Q, (), types.F32, None, "0 dimensions"),
        ("x" * 300, (1,), types.F32, 4, "300 bytes long"),
    ],
)
def test_wrong_rows_of_the_tensor_table(
    tmp_path: Path, name: str, shape: tuple, type: int, nbytes: int | None, reason: str
) -> None:
    def change(metadata: dict, tensors: dict) -> None:
        tensors[name] = (shape, type, bytes(nbytes) if nbytes else tensors[name][2])

    with pytest.raises(BitgenError, match=reason):
        read_gguf(changed(tmp_path / "m.gguf", change))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    for name in contents()[1]:
        with pytest.raises(FormatError, match=f"{name} is missing"):
            read_gguf(changed(tmp_path / "m.gguf", lambda m, t, name=name: t.pop(name)))


# ---- what the bytes say ----


def smallest(path: Path) -> bytes:
    """A valid file of a few kilobytes."""
    store(path, *contents(SMALLEST))
    return path.read_bytes()


def smallest_of_others(path: Path) -> bytes:
    """The like with a type of another engine in every matrix: the same bytes over and over, which all of them allow."""
    metadata, tensors = contents(SMALLEST)
    types = ("IQ1_BN", "IQ2_BN", "IQ2_BN_R4", "Q2_0", "TL1", "TL2", "F16")
    for name, type in zip(filter(is_ternary, list(tensors)), types, strict=True):
        m, k = tensors[name][0]
        if type == "TL2":  # which has no rows of fewer than 256
            continue
        size = types.tensor_bytes(id := getattr(types, type), (m, k))
        tensors[name] = ((m, k), id, b"\x14\x14" * (size // 2))
    tensors["token_embd.weight"] = ((SMALLEST.vocab, 64), types.Q8_0, b"\x14\x14" * (SMALLEST.vocab * 34))
    return store(path, metadata, tensors).read_bytes()


TILES = "64x64=64/64/32"


def use(path: Path) -> bool:
    """Read everything there is to read; False when it was refused. Any other exception is a bug."""
    try:
        checkpoint = read_gguf(path, tl_tiles=TILES)
        i2s_layout.warning(checkpoint)
        for name in tensor_shapes(checkpoint.shape):
            checkpoint.ternary(name) if is_ternary(name) else checkpoint.dense(name)
        tokenizer = Tokenizer.from_metadata(checkpoint.metadata)
        tokenizer.decode(tokenizer.encode("a <|eot_id|> b", parse_special=False))
    except BitgenError as error:
        assert len(str(error)) > 10
        return False
    return True


def test_not_a_model_at_all(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(FormatError, match="no such file"):
        read_gguf(path)
    with pytest.raises(FormatError, match="cannot be read"):
        read_gguf(tmp_path)
    for raw, reason in (
        (b"", "empty"),
        (b"GG", "ends within the magic"),
        (b"PK\3\4 a zip file", "not a GGUF file"),
        (b"GGUF", "ends within the version"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (b"GGUF" + struct.pack("<I", 1), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "1152921504606846976 key-values"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 63), "ends within key 1 of 1"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"a", 13), "a has the value type 13"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 8, 1 << 61), "a claims"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 12, 1 << 61), "ends within a"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 1), "value type 9"),
        (b"GGUF" + struct.pack("<IQQQ1sIQ1s", 3, 0, 1, 1, b"a", 8, 1, b"\xff"), "a is not UTF-8"),
        (
            b"GGUF" + struct.pack("<IQQQ1sIIQQ1s", 3, 0, 1, 1, b"a", 9, 8, 1, 1, b"\xff"),
            r"a\[0\] is not UTF-8",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + struct.pack("<Q1sIB", 1, b"a", 0, 1) * 2,
            "'a' appears twice",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "general.architecture is missing"),
    ):
        path.write_bytes(raw)
        with pytest.raises(FormatError, match=reason) as caught:
            read_gguf(path)
        assert str(path) in str(caught.value)


def test_duplicate_and_overlapping_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    raw = smallest(path)
    path.write_bytes(raw.replace(b"blk.0.attn_k.weight", b"blk.0.attn_v.weight"))
    with pytest.raises(FormatError, match=r"'blk\.0\.attn_v\.weight' appears twice"):
        read_gguf(path)
    at = raw.index(b"blk.0.attn_v.weight") + 19 + 4 + 16 + 4
    for offset, reason in ((0, "overlap"), (1, "not a multiple of the alignment"), (1 << 50, "cut short")):
        path.write_bytes(raw[:at] + struct.pack("<Q", offset) + raw[at + 8 :])
        with pytest.raises(FormatError, match=reason):
            read_gguf(path)


def test_version_2_is_the_same_format(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    raw = smallest(path)
    path.write_bytes(raw[:4] + struct.pack("<I", 2) + raw[8:])
    assert use(path)


@pytest.mark.parametrize("make", [smallest, smallest_of_others])
def test_cut_short_anywhere(tmp_path: Path, make: Callable[[Path], bytes]) -> None:
    path = tmp_path / "m.gguf"
    raw = make(path)
    assert use(path)
    data_at = min(t.offset for t in container.Container(path).tensors.values())
    for length in [*range(0, data_at, 7), *range(data_at, len(raw) - 32, 97)]:
        path.write_bytes(raw[:length])
        assert not use(path), length


def test_any_byte_of_the_header_changed(tmp_path: Path) -> None:
    """Each byte before the tensor data, one at a time: the file loads or is refused, nothing else."""
    path = tmp_path / "m.gguf"
    raw = bytearray(smallest(path))
    data_at = min(t.offset for t in container.Container(path).tensors.values())
    refused = 0
    for at in range(data_at):
        spoilt = raw.copy()
        spoilt[at] = raw[at] ^ 0x80 if at % 2 else raw[at] + 1 & 0xFF
        path.write_bytes(spoilt)
        refused += not use(path)
    assert refused > data_at // 2


@pytest.mark.parametrize("make", [smallest, smallest_of_others])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=9)), min_size=1, max_size=6))
def test_several_edits_anywhere(tmp_path: Path, make: Callable[[Path], bytes], edits: list[tuple[int, bytes]]) -> None:
    path = tmp_path / "m.gguf"
    raw = bytearray(make(path))
    for at, data in edits:
        at %= len(raw)
        raw[at : at + len(data)] = data
    path.write_bytes(raw)
    use(path)
    with contextlib.suppress(BitgenError):
        info.describe(path)


def test_layout_blocks_are_the_ones_of_the_file_format() -> None:
    """A matrix whose rows are no whole blocks: the packing runs on from row to row."""
    shape = dataclasses.replace(TINY, intermediate=160)
    codes, _ = synth.SynthCheckpoint(shape, 1).ternary("blk.0.ffn_down.weight")
    assert codes.shape == (256, 160)
    flat = codes.reshape(-1)
    packed = layout.pack_i2_s(codes.reshape(1, -1), 1, 128)
    for e in (0, 1, 31, 32, 127, 128, 159, 160, 161, 40959):
        byte, shift = 32 * (e // 128) + e % 32, 6 - 2 * (e % 128 // 32)
        assert (int(packed[byte]) >> shift & 3) - 1 == flat[e]
