"""The oracle against plainer spellings of the same equations, and against properties they must have."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgen.checkpoints import reference
from bitgen.checkpoints.tensors import is_ternary, sign_shapes, tensor_shapes
from bitgen.spec import DeltaShape, Hadamard, ModelShape

SHAPE = ModelShape(
    name="tiny",
    architecture="bitnet-b1.58",
    hidden=32,
    intermediate=48,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocab=50,
    context=64,
    rope_theta=10000.0,
    norm_eps=1e-5,
    activation="relu2",
    sub_norms=True,
    tied=True,
)


class RandomCheckpoint:
    """Random weights of any shape; the same name always gives the same tensor."""

    metadata: dict[str, Any]

    def __init__(self, shape: ModelShape) -> None:
        self.shape, self.metadata = shape, {}

    def ternary(self, name: str) -> tuple[np.ndarray, float]:
        assert is_ternary(name)
        return self._rng(name).integers(-1, 2, tensor_shapes(self.shape)[name], dtype=np.int8), 0.04

    def dense(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        size = (tensor_shapes(self.shape) | sign_shapes(self.shape))[name]
        if name.startswith("hadamard_signs."):
            return self._rng(name).choice(np.array([-1, 1], np.float32), size)
        if name.endswith("ssm_a"):
            return -self._rng(name).uniform(0.05, 1, size).astype(np.float32)
        values = self._rng(name).normal(size=size) if len(size) == 2 else self._rng(name).uniform(0.5, 1.5, size)
        return values.astype(np.float16 if len(size) == 2 else np.float32)[rows]

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng(list(name.encode()))


def normal(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


@pytest.mark.parametrize(
    ("x", "want"),
    [
        ([0.0, 0.0], [0, 0]),
        ([1.0, -1.0], [127, -127]),
        ([127.0, 0.5, 1.5, -0.5, -2.5], [127, 0, 2, 0, -2]),  # half to even
        ([5e-6, -2.5e-6], [64, -32]),  # below the floor: 127 / 1e-5 is the scale; 63.5 and 31.75 are rounded
    ],
)
def test_quantise(x: list[float], want: list[int]) -> None:
    q, s = reference.quantise(np.array([x], np.float32))
    assert q.dtype == np.int8 and s.dtype == np.float32
    assert q[0].tolist() == want
    assert s[0] == np.float32(127) / np.float32(max(1e-5, max(map(abs, x))))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_gemm_int_is_the_sum_of_products(k: int, m: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes, q = rng.integers(-1, 2, (m, k), dtype=np.int8), rng.integers(-128, 128, (n, k), dtype=np.int8)
    y = reference.gemm_int(codes, q)
    want = [[sum(int(w) * int(a) for w, a in zip(row, x, strict=True)) for row in codes] for x in q]
    assert y.dtype == np.int32 and y.tolist() == want


@pytest.mark.parametrize("k", [reference.EXACT_K, reference.EXACT_K + 1])
def test_gemm_int_is_exact_at_the_extremes(k: int) -> None:
    codes, q = np.ones((1, k), np.int8), np.full((1, k), -128, np.int8)
    q[0, 0] = -127  # an odd sum: the first thing a type too short would lose
    assert reference.gemm_int(codes, q).item() == -128 * k + 1


def test_bit_linear_is_near_the_float_product() -> None:
    x, (codes, scale) = normal(3, 64), RandomCheckpoint(SHAPE).ternary("blk.0.ffn_gate.weight")
    x = x[:, :32]
    exact = x @ (scale * codes.astype(np.float32)).T
    y = reference.bit_linear(x, codes, scale)
    assert y.dtype == np.float32
    assert 0 < np.abs(y - exact).max() < 0.02 * np.abs(exact).max()
    doubled = reference.bit_linear(2 * x, codes, 3 * scale)
    assert np.allclose(doubled, 6 * y, rtol=1e-6)


def test_rms_norm() -> None:
    x, gain = normal(3, 40), normal(40, seed=1)
    want = [
        [g * v / math.sqrt(sum(u * u for u in row) / 40 + 0.1) for g, v in zip(gain, row, strict=True)] for row in x
    ]
    y = reference.rms_norm(x, gain, 0.1)
    assert y.dtype == np.float32 and np.allclose(y, want, rtol=1e-6, atol=0)


def plain(theta: float, n: int) -> np.ndarray:
    return theta ** (-np.arange(0, n, 2) / n)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_the_first_elements_of_a_head(interleaved: bool) -> None:
    x = normal(7, 3, 8)
    y = reference.rope(x, plain(100.0, 6), interleaved, magnitude=3.0)
    assert np.array_equal(y[..., 6:], x[..., 6:])
    assert np.allclose(y[..., :6], 3 * reference.rope(x[..., :6], plain(100.0, 6), interleaved), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_pairs_as_complex_numbers(interleaved: bool) -> None:
    x = normal(7, 3, 8)
    y = reference.rope(x, plain(100.0, 8), interleaved)
    assert y.dtype == np.float32
    for position in range(7):
        for i in range(4):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + 4)
            turn = np.exp(1j * position * 100.0 ** (-2 * i / 8))
            want = (x[position, :, a] + 1j * x[position, :, b]) * turn
            assert np.allclose(y[position, :, a] + 1j * y[position, :, b], want, atol=1e-6)


def test_rope_makes_scores_relative() -> None:
    """q·k after RoPE depends on the distance of the positions only."""
    q, k = (np.repeat(normal(1, 1, 16, seed=s), 9, axis=0) for s in (1, 2))
    q, k = (reference.rope(t, plain(1e4, 16), False)[:, 0] for t in (q, k))
    assert np.allclose(q[5] @ k[2], q[8] @ k[5], atol=1e-5)
    assert not np.allclose(q[5] @ k[2], q[5] @ k[3], atol=1e-2)


def test_attention() -> None:
    n, heads, kv_heads, d = 5, 6, 2, 4
    q, k, v = normal(n, heads, d), normal(n, kv_heads, d, seed=1), normal(n, kv_heads, d, seed=2)
    y = reference.attention(q, k, v)
    assert y.dtype == np.float32 and y.shape == (n, heads * d)
    for position in range(n):
        for head in range(heads):
            kv = head // 3
            scores = [float(q[position, head] @ k[p, kv]) / 2 for p in range(position + 1)]
            weights = np.exp(scores) / np.exp(scores).sum()
            want = weights @ v[: position + 1, kv]
            assert np.allclose(y[position, head * d : (head + 1) * d], want, atol=1e-6)


def test_attention_in_a_window() -> None:
    """A token sees itself and the window - 1 before it; the scale is the one given."""
    q, k, v = (normal(6, 1, 4, seed=s) for s in range(3))
    y = reference.attention(q, k, v, scale=0.25, window=3)
    for p in range(6):
        seen = slice(max(0, p - 2), p + 1)
        weights = np.exp(q[p, 0] @ k[seen, 0].T / 4)
        assert np.allclose(y[p], weights / weights.sum() @ v[seen, 0], atol=1e-6)


def test_attention_survives_large_scores() -> None:
    q = np.full((2, 1, 4), 1e3, np.float32)
    v = normal(2, 1, 4)
    assert np.allclose(reference.attention(q, q, v)[1], v.mean(axis=0)[0], atol=1e-6)


def test_activate() -> None:
    x = np.array([-200, -1, 0, 2, 200], np.float32)
    assert reference.activate(x, "relu2").tolist() == [0, 0, 0, 4, 40000]
    gelu = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.tolist()]
    assert np.allclose(reference.activate(x, "gelu_tanh"), gelu, atol=1e-7)
    assert np.allclose(reference.activate(x, "silu"), [0, -1 / (1 + math.e), 0, 2 / (1 + math.exp(-2)), 200])


HYBRID = replace(
    SHAPE, architecture="qwen35", layers=3, sub_norms=False, tied=False, activation="silu", qk_norm=True,
    attention_gate=True, rope_dims=4,
    delta=DeltaShape(period=3, key_heads=2, value_heads=6, key_dim=4, value_dim=8, taps=3),
)  # fmt: skip
VARIANTS = {
    "2B4T": SHAPE,
    "untied": replace(SHAPE, tied=False),
    "llama": replace(SHAPE, architecture="llama", activation="silu", sub_norms=False, rope_interleaved=True),
    "wide heads": replace(SHAPE, head_dim=24),
    "qwen3": replace(SHAPE, sub_norms=False, qk_norm=True, input_norms=True, activation="silu"),
    "hunyuan": replace(SHAPE, sub_norms=False, qk_norm=True, qk_norm_after_rope=True, activation="silu"),
    "minicpm": replace(SHAPE, sub_norms=False, embedding_scale=12.0, residual_scale=0.5, logit_divisor=4.0),
    "gemma3": replace(
        SHAPE, sub_norms=False, qk_norm=True, post_norms=True, embedding_scale=3.0, activation="gelu_tanh", window=4
    ),
    "qwen35": HYBRID,
    "qwen35 rotated": replace(HYBRID, hadamard=Hadamard(16, signed=True, regrouped=True)),
    "qwen35 rotated without signs": replace(HYBRID, hadamard=Hadamard(4, signed=False, regrouped=False)),
    "rotated": replace(SHAPE, hadamard=Hadamard(16, signed=True, regrouped=False)),
}


@pytest.mark.parametrize("shape", VARIANTS.values(), ids=VARIANTS)
def test_forward_is_causal(shape: ModelShape) -> None:
    """A token changes its own logits and later ones, and none before."""
    checkpoint = RandomCheckpoint(shape)
    one = reference.forward(checkpoint, [3, 1, 4, 1, 5])
    other = reference.forward(checkpoint, [3, 1, 9, 1, 5])
    assert one.dtype == np.float32 and one.shape == (5, shape.vocab)
    assert np.allclose(one[:2], other[:2], atol=1e-6)
    assert (np.abs(one[2:] - other[2:]).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "silu"},
        {"sub_norms": False},
        {"rope_interleaved": True},
        {"rope_theta": 500.0},
        {"norm_eps": 1e-2},
        {"tied": False},
        {"activation": "gelu_tanh"},
        {"qk_norm": True},
        {"sub_norms": False, "input_norms": True},
        {"post_norms": True},
        {"embedding_scale": 3.0},
        {"residual_scale": 0.5},
        {"logit_divisor": 2.0},
        {"attention_scale": 1.0},
        {"window": 2, "window_period": 3},
        {"window": 9, "window_period": 2, "window_theta": 10.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_forward_obeys_every_field(change: dict[str, Any]) -> None:
    tokens = [3, 1, 4, 1, 5]
    one = reference.forward(RandomCheckpoint(SHAPE), tokens)
    other = reference.forward(RandomCheckpoint(replace(SHAPE, **change)), tokens)
    assert np.abs(one - other).max() > 1e-2


@pytest.mark.parametrize(
    "change",
    [
        {"attention_gate": False},
        {"delta": replace(HYBRID.delta, period=2)},  # type: ignore[type-var]
        {"delta": replace(HYBRID.delta, key_heads=6, key_dim=2)},  # type: ignore[type-var]
        {"delta": replace(HYBRID.delta, taps=4)},  # type: ignore[type-var]
        {"delta": None},
        {"hadamard": Hadamard(16, signed=False, regrouped=False)},
    ],
    ids=str,
)
def test_forward_obeys_every_field_of_a_hybrid(change: dict[str, Any]) -> None:
    tokens = [3, 1, 4, 1, 5]
    one = reference.forward(RandomCheckpoint(HYBRID), tokens)
    other = reference.forward(RandomCheckpoint(replace(HYBRID, **change)), tokens)
    assert np.abs(one - other).max() > 1e-2


@pytest.mark.parametrize("change", [{"block": 4}, {"signed": False}, {"regrouped": False}], ids=str)
def test_forward_obeys_every_field_of_a_rotation(change: dict[str, Any]) -> None:
    turn = Hadamard(16, signed=True, regrouped=True)
    one, other = (
        reference.forward(RandomCheckpoint(replace(HYBRID, hadamard=of)), [3, 1, 4, 1, 5])
        for of in (turn, replace(turn, **change))
    )
    assert np.abs(one - other).max() > 1e-2


def test_forward_with_a_float16_cache_is_close_and_different() -> None:
    checkpoint = RandomCheckpoint(SHAPE)
    one, other = (reference.forward(checkpoint, [3, 1, 4], cache) for cache in (np.float32, np.float16))
    assert 0 < np.abs(one - other).max() < 0.1 * one.std()
