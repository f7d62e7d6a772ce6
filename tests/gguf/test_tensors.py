"""What a tensor may hold, and what is said of one that is wrong."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_files import TINY, Q, changed, contents, spoil, store

from bitgen.checkpoints import synth
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.gguf import container, info, tl_tiles, types
from bitgen.gguf.reader import read_gguf
from bitgen.gguf.writer import write_gguf


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


@pytest.mark.parametrize(
    ("type", "size", "named"),
    [
        (39, 256 // 32 * 17 * 256, "is of type MXFP4"),
        (20, 36864, "is of type IQ4_NL"),
        (12, 256 * 144, "is of type Q4_K, which cannot"),
        (9999, 100, "is of type 9999, which cannot"),
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
        (types.Q2_0, 18432 - 32, FormatError, "tensors of type 42 do not fit Q2_0 or Q2_0_G128 or STQ1_0"),
        (types.TL1, 16416, UnsupportedError, "pass --tl-tiles 256x256=BM/BK/bm"),
        (types.TL2, 16416, UnsupportedError, "pass --tl-tiles 256x256=BM/BK/bm"),
        (types.TL2, 16448, UnsupportedError, "pass --tl-tiles 256x256=BM/BK/bm"),
    ],
)
def test_an_id_of_several_types_needs_a_size_that_fits(
    tmp_path: Path, type: int, size: int, error: type, reason: str
) -> None:
    path = changed(tmp_path / "m.gguf", lambda _, tensors: tensors.update({Q: ((256, 256), type, bytes(size))}))
    with pytest.raises(error, match=reason):
        read_gguf(path)


def test_a_type_that_sizes_do_not_tell_is_refused(tmp_path: Path) -> None:
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
    assert tl_tiles.parse_tiles("") == {}
    assert tl_tiles.parse_tiles("3200x8640=160/64/32, 320x960=160/192") == {
        (3200, 8640): (160, 64, 32),
        (320, 960): (160, 192, 32),
    }
    for text in ("x", "3200x8640", "3200x8640=160", "0x1=2/3/4", "1x2=3/4/0", "1x2=3/4/5/6", "1x-2=3/4", "1x2=3/4;"):
        with pytest.raises(BitgenError, match="expected MxK=BM/BK/bm"):
            tl_tiles.parse_tiles(text)


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
        ("rope_freqs.weight", (16,), types.F32, 64, "rope_freqs.weight: expected 32 F32 values"),
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
