"""Ternary tensors as files hold them: bytes to codes and scales, and back for the types that are written here.

The types are those of llama.cpp (TQ1_0, TQ2_0, Q2_0, and Q1_0, which has no 0) and its forks (PQ2_0, PTQ1_0, STQ1_0),
of ik_llama.cpp (IQ1_BN, IQ2_BN, IQ2_BN_R4), bitnet.cpp (I2_S, TL1, TL2) and T5, our own. How kernels want weights in
memory is kernels/layout.py's concern, how many scales a matrix has checkpoints/groups.py's.

Readers return (codes, scales): codes {-1, 0, +1} int8 [M, K], and float32 scales [R, G], one for each of G equal runs
of columns in each of R equal runs of rows: [1, 1] where a tensor has one scale, [M, 1] where each row has one, [M, K/g]
where every g weights of a row have one. Codes under a scale of 0 are 0; those under a negative scale of a block are
negated, and the scale is its absolute value.

Comments name the axes of each reshape. Bad bytes raise a FormatError that does not name the tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.errors import FormatError, UnsupportedError
from bitgen.kernels.layout import (
    Bytes,
    Codes,
    Scales,
    checked,
    exact_float16,
    exactly,
    pack_i2_s,
    pack_t5,
    tl2_bytes,
    unpack_i2_s,
    unpack_t5,
    unpack_tl1,
    unpack_tl2,
)
from bitgen.spec import GemmShape, round_up

Scaled = tuple[Codes, Scales]

TQ_BLOCK = 256  # weights of one TQ1_0 or TQ2_0 block
BN_BLOCK = 64  # weights of one block of the IQ*_BN types
SCALE_TAIL = 32  # bytes after the weights of I2_S, TL1 and TL2: a float32 scale and filler


# ---- TQ2_0: blocks of 256 weights, then a float16 scale ----------------------------------------------------------


def pack_tq2_0(codes: Codes, scales: Scales | float) -> Bytes:
    """Codes [M, K], K % 256 == 0 -> uint8 [M * K / 256 * 66]: 2-bit codes w + 1 low bits first, then the scale.

    scales: one, which float16 rounds, or float32 [M, K/256], each a float16 number.
    """
    digits = _digits(codes, TQ_BLOCK, "TQ2_0").reshape(-1, 2, 4, 32)
    packed = digits[:, :, 3] * np.uint8(4)
    for quarter in (2, 1):
        packed += digits[:, :, quarter]
        packed *= 4
    packed += digits[:, :, 0]
    return np.concatenate([packed.reshape(-1, 64), _block_scales(codes, scales, TQ_BLOCK)], axis=1).reshape(-1)


def unpack_tq2_0(data: Bytes, m: int, k: int) -> Scaled:
    """TQ2_0 -> codes [m, k], scales [m, k/256]."""
    blocks = _rows(data, m, k, TQ_BLOCK, 66, "TQ2_0")
    codes = _two_bits(blocks[:, :, :64].reshape(-1, 2, 32), "TQ2_0")  # [block and half, 4, 32]
    return _scaled(codes.reshape(m, k), blocks[:, :, 64:].copy().view("<f2")[:, :, 0])


# ---- TQ1_0 and PTQ1_0: blocks of 256 or 128 weights, five base-3 digits to a byte, then a float16 scale ----------

TQ1_RUNS = ((0, 160, 32), (160, 240, 16), (240, 256, 4))
PTQ1_RUNS = ((0, 80, 16), (80, 120, 8), (120, 128, 2))
"""First element, end, and bytes of the three runs of a block; the digits of a byte lie `bytes` elements apart."""


def pack_tq1_0(codes: Codes, scales: Scales | float) -> Bytes:
    """Codes [M, K], K % 256 == 0 -> uint8 [M * K / 256 * 54]; scales as in pack_tq2_0."""
    return _pack_trits(codes, scales, TQ1_RUNS, "TQ1_0")


def pack_ptq1_0(codes: Codes, scales: Scales) -> Bytes:
    """Codes [M, K], K % 128 == 0, scales [M, K/128] that float16 holds exactly -> uint8 [M * K / 128 * 28]."""
    return _pack_trits(codes, scales, PTQ1_RUNS, "PTQ1_0")


def unpack_tq1_0(data: Bytes, m: int, k: int) -> Scaled:
    """TQ1_0 -> codes [m, k], scales [m, k/256]."""
    return _unpack_trits(data, m, k, TQ1_RUNS, "TQ1_0")


def unpack_ptq1_0(data: Bytes, m: int, k: int) -> Scaled:
    """PTQ1_0 -> codes [m, k], scales [m, k/128]."""
    return _unpack_trits(data, m, k, PTQ1_RUNS, "PTQ1_0")


Runs = tuple[tuple[int, int, int], ...]


def _pack_trits(codes: Codes, scales: Scales | float, of: Runs, name: str) -> Bytes:
    """Blocks of base-3 digits, five to a byte, each followed by its scale.

    A byte is ceil(256 / 243 Q) of the base-3 number Q whose first element is the most significant digit; bytes of the
    last run hold four digits, times three.
    """
    block = of[-1][1]
    digits, runs = _digits(codes, block, name), []
    for start, end, width in of:
        d = digits[:, start:end].reshape(digits.shape[0], -1, width)
        q = np.zeros((digits.shape[0], width), np.uint16)
        for n in range(5):
            q *= 3
            if n < d.shape[1]:
                q += d[:, n]
        runs.append(((q * 256 + 242) // 243).astype(np.uint8))
    return np.concatenate([*runs, _block_scales(codes, scales, block)], axis=1).reshape(-1)


def _unpack_trits(data: Bytes, m: int, k: int, of: Runs, name: str) -> Scaled:
    block, nbytes = of[-1][1], sum(width for *_, width in of)
    blocks = _rows(data, m, k, block, nbytes + 2, name)
    digits = np.empty((m, k // block, block), np.uint8)
    byte = 0
    for start, end, width in of:
        rest = blocks[:, :, byte : byte + width].copy()
        for at in range(start, end, width):
            digits[:, :, at : at + width] = _leading_digit(rest)
            rest *= 3  # mod 256: drops the leading digit
        byte += width
    return _scaled(_signed(digits).reshape(m, k), blocks[:, :, nbytes:].copy().view("<f2")[:, :, 0])


def _digits(codes: Codes, block: int, name: str) -> Bytes:
    """Codes as digits 0, 1, 2, uint8 [blocks, block]."""
    if codes.shape[1] % block:
        raise UnsupportedError(f"{name} needs K to be a multiple of {block}, not {codes.shape[1]}: write I2_S instead")
    return (checked(codes) + np.uint8(1)).reshape(-1, block)


def _block_scales(codes: Codes, scales: Scales | float, block: int) -> Bytes:
    """The float16 scale of each block as bytes [blocks, 2]. One scale is 0 in blocks of zeros, as others write it."""
    if isinstance(scales, np.ndarray):
        return exact_float16(scales).reshape(-1, 1).view(np.uint8)
    used = codes.reshape(-1, block).any(axis=1)
    return np.where(used, np.float16(scales), np.float16(0)).astype("<f2").view(np.uint8).reshape(-1, 2)


# ---- Q2_0: blocks of 64 (llama.cpp) or 128 weights (Ternary Bonsai's first files, and PQ2_0) -----------------------


def pack_q2_0(codes: Codes, scales: Scales) -> Bytes:
    """Codes [M, K], scales [M, K/group] that float16 holds exactly -> Q2_0 in blocks of `group` weights."""
    float16 = exact_float16(scales)
    pairs = (checked(codes) + np.uint8(1)).reshape(scales.size, -1, 4) << np.array([0, 2, 4, 6], np.uint8)
    packed = np.bitwise_or.reduce(pairs, axis=2)
    return np.concatenate([float16.reshape(-1, 1).view(np.uint8), packed], axis=1).reshape(-1)


def unpack_q2_0(data: Bytes, m: int, k: int, group: int, name: str = "Q2_0") -> Scaled:
    """Q2_0 in blocks of `group` weights -> codes [m, k], scales [m, k/group].

    A block is its float16 scale, then codes w + 1, weight 4 b + i in bit pair i of byte b. The code 3 is +2 by the
    type's definition: UnsupportedError, for such a matrix is not ternary.
    """
    blocks = _rows(data, m, k, group, 2 + group // 4, name)
    packed = blocks[:, :, 2:].reshape(-1, 1)
    fours = int(np.count_nonzero(packed & (packed >> 1) & 0x55))
    if fours:
        raise UnsupportedError(
            f"it uses the fourth code of {name}, +2, in {fours} of {packed.size} bytes: the weights are not ternary, "
            "and only ternary ones can be used"
        )
    codes = _two_bits(packed, name)  # [byte, 4, 1]
    return _scaled(codes.reshape(m, k), blocks[:, :, :2].copy().view("<f2")[:, :, 0])


# ---- Q1_0: blocks of 128 signs ---------------------------------------------------------------------------------------

Q1_BLOCK = 128


def pack_q1_0(codes: Codes, scales: Scales | float) -> Bytes:
    """Codes [M, K], K % 128 == 0 -> Q1_0; scales: one, which float16 rounds, or float32 [M, K/128], exact in float16.

    UnsupportedError: a weight is 0 in a block whose scale is not.
    """
    if codes.shape[1] % Q1_BLOCK:
        raise UnsupportedError(f"Q1_0 needs K to be a multiple of {Q1_BLOCK}, not {codes.shape[1]}")
    of_blocks = checked(codes).view(np.int8).reshape(-1, Q1_BLOCK)
    stored = _block_scales(codes, scales, Q1_BLOCK)
    zeros = int(np.count_nonzero((of_blocks == 0).any(axis=1) & stored.any(axis=1)))
    if zeros:
        raise UnsupportedError(f"{zeros} of {len(of_blocks)} blocks hold a 0, which Q1_0 has not: they are ternary")
    signs = np.packbits(of_blocks > 0, axis=1, bitorder="little")
    return np.concatenate([stored, signs], axis=1).reshape(-1)


def unpack_q1_0(data: Bytes, m: int, k: int) -> Scaled:
    """Q1_0 -> codes [m, k], scales [m, k/128].

    A block is its float16 scale, then weight j in bit j % 8 of byte j // 8: 1 is +1, 0 is -1.
    """
    blocks = _rows(data, m, k, Q1_BLOCK, 18, "Q1_0")
    codes = np.unpackbits(blocks[:, :, 2:].reshape(m, -1), axis=1, bitorder="little").view(np.int8)
    codes *= 2
    codes -= 1
    return _scaled(codes, blocks[:, :, :2].copy().view("<f2")[:, :, 0])


# ---- STQ1_0: blocks of 256 weights, one of every four a zero -------------------------------------------------------


def _stq_patterns() -> Codes:
    """Pattern -> its four weights, int8 [32, 4].

    Of pattern 16 s + 4 z + 2 b + a, weight z is 0; of the others the first is +1, the second is -1 where a is set, the
    third where b is; and s negates all.
    """
    patterns = np.empty((2, 4, 2, 2, 4), np.int8)
    for s, z, b, a in np.ndindex(patterns.shape[:4]):
        patterns[s, z, b, a] = np.insert(np.array([1, 1 - 2 * a, 1 - 2 * b]) * (1 - 2 * s), z, 0)
    return patterns.reshape(32, 4)


def unpack_stq1_0(data: Bytes, m: int, k: int) -> Scaled:
    """STQ1_0 -> codes [m, k], scales [m, k/256].

    A block is 32 bytes of two patterns' low four bits each, low ones first, 8 bytes of their fifth bits, low ones
    first, and a float16 scale. Patterns are of 64 fours of weights: four 16 c + i is elements 64 c + i + 16 l, l < 4.
    """
    blocks = _rows(data, m, k, 256, 42, "STQ1_0")
    low = blocks[:, :, :32, None] >> np.array([0, 4], np.uint8) & 15
    high = np.unpackbits(blocks[:, :, 32:40], axis=2, bitorder="little")
    patterns = low.reshape(high.shape) | high << np.uint8(4)  # [m, block, 64]
    fours = _stq_patterns()[patterns].reshape(m, -1, 4, 16, 4)  # [m, block, c, i, l]
    codes = np.ascontiguousarray(fours.swapaxes(3, 4)).reshape(m, k)
    return _scaled(codes, blocks[:, :, 40:].copy().view("<f2")[:, :, 0])


# ---- IQ1_BN, IQ2_BN, IQ2_BN_R4: a scale before each row, then blocks of 64 weights ---------------------------------


def unpack_iq2_bn(data: Bytes, m: int, k: int) -> Scaled:
    """IQ2_BN -> codes [m, k], scales [m, 1]: float32 scale, then weight 16 i + b in bit pair i of byte b of a block."""
    scales, blocks = _scale_then_blocks(data, m, k, 4, 16, "IQ2_BN")
    return _scaled(_two_bits(blocks.reshape(-1, 16), "IQ2_BN").reshape(m, k), scales.view("<f4"))


def unpack_iq2_bn_r4(data: Bytes, m: int, k: int) -> Scaled:
    """IQ2_BN_R4 -> codes [m, k], scales [m, 1]: rows in fours, their float32 scales first.

    Then for every 64 columns 64 bytes: byte 16 l + 4 r + i holds row r, columns 16 l + 4 p + i in bit pair p.
    """
    if m % 4:
        raise FormatError(f"an IQ2_BN_R4 tensor of {m} rows: not a multiple of 4")
    scales, blocks = _scale_then_blocks(data, m // 4, 4 * k, 16, 16, "IQ2_BN_R4")
    pairs = _two_bits(blocks.reshape(-1, 4), "IQ2_BN_R4").reshape(m // 4, k // BN_BLOCK, 4, 4, 4, 4)
    #                                           quad block l r p i  ->  quad, r, block, l, p, i
    return _scaled(pairs.transpose(0, 3, 1, 2, 4, 5).reshape(m, k), scales.view("<f4").reshape(m, 1))


def unpack_iq1_bn(data: Bytes, m: int, k: int) -> Scaled:
    """IQ1_BN -> codes [m, k], scales [m, 1]: float16 scale, then blocks of 13 bytes of base-3 digits.

    A block is four groups of 16 weights: 15 in three bytes of five digits each, the first least significant, and the
    last of each in the 13th byte.
    """
    scales, blocks = _scale_then_blocks(data, m, k, 2, 13, "IQ1_BN")
    digits = np.empty((m, k // BN_BLOCK, 4, 16), np.uint8)
    for place, power in enumerate((81, 27, 9, 3, 1)):  # mod 256: brings digit `place` to the lead
        shifted = blocks * np.uint8(power)
        digits[:, :, :, place:15:5] = _leading_digit(shifted[:, :, :12]).reshape(m, -1, 4, 3)
        if place < 4:
            digits[:, :, place, 15] = _leading_digit(shifted[:, :, 12])
    return _scaled(_signed(digits).reshape(m, k), scales.view("<f2"))


def _scale_then_blocks(data: Bytes, m: int, k: int, scale: int, block: int, name: str) -> tuple[Bytes, Bytes]:
    """Bytes [m, scale] and [m, k/64, block] of a tensor whose rows begin with their scale."""
    if k % BN_BLOCK:
        raise FormatError(f"{name} rows of {k} weights: not a multiple of 64")
    rows = exactly(data, m * (scale + k // BN_BLOCK * block), name).reshape(m, -1)
    return rows[:, :scale].copy(), rows[:, scale:].reshape(m, -1, block)


# ---- I2_S, TL1, TL2, T5: the codes of the whole tensor, then its scale ---------------------------------------------

I2S_LAYOUTS = ("x86", "arm", "rows4")
"""Layouts of I2_S in files; a file does not say which it has."""


def i2s_block(i2s_layout: str, k: int) -> int:
    """Weights of an I2_S block; its byte j holds weights j, j + block/4, j + 2 block/4 and j + 3 block/4.

    "x86": published files. "arm": bitnet.cpp built for ARM since November 2025. "rows4": bitnet.cpp built without its
    ACT_PARALLEL, where a byte holds one column of four rows, so that a block is four rows of k weights.
    """
    return {"x86": 128, "arm": 64, "rows4": 4 * k}[i2s_layout]


def pack_i2_s_tensor(codes: Codes, scale: Scales) -> Bytes:
    """Codes [M, K], M * K % 128 == 0, scale [] -> I2_S in the "x86" layout: the codes, the scale, 28 filler bytes."""
    packed = pack_i2_s(codes.reshape(1, -1), 1, i2s_block("x86", codes.shape[1]))
    tail = scale.astype("<f4").reshape(1).view(np.uint8)
    return np.concatenate([packed, np.pad(tail, (0, SCALE_TAIL - tail.size))])


def unpack_i2_s_tensor(data: Bytes, m: int, k: int, i2s_layout: str) -> Scaled:
    """I2_S of a file -> codes [m, k], scales [1, 1]. Blocks run on from row to row."""
    block = i2s_block(i2s_layout, k)
    if m * k % block:
        what = "rows in fours" if i2s_layout == "rows4" else f"blocks of {block}"
        raise FormatError(f"{m} x {k} weights are not whole I2_S {what}, of which the {i2s_layout} layout consists")
    codes = unpack_i2_s(data, GemmShape(1, m * k), 1, block).reshape(m, k)
    return codes, _scale_after(data, m * k // 4, "I2_S")


def unpack_tl1_tensor(data: Bytes, m: int, k: int, bm: int, bk: int, rows: int) -> Scaled:
    """TL1 of a file -> codes [m, k], scales [1, 1]; see layout.pack_tl1 for the tile."""
    if m % bm or k % bk:
        raise UnsupportedError(f"TL1 tiles of {bm} x {bk} do not divide {m} x {k}")
    return unpack_tl1(data, GemmShape(m, k), bm, bk, rows), _scale_after(data, m * k // 4, "TL1")


def unpack_tl2_tensor(data: Bytes, m: int, k: int, bm: int, bk: int, rows: int) -> Scaled:
    """TL2 of a file -> codes [m, k], scales [1, 1]; see layout.pack_tl2 for the tile. The scale is near the end."""
    if rows != 32:
        raise UnsupportedError(f"TL2 tiles with {rows} rows a step: there are only steps of 32")
    if m % bm or k % bk % 32:
        raise UnsupportedError(
            f"TL2 tiles of {bm} x {bk} do not fit {m} x {k}: need whole tiles, and 32s of columns left"
        )
    if tl2_bytes(m, k, bk) > data.size - SCALE_TAIL:
        raise UnsupportedError(f"TL2 tiles of {bm} x {bk} need more bytes than the tensor has")
    return unpack_tl2(data, GemmShape(m, k), bm, bk), _scale_after(data, data.size - SCALE_TAIL, "TL2")


def pack_t5_tensor(codes: Codes, scale: Scales) -> Bytes:
    """Codes [M, K], scale [] -> T5: layout.pack_t5's bytes for panels of five rows, the scale."""
    return np.concatenate([pack_t5(codes, 5, 1), scale.astype("<f4").reshape(1).view(np.uint8)])


def unpack_t5_tensor(data: Bytes, m: int, k: int) -> Scaled:
    """The inverse of pack_t5_tensor -> codes [m, k], scales [1, 1]."""
    packed = round_up(m, 5) // 5 * k
    scale = exactly(data, packed + 4, "T5")[packed:].copy().view("<f4")
    return unpack_t5(data, GemmShape(m, k), 5, 1), scale.reshape(1, 1)


def _scale_after(data: Bytes, at: int, name: str) -> Scales:
    return exactly(data, at + SCALE_TAIL, name)[at : at + 4].copy().view("<f4").reshape(1, 1)


# ---- shared ------------------------------------------------------------------------------------------------------


def _rows(data: Bytes, m: int, k: int, weights: int, nbytes: int, name: str) -> Bytes:
    """Bytes [m, blocks of a row, nbytes] of a tensor that is blocks only."""
    if k % weights:
        raise FormatError(f"{name} rows of {k} weights: not a multiple of {weights}")
    return exactly(data, m * k // weights * nbytes, name).reshape(m, k // weights, nbytes)


def _two_bits(packed: Bytes, name: str) -> Codes:
    """Bytes [..., b] -> codes int8 [..., 4, b]: the bit pairs minus 1, low pairs first. Code 3 is a FormatError."""
    if np.any(packed & (packed >> 1) & 0x55):
        raise FormatError(f"{name} data holds the code 3, which stands for no ternary weight")
    digits = np.empty((*packed.shape[:-1], 4, packed.shape[-1]), np.uint8)
    for pair in range(4):
        digits[..., pair, :] = (packed >> np.uint8(2 * pair)) & 3
    return _signed(digits)


def _leading_digit(bytes_: Bytes) -> Bytes:
    """The first base-3 digit of the fractions b / 256: floor(3 b / 256)."""
    return ((bytes_.astype(np.uint16) * 3) >> 8).astype(np.uint8)


def _signed(digits: Bytes) -> Codes:
    """Digits 0, 1, 2 -> codes -1, 0, +1, in place."""
    codes = digits.view(np.int8)
    codes -= 1
    return codes


def _scaled(codes: Codes, scales: npt.NDArray[np.floating[Any]]) -> Scaled:
    """Codes [m, k] and scales [m, G] as float32 of at least 0, the same weights: a 0 or a sign goes to the codes."""
    runs = codes.reshape(*scales.shape, -1)
    if not scales.all():
        runs[scales == 0] = 0
    negative = np.signbit(scales)
    if negative.any():
        runs[negative] *= -1
    return codes, np.abs(scales.astype(np.float32))
