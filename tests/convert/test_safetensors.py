"""Safetensors files: what is broken is refused before it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the checkpoints are made with PyTorch")

import hf_models  # noqa: E402
from hf_models import (  # noqa: E402
    BITNET,
)
from safetensors.torch import load_file, save_file  # noqa: E402

from bitgen.convert import HfCheckpoint  # noqa: E402
from bitgen.convert.safetensors import open_file  # noqa: E402
from bitgen.errors import FormatError, UnsupportedError  # noqa: E402


def with_header(header: bytes, data: bytes = bytes(64), length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(**changes: Any) -> bytes:
    return json.dumps({"x": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | changes}).encode()


BROKEN_FILES = {
    "empty": b"",
    "four bytes": b"abcd",
    "header longer than the file": with_header(entry(), length=1 << 62),
    "header is not JSON": with_header(b"{x}"),
    "header is an array": with_header(b"[]"),
    "entry is a number": with_header(b'{"x": 3}'),
    "type is a list": with_header(entry(dtype=[1])),
    "negative dimension": with_header(entry(shape=[-4, -4])),
    "dimension is true": with_header(entry(shape=[True, 16])),
    "shape and range disagree": with_header(entry(shape=[4, 5])),
    "range runs backwards": with_header(entry(data_offsets=[64, 0])),
    "three offsets": with_header(entry(data_offsets=[0, 1, 64])),
    "data cut short": with_header(entry(), data=bytes(63)),
    "absurd shape": with_header(entry(shape=[1 << 40, 1 << 40])),
    "a hundred dimensions": with_header(entry(shape=[1] * 100)),
    "bytes after the last tensor": with_header(entry(), data=bytes(65)),
    "a hole before the first": with_header(entry(data_offsets=[4, 68]), data=bytes(68)),
    "one over another": with_header(json.dumps({name: json.loads(entry())["x"] for name in "xy"}).encode()),
    "header is not UTF-8": with_header(b'{"\xff": 1}'),
    "a name of half a pair": with_header(entry().replace(b'"x"', b'"\\ud800"')),
    "header nested deeply": with_header(b"[" * 100_000),
}


@pytest.mark.parametrize("content", BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_broken_safetensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match=r"x\.safetensors"):
        open_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "U16"])
def test_types_that_are_not_read(dtype: str, tmp_path: Path) -> None:
    """The file is sound, and not called broken."""
    (tmp_path / "x.safetensors").write_bytes(with_header(entry(dtype=dtype)))
    with pytest.raises(UnsupportedError, match=f"is of type '{dtype}'"):
        open_file(tmp_path / "x.safetensors")


def test_a_sound_safetensors_file(tmp_path: Path) -> None:
    """The file that the broken ones were made from."""
    (tmp_path / "x.safetensors").write_bytes(with_header(entry()))
    assert (open_file(tmp_path / "x.safetensors")["x"].read() == np.zeros((4, 4), np.float32)).all()


@pytest.mark.parametrize("at", range(0, 400, 23))
def test_truncation_never_goes_unnoticed(directory: Path, at: int) -> None:
    path = directory / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * at // 400])
    with pytest.raises(FormatError):
        HfCheckpoint(directory)


def test_shards(tmp_path: Path) -> None:
    """A missing shard, a shard elsewhere, a tensor not where the index says, an index without a map."""
    directory = hf_models.save(BITNET, tmp_path / "model", shards=2)
    index = directory / "model.safetensors.index.json"
    sound = json.loads(index.read_text())
    weight_map = sound["weight_map"]
    file, other = sorted(set(weight_map.values()))
    name = next(n for n in weight_map if weight_map[n] == file)
    for changed, message in (
        ({name: "absent.safetensors"}, "'absent.safetensors'"),
        ({name: f"../model/{file}"}, "not beside it"),
        ({name: other}, f"does not hold the tensor .{name}"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map | changed}))
        with pytest.raises(FormatError, match=message):
            HfCheckpoint(directory)
    for text in ("{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        with pytest.raises(FormatError, match="weight_map"):
            HfCheckpoint(directory)


def test_a_tensor_of_two_shards_is_refused(tmp_path: Path) -> None:
    directory = hf_models.save(BITNET, tmp_path / "model", shards=2)
    first, second = (directory / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: tensor}, second)
    with pytest.raises(FormatError, match=f"both hold the tensor '{name}'"):
        HfCheckpoint(directory)


def test_a_tensor_that_the_index_forgot_is_read(tmp_path: Path) -> None:
    """transformers loads all that a shard holds: here a head that is not the embedding."""
    directory = hf_models.save(BITNET, tmp_path / "model", shards=2)
    shard = directory / "model-00002-of-00002.safetensors"
    head = torch.ones(hf_models.VOCAB, BITNET.hidden)
    save_file(load_file(shard) | {"lm_head.weight": head}, shard)
    assert (HfCheckpoint(directory).dense("output.weight") == 1).all()


def test_one_file_comes_before_an_index(tmp_path: Path) -> None:
    """As in transformers; the index may be left over from another save."""
    directory = hf_models.save(BITNET, tmp_path / "model")
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "absent.safetensors"}}')
    assert HfCheckpoint(directory).files == [directory / "model.safetensors"]


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    hf_models.save_config(BITNET, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FormatError, match="safe_serialization"):
        HfCheckpoint(tmp_path)
