"""The rotation by a Walsh-Hadamard matrix that some models' activations go through before their matrices."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@functools.cache
def hadamard_matrix(block: int) -> FloatArray:
    """Sylvester's H [block, block]: H[i, j] = (-1)^popcount(i & j) / sqrt(block); symmetric, its own inverse."""
    h = np.ones((1, 1))
    while len(h) < block:
        h = np.block([[h, h], [h, -h]])
    scaled: FloatArray = (h / block**0.5).astype(np.float32)
    return scaled


def rotate(x: FloatArray, block: int, signs: FloatArray | None) -> FloatArray:
    """H (s x) in blocks of columns: x float32 [n, k], signs float32 [k] of 1 and -1 -> float32 [n, k]."""
    return _transform(x if signs is None else x * signs, block)


def rotate_back(z: FloatArray, block: int, signs: FloatArray | None) -> FloatArray:
    """s (H z), the inverse of `rotate`."""
    x = _transform(z, block)
    return x if signs is None else x * signs


def regroup(x: FloatArray, key_heads: int, value_dim: int) -> FloatArray:
    """Columns of x [n, k] from value heads in the order (rep, key head) to (key head, rep)."""
    heads = x.reshape(len(x), -1, key_heads, value_dim)
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(x.shape)


def _transform(x: FloatArray, block: int) -> FloatArray:
    """Sums in float64, so that their order does not matter."""
    blocks = x.reshape(-1, block).astype(np.float64)
    return (blocks @ hadamard_matrix(block).astype(np.float64)).astype(np.float32).reshape(x.shape)
