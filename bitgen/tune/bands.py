"""Weights that travel to a device in few bytes: bands of rows that are not 0, and runs of equal bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from bitgen.kernels.layout import Bytes, Codes
from bitgen.spec import GemmShape

BAND = 64  # rows of each of the three bands of nonzero weights: top, middle, bottom
RUN = 64  # equal bytes of packed weights, this many or more, are sent as one run


def banded(shape: GemmShape, rng: np.random.Generator) -> Codes:
    """Codes int8 [m, k] that are 0 except for three bands of random rows: top, middle, bottom."""
    codes = np.zeros((shape.m, shape.k), np.int8)
    for top in (0, shape.m // 2, max(0, shape.m - BAND)):
        band = codes[top : top + BAND]
        band[:] = rng.integers(-1, 2, band.shape, np.int8)
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
