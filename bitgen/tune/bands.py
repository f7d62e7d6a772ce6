"""Random weights for trials; and those that travel to a device in few bytes: bands of rows, and runs of equal bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from bitgen.kernels.layout import Bytes, Codes
from bitgen.spec import GemmShape

BAND = 64  # rows of each of the three bands of random weights: top, middle, bottom
RUN = 64  # equal bytes of packed weights, this many or more, are sent as one run


def random_codes(shape: GemmShape, rng: np.random.Generator, rows: int | None = None) -> Codes:
    """Random codes int8 [m, k], or of the first `rows` rows: -1, 0 and +1; of a binary matrix -1 and +1."""
    size = shape.m if rows is None else rows, shape.k
    if shape.binary:
        return rng.integers(0, 2, size, np.int8) * np.int8(2) - np.int8(1)
    return rng.integers(-1, 2, size, np.int8)


def banded(shape: GemmShape, rng: np.random.Generator) -> Codes:
    """Codes int8 [m, k] that are alike, 0 or in a binary matrix -1, except for three bands of random rows."""
    codes = np.full((shape.m, shape.k), -int(shape.binary), np.int8)
    for top in (0, shape.m // 2, max(0, shape.m - BAND)):
        band = codes[top : top + BAND]
        band[:] = random_codes(shape, rng, len(band))
    return codes


def spans(data: Bytes) -> Iterator[bytes]:
    """Run-length encoding of bytes for the tuner: records of (u64 n, n bytes, u64 times, the byte to repeat)."""
    edges = np.flatnonzero(np.diff(data)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [data.size]])
    long = ends - starts >= RUN
    at = 0
    for start, end in zip(starts[long].tolist(), ends[long].tolist(), strict=True):
        yield struct.pack("<Q", start - at) + data[at:start].tobytes() + struct.pack("<QB", end - start, data[start])
        at = end
    if at < data.size:
        yield struct.pack("<Q", data.size - at) + data[at:].tobytes() + struct.pack("<QB", 0, 0)
