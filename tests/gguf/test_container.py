"""Bad files do no harm: truncated and edited ones are refused by name."""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_files import SMALLEST, contents, store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitgen.checkpoints.tensors import is_ternary, tensor_shapes
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.gguf import container, i2s_layout, info, types
from bitgen.gguf.reader import read_gguf
from bitgen.text.tokenizer import Tokenizer


def smallest(path: Path) -> bytes:
    """A valid file of a few kilobytes."""
    store(path, *contents(SMALLEST))
    return path.read_bytes()


def smallest_of_others(path: Path) -> bytes:
    """The like with a type of another engine in every matrix: the same bytes over and over, which all of them allow."""
    metadata, tensors = contents(SMALLEST)
    names = ("IQ1_BN", "IQ2_BN", "IQ2_BN_R4", "Q2_0", "TL1", "TL2", "F16")
    for name, type in zip(filter(is_ternary, list(tensors)), names, strict=True):
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
    for raw, reason in (
        (b"", "empty"),
        (b"GG", "ends within the magic"),
        (b"PK\3\4 a zip file", "not a GGUF file"),
        (b"GGUF", "ends within the version"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "1152921504606846976 key-values"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 63), "ends within key 1 of 1"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 8, 1 << 61), "a claims"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 12, 1 << 61), "ends within a"),
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


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (struct.pack(">I", 3), "a big-endian file of version 3; little-endian files of versions 2 and 3 can be read"),
        (struct.pack("<I", 1), "version 1; little-endian files"),
        (struct.pack("<I", 4), "version 4; little-endian files"),
        (struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"a", 13), "a has the value type 13, which is not read"),
        (struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 1), "a has the value type array in an array"),
        (struct.pack("<IQQ", 3, 0, 1 << 17) + bytes(13 << 17), "131072 key-values, of which 65536 can be read"),
        (struct.pack("<IQQ", 3, 1 << 17, 0) + bytes(24 << 17), "131072 tensors, of which 65536 can be read"),
        (struct.pack("<IQQQ", 3, 1, 0, 300) + bytes(300), "the name of tensor 1 of 1 is 300 bytes long"),
        (struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"t", 5) + bytes(52), "tensor t has 5 dimensions; 1 to 4 can be read"),
        (struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"t", 0) + bytes(12), "tensor t has 0 dimensions"),
        (struct.pack("<IQQQ1sIQ", 3, 1, 0, 1, b"t", 1, 0) + bytes(12), "tensor t has a dimension of 0"),
    ],
)
def test_what_is_sound_and_not_read_is_not_called_corrupt(tmp_path: Path, raw: bytes, reason: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + raw)
    with pytest.raises(UnsupportedError, match=re.escape(reason)) as caught:
        read_gguf(path)
    assert "corrupt" not in str(caught.value)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "m.gguf")
    with pytest.raises(FormatError, match="is not a regular file"):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("alignment", [8, 24, 64, 4096])
def test_tensors_lie_where_the_alignment_says(tmp_path: Path, alignment: int) -> None:
    metadata, tensors = contents(SMALLEST)
    expected = read_gguf(store(tmp_path / "m.gguf", metadata, tensors))
    found = read_gguf(store(tmp_path / "a.gguf", metadata, tensors, alignment))
    assert container.Container(tmp_path / "a.gguf").metadata["general.alignment"] == alignment
    for name in tensor_shapes(expected.shape):
        assert np.array_equal(found.container.bytes_of(found.container.tensors[name]),
                              expected.container.bytes_of(expected.container.tensors[name]))  # fmt: skip


@pytest.mark.parametrize("value", [0, 33, -32, True, 32.0, "32", np.array([32])])
def test_an_alignment_that_is_none(tmp_path: Path, value: object) -> None:
    metadata, tensors = contents(SMALLEST)
    path = store(tmp_path / "m.gguf", metadata | {"general.alignment": value}, tensors)
    with pytest.raises(FormatError, match=r"general\.alignment is"):
        read_gguf(path)


def test_errors_repeat_little_of_a_file_and_nothing_raw(tmp_path: Path) -> None:
    metadata, tensors = contents(SMALLEST)
    evil = "\x1b]0;title\x07\n\u202e" + "x" * 100_000
    for changes in (
        {evil: "a", "tokenizer.ggml.model": evil},
        {"general.architecture": evil},
        {"bitnet-b1.58.hidden_activation": evil},
        {"bitnet-b1.58.block_count": evil},
        {"tokenizer.ggml.pre": evil},
        {"tokenizer.ggml.tokens": [evil, evil]},
        {"tokenizer.ggml.merges": [evil]},
    ):
        path = store(tmp_path / "m.gguf", metadata | changes, tensors)
        with pytest.raises(BitgenError) as caught:
            Tokenizer.from_metadata(read_gguf(path).metadata)
        assert len(str(caught.value)) < 700 and str(caught.value).isprintable()
    raw = store(tmp_path / "m.gguf", metadata, {evil[:200]: ((4,), 0, bytes(16)), **tensors}).read_bytes()
    for spoilt in (raw, raw[:-40]):
        (tmp_path / "m.gguf").write_bytes(spoilt)
        with pytest.raises(BitgenError) as caught:
            read_gguf(tmp_path / "m.gguf")
        assert str(caught.value).isprintable()


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
