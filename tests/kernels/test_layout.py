"""Packing: round trips, the official byte orders, the files of other engines, bad data."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgen.errors import FormatError, UnsupportedError
from bitgen.kernels import layout
from bitgen.kernels.layout import Codes
from bitgen.spec import GemmShape
from bitgen.tune.bands import random_codes


def ternary(m: int, k: int, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(-1, 2, (m, k), dtype=np.int8)


def binary(m: int, k: int, seed: int = 0) -> Codes:
    return random_codes(GemmShape(m, k, binary=True), np.random.default_rng(seed))


sizes = st.integers(1, 200)
seeds = st.integers(0, 1000)


@given(m=sizes, k=sizes, bm=st.integers(1, 9), quarter=st.integers(1, 64), seed=seeds)
def test_i2_s_round_trip(m: int, k: int, bm: int, quarter: int, seed: int) -> None:
    codes = ternary(m, k, seed)
    data = layout.pack_i2_s(codes, bm, 4 * quarter)
    assert np.array_equal(layout.unpack_i2_s(data, GemmShape(m, k), bm, 4 * quarter), codes)


@given(m=sizes, k=sizes, fives=st.integers(1, 4), bk=st.integers(1, 200), seed=seeds)
def test_t5_round_trip(m: int, k: int, fives: int, bk: int, seed: int) -> None:
    codes, bm = ternary(m, k, seed), 5 * fives
    data = layout.pack_t5(codes, bm, bk)
    assert np.array_equal(layout.unpack_t5(data, GemmShape(m, k), bm, bk), codes)


@given(m=sizes, k=sizes, bm=st.integers(1, 70), steps=st.integers(1, 9), seed=seeds)
def test_i1_s_round_trip(m: int, k: int, bm: int, steps: int, seed: int) -> None:
    codes = binary(m, k, seed)
    data = layout.pack_i1_s(codes, bm, 32 * steps)
    assert np.array_equal(layout.unpack_i1_s(data, GemmShape(m, k), bm, 32 * steps), codes)


@given(m=sizes, groups=st.integers(1, 5), bm=st.integers(1, 70), steps=st.integers(1, 8), seed=seeds)
def test_i1_g_round_trip(m: int, groups: int, bm: int, steps: int, seed: int) -> None:
    """A group whose scale is 0 comes back as zeros."""
    codes, bk = binary(m, groups * 32 * steps, seed), 32 * steps
    scales = np.random.default_rng(seed).integers(0, 3, (m, groups)).astype(np.float32)
    data = layout.pack_i1_g(codes, bm, bk, scales)
    codes *= scales.repeat(bk, axis=1) != 0
    assert np.array_equal(layout.unpack_i1_g(data, GemmShape(m, groups * bk), bm, bk), codes)
    assert np.array_equal(
        layout.unpack_i1_g(layout.pack_i1_g(codes, bm, bk, scales), GemmShape(*codes.shape), bm, bk), codes
    )


def test_i1_bytes() -> None:
    """Eight columns of a row are a byte, the first in its lowest bit; rows lie side by side; what is padded is -1."""
    codes = np.full((2, 40), -1, np.int8)
    codes[0, [0, 3, 9]] = codes[1, [7, 39]] = 1
    assert layout.pack_i1_s(codes, 3, 32).tolist() == [9, 128, 0, 2, *[0] * 9, 128, *[0] * 10]
    grouped = layout.pack_i1_g(codes[:, :32], 3, 32, np.array([[1], [0.5]], np.float32))
    assert grouped.tolist() == [0, 0x3C, 0, 0x38, 0, 0, 9, 128, 0, 2, *[0] * 8]


def test_a_zero_is_no_sign() -> None:
    codes = binary(4, 64)
    codes[2, 40] = 0
    with pytest.raises(
        UnsupportedError, match="1 of 256 weights are 0: the matrix is ternary, and one bit holds -1 or"
    ):
        layout.pack_i1_s(codes, 4, 32)
    scales = np.ones((4, 2), np.float32)
    with pytest.raises(UnsupportedError, match="1 of 256 weights are 0"):
        layout.pack_i1_g(codes, 4, 32, scales)
    scales[2, 1] = 0
    layout.pack_i1_g(codes, 4, 32, scales)


@given(m=sizes, k=sizes, steps=st.integers(1, 4), by=st.integers(1, 12), rows=st.sampled_from([32, 64]), seed=seeds)
def test_tl1_round_trip(m: int, k: int, steps: int, by: int, rows: int, seed: int) -> None:
    codes, bm, bk = ternary(m, k, seed), steps * rows, by * 256 // rows
    data = layout.pack_tl1(codes, bm, bk, rows)
    assert np.array_equal(layout.unpack_tl1(data, GemmShape(m, k), bm, bk, rows), codes)


@given(m=sizes, k=st.integers(1, 700), steps=st.integers(1, 4), bk=st.sampled_from([96, 192]), seed=seeds)
def test_tl2_round_trip(m: int, k: int, steps: int, bk: int, seed: int) -> None:
    codes, bm = ternary(m, k, seed), 32 * steps
    data = layout.pack_tl2(codes, bm, bk)
    assert np.array_equal(layout.unpack_tl2(data, GemmShape(m, k), bm, bk), codes)


def test_i2_s_byte_order() -> None:
    """Codes 2 2 0 2, then 0 1 1 1, from the top bit pair down; 64-blocks and interleaved rows likewise."""
    w = np.zeros((1, 128), np.int8)
    w[0, [0, 1, 32, 64, 96, 127]] = 1, -1, 1, -1, 1, 1
    assert layout.pack_i2_s(w, 1, 128).tolist() == [0xA2, 0x15, *[0x55] * 29, 0x56]
    assert layout.pack_i2_s(w, 1, 64).tolist() == [0x99, 0x15, *[0x55] * 14, 0x19, *[0x55] * 14, 0x56]
    two = layout.pack_i2_s(np.concatenate([w, -w]), 2, 128).reshape(2, 32)
    assert two[0, 0] == 0xA2 and two[1, 0] == 0x08


def test_t5_bytes() -> None:
    """Every byte up to 242 is one column of five rows; two rows of w = -1 above the others are the last 27."""
    digits = np.array(list(itertools.product((-1, 0, 1), repeat=5)), np.int8).T
    data = layout.pack_t5(digits, 5, 1)
    assert sorted(data) == list(range(243))
    assert data[:27].tolist() == list(range(216, 243))
    assert data[[27, 28, 30, 36, 54, 121, 242]].tolist() == [7, 15, 31, 79, 6, 8 * 13 + 4, 8 * 26]
    two = layout.pack_t5(np.concatenate([digits, -digits]), 10, 4).reshape(2, 244)
    assert np.array_equal(two[0, :243], data) and np.array_equal(two[1, :243], data[::-1])


@given(m=sizes, groups=st.integers(1, 4), fives=st.integers(1, 9), steps=st.integers(1, 4), seed=seeds)
def test_round_trip_with_groups(m: int, groups: int, fives: int, steps: int, seed: int) -> None:
    codes, bm, bk = ternary(m, groups * 16 * steps, seed), 5 * fives, 16 * steps
    scales = np.random.default_rng(seed).integers(0, 0x7C00, (m, groups), np.uint16).view(np.float16)
    for pack, unpack in ((layout.pack_i2_g, layout.unpack_i2_g), (layout.pack_t5_g, layout.unpack_t5_g)):
        data = pack(codes, bm, bk, scales.astype(np.float32))
        assert np.array_equal(unpack(data, GemmShape(*codes.shape), bm, bk), codes)
        panels = data.reshape(-(-m // bm), -1)
        if pack is layout.pack_i2_g:  # of a panel, or of each group
            heads = panels[:, : groups * bm * 2].reshape(-1, groups, bm * 2)
        else:
            heads = panels.reshape(len(panels), groups, -1)[:, :, : bm * 2]
        rows = heads.copy().view(np.float16).transpose(0, 2, 1).reshape(-1, groups)
        assert np.array_equal(rows[:m], scales) and not rows[m:].any()


def test_t5_g_bytes() -> None:
    """A word is four columns of five rows, which are a fifth of the panel apart."""
    codes = ternary(20, 16)
    data = layout.pack_t5_g(codes, 20, 16, np.ones((20, 1), np.float32))
    words = data[40:].reshape(4, 4, 4)  # four columns, row, column
    for row in range(4):
        assert np.array_equal(words[:, row].reshape(-1), layout.pack_t5(codes[row::4], 5, 16))


def test_padding_is_zero_weights() -> None:
    codes = ternary(5, 130)
    assert layout.pack_i2_s(codes, 4, 128).size == 8 * 256 // 4
    padded = np.zeros((8, 256), np.int8)
    padded[:5, :130] = codes
    assert np.array_equal(layout.pack_i2_s(codes, 4, 128), layout.pack_i2_s(padded, 4, 128))


@pytest.mark.parametrize("name", ["tl1-256x512", "tl1-512x256", "tl2-256x1024", "tl2-320x960"])
def test_bytes_of_bitnet_cpp(fixtures: Path, name: str) -> None:
    f = np.load(fixtures / f"bitnetcpp-{name}.npz")
    codes, shape, tile = f["trits"], GemmShape(*f["trits"].shape), (int(f["BM"]), int(f["BK"]))
    if name.startswith("tl1"):
        packed = layout.pack_tl1(codes, *tile, int(f["bm"]))
        back = layout.unpack_tl1(f["data"], shape, *tile, int(f["bm"]))
    else:
        packed = layout.pack_tl2(codes, *tile)
        back = layout.unpack_tl2(f["data"], shape, *tile)
    assert packed.size + 32 <= f["data"].size
    assert np.array_equal(packed, f["data"][: packed.size])
    assert np.array_equal(back, codes)


def test_bad_codes_are_refused() -> None:
    for bad in (np.full((1, 4), 2, np.int8), np.full((1, 4), -2, np.int8), np.zeros((1, 4)), np.zeros(4, np.int8)):
        with pytest.raises(FormatError):
            layout.pack_i2_s(bad, 1, 4)


def test_bad_bytes_are_refused() -> None:
    shape, ff = GemmShape(32, 256), np.full(1 << 14, 0xFF, np.uint8)
    with pytest.raises(FormatError, match="code 3"):
        layout.unpack_i2_s(ff, shape, 1, 128)
    with pytest.raises(FormatError, match="above 242"):
        layout.unpack_t5(ff, shape, 5, 128)
    with pytest.raises(FormatError, match="above 242"):
        layout.unpack_t5(np.full(1 << 14, 243, np.uint8), shape, 5, 128)
    with pytest.raises(FormatError, match="t5_g data holds a byte above 242"):
        layout.unpack_t5_g(ff, shape, 5, 128)
    with pytest.raises(FormatError, match="cut short"):
        layout.unpack_t5(ff[:1791], shape, 5, 128)
    with pytest.raises(FormatError, match="pair code"):
        layout.unpack_tl1(ff, shape, 32, 128)
    with pytest.raises(FormatError, match="index above 13"):
        layout.unpack_tl2(ff, shape, 32, 96)


@pytest.mark.parametrize("bm, bk", [(16, 96), (32, 100), (0, 96), (32, 0)])
def test_illegal_tiles_are_refused(bm: int, bk: int) -> None:
    with pytest.raises(UnsupportedError):
        layout.pack_tl2(ternary(32, 96), bm, bk)
    with pytest.raises(UnsupportedError):
        layout.pack_tl1(ternary(32, 96), bm, bk)


@pytest.mark.parametrize("bm", [0, 4, 32])
def test_t5_panels_are_fives_of_rows(bm: int) -> None:
    with pytest.raises(UnsupportedError, match="multiple of five"):
        layout.pack_t5(ternary(32, 96), bm, 128)
    with pytest.raises(UnsupportedError, match="t5_g panels of"):
        layout.pack_t5_g(ternary(32, 96), bm, 32, np.ones((32, 3), np.float32))


def test_packing_a_large_matrix_takes_no_time() -> None:
    """A gate_up matrix of 2B4T: seconds at load per layer would be minutes per model. A loose bound."""
    codes = ternary(13824, 2560)
    for pack in (
        lambda: layout.pack_i2_s(codes, 4, 128),
        lambda: layout.pack_t5(codes, 5, 128),
        lambda: layout.pack_tl2(codes, 64, 96),
    ):
        start = time.process_time()  # whatever else the machine does
        pack()
        assert time.process_time() - start < 2
