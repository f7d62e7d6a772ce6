"""Odd and legal files of the `gguf` package, llama.cpp's own writer, are read or refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter
from gguf_files import SMALLEST, contents
from gguf_package import packaged

from bitgen.errors import FormatError, UnsupportedError
from bitgen.gguf.container import Container
from bitgen.gguf.reader import read_gguf


def written(path: Path, writer: GGUFWriter) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values_of_every_type(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "bitnet")
    writer.add_array("bools", [True, False, True])
    writer.add_array("texts", ["", "é", "x" * 70000])
    writer.add_array("floats", [1.5, -0.0])
    writer.add_uint64("u64", (1 << 64) - 1)
    writer.add_int64("i64", -(1 << 63))
    writer.add_float64("f64", 1e300)
    writer.add_int8("i8", -128)
    writer.add_bool("bool", False)
    found = Container(written(tmp_path / "m.gguf", writer)).metadata
    assert found["bools"].tolist() == [True, False, True] and found["texts"] == ["", "é", "x" * 70000]
    assert found["floats"].tolist() == [1.5, 0.0] and found["bool"] is False
    assert (found["u64"], found["i64"], found["f64"], found["i8"]) == ((1 << 64) - 1, -(1 << 63), 1e300, -128)


def test_no_tensors(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", GGUFWriter(tmp_path / "m.gguf", "bitnet"))
    assert Container(path).tensors == {}
    with pytest.raises(FormatError, match=r"token_embd\.weight is missing"):
        read_gguf(path)


def test_arrays_of_arrays_are_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "bitnet")
    writer.add_key_value("deep", [[1, 2], [3]], GGUFValueType.ARRAY, GGUFValueType.ARRAY)
    path = written(tmp_path / "m.gguf", writer)
    with pytest.raises(UnsupportedError, match="deep has the value type array in an array, which is not read"):
        Container(path)


@pytest.mark.parametrize("type", [GGUFValueType.UINT8, GGUFValueType.UINT64, GGUFValueType.INT16])
def test_an_alignment_in_any_integer_type(tmp_path: Path, type: GGUFValueType) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "bitnet")
    writer.add_key_value("general.alignment", 64, type)
    writer.data_alignment = 64
    for i in range(3):
        writer.add_tensor(f"t{i}" + "é" * 30, np.full(5 + i, i, np.float32))
    container = Container(written(tmp_path / "m.gguf", writer))
    for i, tensor in enumerate(container.tensors.values()):
        assert len(tensor.name.encode()) == 62 and tensor.offset % 64 == 0
        assert container.bytes_of(tensor).view("<f4").tolist() == [i] * (5 + i)


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    from gguf import GGUFEndian

    writer = GGUFWriter(tmp_path / "m.gguf", "bitnet", endianess=GGUFEndian.BIG)
    with pytest.raises(UnsupportedError, match="a big-endian file of version 3"):
        Container(written(tmp_path / "m.gguf", writer))


def test_types_that_are_not_read(tmp_path: Path) -> None:
    """A type whose size is not known has a place in the table, and is refused where it is needed."""
    metadata, tensors = contents(SMALLEST, "i2_s")
    norms = {name: tensor for name, tensor in tensors.items() if tensor[1] == 0}
    (path,) = packaged(tmp_path / "m.gguf", metadata, norms | {"token_embd.weight": ((40, 256), 10, bytes(40 * 84))})
    container = Container(path)
    tensor = container.tensors["token_embd.weight"]
    assert tensor.type_name == "Q2_K" and tensor.nbytes is None
    with pytest.raises(UnsupportedError, match="unknown type Q2_K"):
        container.bytes_of(tensor)
