"""Where every weight lies: packing and unpacking as NumPy reshape and transpose.

Canonical weights are codes {-1, 0, +1}, int8 [M, K]. Runtime layouts (i2_s, tl1, tl2) pad M to the panel height
and K to the block with zero weights; with no padding they are byte for byte what bitnet.cpp writes. t5 is ours and
pads likewise, and so are i2_g, t5_g and i1_g, those with scales: for every group of a row. i1_s and i1_g are for binary
weights: none of the matrix is 0, and what pads it is -1. The tensor types of files are blocks.py's.

Axes are named in the comments as they are reshaped; a transpose then spells the loop order of the stream,
outermost first. Arithmetic is on uint8 and wraps, so a signed code may be added before its offset is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitgen.errors import FormatError, UnsupportedError
from bitgen.spec import GemmShape, round_up

Codes = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.float32]

TL2_PAIR_TILE = 32  # columns of one tile of tl2's tail, where K mod bk is packed in pairs
TL2_ROWS = 32  # rows of one SIMD step of tl2


def exact_float16(scales: Scales) -> npt.NDArray[np.float16]:
    """Scales of groups in the type that stores them; UnsupportedError where one is no such number, or negative."""
    with np.errstate(over="ignore"):
        stored = scales.astype("<f2")
    if not np.array_equal(stored, scales) or np.isinf(stored).any() or np.signbit(stored).any():
        raise UnsupportedError("a scale of a group is not a finite float16 number of at least 0")
    return stored


def with_steps(q: Codes, steps: Scales) -> Codes:
    """Rows as a kernel with groups takes them: int8 [n, k] and behind it float32 steps [n, k / group], as int8."""
    return np.concatenate([q, steps.astype("<f4").view(np.int8)], axis=1)


# ---- i2_s: four codes w + 1 to a byte, high bits first -----------------------------------------------------------


def pack_i2_s(codes: Codes, bm: int, bk: int) -> Bytes:
    """Codes [M, K] -> uint8 [m_pad * k_pad / 4], panels of bm rows, blocks of bk columns.

    Stream: panel, block, row of the panel, byte j < bk/4. The byte holds elements j, j + bk/4, j + 2 bk/4 and
    j + 3 bk/4 of the block from its top bit pair down. bm=1, bk=128 is the I2_S of GGUF files for K % 128 == 0
    (flat otherwise: pack codes.reshape(1, -1)), bk=64 that of ARM builds of bitnet.cpp.
    """
    c = _blocks(codes, bm, bk)  # [panel, row, block, quarter, byte]
    out = c[:, :, :, 0] * np.uint8(4)
    for quarter in (1, 2):
        out += c[:, :, :, quarter]
        out *= 4
    out += c[:, :, :, 3]
    out += 0x55  # + 1 to each of the four codes
    return np.ascontiguousarray(out.transpose(0, 2, 1, 3)).reshape(-1)


def unpack_i2_s(data: Bytes, shape: GemmShape, bm: int, bk: int) -> Codes:
    """The inverse of pack_i2_s: uint8 -> codes [M, K]. The unused code 3 is a FormatError."""
    m_pad, k_pad = round_up(shape.m, bm), round_up(shape.k, bk)
    packed = exactly(data, m_pad * k_pad // 4, "i2_s")
    if np.any(packed & (packed >> 1) & 0x55):
        raise FormatError("i2_s data holds the unused code 3: the tensor is corrupt or not I2_S")
    rows = packed.reshape(m_pad // bm, k_pad // bk, bm, bk // 4).transpose(0, 2, 1, 3)
    codes = np.empty((m_pad // bm, bm, k_pad // bk, 4, bk // 4), np.int8)
    for quarter in range(4):
        codes[:, :, :, quarter] = (rows >> np.uint8(6 - 2 * quarter)) & 3
    codes -= 1
    return _crop(codes.reshape(m_pad, k_pad), shape)


def _blocks(codes: Codes, bm: int, bk: int) -> Bytes:
    c = _padded(codes, bm, bk)
    return c.reshape(c.shape[0] // bm, bm, c.shape[1] // bk, 4, bk // 4)


# ---- t5: one column of five rows to a byte -----------------------------------------------------------------------


def pack_t5(codes: Codes, bm: int, bk: int) -> Bytes:
    """Codes [M, K] -> uint8 [m_pad / 5 * k_pad], M padded to panels of a multiple of five rows, K to blocks of bk.

    Stream: five rows, column. With codes c = w + 1 of the five rows, pair = 3 c0 + c1 and rest = 9 c2 + 3 c3 + c4, the
    byte is 8 rest + 8 - pair, or 216 + rest where the pair is 0: all 243 ways in 0..242, undone without a division.
    """
    _check_t5(bm)
    c = _padded(codes, bm, bk)
    return _fives((c + np.uint8(1)).reshape(c.shape[0] // 5, 5, c.shape[1])).reshape(-1)


def unpack_t5(data: Bytes, shape: GemmShape, bm: int, bk: int) -> Codes:
    """The inverse of pack_t5: uint8 -> codes [M, K]. A byte above 242 is a FormatError."""
    _check_t5(bm)
    m_pad, k_pad = round_up(shape.m, bm), round_up(shape.k, bk)
    packed = exactly(data, m_pad // 5 * k_pad, "t5").reshape(m_pad // 5, k_pad)
    return _crop((_unfives(packed, "t5") - np.int8(1)).reshape(m_pad, k_pad), shape)


def _check_t5(bm: int, name: str = "t5") -> None:
    if bm < 1 or bm % 5:
        raise UnsupportedError(f"{name} panels of {bm} rows: need a multiple of five, which share their bytes")


def _fives(c: Bytes) -> Bytes:
    """Codes 0..2 [n, 5, ...] -> uint8 [n, ...], one byte for five."""
    pair = c[:, 0] * np.uint8(3)
    pair += c[:, 1]
    rest = c[:, 2] * np.uint8(9)
    rest += c[:, 3] * np.uint8(3)
    rest += c[:, 4]
    return np.where(pair > 0, rest * np.uint8(8) + (np.uint8(8) - pair), rest + np.uint8(216))


def _unfives(packed: Bytes, name: str) -> Codes:
    """The inverse of _fives: uint8 [n, ...] -> codes 0..2 [n, 5, ...]. A byte above 242 is a FormatError."""
    if packed.size and packed.max() > 242:
        raise FormatError(f"{name} data holds a byte above 242: the tensor is corrupt or was packed otherwise")
    rest = np.where(packed < 216, packed >> 3, packed - np.uint8(216))
    pair = np.where(packed < 216, np.uint8(8) - (packed & 7), np.uint8(0))
    return np.stack([pair // 3, pair % 3, rest // 9, rest // 3 % 3, rest % 3], axis=1).view(np.int8)


# ---- i2_g: four codes w + 1 to a byte, rows side by side, a scale for every row and group --------------------------

GROUP_STEP = 16
"""Columns of one step of i2_g, four bytes of each row; groups are whole steps, t5_g's too."""


def pack_i2_g(codes: Codes, bm: int, bk: int, scales: Scales) -> Bytes:
    """Codes [M, K], scales [M, K / bk] -> uint8 [m_pad * (K / 4 + K / bk * 2)]; bk columns are a group, and divide K.

    A panel of bm rows is its scales, float16 [group, row], then its codes: step of 16 columns, row, byte j < 4. The
    byte holds columns j, j + 4, j + 8, j + 12 of the step from its top bit pair down. So the same columns of all rows
    lie side by side, and rows need not be told apart before they meet their scales.
    """
    stored = _panel_scales(codes, bm, bk, scales, GROUP_STEP)
    panels, k = stored.shape[0], codes.shape[1]
    c = _padded(codes, bm, bk).reshape(panels, bm, k // GROUP_STEP, 4, 4) + np.uint8(1)
    #                                  panel   row  step            quarter byte
    packed = c[:, :, :, 0] << 6 | c[:, :, :, 1] << 4 | c[:, :, :, 2] << 2 | c[:, :, :, 3]
    steps = packed.transpose(0, 2, 1, 3).reshape(panels, -1)
    return np.concatenate([stored.reshape(panels, -1), steps], axis=1).reshape(-1)


def _panel_scales(codes: Codes, bm: int, bk: int, scales: Scales, step: int) -> Bytes:
    """Scales [M, K / bk] of codes [M, K] -> uint8 [panel, group, bm * 2]: float16 numbers; 0 for rows that pad."""
    m, k = codes.shape
    if k % bk or bk % step or scales.shape != (m, k // bk):
        raise FormatError(f"scales {list(scales.shape)} do not fit {m} x {k} weights in groups of {bk}")
    panels = round_up(m, bm) // bm
    padded = np.pad(exact_float16(scales), ((0, panels * bm - m), (0, 0)))
    return np.ascontiguousarray(padded.reshape(panels, bm, -1).transpose(0, 2, 1)).view(np.uint8)


def unpack_i2_g(data: Bytes, shape: GemmShape, bm: int, bk: int) -> Codes:
    """The codes [M, K] of pack_i2_g's bytes. The unused code 3 is a FormatError."""
    panels, k = round_up(shape.m, bm) // bm, shape.k
    head, body = k // bk * bm * 2, k // 4 * bm
    packed = exactly(data, panels * (head + body), "i2_g").reshape(panels, -1)[:, head:]
    if np.any(packed & (packed >> 1) & 0x55):
        raise FormatError("i2_g data holds the unused code 3: the tensor is corrupt or not i2_g")
    steps = packed.reshape(panels, k // GROUP_STEP, bm, 4).transpose(0, 2, 1, 3)
    codes = np.stack([steps >> np.uint8(shift) & 3 for shift in (6, 4, 2, 0)], axis=3).view(np.int8) - np.int8(1)
    return _crop(codes.reshape(panels * bm, k), shape)


# ---- t5_g: one column of five rows to a byte, rows side by side, a scale for every row and group -------------------


def pack_t5_g(codes: Codes, bm: int, bk: int, scales: Scales) -> Bytes:
    """Codes [M, K], scales [M, K / bk] -> uint8 [m_pad * (K / 5 + K / bk * 2)]; bk columns are a group, and divide K.

    Stream: panel, group, and of that its scales, float16 [bm], then its codes: four columns, row r < bm / 5, column. A
    byte is t5's, of one column of the rows r, r + bm / 5, ..., r + 4 bm / 5. So four columns of five rows are a word,
    rows need not be told apart before they meet their scales, and memory is read from front to back.
    """
    _check_t5(bm, "t5_g")
    stored = _panel_scales(codes, bm, bk, scales, GROUP_STEP)
    panels, k = stored.shape[0], codes.shape[1]
    c = _padded(codes, bm, bk).reshape(panels, 5, bm // 5, k // 4, 4) + np.uint8(1)
    words = _fives(c).transpose(0, 2, 1, 3).reshape(panels, k // bk, -1)
    return np.concatenate([stored, words], axis=2).reshape(-1)


def unpack_t5_g(data: Bytes, shape: GemmShape, bm: int, bk: int) -> Codes:
    """The codes [M, K] of pack_t5_g's bytes. A byte above 242 is a FormatError."""
    _check_t5(bm, "t5_g")
    panels, k = round_up(shape.m, bm) // bm, shape.k
    packed = exactly(data, panels * (k // bk * bm * 2 + bm // 5 * k), "t5_g").reshape(panels, k // bk, -1)
    words = packed[:, :, bm * 2 :].reshape(panels, k // 4, bm // 5, 4).transpose(0, 2, 1, 3)
    return _crop((_unfives(words, "t5_g") - np.int8(1)).reshape(panels * bm, k), shape)


# ---- i1_s, i1_g: the signs of eight columns to a byte, rows side by side -------------------------------------------

BIT_STEP = 32
"""Columns of one step of i1_s and i1_g: four bytes of each row."""


def pack_i1_s(codes: Codes, bm: int, bk: int) -> Bytes:
    """Codes [M, K] -> uint8 [m_pad * k_pad / 8], panels of bm rows, K padded to blocks of bk.

    Stream: panel, eight columns, row. Bit i of a byte is 1 where column i of the eight is +1. UnsupportedError: a
    weight is 0.
    """
    zeros = int(codes.size - np.count_nonzero(codes))
    if zeros:
        raise _not_binary(zeros, codes)
    return _signs(codes, bm, bk).reshape(-1)


def unpack_i1_s(data: Bytes, shape: GemmShape, bm: int, bk: int) -> Codes:
    """The inverse of pack_i1_s: uint8 -> codes [M, K]."""
    panels, k_pad = round_up(shape.m, bm) // bm, round_up(shape.k, bk)
    return _unsigns(exactly(data, panels * bm * k_pad // 8, "i1_s").reshape(panels, -1), shape, bm)


def pack_i1_g(codes: Codes, bm: int, bk: int, scales: Scales) -> Bytes:
    """Codes [M, K], scales [M, K / bk] -> uint8 [m_pad * (K / 8 + K / bk * 2)]; bk columns are a group, and divide K.

    A panel of bm rows is its scales, float16 [group, row], then its signs as in pack_i1_s. UnsupportedError: a weight
    is 0, and the scale of its group is not.
    """
    stored = _panel_scales(codes, bm, bk, scales, BIT_STEP)
    zeros = (codes == 0).reshape(*scales.shape, bk)
    wrong = int(np.count_nonzero(zeros[scales != 0]))
    if wrong:
        raise _not_binary(wrong, codes)
    signs = _signs(codes, bm, bk)
    return np.concatenate([stored.reshape(len(signs), -1), signs], axis=1).reshape(-1)


def unpack_i1_g(data: Bytes, shape: GemmShape, bm: int, bk: int) -> Codes:
    """The codes [M, K] of pack_i1_g's bytes, 0 where the scale of their group is."""
    panels, k = round_up(shape.m, bm) // bm, shape.k
    head = k // bk * bm * 2
    packed = exactly(data, panels * (head + k // 8 * bm), "i1_g").reshape(panels, -1)
    codes = _unsigns(packed[:, head:], shape, bm)
    scales = packed[:, :head].copy().view("<f2").reshape(panels, k // bk, bm).transpose(0, 2, 1).reshape(-1, k // bk)
    codes.reshape(shape.m, k // bk, bk)[scales[: shape.m] == 0] = 0
    return codes


def _signs(codes: Codes, bm: int, bk: int) -> Bytes:
    """Codes [M, K] -> uint8 [panels, bytes of a panel]."""
    c = _padded(codes, bm, bk)
    bits = np.packbits(c == 1, axis=1, bitorder="little").reshape(c.shape[0] // bm, bm, -1)
    return np.ascontiguousarray(bits.transpose(0, 2, 1)).reshape(len(bits), -1)


def _unsigns(packed: Bytes, shape: GemmShape, bm: int) -> Codes:
    rows = packed.reshape(len(packed), -1, bm).transpose(0, 2, 1).reshape(len(packed) * bm, -1)
    bits = np.unpackbits(rows, axis=1, bitorder="little").view(np.int8)
    return _crop(bits * np.int8(2) - np.int8(1), shape)


def _not_binary(zeros: int, codes: Codes) -> UnsupportedError:
    return UnsupportedError(f"{zeros} of {codes.size} weights are 0: the matrix is ternary, and one bit holds -1 or +1")


# ---- tl1: pairs of weights as an index of nine, two to a byte ----------------------------------------------------


def pack_tl1(codes: Codes, bm: int, bk: int, rows: int = 32) -> Bytes:
    """Codes [M, K] -> uint8 [m_pad * k_pad / 4]: bitnet.cpp's TL1 of outer tile bm x bk, `rows` (32 or 64) inside.

    Pair code 3 w0 + w1 + 4, the earlier pair in the high nibble. Stream: mt, kt, mi < bm/rows, ki < bk/by with
    by = 256/rows, g < rows/16, p < by/4, r < 16: row mt bm + mi rows + 16 g + r, columns kt bk + ki by + 4 p + 0..3.
    """
    _check_tl1(bm, bk, rows)
    c = _padded(codes, bm, bk)
    by = 256 // rows
    out = _pairs(c).reshape(c.shape[0] // bm, bm // rows, rows // 16, 16, c.shape[1] // bk, bk // by, by // 4)
    #                        mt  mi  g   r   kt  ki  p   ->   mt, kt, mi, ki, g, p, r
    return np.ascontiguousarray(out.transpose(0, 4, 1, 5, 2, 6, 3)).reshape(-1)


def unpack_tl1(data: Bytes, shape: GemmShape, bm: int, bk: int, rows: int = 32) -> Codes:
    """The inverse of pack_tl1. A pair code above 8 is a FormatError."""
    _check_tl1(bm, bk, rows)
    m_pad, k_pad = round_up(shape.m, bm), round_up(shape.k, bk)
    by = 256 // rows
    packed = exactly(data, m_pad * k_pad // 4, "tl1")
    stream = packed.reshape(m_pad // bm, k_pad // bk, bm // rows, bk // by, rows // 16, by // 4, 16)
    return _crop(_unpairs(stream.transpose(0, 2, 4, 6, 1, 3, 5).reshape(m_pad, k_pad // 4)), shape)


def _check_tl1(bm: int, bk: int, rows: int) -> None:
    if rows not in (32, 64) or bm % rows or bk % (256 // rows) or bm < 1 or bk < 1:
        raise UnsupportedError(
            f"tl1 tile {bm} x {bk} with {rows} rows a step: need 32 or 64 rows, bm a multiple of them, "
            f"bk a multiple of 256 / rows"
        )


def _pairs(codes: Bytes) -> Bytes:
    """uint8 codes [m, k] -> [m, k / 4]: two pair codes 3 w0 + w1 + 4 to a byte, the earlier one above."""
    c = codes.reshape(codes.shape[0], -1, 4)
    out = c[:, :, 0] * np.uint8(3)
    out += c[:, :, 1]
    out *= 16
    out += c[:, :, 2] * np.uint8(3)
    out += c[:, :, 3]
    out += 0x44
    return out


def _unpairs(pairs: Bytes) -> Codes:
    """uint8 [m, k / 4] -> codes [m, k], the inverse of _pairs."""
    high, low = pairs >> 4, pairs & 15
    if pairs.size and max(high.max(), low.max()) > 8:
        raise FormatError("a pair code above 8: the tensor is corrupt or was packed otherwise")
    codes = np.empty((*pairs.shape, 4), np.int8)
    for at, pair in ((0, high), (2, low)):
        codes[..., at] = pair // 3
        codes[..., at + 1] = pair % 3
    codes -= 1
    return codes.reshape(pairs.shape[0], -1)


# ---- tl2: triples of weights as a sign and an index of fourteen; the tail of K in pairs --------------------------


def pack_tl2(codes: Codes, bm: int, bk: int) -> Bytes:
    """Codes [M, K] -> uint8: bitnet.cpp's TL2 of outer tile bm x bk, 32 rows inside.

    Three areas, index | sign | pair, each in the order mt, kt, mi < bm/32, step, 32 bytes. Columns below
    k3 = floor(K / bk) bk go in triples v = 9 w0 + 3 w1 + w2: |v| in a nibble (the earlier triple above) and the sign
    in a bit; the rest, padded to tiles of 32 columns, go in tl1's pair codes.
    """
    _check_tl2(bm, bk)
    c = _padded(codes, bm, TL2_PAIR_TILE)
    m, k3 = c.shape[0], tl2_triple_columns(c.shape[1], bk)
    triples = c[:, :k3].reshape(m, k3 // 3, 3)
    v = triples[:, :, 0] * np.uint8(9)
    v += triples[:, :, 1] * np.uint8(3)
    v += triples[:, :, 2]
    signed = v.view(np.int8)
    index: Bytes = np.abs(signed).view(np.uint8)
    steps = index[:, 0::2] * np.uint8(16)
    steps += index[:, 1::2]
    return np.concatenate(
        [
            _tl2_rows(steps, bm, bk // 6),
            _tl2_signs(signed < 0, bm, bk // 3),
            _tl2_rows(_pairs(np.ascontiguousarray(c[:, k3:])), bm, TL2_PAIR_TILE // 4),
        ]
    )


def unpack_tl2(data: Bytes, shape: GemmShape, bm: int, bk: int) -> Codes:
    """The inverse of pack_tl2. An index above 13 or a pair code above 8 is a FormatError."""
    _check_tl2(bm, bk)
    m, k = round_up(shape.m, bm), round_up(shape.k, TL2_PAIR_TILE)
    k3 = tl2_triple_columns(k, bk)
    ends = np.cumsum([m * k3 // 6, m * k3 // 24, m * (k - k3) // 4])
    data = exactly(data, int(ends[-1]), "tl2")
    index, signs, pairs = data[: ends[0]], data[ends[0] : ends[1]], data[ends[1] :]
    steps = _tl2_unrows(index, m, bm, bk // 6)
    magnitude = np.stack([steps >> 4, steps & 15], axis=2).reshape(m, k3 // 3)
    if magnitude.size and magnitude.max() > 13:
        raise FormatError("a tl2 index above 13: the tensor is corrupt or was packed otherwise")
    negative = _tl2_unsigns(signs, m, bm, bk // 3)
    v = np.where(negative, 13 - magnitude, 13 + magnitude)  # 9 w0 + 3 w1 + w2 + 13, base-3 digits w + 1
    codes = np.empty((m, k), np.int8)
    codes[:, :k3] = np.stack([v // 9, v // 3 % 3, v % 3], axis=2).reshape(m, k3).view(np.int8) - 1
    codes[:, k3:] = _unpairs(_tl2_unrows(pairs, m, bm, TL2_PAIR_TILE // 4))
    return _crop(codes, shape)


def tl2_triple_columns(k: int, bk: int) -> int:
    """Columns that tl2 packs in triples; the other k mod bk go in pairs."""
    return k // bk * bk


def tl2_bytes(m: int, k: int, bk: int) -> int:
    """Bytes of a tl2 matrix of padded sizes: 5 bits a triple, 4 bits a pair."""
    k3 = tl2_triple_columns(k, bk)
    return m * k3 // 24 * 5 + m * (k - k3) // 4


def _check_tl2(bm: int, bk: int) -> None:
    if bm < 1 or bm % TL2_ROWS or bk < 1 or bk % 96:
        raise UnsupportedError(
            f"tl2 tile {bm} x {bk}: need bm a multiple of 32 and bk a multiple of 96 "
            "(24 columns to a sign word, 32 to a tile of the pair tail)"
        )


def _tl2_rows(a: Bytes, bm: int, tile: int) -> Bytes:
    """[m, steps] -> the stream mt, kt, mi, step, 32 rows, where rows h 16 + q 8 + i lie at q 16 + h 8 + i.

    That order makes the unpack instructions of AVX2, which work within 128-bit lanes, yield rows 0-15 and 16-31.
    """
    axes = a.reshape(a.shape[0] // bm, bm // TL2_ROWS, 2, 2, 8, a.shape[1] // tile, tile)
    #                             mt  mi  h  q  i  kt  step  ->  mt, kt, mi, step, q, h, i
    return np.ascontiguousarray(axes.transpose(0, 5, 1, 6, 3, 2, 4)).reshape(-1)


def _tl2_unrows(stream: Bytes, m: int, bm: int, tile: int) -> Bytes:
    tiles = stream.size // (m * tile)
    axes = stream.reshape(m // bm, tiles, bm // TL2_ROWS, tile, 2, 2, 8)
    return axes.transpose(0, 2, 5, 4, 6, 1, 3).reshape(m, tiles * tile)


def _tl2_signs(negative: npt.NDArray[np.bool_], bm: int, tile: int) -> Bytes:
    """[m, triples] -> the stream mt, kt, mi, g < tile/8, 16 words: bit 15 - 2 col - h of word j is row 16 h + j's."""
    m, triples = negative.shape
    axes = negative.reshape(m // bm, bm // TL2_ROWS, 2, 16, triples // tile, tile // 8, 8)
    bits = np.ascontiguousarray(axes.transpose(0, 4, 1, 5, 3, 6, 2))  # mt, kt, mi, g, j, col, h
    return np.packbits(bits.reshape(-1)).view(">u2").astype("<u2").view(np.uint8)


def _tl2_unsigns(stream: Bytes, m: int, bm: int, tile: int) -> npt.NDArray[np.bool_]:
    bits = np.unpackbits(stream.view("<u2").astype(">u2").view(np.uint8)).view(np.bool_)
    tiles = bits.size // (m * tile)
    axes = bits.reshape(m // bm, tiles, bm // TL2_ROWS, tile // 8, 16, 8, 2)
    return axes.transpose(0, 2, 6, 4, 1, 3, 5).reshape(m, tiles * tile)


# ---- shared ------------------------------------------------------------------------------------------------------


def checked(codes: Codes) -> Bytes:
    """The codes as wrapping uint8, once they are known to be ternary."""
    if codes.dtype != np.int8 or codes.ndim != 2:
        raise FormatError(f"weights must be int8 codes [M, K], not {codes.dtype} of {codes.ndim} axes")
    if codes.size and (codes.min() < -1 or codes.max() > 1):
        raise FormatError("weights outside {-1, 0, +1}: the matrix is not ternary")
    return codes.view(np.uint8)


def _padded(codes: Codes, bm: int, bk: int) -> Bytes:
    """Codes as uint8 [m_pad, k_pad], zero weights below and to the right; the same memory where nothing is added."""
    c = checked(codes)
    m, k = c.shape
    m_pad, k_pad = round_up(m, bm), round_up(k, bk)
    if (m_pad, k_pad) == (m, k):
        return c
    out = np.zeros((m_pad, k_pad), np.uint8)
    out[:m, :k] = c
    return out


def _crop(codes: Codes, shape: GemmShape) -> Codes:
    return np.ascontiguousarray(codes[: shape.m, : shape.k])


def exactly(data: Bytes, size: int, name: str) -> Bytes:
    """The first `size` bytes of a tensor (files carry a scale after them); fewer is a FormatError."""
    if data.dtype != np.uint8 or data.size < size:
        raise FormatError(f"{name} data is cut short: {data.nbytes} bytes where {size} are needed")
    return data.reshape(-1)[:size]
