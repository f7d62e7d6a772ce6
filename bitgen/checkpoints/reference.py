"""The oracle in NumPy: what every kernel and the runtime must compute, written for reading, not for speed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.checkpoints.checkpoint import ALL, Checkpoint, Codes, Scales
from bitgen.checkpoints.delta import causal_convolution, gated_delta_rule, sigmoid, softplus
from bitgen.checkpoints.rope import frequencies
from bitgen.checkpoints.rotation import regroup, rotate, rotate_back
from bitgen.checkpoints.tensors import SIGNS, tensor_name
from bitgen.spec import Activation

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int8]

EXACT_K = 1 << 17
"""Sums of up to so many products |w q| <= 128 stay within 2**24, which float32 holds exactly."""


def quantise(x: FloatArray) -> tuple[IntArray, FloatArray]:
    """Absmax int8 quantisation of each row: x float32 [..., k] -> q int8 [..., k], s float32 [...], q ~ x s.

    amax = max(1e-5, max|x|), s = 127 / amax, q = clamp(round_half_even(x s), -128, 127), all in float32.
    """
    amax = np.maximum(np.float32(1e-5), np.abs(x).max(axis=-1))
    s = (np.float32(127) / amax).astype(np.float32)
    q = np.clip(np.rint(x * s[..., None]), -128, 127)
    return q.astype(np.int8), s


def gemm_int(codes: IntArray, q: IntArray) -> npt.NDArray[np.int32]:
    """y = W q for each token: codes {-1, 0, +1} int8 [m, k], q int8 [n, k] -> int32 [n, m], exact.

    Floating point, for the speed of BLAS: every partial sum is an integer that the type holds exactly.
    """
    exact = np.float32 if codes.shape[1] <= EXACT_K else np.float64
    y: npt.NDArray[np.int32] = (q.astype(exact) @ codes.T.astype(exact)).astype(np.int32)
    return y


def bit_linear(x: FloatArray, codes: IntArray, scale: float) -> FloatArray:
    """y = W x with x rounded to int8 per row: x float32 [n, k], codes {-1, 0, +1} [m, k] -> float32 [n, m].

    The integer product is exact; one float32 factor per token undoes both scalings.
    (Ma et al. 2024, "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits".)
    """
    q, s = quantise(x)
    return gemm_int(codes, q).astype(np.float32) * (np.float32(scale) / s)[:, None]


def quantise_groups(x: FloatArray, group: int) -> tuple[IntArray, FloatArray]:
    """`quantise` of each group of columns: x float32 [n, k] -> q int8 [n, k], steps float32 [n, k / group].

    A step is 1 / s of its group: x ~ q step.
    """
    q, s = quantise(x.reshape(len(x), -1, group))
    return q.reshape(x.shape), np.float32(1) / s


def gemm_groups(codes: IntArray, scales: FloatArray, q: IntArray, steps: FloatArray) -> FloatArray:
    """y = W x where both have groups: codes [m, k], scales [m, G], q int8 [n, k], steps [n, G] -> float32 [n, m].

    The sum over a group is an exact integer. Group by group, sum * (scale * step) is added to y, and every operation is
    rounded to float32: this defines the bits that every kernel must give.
    """
    y = np.zeros((len(q), len(codes)), np.float32)
    for g, columns in enumerate(np.split(np.arange(codes.shape[1]), scales.shape[1])):
        sums = gemm_int(codes[:, columns], q[:, columns]).astype(np.float32)
        y = y + sums * (scales[:, g] * steps[:, g, None])
    return y


def group_linear(x: FloatArray, codes: IntArray, scales: FloatArray) -> FloatArray:
    """y = W x with a scale for every group of a row, x rounded to int8 per group: float32 [n, k] -> [n, m]."""
    return gemm_groups(codes, scales, *quantise_groups(x, codes.shape[1] // scales.shape[1]))


def rms_norm(x: FloatArray, gain: FloatArray, eps: float) -> FloatArray:
    """gain * x / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich 2019); the mean in float64."""
    mean_square = np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True)
    normed: FloatArray = (x / np.sqrt(mean_square + eps)).astype(np.float32)
    return normed * gain


def rope(x: FloatArray, frequencies: FloatArray, interleaved: bool, magnitude: float = 1.0) -> FloatArray:
    """Rotary positions: turn pair i of x [n, heads, d] by p * frequencies[i] in row p, and multiply it by `magnitude`.

    With n/2 frequencies a pair is components i and i + n/2 of a head, or 2i and 2i + 1 where `interleaved`; those from
    n on stay as they are. (Su et al. 2021, RoFormer.)
    """
    n, heads, _ = x.shape
    pairs = len(frequencies)
    x, rest = x[:, :, : 2 * pairs], x[:, :, 2 * pairs :]
    angle = np.arange(n)[:, None] * frequencies.astype(np.float64)  # [n, pairs]
    cos, sin = (f(angle).astype(np.float32)[:, None] * np.float32(magnitude) for f in (np.cos, np.sin))
    shape, pair = ((n, heads, pairs, 2), 3) if interleaved else ((n, heads, 2, pairs), 2)
    a, b = np.moveaxis(x.reshape(shape), pair, 0)  # each [n, heads, pairs]
    turned = np.stack([a * cos - b * sin, b * cos + a * sin], axis=pair).reshape(n, heads, 2 * pairs)
    return np.concatenate([turned, rest], axis=2)


def attention(q: FloatArray, k: FloatArray, v: FloatArray, scale: float = 0.0, window: int = 0) -> FloatArray:
    """Causal softmax(scale q k^T) v: q [n, heads, d], k and v [n, kv_heads, d] -> [n, heads * d].

    Grouped queries: head j reads kv head j // (heads / kv_heads). (Vaswani et al. 2017; Ainslie et al. 2023.)
    scale: 0 for 1 / sqrt(d). window: positions that a token attends to, itself included; 0 for all up to it.
    """
    n, heads, d = q.shape
    group = heads // k.shape[1]
    k, v = (np.repeat(t, group, axis=1).transpose(1, 0, 2) for t in (k, v))  # [heads, n, d]
    scores = q.transpose(1, 0, 2) @ k.swapaxes(1, 2) * np.float32(scale or d**-0.5)  # [heads, n, n]
    behind = np.arange(n)[:, None] - np.arange(n)
    scores[:, (behind < 0) | (behind >= (window or n))] = -np.inf
    weights = np.exp((scores - scores.max(axis=-1, keepdims=True)).astype(np.float64))
    weights /= weights.sum(axis=-1, keepdims=True)
    context: FloatArray = weights.astype(np.float32) @ v
    return context.transpose(1, 0, 2).reshape(n, heads * d)


def activate(x: FloatArray, activation: Activation) -> FloatArray:
    """SiLU x / (1 + exp(-x)), the square of ReLU, or GELU by its tanh formula (Hendrycks and Gimpel 2016)."""
    if activation == "relu2":
        return np.square(np.maximum(x, np.float32(0)))
    if activation == "gelu_tanh":
        gelu: FloatArray = x * (1 + np.tanh(np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x**3))) / 2
        return gelu
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit, 0
        silu: FloatArray = (x / (1 + np.exp(-x))).astype(np.float32)
    return silu


def forward(
    checkpoint: Checkpoint,
    tokens: Sequence[int] | npt.NDArray[np.integer[Any]],
    cache: type[np.floating[Any]] = np.float32,
) -> FloatArray:
    """Logits float32 [n, vocab] after each of the n tokens.

    cache: the type to which keys and values are rounded; the runtime's cache is float16 by default.
    """
    return forward_many(checkpoint, [tokens], cache)[0]


def forward_many(
    checkpoint: Checkpoint,
    prompts: Sequence[Sequence[int] | npt.NDArray[np.integer[Any]]],
    cache: type[np.floating[Any]] = np.float32,
) -> list[FloatArray]:
    """`forward` of each prompt alone, with every weight read once for all of them."""
    head = checkpoint.dense("token_embd.weight" if checkpoint.shape.tied else "output.weight").astype(np.float32)
    divisor = np.float32(checkpoint.shape.logit_divisor)
    states = [(x / divisor).astype(np.float32) for x in states_many(checkpoint, prompts, cache)]
    return [rotated(checkpoint, x) @ head.T for x in states]


def states(
    checkpoint: Checkpoint,
    tokens: Sequence[int] | npt.NDArray[np.integer[Any]],
    cache: type[np.floating[Any]] = np.float32,
) -> FloatArray:
    """The final hidden states, float32 [n, hidden], after the last norm. Weights are read layer by layer."""
    return states_many(checkpoint, [tokens], cache)[0]


def states_many(
    checkpoint: Checkpoint,
    prompts: Sequence[Sequence[int] | npt.NDArray[np.integer[Any]]],
    cache: type[np.floating[Any]] = np.float32,
) -> list[FloatArray]:
    """`states` of each prompt alone, with every weight read once for all of them."""
    shape = checkpoint.shape
    embedding = checkpoint.dense("token_embd.weight")
    rows = [embedding[np.asarray(tokens, dtype=np.int64)].astype(np.float32) for tokens in prompts]
    xs = [rotated_back(checkpoint, x) * np.float32(shape.embedding_scale) for x in rows]
    scale = np.float32(shape.residual_scale)
    for layer in range(shape.layers):
        block = Block(Cached(checkpoint), layer, cache)
        xs = [x + block.mix(x) * scale for x in xs]
        xs = [x + block.feed_forward(x) * scale for x in xs]
    gain = checkpoint.dense("output_norm.weight").astype(np.float32)
    return [rms_norm(x, gain, shape.norm_eps) for x in xs]


def rotated(checkpoint: Checkpoint, x: FloatArray) -> FloatArray:
    """x float32 [n, k] as matrices take it: rotated, where the model has a rotation."""
    turn = checkpoint.shape.hadamard
    return rotate(x, turn.block, _signs(checkpoint, x)) if turn else x


def rotated_back(checkpoint: Checkpoint, z: FloatArray) -> FloatArray:
    """What rows of the embedding, float32 [n, hidden], stand for."""
    turn = checkpoint.shape.hadamard
    return rotate_back(z, turn.block, _signs(checkpoint, z)) if turn else z


def _signs(checkpoint: Checkpoint, x: FloatArray) -> FloatArray | None:
    """The signs of x's columns, float32 [k]; None where the model has none."""
    turn = checkpoint.shape.hadamard
    return checkpoint.dense(f"{SIGNS}{x.shape[1]}").astype(np.float32) if turn and turn.signed else None


class Cached:
    """A checkpoint whose tensors are read once, and then cached."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.shape, self.metadata = checkpoint.shape, checkpoint.metadata
        self._whole, self.ternary = checkpoint, functools.cache(checkpoint.ternary)
        self._dense = functools.cache(checkpoint.dense)

    def dense(self, name: str, rows: slice = ALL) -> npt.NDArray[np.floating[Any]]:
        """Rows of a float tensor, which is read whole."""
        return self._dense(name)[rows]

    def ternary_rows(self, name: str, rows: slice) -> tuple[Codes, Scales]:
        """Rows of a ternary embedding or head."""
        return self._whole.ternary_rows(name, rows)


@dataclass(frozen=True)
class Block:
    """One transformer layer: two residual branches over x [n, hidden]."""

    checkpoint: Checkpoint
    layer: int
    cache: type[np.floating[Any]]

    def mix(self, x: FloatArray) -> FloatArray:
        """What the first half of the layer adds to x [n, hidden]."""
        return self.attend(x) if self.checkpoint.shape.attends(self.layer) else self.delta_net(x)

    def attend(self, x: FloatArray) -> FloatArray:
        """What attention adds to x [n, hidden]; what is in angle brackets only some models have.

        <post_attention_norm>(attn_output(<attn_sub_norm>(<sigmoid(gate)> attention(rope(<attn_q_norm>(q)), ...)))) of
        attn_norm(x). With qk_norm_after_rope it is <attn_q_norm>(rope(q)). A gate stands behind each head of q.
        """
        shape = self.checkpoint.shape
        windowed = bool(shape.window and (self.layer + 1) % shape.window_period)
        scaling, window = (None, shape.window) if windowed else (shape.rope_scaling, 0)
        turned_by = frequencies(shape, windowed), shape.rope_interleaved, scaling.magnitude if scaling else 1.0
        h = self._norm("attn_norm", x)
        q, k, v = (self._linear(name, h).reshape(len(x), -1, shape.head_dim) for name in ("attn_q", "attn_k", "attn_v"))
        q, gate = (q[:, ::2], q[:, 1::2]) if shape.attention_gate else (q, None)
        if not shape.qk_norm_after_rope:
            q, k = self._norm("attn_q_norm", q), self._norm("attn_k_norm", k)
        q, k = (rope(t, *turned_by) for t in (q, k))
        if shape.qk_norm_after_rope:
            q, k = self._norm("attn_q_norm", q), self._norm("attn_k_norm", k)
        k, v = (t.astype(self.cache).astype(np.float32) for t in (k, v))
        context = attention(q, k, v, shape.attention_scale, window)
        if gate is not None:
            context = context * sigmoid(gate.reshape(context.shape))
        context = self._norm("attn_sub_norm", context)
        return self._norm("post_attention_norm", self._linear("attn_output", context))

    def delta_net(self, x: FloatArray) -> FloatArray:
        """What Gated DeltaNet adds to x [n, hidden]: ssm_out(ssm_norm(o) silu(z)), o being what value heads read.

        z is attn_gate of h = attn_norm(x). Queries, keys and values are silu(convolution(attn_qkv(h))). The strength
        sigmoid(ssm_beta h) and the decay exp(ssm_a softplus(ssm_alpha h + ssm_dt)) are made of h by float matrices.
        """
        d, n = self.checkpoint.shape.delta, len(x)
        assert d is not None
        h = self._norm("attn_norm", x)
        mixed = causal_convolution(self._linear("attn_qkv", h), self._floats("ssm_conv1d"))
        ends = [d.key_heads * d.key_dim, 2 * d.key_heads * d.key_dim]
        q, k, v = np.split(activate(mixed, "silu"), ends, axis=1)
        z = self._linear("attn_gate", h).reshape(n, d.value_heads, d.value_dim)
        beta = sigmoid(h @ self._floats("ssm_beta").T)
        log_decay = self._floats("ssm_a") * softplus(h @ self._floats("ssm_alpha").T + self._floats("ssm_dt"))
        keys, values = (n, d.key_heads, d.key_dim), (n, d.value_heads, d.value_dim)
        read = gated_delta_rule(q.reshape(keys), k.reshape(keys), v.reshape(values), log_decay, beta)
        return self._linear("ssm_out", (self._norm("ssm_norm", read) * activate(z, "silu")).reshape(n, d.inner))

    def feed_forward(self, x: FloatArray) -> FloatArray:
        """What the FFN adds to x: <post_ffw_norm>(ffn_down(<ffn_sub_norm>(activate(ffn_gate) * ffn_up)))."""
        h = self._norm("ffn_norm", x)
        activation = self.checkpoint.shape.activation
        inner = activate(self._linear("ffn_gate", h), activation) * self._linear("ffn_up", h)
        return self._norm("post_ffw_norm", self._linear("ffn_down", self._norm("ffn_sub_norm", inner)))

    def _linear(self, name: str, x: FloatArray) -> FloatArray:
        """W x, after a norm of x where the matrix has one for its input, and a rotation where the model has one."""
        shape = self.checkpoint.shape
        x = self._norm(f"{name}_norm_in", x)
        if name == "ssm_out" and shape.hadamard and shape.hadamard.regrouped and shape.delta:
            x = regroup(x, shape.delta.key_heads, shape.delta.value_dim)
        x = rotated(self.checkpoint, x)
        codes, scale = self.checkpoint.ternary(tensor_name(self.layer, name))
        return group_linear(x, codes, scale) if isinstance(scale, np.ndarray) else bit_linear(x, codes, scale)

    def _norm(self, name: str, x: FloatArray) -> FloatArray:
        """x normed over its last axis, or x itself in a model without this norm."""
        if name not in self.checkpoint.shape.layer_norms(self.layer):
            return x
        return rms_norm(x, self._floats(name), self.checkpoint.shape.norm_eps)

    def _floats(self, name: str) -> FloatArray:
        return self.checkpoint.dense(tensor_name(self.layer, name)).astype(np.float32)
