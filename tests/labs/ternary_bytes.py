"""Ternary matrices as files hold them, weight by weight: bytes by the types' definitions, without bitgen's code.

Each function takes codes int8 [M, K] and scales float [M, K/block], and returns the bytes of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np

Codes = np.ndarray

STQ_PATTERNS = bytes.fromhex(
    "A989 2909 A686 2606 9A92 1A12 6A62 4A42 0121 81A1 0424 84A4 1018 9098 4048 6068".replace(" ", "")
)
"""Of 32 patterns the weights l = 0..3, plus 1, in bit pairs l."""


def q2_0(codes: Codes, scales: np.ndarray) -> bytes:
    """Blocks of 64 or 128; PQ2_0 too."""
    out = bytearray()
    for block, scale in blocks(codes, scales):
        packed = bytearray(len(block) // 4)
        for j, w in enumerate(block):
            packed[j // 4] |= (w + 1) << 2 * (j % 4)
        out += half(scale) + packed
    return bytes(out)


def q1_0(codes: Codes, scales: np.ndarray) -> bytes:
    """The weights must be -1 and +1."""
    out = bytearray()
    for block, scale in blocks(codes, scales):
        signs = bytearray(16)
        for j, w in enumerate(block):
            signs[j // 8] |= (w > 0) << j % 8
        out += half(scale) + signs
    return bytes(out)


def tq2_0(codes: Codes, scales: np.ndarray) -> bytes:
    out = bytearray()
    for block, scale in blocks(codes, scales):
        packed = bytearray(64)
        for j, w in enumerate(block):
            packed[32 * (j // 128) + j % 32] |= (w + 1) << 2 * (j % 128 // 32)
        out += packed + half(scale)
    return bytes(out)


def tq1_0(codes: Codes, scales: np.ndarray) -> bytes:
    return trits(codes, scales, [(0, 32, 5), (160, 16, 5), (240, 4, 4)])


def ptq1_0(codes: Codes, scales: np.ndarray) -> bytes:
    return trits(codes, scales, [(0, 16, 5), (80, 8, 5), (120, 2, 4)])


def trits(codes: Codes, scales: np.ndarray, runs: list[tuple[int, int, int]]) -> bytes:
    """runs: first element, bytes, and digits of a byte, which lie `bytes` elements apart."""
    out = bytearray()
    for block, scale in blocks(codes, scales):
        for start, nbytes, digits in runs:
            out += bytes(
                byte_of(tuple(block[start + nbytes * n + m] + 1 for n in range(digits))) for m in range(nbytes)
            )
        out += half(scale)
    return bytes(out)


@cache
def byte_of(digits: tuple[int, ...]) -> int:
    """The least byte of which the reading rule gives these digits: digit n is ((b 3^n mod 256) 3) >> 8."""
    return next(b for b in range(256) if all(b * 3**n % 256 * 3 >> 8 == d for n, d in enumerate(digits)))


def stq1_0(codes: Codes, scales: np.ndarray) -> bytes:
    """The weights must be as `sparse` makes them."""
    out = bytearray()
    for block, scale in blocks(codes, scales):
        low, high = bytearray(32), bytearray(8)
        for g in range(64):
            lanes = [block[g // 16 * 64 + g % 16 + 16 * lane] for lane in range(4)]
            pattern = STQ_PATTERNS.index(sum((w + 1) << 2 * lane for lane, w in enumerate(lanes)))
            low[g // 2] |= (pattern & 15) << 4 * (g % 2)
            high[g // 8] |= (pattern >> 4) << g % 8
        out += low + high + half(scale)
    return bytes(out)


def sparse(codes: Codes) -> Codes:
    """Weights of which in every four that STQ1_0 packs together exactly one is 0."""
    rng = np.random.default_rng(0)
    fours = np.where(codes == 0, 1, codes).reshape(-1, 4, 16)  # [64 columns, lane, four]
    np.put_along_axis(fours, rng.integers(0, 4, (len(fours), 1, 16)), 0, axis=1)
    return fours.reshape(codes.shape).astype(np.int8)


def binary(codes: Codes) -> Codes:
    """Weights without a 0."""
    return np.where(codes == 0, 1, codes).astype(np.int8)


WRITERS: dict[str, tuple[int, int, Callable[[Codes, np.ndarray], bytes]]] = {
    "Q1_0": (41, 128, q1_0),
    "Q2_0": (42, 64, q2_0),
    "Q2_0 of 128": (42, 128, q2_0),
    "PQ2_0": (142, 128, q2_0),
    "PTQ1_0": (143, 128, ptq1_0),
    "TQ1_0": (34, 256, tq1_0),
    "TQ2_0": (35, 256, tq2_0),
    "STQ1_0 as 42": (42, 256, stq1_0),
    "STQ1_0": (43, 256, stq1_0),
}
"""Name -> type id, weights of a block, writer."""


def blocks(codes: Codes, scales: np.ndarray) -> Iterator[tuple[list[int], float]]:
    """Each block's codes and scale, row after row."""
    size = codes.shape[1] // scales.shape[1]
    return zip(codes.reshape(-1, size).tolist(), scales.reshape(-1).tolist(), strict=True)


def half(scale: float) -> bytes:
    return np.array([scale], "<f2").tobytes()
