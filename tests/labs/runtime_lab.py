"""The runtime's arithmetic once more, in NumPy and to the last bit; and tiny models to hold it against.

`logits` is the forward pass as simd/vec.h and simd/ops.h define it: float32, sixteen lanes, fused multiply-adds where
they are written. It shares no code with the C and no more than the definition, so equality with == means that every
ISA, compiler and thread count computes what is documented. `reference.forward` says whether that is the right thing.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cffi
import numpy as np
import numpy.typing as npt
from lanes import F32, LANES, FloatArray, dot, exp, fma, gelu, hadamard, lanes, sigmoid, silu, softplus, tree

from bitgen import data, targets
from bitgen.checkpoints.reference import gemm_int, group_linear, quantise
from bitgen.checkpoints.rope import divisors
from bitgen.checkpoints.synth import SynthCheckpoint
from bitgen.compile import binding, clang, library, pack
from bitgen.compile.clang import Artefact
from bitgen.engine.opened import Cache, cache_type
from bitgen.kernels import plan, space
from bitgen.spec import DeltaShape, Hadamard, MatrixPlan, ModelShape, RopeScaling

ATTEND_BLOCK = 256


def half(x: FloatArray) -> npt.NDArray[np.uint16]:
    """Bits of the nearest float16, ties to even, at most 65504 in size."""
    return np.clip(x, F32(-65504), F32(65504)).astype(np.float16).view(np.uint16)


COARSE, FINE = 127, 16383


def rounded(x: FloatArray, top: int) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Codes of size `top` at most, and their scale, for each row [..., n]: x is nearly codes * scale[..., None]."""
    greatest = np.clip(np.abs(x).max(-1), F32(2.0**-64), F32(2.0**64))
    codes = np.rint(np.clip(x * (F32(top) / greatest)[..., None], F32(-top), F32(top)))
    return codes.astype(np.int64), greatest / F32(top)


# ---- the forward pass ----------------------------------------------------------------------------------------


def rms_norm(x: FloatArray, gain: FloatArray, eps: float) -> FloatArray:
    """gain * (x / sqrt(mean(x^2) + eps)), the mean in lane order."""
    inverse = F32(1) / np.sqrt(dot(x, x) / F32(x.shape[-1]) + F32(eps))
    return gain * (x * inverse[..., None])


def rope(x: FloatArray, s: ModelShape, local: bool) -> FloatArray:
    """Turn pairs of x [n, heads, d]; the frequency and the angle are float32, as in transformers."""
    n, pairs = len(x), s.rotary // 2
    theta, scaling = (s.window_theta, None) if local else (s.rope_theta, s.rope_scaling)
    by = divisors(scaling, theta, s.rotary) if scaling else np.ones(pairs)
    frequency = (float(F32(theta)) ** (-np.arange(0, s.rotary, 2) / s.rotary) / by).astype(F32)
    angle = (np.arange(n, dtype=F32)[:, None] * frequency).astype(np.float64)
    c, sine = (f(angle).astype(F32)[:, None] * F32(scaling.magnitude if scaling else 1) for f in (np.cos, np.sin))
    x, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    first, second = (x[..., 0::2], x[..., 1::2]) if s.rope_interleaved else (x[..., :pairs], x[..., pairs:])
    turned = first * c - second * sine, second * c + first * sine
    whole = np.stack(turned, axis=-1).reshape(x.shape) if s.rope_interleaved else np.concatenate(turned, axis=-1)
    return np.concatenate([whole, rest], axis=-1)


def merge(a: tuple[Any, Any, Any], b: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """Two partial results (sum p v, sum p, greatest score) as one."""
    top = np.maximum(a[2], b[2])
    old, new = exp(a[2] - top), exp(b[2] - top)
    return fma(b[0], new[..., None], a[0] * old[..., None]), fma(b[1], new, a[1] * old), top


def attend_block(
    q: FloatArray, k: FloatArray, v: FloatArray, begins: Any, ends: Any, cache: Cache, scale: float = 0
) -> tuple[Any, Any, Any]:
    """sum p v [n, heads, d], sum p and the greatest score [n, heads] of rows q that see k from begins to ends."""
    n, heads, d = q.shape
    scale = F32(scale) or F32(1) / np.sqrt(F32(d))
    begins, ends = (np.reshape(a, (-1, 1, 1)) for a in (begins, ends))
    visible = (np.arange(len(k)) >= begins) & (np.arange(len(k)) < ends)
    if cache == "f16":
        k, v = (half(t).view(np.float16).astype(F32) for t in (k, v))
    if cache == "int8":
        (qc, qs), (kc, ks), (vc, vs) = rounded(q, FINE), rounded(k, COARSE), rounded(v, COARSE)
        sums = np.einsum("nhd,phd->nhp", qc, kc).astype(F32)
        scores = sums * (qs * scale)[..., None] * ks.T
    else:
        scores = np.zeros((n, heads, len(k)), F32)
        for i in range(d):
            scores = fma(q[:, :, i, None], k[:, :, i].T[None], scores)
        scores = scores * scale
    scores = np.where(visible, scores, F32(-np.inf))
    top = scores.max(-1)
    p = np.where(visible, exp(scores - top[..., None]), F32(0))
    total = np.zeros((n, heads, LANES), F32)
    for group in np.moveaxis(lanes(p), -2, 0):
        total = total + group
    if cache == "int8":
        pc, ps = rounded(p * vs.T, FINE)
        return np.einsum("nhp,phd->nhd", pc, vc).astype(F32) * ps[..., None], tree(total), top
    out = np.zeros((n, heads, d), F32)
    for i in range(len(k)):
        out = np.where(visible[:, :, i, None], fma(p[:, :, i, None], v[None, i], out), out)
    return out, tree(total), top


def attention(
    q: FloatArray, k: FloatArray, v: FloatArray, cache: Cache, scale: float = 0, window: int = 0
) -> FloatArray:
    """Causal attention, block by block of absolute positions, blocks merged in order -> [n, heads * d]."""
    n, heads, d = q.shape
    k, v = (np.repeat(t, heads // t.shape[1], axis=1) for t in (k, v))
    out, total, top = np.empty((n, heads, d), F32), np.empty((n, heads), F32), np.empty((n, heads), F32)
    ends = np.arange(n) + 1
    begins = np.maximum(ends - (window or n), 0)
    for first in range(0, n, ATTEND_BLOCK):
        cut, came = slice(first, first + ATTEND_BLOCK), ends > first
        for rows, old in (
            (came & (begins // ATTEND_BLOCK == first // ATTEND_BLOCK), False),
            (came & (begins < first), True),
        ):
            part = attend_block(q[rows], k[cut], v[cut], (begins - first)[rows], (ends - first)[rows], cache, scale)
            if old:
                part = merge((out[rows], total[rows], top[rows]), part)
            out[rows], total[rows], top[rows] = part
    return (out / total[..., None]).reshape(n, heads * d)


def rotated(checkpoint: SynthCheckpoint, x: FloatArray, inverse: bool = False) -> FloatArray:
    """H (s x), or s (H x) where `inverse`; x itself where the model has no rotation."""
    turn = checkpoint.shape.hadamard
    if turn is None:
        return x
    signs = checkpoint.dense(f"hadamard_signs.{x.shape[-1]}").astype(F32) if turn.signed else F32(1)
    return hadamard(x, turn.block) * signs if inverse else hadamard(x * signs, turn.block)


def delta_rule(
    q: FloatArray, k: FloatArray, v: FloatArray, decay: FloatArray, beta: FloatArray, state: FloatArray | None = None
) -> FloatArray:
    """q, k [n, heads, key_dim], v [n, heads, value_dim], decay and beta [n, heads] -> what the heads read, like v.

    A sum over the elements of a key goes to four accumulators in turn. `state` [heads, key_dim, value_dim] is changed.
    """
    n, heads, value_dim = v.shape
    if state is None:
        state = np.zeros((heads, k.shape[2], value_dim), F32)
    out = np.empty_like(v)
    for t in range(n):
        recalled = _by_key(state, k[t])
        off = fma(-decay[t][:, None], recalled, v[t]) * beta[t][:, None]
        state[:] = fma(k[t][:, :, None], off[:, None], state * decay[t][:, None, None])
        out[t] = _by_key(state, q[t])
    return out


def _by_key(state: FloatArray, key: FloatArray) -> FloatArray:
    sums = np.zeros((4, *state.shape[::2]), F32)
    for i in range(state.shape[1]):
        sums[i % 4] = fma(state[:, i], key[:, i, None], sums[i % 4])
    return (sums[0] + sums[1]) + (sums[2] + sums[3])


def delta_net(
    checkpoint: SynthCheckpoint, layer: int, h: FloatArray, linear: Callable[[str, FloatArray], FloatArray]
) -> FloatArray:
    """What goes into ssm_out, float32 [n, inner] with value heads in the checkpoint's order."""
    d, n = checkpoint.shape.delta, len(h)
    assert d is not None

    def floats(name: str) -> FloatArray:
        return checkpoint.dense(f"blk.{layer}.{name}").astype(F32)

    taps, x = floats("ssm_conv1d.weight"), linear("attn_qkv", h)
    x = np.concatenate([np.zeros((d.taps - 1, d.channels), F32), x])
    mixed = np.zeros((n, d.channels), F32)
    for i in range(d.taps):
        mixed = fma(x[i : i + n], taps[:, i], mixed)
    keys = d.key_heads * d.key_dim
    q, k, v = np.split(silu(mixed), [keys, 2 * keys], axis=1)
    q, k = (a.reshape(n, d.key_heads, d.key_dim) for a in (q, k))
    q, k = (
        a * (scale / np.sqrt(dot(a, a) + F32(1e-6)))[..., None]
        for a, scale in ((q, F32(1) / np.sqrt(F32(d.key_dim))), (k, F32(1)))
    )
    of_head = np.arange(d.value_heads) % d.key_heads
    alpha, beta = (dot(h[:, None], floats(f"ssm_{name}.weight")[None]) for name in ("alpha", "beta"))
    decay = exp(floats("ssm_a") * softplus(alpha + floats("ssm_dt.bias")))
    v = v.reshape(n, d.value_heads, d.value_dim)
    read = delta_rule(q[:, of_head], k[:, of_head], v, decay, sigmoid(beta))
    read = rms_norm(read, floats("ssm_norm.weight"), checkpoint.shape.norm_eps)
    return read.reshape(n, d.inner) * silu(linear("attn_gate", h))


def states(checkpoint: SynthCheckpoint, tokens: Sequence[int], cache: Cache = "f16") -> FloatArray:
    """float32 [n, hidden] after the last norm, bit for bit what the runtime gives with a KV cache of type `cache`."""
    s, n = checkpoint.shape, len(tokens)
    x = checkpoint.dense("token_embd.weight").astype(F32)[np.asarray(tokens)]
    x = rotated(checkpoint, x * F32(s.embedding_scale), inverse=True)
    act = {"relu2": lambda z: np.square(np.maximum(z, F32(0))), "silu": silu, "gelu_tanh": gelu}[s.activation]
    for layer in range(s.layers):
        local = bool(s.window) and (layer + 1) % s.window_period != 0
        window = s.window if local else 0

        def norm(name: str, x: FloatArray, layer: int = layer) -> FloatArray:
            if name not in s.layer_norms(layer):
                return x
            return rms_norm(x, checkpoint.dense(f"blk.{layer}.{name}.weight").astype(F32), s.norm_eps)

        def linear(name: str, x: FloatArray, layer: int = layer) -> FloatArray:
            x = rotated(checkpoint, norm(f"{name}_norm_in", x))
            codes, a = checkpoint.ternary(f"blk.{layer}.{name}.weight")
            if s.group:
                return group_linear(x, codes, np.asarray(a))
            q, scale = quantise(x)
            return gemm_int(codes, q).astype(F32) * (F32(a) / scale)[:, None]

        h = norm("attn_norm", x)
        if s.attends(layer):
            q, k, v = (linear(name, h).reshape(n, -1, s.head_dim) for name in ("attn_q", "attn_k", "attn_v"))
            q, gates = (q[:, ::2], q[:, 1::2]) if s.attention_gate else (q, None)
            first, last = (norm, lambda _, t: t)[:: -1 if s.qk_norm_after_rope else 1]
            q, k = (last(name, rope(first(name, t), s, local)) for name, t in (("attn_q_norm", q), ("attn_k_norm", k)))
            context = attention(q, k, v, cache, s.attention_scale, window)
            context = context if gates is None else context * sigmoid(gates).reshape(n, -1)
            mixed = linear("attn_output", norm("attn_sub_norm", context))
        else:
            read, d = delta_net(checkpoint, layer, h, linear), s.delta
            if s.hadamard and s.hadamard.regrouped:
                read = read.reshape(n, -1, d.key_heads, d.value_dim).swapaxes(1, 2).reshape(n, -1)
            mixed = linear("ssm_out", read)
        x = x + norm("post_attention_norm", mixed) * F32(s.residual_scale)
        h = norm("ffn_norm", x)
        inner = act(linear("ffn_gate", h)) * linear("ffn_up", h)
        x = x + norm("post_ffw_norm", linear("ffn_down", norm("ffn_sub_norm", inner))) * F32(s.residual_scale)
    return rms_norm(x, checkpoint.dense("output_norm.weight").astype(F32), s.norm_eps)


def logits(checkpoint: SynthCheckpoint, tokens: Sequence[int], cache: Cache = "f16") -> FloatArray:
    """float32 [n, vocab], bit for bit what the runtime gives with an f16 head."""
    name = "token_embd.weight" if checkpoint.shape.tied else "output.weight"
    head = checkpoint.dense(name).astype(F32)
    divisor = F32(checkpoint.shape.logit_divisor)
    return np.stack([dot(row, head) for row in rotated(checkpoint, states(checkpoint, tokens, cache) / divisor)])


# ---- tiny models ---------------------------------------------------------------------------------------------


def shape(name: str, **different: Any) -> ModelShape:
    """A tiny model of the flagship's architecture, but for what is said."""
    return replace(FLAGSHIP, name=name, **different)


FLAGSHIP = ModelShape(
    name="flagship",
    architecture="bitnet-b1.58",
    hidden=128,
    intermediate=192,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=32,
    vocab=320,
    context=600,
    rope_theta=10000.0,
    norm_eps=1e-5,
    activation="relu2",
    sub_norms=True,
    tied=True,
)
SILU: dict[str, Any] = {"activation": "silu"}
GEMMA: dict[str, Any] = {"activation": "gelu_tanh", "qk_norm": True, "post_norms": True, "embedding_scale": 11.5}
MINICPM: dict[str, Any] = {"embedding_scale": 12.0, "residual_scale": 0.7, "logit_divisor": 6.0, **SILU}
MINICPM |= {"rope_interleaved": True}
GEMMA |= {"window_period": 3, "window_theta": 500.0}
LINEAR: dict[str, Any] = {"rope_scaling": RopeScaling("linear", 4.0)}
YARN: dict[str, Any] = {"rope_scaling": RopeScaling("yarn", 4.0, 16, magnitude=1.1386)}
TABLE: dict[str, Any] = {"rope_dims": 64, "rope_scaling": RopeScaling("table", divisors=(0.9, *range(1, 32)))}
QWEN35: dict[str, Any] = {"qk_norm": True, "attention_gate": True, "sub_norms": False, "tied": False, **SILU}
QWEN35 |= {"architecture": "qwen35", "layers": 4, "rope_dims": 16, "context": 600}
SHAPES = {
    s.name: s
    for s in (
        FLAGSHIP,
        shape("odd-sizes", hidden=100, intermediate=84, heads=2, head_dim=100, activation="silu", vocab=61),
        shape("llama", head_dim=128, kv_heads=1, activation="silu", sub_norms=False, tied=False, rope_interleaved=True),
        shape("thirds", hidden=196, intermediate=172, heads=6, kv_heads=2, head_dim=64, rope_theta=500000.0),
        shape("one-kv", hidden=64, heads=20, kv_heads=1, head_dim=16, vocab=33),
        shape("least", hidden=4, intermediate=4, layers=1, heads=1, kv_heads=1, head_dim=2, vocab=3, tied=False),
        shape("wide-heads", heads=2, kv_heads=1, head_dim=256, sub_norms=False, rope_interleaved=True, vocab=3000,
              **TABLE),
        shape("mha", heads=3, kv_heads=3, head_dim=96, activation="silu", layers=1, rope_dims=42),
        shape("qwen3", head_dim=48, activation="silu", sub_norms=False, qk_norm=True, **YARN),
        shape("bonsai", hidden=256, intermediate=384, sub_norms=False, qk_norm=True, group=128, vocab=90, **SILU),
        shape("bonsai-64", intermediate=320, heads=6, sub_norms=False, qk_norm=True, group=64, tied=False, **SILU),
        shape("bonsai-1bit", hidden=256, intermediate=384, heads=2, head_dim=128, sub_norms=False, qk_norm=True,
              group=128, binary=True, **SILU),
        shape("1bit", hidden=100, intermediate=84, heads=2, head_dim=100, vocab=61, binary=True, **SILU),
        shape("bitcpm", hidden=256, intermediate=512, heads=4, head_dim=64, sub_norms=False, group=256, **MINICPM),
        shape("minicpm", hidden=100, head_dim=24, sub_norms=False, tied=False, **MINICPM),
        shape("hunyuan", head_dim=48, sub_norms=False, qk_norm=True, qk_norm_after_rope=True, **SILU),
        shape("qwen3-inputs", hidden=100, head_dim=24, sub_norms=False, qk_norm=True, input_norms=True, **SILU),
        shape("gemma3", head_dim=40, vocab=90, sub_norms=False, layers=3, attention_scale=0.25, window=5, **GEMMA),
        shape("gemma3-inputs", hidden=72, kv_heads=1, sub_norms=False, layers=3, window=300, input_norms=True, **GEMMA,
              **LINEAR),
        shape("qwen35", delta=DeltaShape(4, 2, 6, 16, 32, 4), vocab=90, **QWEN35),
        shape("qwen35-odd", hidden=100, intermediate=84, heads=2, head_dim=50, vocab=61,
              delta=DeltaShape(2, 3, 3, 13, 21, 3), **{**QWEN35, "layers": 2}),
        shape("qwen35-groups", hidden=256, intermediate=384, group=128, vocab=70,
              delta=DeltaShape(3, 1, 2, 64, 64, 2), **QWEN35),
        shape("qwen35-rotated", delta=DeltaShape(4, 2, 6, 16, 32, 4), vocab=90, **QWEN35,
              intermediate=256, hadamard=Hadamard(64, signed=True, regrouped=True)),
        shape("rotated", heads=5, kv_heads=1, head_dim=4, hidden=36, intermediate=44, vocab=33, sub_norms=False,
              hadamard=Hadamard(4, signed=False, regrouped=False)),
    )
}  # fmt: skip
"""Head sizes and ratios of the known models and beyond; widths that are no multiple of a vector or a block."""


def lookup(model: ModelShape, isa: str, choice: int = 0) -> plan.ModelPlan:
    """A plan of a model: the default (0), or a layout of another format or another of its own, with other tiles."""
    matrices = {role: space.default_plan(gemm, isa) for role, gemm in model.all_matrices.items()}
    for role, gemm in model.all_matrices.items() if choice else ():
        last = list({layout.format: layout for layout in space.candidate_layouts(gemm, isa, True)}.values())
        layout = last[-choice % len(last)]
        tiles = [space.candidate_tiles(op, gemm, isa, layout, True)[-1] for op in ("gemv", "gemm")]
        matrices[role] = MatrixPlan(layout, *tiles)
    return plan.ModelPlan(isa, matrices, dict.fromkeys(matrices, "test"), None)


@dataclass(frozen=True)
class Bench:
    """A tiny model packed for every level of a library."""

    shape: ModelShape
    checkpoint: SynthCheckpoint
    artefact: Artefact
    packed: tuple[Path, ...]  # by level

    @property
    def lib(self) -> Any:
        """The loaded library."""
        return binding.load(self.artefact.path)

    def open(self, level: int = 0, threads: int = 1, context: int | None = None, cache: Cache = "f16") -> Session:
        """A session of the model at one level."""
        return Session(self, self.packed[level], level, threads, context or self.shape.context, cache)

    def logits(
        self, tokens: Sequence[int], level: int = 0, threads: int = 1, chunk: int | None = None, cache: Cache = "f16"
    ) -> FloatArray:
        """float32 [n, vocab], the tokens given in calls of `chunk`."""
        chunk = chunk or len(tokens)
        with self.open(level, threads, cache=cache) as session:
            parts = [session.forward(tokens[i : i + chunk]) for i in range(0, len(tokens), chunk)]
        return np.concatenate(parts)


class Session:
    """The C API, one call to a method; codes come back as they are."""

    def __init__(self, bench: Bench, path: Path, level: int, threads: int, context: int, cache: Cache) -> None:
        self.lib, self.vocab, self.ffi = bench.lib, bench.shape.vocab, binding.ffi()
        model, session = self.ffi.new("bg_model **"), self.ffi.new("bg_session **")
        assert self.lib.bg_open(str(path).encode(), level, model) == 0
        assert self.lib.bg_session_open(model[0], threads, context, cache_type(cache), session) == 0
        self.model, self.handle = model[0], session[0]

    def forward(self, tokens: Sequence[int]) -> FloatArray:
        """Logits of all tokens."""
        out = np.empty((len(tokens), self.vocab), F32)
        assert self.code(tokens, out, 1) == 0
        return out

    def code(self, tokens: Sequence[int], out: FloatArray | None, every: int) -> int:
        """What bg_forward returns."""
        ids = np.asarray(tokens, np.int32)
        pointer = self.ffi.NULL if out is None else self.ffi.cast("float *", out.ctypes.data)
        return int(
            self.lib.bg_forward(self.handle, self.ffi.cast("int32_t *", ids.ctypes.data), len(ids), pointer, every)
        )

    def share(self, context: int) -> Any:
        """Another session's handle, that shares the buffers and threads of this one."""
        out = self.ffi.new("bg_session **")
        assert self.lib.bg_session_share(self.handle, context, out) == 0
        return out[0]

    def sample(self, scores: FloatArray, history: Sequence[int] = (), step: int = 0, **how: Any) -> int:
        """What bg_sample returns; by default every filter is off."""
        params = self._how(how)
        scores, past = np.ascontiguousarray(scores, F32), np.asarray(history, np.int32)
        assert scores.shape == (self.vocab,)
        floats, ids = (self.ffi.cast(t, a.ctypes.data) for t, a in (("float *", scores), ("int32_t *", past)))
        return int(self.lib.bg_sample(self.handle, params, floats, ids, len(past), step))

    def next(
        self, tokens: Sequence[int], history: Sequence[int], step: int = 0, count: int = 1, **how: Any
    ) -> list[int] | int:
        """What bg_next chose, or its error code."""
        arrays = [np.asarray(a, np.int32) for a in (tokens, history, np.full(count, -1))]
        ids, past, chosen = (self.ffi.cast("int32_t *", a.ctypes.data) for a in arrays)
        code = self.lib.bg_next(
            *(self.handle, ids, len(tokens), self._how(how), past, len(history), step, chosen, count)
        )
        return [int(i) for i in arrays[2]] if code == 0 else int(code)

    def next_batch(
        self, handles: Sequence[Any], runs: Sequence[Sequence[int]], asks: Sequence[dict[str, Any]]
    ) -> list[list[int] | int] | int:
        """What bg_next_batch chose in each session, or the session's error code; or the code of the call.

        asks: fields of bg_choice, `how` as in `sample`; with a count of 0 all others are NULL and 0.
        """
        ids = np.concatenate(runs).astype(np.int32)
        places = np.cumsum([0, *(max(a["count"], 0) for a in asks)])
        chosen = np.full(places[-1] + 1, -1, np.int32)  # the last place belongs to nobody
        asks = [a if a["count"] else {"how": {}, "history": [], "count": 0, "step": 0} for a in asks]
        kept = [(self._how(a["how"]), self.ffi.new("int32_t[]", list(a["history"]))) for a in asks]
        choices = [
            {
                "sampling": how if a["count"] else self.ffi.NULL,
                "history": past if a["count"] else self.ffi.NULL,
                "n_history": len(a["history"]),
                "count": a["count"],
                "step": a["step"],
                "code": 99,  # whatever stood there
            }
            for a, (how, past) in zip(asks, kept, strict=True)
        ]
        requests = self.ffi.new("bg_choice[]", choices)
        code = self.lib.bg_next_batch(
            *(self.ffi.new("bg_session *[]", list(handles)), len(handles), self.ffi.cast("int32_t *", ids.ctypes.data)),
            *(self.ffi.new("int32_t[]", [len(r) for r in runs]), requests),
            self.ffi.cast("int32_t *", chosen.ctypes.data),
        )
        assert chosen[-1] == -1
        if code:
            return int(code)
        return [
            [int(i) for i in chosen[first:end]] if request.code == 0 else int(request.code)
            for request, first, end in zip(requests, places, places[1:], strict=False)
        ]

    def _how(self, how: dict[str, Any]) -> Any:
        fields = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
        return self.ffi.new("bg_sampling *", {**fields, "repeat_last": 64, "seed": 0, **how})

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.lib.bg_session_close(self.handle)
        self.lib.bg_close(self.model)


@functools.cache
def ops(isa: str, in_c: bool = False) -> tuple[cffi.FFI, Any]:
    """The float operations of one ISA: a cffi namespace and its `const bg_ops *`.

    in_c: instructions that this CPU may lack are functions in C (instructions.h).
    """
    runtime, platform = data.folder("runtime"), targets.platform_of()
    compiler, folder = clang.find_compiler(platform), Path(tempfile.mkdtemp(prefix="bitgen-test-"))
    flags = [*compiler.target_flags(platform), *clang.COMMON_FLAGS, *targets.target(isa).flags]
    flags += [f"-I{runtime}", f"-DBG_ISA={isa}", "-fvisibility=default", "-shared"]
    flags += ["-include", str(Path(__file__).parent / "instructions.h")] * in_c
    sources = [str(runtime / file) for file in library.runtime_files(library.PER_LEVEL)]
    subprocess.run([*compiler.command, *flags, *sources, "-o", str(folder / "ops.so")], check=True)
    ffi = cffi.FFI()
    ffi.cdef((runtime / "simd" / "ops.h").read_text().split("// <cdef>")[1].split("// </cdef>")[0])
    ffi.cdef(f"extern struct bg_ops bg_ops__{isa};")
    library_ = ffi.dlopen(str(folder / "ops.so"))
    return ffi, getattr(library_, f"bg_ops__{isa}")


def levels_of(name: str) -> tuple[str, ...]:
    """Of the levels that this CPU executes all for the flagship; for another model the best, the lowest and one
    between, so that each level runs several models."""
    every = library.host_isas()
    if name == FLAGSHIP.name or len(every) < 4:
        return every
    best, *between, lowest = every
    return best, between[list(SHAPES).index(name) % len(between)], lowest


@functools.cache
def bench(name: str, choice: int = 0, head: pack.Head = "f16", levels: tuple[str, ...] | None = None) -> Bench:
    """The model of SHAPES for some levels that this CPU executes (`levels_of`), built once."""
    model = SHAPES[name]
    lookups = [lookup(model, isa, choice) for isa in levels or levels_of(name)]
    checkpoint = SynthCheckpoint(model, seed=1)
    folder = Path(tempfile.mkdtemp(prefix="bitgen-test-"))
    paths = tuple(folder / f"{found.isa}.bgpk" for found in lookups)
    for path, found in zip(paths, lookups, strict=True):
        pack.write(path, checkpoint, found, head)
    return Bench(model, checkpoint, library.for_model(model, lookups), paths)


def sanitized(folder: Path, isa: str, main: Path | None = None, kind: str = "address,undefined") -> Path:
    """A program of a library's sources at one level, with sanitizers where the compiler has them, and another main
    where one is given. What such programs have in common is compiled once."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.[ch]")}
    sources = {name: path.read_text() for name, path in files.items()}
    of_program = [name for name in sources if name.startswith("programs/") and name.endswith(".c")]
    if main:
        sources = {name: text for name, text in sources.items() if name not in of_program}
        sources[main.name] = main.read_text()
    elif not of_program:  # the sources of a library
        sources |= library.runtime_files("programs/runner.c", "programs/system.c", *library.PROGRAMS["runner.c"])
    flags = (*targets.target(isa).flags, f"-DBG_ISA={isa}")
    units = [clang.Unit(file, library.object_name(file), flags) for file in sorted(sources) if file.endswith(".c")]
    has_them = not clang.find_compiler(targets.platform_of()).zig
    program = main.name if main else "runner.c"
    options = clang.BuildOptions(program=program, sanitize=kind if has_them else None)
    return clang.build("sanitized", sources, units, {}, options).path


def tokens(model: ModelShape, n: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return np.random.default_rng(seed).integers(0, model.vocab, n).tolist()
