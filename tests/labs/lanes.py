"""The runtime's float arithmetic in NumPy, to the last bit: sixteen lanes, fused multiply-adds where they are written,
and functions of runtime/simd/vec.h."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F32 = np.float32
FloatArray = npt.NDArray[np.float32]
LANES = 16


def fma(a: Any, b: Any, c: Any) -> FloatArray:
    """a * b + c of float32, rounded once: the sum in float64 rounded to odd, then to float32."""
    p, c = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    s = p + c
    t = s - p
    lost = (p - (s - t)) + (c - t)
    bits = s.view(np.int64)
    away = np.where((lost > 0) == (s > 0), 1, -1)
    return (bits + np.where((lost != 0) & (bits & 1 == 0), away, 0)).view(np.float64).astype(F32)


def lanes(x: FloatArray) -> FloatArray:
    """[..., n] -> [..., ceil(n / 16), 16], zeros after the last."""
    x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % LANES)])
    return x.reshape(*x.shape[:-1], x.shape[-1] // LANES, LANES)


def tree(a: FloatArray) -> FloatArray:
    """The sum over 16 lanes, by halves."""
    for half in (8, 4, 2, 1):
        a = a[..., :half] + a[..., half:]
    return a[..., 0]


def dot(a: FloatArray, b: FloatArray) -> FloatArray:
    """Sums of products over the last axis in lane order; other axes broadcast."""
    a, b = lanes(a), lanes(b)
    total = np.zeros((*np.broadcast_shapes(a.shape, b.shape)[:-2], LANES), F32)
    for i in range(a.shape[-2]):
        total = fma(a[..., i, :], b[..., i, :], total)
    return tree(total)


def exp(x: FloatArray) -> FloatArray:
    """e^x as v16_exp has it."""
    x = np.clip(x, F32(-87), F32(88))
    n = np.rint(x * F32(float.fromhex("0x1.715476p0")))
    r = fma(n, F32(-0.693359375), x)
    r = fma(n, F32(float.fromhex("0x1.bd0106p-13")), r)
    y = np.full_like(r, 1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = fma(y, r, F32(c))
    return (fma(y, r * r, r) + F32(1)) * np.ldexp(F32(1), n.astype(np.int32))


def silu(x: FloatArray) -> FloatArray:
    """x / (1 + e^-x)."""
    return x / (F32(1) + exp(-x))


def gelu(x: FloatArray) -> FloatArray:
    """x (1 + tanh(u)) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    c = 2 * (2 / np.pi) ** 0.5
    return x / (F32(1) + exp(x * fma(x * x, F32(-c * 0.044715), F32(-c))))


def log1p(x: FloatArray) -> FloatArray:
    """ln(1 + x) as v16_log1p has it, x in [0, 1]."""
    s = x / (x + F32(2))
    z, y = s * s, np.full_like(x, F32(1) / F32(15))
    for c in (13, 11, 9, 7, 5, 3):
        y = fma(y, z, F32(1) / F32(c))
    s = s + s
    return fma(s * z, y, s)


def softplus(x: FloatArray) -> FloatArray:
    """ln(1 + e^x)."""
    return np.maximum(x, F32(0)) + log1p(exp(-np.abs(x)))


def sigmoid(x: FloatArray) -> FloatArray:
    """1 / (1 + e^-x)."""
    return F32(1) / (F32(1) + exp(-x))


def hadamard(x: FloatArray, block: int) -> FloatArray:
    """H x in blocks of the last axis, by butterflies of rising distance."""
    x, shape = x * F32(block**-0.5), x.shape
    distance = 1
    while distance < block:
        pairs = x.reshape(-1, 2, distance)
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        distance *= 2
    return x.reshape(shape)
