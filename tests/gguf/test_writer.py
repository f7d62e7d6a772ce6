"""What we write is read back, by us and by others; what cannot be written leaves nothing behind."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import gguf
import numpy as np
import places
import pytest
from gguf_files import SHAPES, TINY, TINY_LLAMA, Q, changed, spoil, store

from bitgen.checkpoints import synth
from bitgen.checkpoints.checkpoint import ALL
from bitgen.checkpoints.tensors import is_ternary, tensor_shapes
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.gguf import container, types
from bitgen.gguf.reader import read_gguf
from bitgen.gguf.writer import FILE_TYPES, write_gguf
from bitgen.kernels import layout


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("type", [type for type, known in FILE_TYPES.items() if 0 in known.groups])
def test_written_files_are_read_back_identically(tmp_path: Path, name: str, type: str) -> None:
    shape = dataclasses.replace(SHAPES[name], binary=FILE_TYPES[type].binary)
    original, path = synth.SynthCheckpoint(shape, 7), tmp_path / "m.gguf"
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
    ours, theirs = tmp_path / "m.gguf", places.DATA / "bitnetcpp-i2_s.gguf"
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
        ("token_embd.weight", np.full((300, 256), math.nan, np.float32)),
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
