"""Gated DeltaNet's parts against plainer spellings of the same equations, and properties they must have."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from bitgen.checkpoints.delta import causal_convolution, gated_delta_rule, sigmoid, softplus, unit


def normal(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def test_causal_convolution() -> None:
    x, taps = normal(6, 3), normal(3, 4, seed=1)
    y = causal_convolution(x, taps)
    assert y.dtype == np.float32 and y.shape == x.shape
    for t in range(6):
        for c in range(3):
            want = sum(float(taps[c, i]) * float(x[t - 3 + i, c]) for i in range(4) if t - 3 + i >= 0)
            assert math.isclose(y[t, c], want, abs_tol=1e-5)


def test_the_last_tap_is_the_position_itself() -> None:
    x = normal(5, 2)
    assert np.array_equal(causal_convolution(x, np.array([[0, 1]] * 2, np.float32)), x)
    assert np.array_equal(causal_convolution(x, np.array([[1, 0]] * 2, np.float32))[1:], x[:-1])


def test_unit() -> None:
    x = np.array([[3, 4], [0, 0], [3e-4, 4e-4]], np.float32)
    want = [[3 / math.sqrt(25 + 1e-6), 4 / math.sqrt(25 + 1e-6)], [0, 0]]
    want.append([3e-4 / math.sqrt(2.5e-7 + 1e-6), 4e-4 / math.sqrt(2.5e-7 + 1e-6)])
    assert np.allclose(unit(x), want, rtol=1e-6)


def test_sigmoid_and_softplus_over_the_whole_range() -> None:
    x = np.array([-1e4, -100, -1, 0, 2, 100, 1e4], np.float32)
    assert np.allclose(sigmoid(x), [0, 0, 1 / (1 + math.e), 0.5, 1 / (1 + math.exp(-2)), 1, 1], atol=1e-7)
    assert np.allclose(softplus(x), [0, 0, math.log1p(math.exp(-1)), math.log(2), math.log1p(math.exp(2)), 100, 1e4])


def spelt_out(*parts: np.ndarray) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """(token, head) and what it reads: the rule as one product of matrices, S <- exp(g) S (I - beta k k^T) + ..."""
    q, k, v, log_decay, beta = (part.astype(np.float64) for part in parts)
    key_dim, groups = k.shape[2], k.shape[1]
    q, k = (t / np.sqrt((t * t).sum(axis=2, keepdims=True) + 1e-6) for t in (q, k))
    for head in range(v.shape[1]):
        state = np.zeros((v.shape[2], key_dim))  # value by key, as the paper has it
        for t in range(len(v)):
            key, b = k[t, head % groups], beta[t, head]
            state = math.exp(log_decay[t, head]) * state @ (np.eye(key_dim) - b * np.outer(key, key))
            state += b * np.outer(v[t, head], key)
            yield (t, head), state @ q[t, head % groups] / math.sqrt(key_dim)


@pytest.mark.parametrize(("key_heads", "value_heads"), [(2, 6), (3, 3), (1, 2)])
def test_gated_delta_rule(key_heads: int, value_heads: int) -> None:
    n, key_dim, value_dim = 9, 5, 4
    q, k = normal(n, key_heads, key_dim), normal(n, key_heads, key_dim, seed=1)
    v, log_decay = normal(n, value_heads, value_dim, seed=2), -np.abs(normal(n, value_heads, seed=3))
    beta = sigmoid(normal(n, value_heads, seed=4))
    out = gated_delta_rule(q, k, v, log_decay, beta)
    assert out.dtype == np.float32 and out.shape == v.shape
    for at, want in spelt_out(q, k, v, log_decay, beta):
        assert np.allclose(out[at], want, atol=1e-6)


def test_a_value_is_read_back_by_its_key() -> None:
    """Without decay and with beta 1 the last value under a key replaces the one before."""
    k = np.zeros((3, 1, 4), np.float32)
    k[0, 0, 0] = k[1, 0, 1] = k[2, 0, 0] = 1
    v, ones = normal(3, 1, 4), np.ones((3, 1), np.float32)
    out = gated_delta_rule(k, k, v, 0 * ones, ones)
    assert np.allclose(2 * out, v, atol=1e-5)


def test_a_state_that_decays_at_once_forgets() -> None:
    q, k, v, beta = normal(5, 1, 4), normal(5, 1, 4, seed=1), normal(5, 1, 4, seed=2), np.ones((5, 1), np.float32)
    gone = np.full((5, 1), -np.inf, np.float32)
    alone = np.concatenate([gated_delta_rule(q[t:][:1], k[t:][:1], v[t:][:1], gone[:1], beta[:1]) for t in range(5)])
    assert np.allclose(gated_delta_rule(q, k, v, gone, beta), alone, atol=1e-6)
