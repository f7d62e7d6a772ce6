"""Gated DeltaNet in NumPy, token by token: the definition that the runtime's passes over many tokens must meet.

Yang, Kautz and Hatamizadeh 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

UNIT_EPS = np.float32(1e-6)
"""Is added to the squared length of queries and keys before they are divided by its root."""


def causal_convolution(x: FloatArray, taps: FloatArray) -> FloatArray:
    """Each channel by itself: y[t, c] = sum over i of taps[c, i] x[t - (T - 1) + i, c], x being 0 before position 0.

    x float32 [n, channels], taps float32 [channels, T], the last for a position itself -> float32 [n, channels].
    """
    span = taps.shape[1]
    padded = np.concatenate([np.zeros((span - 1, x.shape[1]), np.float32), x])
    y = np.zeros_like(x)
    for i in range(span):
        y += padded[i : i + len(x)] * taps[:, i]
    return y


def unit(x: FloatArray) -> FloatArray:
    """x / sqrt(sum(x^2) + UNIT_EPS) over the last axis."""
    length: FloatArray = np.sqrt((x * x).sum(axis=-1, keepdims=True) + UNIT_EPS)
    return x / length


def sigmoid(x: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit, 0
        y: FloatArray = (1 / (1 + np.exp(-x))).astype(np.float32)
    return y


def softplus(x: FloatArray) -> FloatArray:
    """log(1 + exp(x)), without overflow."""
    y: FloatArray = np.logaddexp(np.float32(0), x).astype(np.float32)
    return y


def gated_delta_rule(
    q: FloatArray, k: FloatArray, v: FloatArray, log_decay: FloatArray, beta: FloatArray
) -> FloatArray:
    """What the heads read of their states: float32 [n, value_heads, value_dim].

    q, k float32 [n, key_heads, key_dim]; v float32 [n, value_heads, value_dim]; log_decay, beta [n, value_heads].
    Value head h reads key head h % key_heads. Its state S [key_dim, value_dim] begins as 0, and at each token

        S <- exp(log_decay) S
        S <- S + k (beta (v - S^T k))^T
        o  = S^T q

    with q and k of length 1, q then divided by sqrt(key_dim).
    """
    n, value_heads, value_dim = v.shape
    key_heads, key_dim = k.shape[1:]
    of_head = np.arange(value_heads) % key_heads
    q, k = unit(q)[:, of_head] / np.float32(key_dim**0.5), unit(k)[:, of_head]
    state = np.zeros((value_heads, key_dim, value_dim), np.float32)
    out = np.empty_like(v)
    for t in range(n):
        state *= np.exp(log_decay[t])[:, None, None]
        recalled = np.einsum("hkv,hk->hv", state, k[t])
        state += k[t][:, :, None] * (beta[t][:, None] * (v[t] - recalled))[:, None]
        out[t] = np.einsum("hkv,hk->hv", state, q[t])
    return out
