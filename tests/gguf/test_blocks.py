"""Ternary tensors of other engines: their own bytes, a weight-by-weight reading of the definitions, bad bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ternary_bytes as by_hand
from hypothesis import given
from hypothesis import strategies as st

from bitgen.checkpoints.groups import group_scales, one_scale
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.gguf import blocks
from bitgen.gguf.blocks import Scaled
from bitgen.kernels import layout
from bitgen.kernels.layout import Codes

seeds = st.integers(0, 1000)


def ternary(m: int, k: int, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(-1, 2, (m, k), dtype=np.int8)


# ---- bytes that other engines wrote: bitnet.cpp's packers, ik_llama.cpp's quantiser, the gguf package ----


@pytest.mark.parametrize("name", ["iq1_bn", "iq2_bn", "iq2_bn_r4"])
def test_bytes_of_ik_llama_cpp(foreign: dict[str, np.ndarray], name: str) -> None:
    trits = foreign["attn_k/trits"]
    codes, scales = getattr(blocks, f"unpack_{name}")(foreign[f"{name}/data"], *trits.shape)
    assert codes.dtype == np.int8 and np.array_equal(codes, trits)
    assert scales.shape == (len(trits), 1) and one_scale(codes, scales) == foreign["attn_k/scale"]


@pytest.mark.parametrize("name", ["tl1-256x512", "tl1-512x256", "tl2-256x1024"])
def test_bytes_of_bitnet_cpp(foreign: dict[str, np.ndarray], name: str) -> None:
    trits, tile = foreign[f"{name}/trits"], [int(foreign[f"{name}/{part}"]) for part in ("BM", "BK", "bm")]
    unpack = getattr(blocks, f"unpack_{name[:3]}_tensor")
    codes, scales = unpack(foreign[f"{name}/data"], *trits.shape, *tile)
    assert np.array_equal(codes, trits)
    assert scales.shape == (1, 1) and one_scale(codes, scales) == foreign[f"{name}/scale"]


def test_tl2_in_triples_only(fixtures: Path) -> None:
    f = np.load(fixtures / "bitnetcpp-tl2-320x960.npz")
    codes, scales = blocks.unpack_tl2_tensor(f["data"], *f["trits"].shape, int(f["BM"]), int(f["BK"]), int(f["bm"]))
    assert np.array_equal(codes, f["trits"]) and scales == f["scale"]


@pytest.mark.parametrize("name", ["tq1_0", "tq2_0"])
def test_bytes_of_the_gguf_package(foreign: dict[str, np.ndarray], name: str) -> None:
    data, trits, scale = (foreign[f"{name}-192x512/{part}"] for part in ("data", "trits", "scale"))
    assert np.array_equal(getattr(blocks, f"pack_{name}")(trits, float(scale)), data)
    codes, scales = getattr(blocks, f"unpack_{name}")(data, *trits.shape)
    assert np.array_equal(codes, trits) and one_scale(codes, scales) == scale


@pytest.mark.parametrize("group", [64, 128])
def test_q2_0_has_a_scale_for_every_group(foreign: dict[str, np.ndarray], group: int) -> None:
    data, trits, scales = (foreign[f"q2_0-g{group}-96x512/{part}"] for part in ("data", "trits", "group_scales"))
    codes, got = blocks.unpack_q2_0(data, *trits.shape, group)
    assert np.array_equal(codes, trits) and np.array_equal(got, scales) and got.dtype == np.float32
    with pytest.raises(UnsupportedError, match=f"a scale for every {group} weights of a row, from 0"):
        one_scale(codes, got)


# ---- the definitions, one weight at a time ----


def store_iq2_bn(codes: Codes, scales: np.ndarray) -> bytes:
    out = bytearray()
    for row, scale in zip(codes, scales, strict=True):
        out += np.float32(scale[0]).tobytes()
        for block in row.reshape(-1, 64):
            packed = bytearray(16)
            for e, w in enumerate(block):
                packed[e % 16] |= int(w + 1) << 2 * (e // 16)
            out += packed
    return bytes(out)


def store_iq2_bn_r4(codes: Codes, scales: np.ndarray) -> bytes:
    out = bytearray()
    for top in range(0, len(codes), 4):
        out += scales[top : top + 4].astype("<f4").tobytes()
        for left in range(0, codes.shape[1], 64):
            packed = bytearray(64)
            for k in range(4):
                for e in range(64):
                    packed[4 * k + e % 4 + 16 * (e // 16)] |= int(codes[top + k, left + e] + 1) << 2 * (e % 16 // 4)
            out += packed
    return bytes(out)


def store_iq1_bn(codes: Codes, scales: np.ndarray) -> bytes:
    def fraction(digits: list[int]) -> int:
        return -(-256 * sum(d * 3**j for j, d in enumerate(digits)) // 243)

    out = bytearray()
    for row, scale in zip(codes, scales, strict=True):
        out += np.float16(scale[0]).tobytes()
        for block in (row + 1).reshape(-1, 4, 16).tolist():
            for of_16 in block:
                out += bytes(fraction(of_16[at : at + 5]) for at in (0, 5, 10))
            out.append(fraction([of_16[15] for of_16 in block]))
    return bytes(out)


STORED: dict[str, tuple[Callable[[Codes, np.ndarray], bytes], Callable[..., Scaled], int, int]] = {
    # name: writer, reader, weights to a scale (0: a row), multiple of rows
    "q1_0": (by_hand.q1_0, blocks.unpack_q1_0, 128, 1),
    "q2_0 of 64": (by_hand.q2_0, lambda data, m, k: blocks.unpack_q2_0(data, m, k, 64), 64, 1),
    "q2_0 of 128": (by_hand.q2_0, lambda data, m, k: blocks.unpack_q2_0(data, m, k, 128), 128, 1),
    "ptq1_0": (by_hand.ptq1_0, blocks.unpack_ptq1_0, 128, 1),
    "tq1_0": (by_hand.tq1_0, blocks.unpack_tq1_0, 256, 1),
    "tq2_0": (by_hand.tq2_0, blocks.unpack_tq2_0, 256, 1),
    "stq1_0": (by_hand.stq1_0, blocks.unpack_stq1_0, 256, 1),
    "iq1_bn": (store_iq1_bn, blocks.unpack_iq1_bn, 0, 1),
    "iq2_bn": (store_iq2_bn, blocks.unpack_iq2_bn, 0, 1),
    "iq2_bn_r4": (store_iq2_bn_r4, blocks.unpack_iq2_bn_r4, 0, 4),
}


@pytest.mark.parametrize("name", STORED)
@given(rows=st.integers(1, 3), columns=st.integers(1, 3), seed=seeds)
def test_the_definitions(name: str, rows: int, columns: int, seed: int) -> None:
    store, read, group, multiple = STORED[name]
    k = max(group, 128) * columns
    codes = ternary(rows * multiple, k, seed)
    if name == "stq1_0":
        codes = by_hand.sparse(codes)
    if name == "q1_0":
        codes = by_hand.binary(codes)
    scales = np.random.default_rng(seed).integers(1, 99, (len(codes), k // (group or k))).astype(np.float32) / 64
    got, got_scales = read(np.frombuffer(store(codes, scales), np.uint8), *codes.shape)
    assert np.array_equal(got, codes) and np.array_equal(got_scales, scales)


@given(m=st.integers(1, 9), count=st.integers(1, 4), seed=seeds)
def test_tq_round_trips(m: int, count: int, seed: int) -> None:
    codes = ternary(m, 256 * count, seed)
    codes[0, :256] = 0  # a block without a scale of its own
    for pack, unpack in ((blocks.pack_tq1_0, blocks.unpack_tq1_0), (blocks.pack_tq2_0, blocks.unpack_tq2_0)):
        back, scales = unpack(pack(codes, 0.375), *codes.shape)
        assert np.array_equal(back, codes) and scales.shape == (m, count)
        assert one_scale(back, scales) == (0.375 if codes.any() else 0)


@given(m=st.integers(1, 9), count=st.integers(1, 4), seed=seeds)
def test_scales_of_groups_round_trip(m: int, count: int, seed: int) -> None:
    """Those of blocks of zeros too."""
    codes = ternary(m, 256 * count, seed)
    codes[0, :256] = 0
    for group, pack, unpack in (
        (256, blocks.pack_tq1_0, blocks.unpack_tq1_0),
        (256, blocks.pack_tq2_0, blocks.unpack_tq2_0),
        (128, blocks.pack_ptq1_0, blocks.unpack_ptq1_0),
        (128, blocks.pack_q2_0, lambda data, m, k: blocks.unpack_q2_0(data, m, k, 128)),
        (64, blocks.pack_q2_0, lambda data, m, k: blocks.unpack_q2_0(data, m, k, 64)),
    ):
        given_scales = np.random.default_rng(seed).integers(1, 99, (m, 256 * count // group)).astype(np.float32) / 64
        back, got = unpack(pack(codes, given_scales), *codes.shape)
        assert np.array_equal(back, codes) and np.array_equal(got, given_scales)


def test_a_negative_scale_gives_negated_weights() -> None:
    codes = ternary(2, 512)
    signed = np.array([[0.5, -0.25], [-0.0, -1]], np.float32)
    for store, unpack in ((by_hand.tq2_0, blocks.unpack_tq2_0), (by_hand.tq1_0, blocks.unpack_tq1_0)):
        got, scales = unpack(np.frombuffer(store(codes, signed), np.uint8), 2, 512)
        assert not np.signbit(scales).any() and scales.tolist() == [[0.5, 0.25], [0, 1]]
        assert np.array_equal(got * scales.repeat(256, axis=1), codes * signed.repeat(256, axis=1))


def test_q1_0_has_no_zero_but_in_blocks_of_zeros() -> None:
    codes, scales = by_hand.binary(ternary(3, 256)), np.full((3, 2), 0.5, np.float32)
    codes[1, 128:], scales[1, 1] = 0, 0
    packed = blocks.pack_q1_0(codes, scales)
    assert packed.size == 6 * 18 and packed[3 * 18 :][:18].tolist() == [0] * 18
    back, got = blocks.unpack_q1_0(packed, 3, 256)
    assert np.array_equal(back, codes) and np.array_equal(got, scales)
    signed = np.array([[0.5, -0.25], [-0.0, -1], [1, 2]], np.float32)
    got_codes, got = blocks.unpack_q1_0(np.frombuffer(by_hand.q1_0(codes, signed), np.uint8), 3, 256)
    ones = np.where(codes == 0, -1, codes)  # what its bits say
    assert np.array_equal(got_codes * got.repeat(128, axis=1), ones * signed.repeat(128, axis=1))
    codes[2, 200] = 0
    with pytest.raises(UnsupportedError, match="1 of 6 blocks hold a 0, which Q1_0 has not"):
        blocks.pack_q1_0(codes, scales)
    with pytest.raises(UnsupportedError, match="multiple of 128, not 200"):
        blocks.pack_q1_0(codes[:, :200], 1.0)


def test_i2_s_of_four_rows_to_a_byte() -> None:
    """byte[row div 4][column] holds the rows of a four from the top bit pair down."""
    codes = ternary(8, 20)
    packed = np.zeros((2, 20), np.uint8)
    for row in range(8):
        packed[row // 4] |= (codes[row] + 1).astype(np.uint8) << (6 - 2 * (row % 4))
    data = np.concatenate([packed.reshape(-1), np.array([0.75, *[7.0] * 7], "<f4").view(np.uint8)])
    got, scales = blocks.unpack_i2_s_tensor(data, 8, 20, "rows4")
    assert np.array_equal(got, codes) and scales.tolist() == [[0.75]]


# ---- scales ----


def test_one_scale_ignores_runs_of_zeros() -> None:
    codes = np.array([[0, 0, 1, -1], [0, 0, 0, 0], [1, 0, 0, 1]], np.int8)
    assert one_scale(codes, np.array([[0.5], [9.0], [0.5]], np.float32)) == 0.5
    assert one_scale(codes, np.array([[7, 0.5], [8, 9], [0.5, 0.5]], np.float32)) == 0.5
    assert one_scale(codes, np.array([[0.25]], np.float32)) == 0.25
    assert one_scale(codes * 0, np.ones((3, 1), np.float32)) == 0


def test_scales_of_other_runs_than_the_groups() -> None:
    """Coarser runs repeat their scale. Finer runs must agree within a group, but for those of zeros."""
    codes = np.array([[1, 0, 0, 0, -1, 1, 0, 1], [0, 0, 0, 0, 1, 0, 1, 1]], np.int8)
    assert group_scales(codes, np.array([[3]], np.float32), 4).tolist() == [[3, 3], [3, 3]]
    assert group_scales(codes, np.array([[3], [5]], np.float32), 2).tolist() == [[3] * 4, [5] * 4]
    fine = np.array([[2, 9, 4, 4], [9, 8, 6, 6]], np.float32)
    assert group_scales(codes, fine, 4).tolist() == [[2, 4], [0, 6]]
    with pytest.raises(UnsupportedError, match="every 2 weights of a row, and they differ within groups of 8"):
        group_scales(codes, fine, 8)
    with pytest.raises(UnsupportedError, match="they differ within groups of 3"):
        group_scales(np.ones((1, 12), np.int8), np.ones((1, 6), np.float32), 3)


@pytest.mark.parametrize("second", [0.25, 0.5 + 2**-10, np.inf, np.nan])
def test_scales_that_differ_are_refused(second: float) -> None:
    codes = np.ones((2, 4), np.int8)
    with pytest.raises(UnsupportedError, match="a scale for every row, from"):
        one_scale(codes, np.array([[0.5], [second]], np.float32))


def test_where_the_scale_is_zero_the_weights_are() -> None:
    codes = ternary(4, 128)
    scales = np.array([[1], [0], [2], [0]], np.float32)
    got, _ = blocks.unpack_iq2_bn(np.frombuffer(store_iq2_bn(codes, scales), np.uint8), 4, 128)
    assert np.array_equal(got, codes * (scales > 0))


# ---- bad bytes ----


def test_bad_bytes_are_refused() -> None:
    ff = np.full(1 << 14, 0xFF, np.uint8)
    with pytest.raises(UnsupportedError, match=r"the fourth code of Q2_0, .2, in 2048 of 2048 bytes: .* not ternary"):
        STORED["q2_0 of 64"][1](np.full(2304, 0xFF, np.uint8), 32, 256)
    for unpack in (blocks.unpack_tq2_0, blocks.unpack_iq2_bn, blocks.unpack_iq2_bn_r4):
        with pytest.raises(FormatError, match="code 3"):
            unpack(ff, 32, 256)
    for name in blocks.I2S_LAYOUTS:
        with pytest.raises(FormatError, match="code 3"):
            blocks.unpack_i2_s_tensor(ff, 32, 256, name)
    readers: list[Callable[..., Scaled]] = [blocks.unpack_tq1_0, blocks.unpack_tq2_0, *(s[1] for s in STORED.values())]
    readers += [
        lambda data, m, k: blocks.unpack_i2_s_tensor(data, m, k, "x86"),
        lambda data, m, k: blocks.unpack_tl1_tensor(data, m, k, 32, 64, 32),
    ]
    for unpack in readers:
        with pytest.raises(FormatError, match="cut short"):
            unpack(np.zeros(100, np.uint8), 32, 256)
    for unpack in readers[:-2]:
        with pytest.raises(FormatError, match="not a multiple of"):
            unpack(ff, 32, 100)
    with pytest.raises(FormatError, match="not a multiple of 4"):
        blocks.unpack_iq2_bn_r4(ff, 6, 64)
    with pytest.raises(FormatError, match="pair code above 8"):
        blocks.unpack_tl1_tensor(ff, 32, 256, 32, 64, 32)
    with pytest.raises(FormatError, match="index above 13"):
        blocks.unpack_tl2_tensor(ff, 32, 256, 32, 96, 32)


@pytest.mark.parametrize(
    ("m", "k", "layout_", "reason"),
    [
        (3, 100, "x86", "3 x 100 weights are not whole I2_S blocks of 128"),
        (3, 100, "arm", "blocks of 64"),
        (6, 128, "rows4", "rows in fours"),
    ],
)
def test_i2_s_of_other_shapes(m: int, k: int, layout_: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        blocks.unpack_i2_s_tensor(np.zeros(1 << 10, np.uint8), m, k, layout_)


@pytest.mark.parametrize(
    ("type", "tile", "reason"),
    [
        ("tl1", (96, 64, 32), "tiles of 96 x 64 do not divide 256 x 1024"),
        ("tl1", (128, 96, 32), "do not divide"),
        ("tl1", (128, 64, 48), "32 or 64 rows"),
        ("tl2", (96, 96, 32), "do not fit 256 x 1024"),
        ("tl2", (256, 1000, 32), "do not fit 256 x 1024"),
        ("tl2", (256, 32, 32), "bk a multiple of 96"),
        ("tl2", (256, 96, 64), "only steps of 32"),
    ],
)
def test_tiles_that_do_not_fit(foreign: dict[str, np.ndarray], type: str, tile: tuple[int, ...], reason: str) -> None:
    size = {"tl1": 256 * 1024 // 4 + 32, "tl2": 57376}[type]
    with pytest.raises(BitgenError, match=reason):
        getattr(blocks, f"unpack_{type}_tensor")(np.zeros(size, np.uint8), 256, 1024, *tile)


def test_bad_codes_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="256"):
        blocks.pack_tq2_0(ternary(1, 255), 1.0)
    with pytest.raises(FormatError, match="not ternary"):
        blocks.pack_tq1_0(np.full((1, 256), 2, np.int8), 1.0)


def test_layouts_of_i2_s_are_those_of_the_kernels() -> None:
    """What the runtime calls panels of one row and blocks of 128 is the file's x86 layout."""
    codes = ternary(4, 256)
    data = np.concatenate([layout.pack_i2_s(codes, 1, 128), np.array([2.0, *[0] * 7], "<f4").view(np.uint8)])
    got, scales = blocks.unpack_i2_s_tensor(data, 4, 256, "x86")
    assert np.array_equal(got, codes) and scales == 2
