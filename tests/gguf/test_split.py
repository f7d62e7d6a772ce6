"""Models in several files, as llama.cpp's own writer splits them, are read as one; parts that do not fit are named."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_files import TINY, contents
from gguf_package import packaged

import bitgen
from bitgen.checkpoints.synth import SynthCheckpoint
from bitgen.checkpoints.tensors import is_ternary, tensor_shapes
from bitgen.convert.source import convert
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.gguf import info, split
from bitgen.gguf.reader import GgufCheckpoint, read_gguf
from bitgen.gguf.writer import write_gguf


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> GgufCheckpoint:
    path = tmp_path_factory.mktemp("whole") / "m.gguf"
    return read_gguf(packaged(path, *contents(TINY, "tq2_0"))[0])


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Four parts of the same model."""
    made = packaged(tmp_path / "m.gguf", *contents(TINY, "tq2_0"), split_max_tensors=10)
    assert [path.name for path in made] == [f"m-0000{i}-of-00004.gguf" for i in (1, 2, 3, 4)]
    return made


@pytest.mark.parametrize("given", range(4))
def test_any_part_stands_for_the_model(whole: GgufCheckpoint, parts: list[Path], given: int) -> None:
    checkpoint = read_gguf(parts[given])
    assert checkpoint.shape == whole.shape and checkpoint.files == tuple(parts)
    assert checkpoint.container.size == sum(path.stat().st_size for path in parts)
    for name in tensor_shapes(whole.shape):
        if is_ternary(name):
            codes, scale = checkpoint.ternary(name)
            assert np.array_equal(codes, whole.ternary(name)[0]) and scale == whole.ternary(name)[1]
        else:
            assert np.array_equal(checkpoint.dense(name), whole.dense(name))
    assert info.describe(parts[given])["tensors"] == info.describe(whole.path)["tensors"]


def test_the_first_part_may_have_no_tensor(whole: GgufCheckpoint, tmp_path: Path) -> None:
    made = packaged(tmp_path / "m.gguf", *contents(TINY, "tq2_0"), split_max_tensors=20, small_first_shard=True)
    assert len(made) == 3 and read_gguf(made[0]).shape == whole.shape


def test_what_is_packed_is_of_all_parts(whole: GgufCheckpoint, parts: list[Path]) -> None:
    """A part that is exchanged for another of the same size is noticed."""
    tokens = [1, 2, 3]
    expected = bitgen.Model.load(whole.path, threads=1).logits(tokens)
    assert np.array_equal(bitgen.Model.load(parts[2], threads=1).logits(tokens), expected)
    raw = bytearray(parts[3].read_bytes())
    raw[-32:-28] = struct.pack("<f", 100.0)  # the last matrix' scale, before the padding
    parts[3].write_bytes(raw)
    assert not np.array_equal(bitgen.Model.load(parts[0], threads=1).logits(tokens), expected)


def test_a_split_model_becomes_one_file(whole: GgufCheckpoint, parts: list[Path], tmp_path: Path) -> None:
    convert(parts[1], tmp_path / "one.gguf", "i2_s")
    one = read_gguf(tmp_path / "one.gguf")
    assert one.shape == whole.shape and "split.count" not in one.metadata
    with pytest.raises(BitgenError, match="it is the input"):
        convert(parts[0], parts[3], "i2_s")


def test_a_part_is_missing(parts: list[Path]) -> None:
    parts[2].unlink()
    reason = r"this is part 2 of 4 of a split model, and m-00003-of-00004.gguf is not beside it"
    with pytest.raises(FormatError, match=reason):
        read_gguf(parts[1])


def test_parts_without_their_names(parts: list[Path], tmp_path: Path) -> None:
    for name in ("model.gguf", "m-00003-of-00004.gguf", "m-00002-of-00005.gguf"):
        shutil.copy(parts[1], tmp_path / name)
        with pytest.raises(UnsupportedError, match=r"part 2 of 4 .* llama-gguf-split --merge joins"):
            read_gguf(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: shutil.copy(p[2], p[1]), "m-00002-of-00004.gguf says that it is part 3 of 4"),
        (lambda p: p[1].write_bytes(p[1].read_bytes()[:-64]), "m-00002-of-00004.gguf: tensor .* cut short"),
        (lambda p: _set(p[0], b"split.no", "<H", 9), "split.no is 9 and split.count 4; the file is corrupt"),
        (lambda p: _set(p[0], b"split.tensors.count", "<i", 39), "have 38 tensors; split.tensors.count is 39"),
        (lambda p: _rename(p[3]), "m-00001-of-00004.gguf and m-00004-of-00004.gguf both have token_embd.weight"),
    ],
)
def test_parts_that_do_not_fit(parts: list[Path], change: Callable[[list[Path]], object], reason: str) -> None:
    change(parts)
    with pytest.raises(FormatError, match=reason):
        read_gguf(parts[0])


def _set(path: Path, key: bytes, format: str, value: int) -> None:
    """Another value of a number among the key-values."""
    raw = bytearray(path.read_bytes())
    at = raw.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4
    struct.pack_into(format, raw, at, value)
    path.write_bytes(raw)


def _rename(path: Path) -> None:
    """A tensor of this part gets the name of one that is in the first."""
    raw = path.read_bytes()
    old, new = b"blk.1.ffn_up.scale", b"token_embd.weight "
    assert raw.count(old) == 1 and len(old) == len(new)
    length = struct.pack("<Q", len(old))
    path.write_bytes(raw.replace(length + old, struct.pack("<Q", len(new) - 1) + new[:-1]))


def test_names_of_parts(tmp_path: Path) -> None:
    names = ["m.v2-00001-of-00002.gguf", "m.v2-00002-of-00002.gguf"]
    assert [path.name for path in split.paths(tmp_path / names[1])] == names
    assert split.paths(tmp_path / "m-1-of-2.gguf") == (tmp_path / "m-1-of-2.gguf",)


def test_a_whole_file_may_be_named_like_a_part(tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00003.gguf"
    write_gguf(path, SynthCheckpoint(TINY))
    assert read_gguf(path).files == (path,)
