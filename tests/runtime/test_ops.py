"""The runtime's float operations one by one, against their definition in NumPy, bit for bit.

Logits cannot show all of it: activations are rounded to int8 on the way, which hides most last bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import runtime_lab as lab

from bitgen import targets
from bitgen.checkpoints import reference
from bitgen.checkpoints.checkpoint import narrow_bf16, widen_bf16
from bitgen.compile import head_rows, library
from bitgen.engine.opened import CACHES, Cache

F32 = np.float32
WIDTHS = (1, 4, 15, 16, 17, 100, 256, 2560)
ALSO = ["amx"] if targets.host_arch() == "x86_64" else []
TRICKY = np.array([0.0, -0.0, 1e-45, -1e-38, 1e-5, 0.5, -1.5, 2.5, 3.4e38, -65504.0, 65519.0, 65520.0, 1e30], F32)


class Ops:
    """The operations of one ISA on NumPy arrays; rows are padded here as the runtime pads them."""

    def __init__(self, isa: str) -> None:
        in_c = isa not in library.host_isas()
        if in_c and targets.target(isa).falls_back not in library.host_isas():
            pytest.skip(f"this CPU executes neither {isa} nor the level below it")
        self.ffi, self.ops = lab.ops(isa, in_c)
        self.group = 4 if isa == "amx" else 2  # codes of an int8 cache that lie side by side

    def at(self, a: np.ndarray, kind: str = "float *") -> Any:
        return self.ffi.cast(kind, a.ctypes.data)

    @staticmethod
    def row(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.zeros(-len(x) % 16, x.dtype)])


DENSE = {"f16": 0, "bf16": 1, "f32": 2}


@pytest.fixture(scope="module", params=dict.fromkeys([*library.host_isas(), *ALSO]))
def ops(request: pytest.FixtureRequest) -> Ops:
    return Ops(request.param)


def numbers(n: int, seed: int = 0) -> np.ndarray:
    """Floats of many sizes, tricky ones among them."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(0, 1, n) * np.exp(rng.normal(0, 3, n))).astype(F32)
    return np.concatenate([x, TRICKY])[rng.permutation(n + len(TRICKY))[:n]] if n > 64 else x


def assert_same(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype
    different = np.flatnonzero(got.view(f"i{got.itemsize}") != want.view(f"i{got.itemsize}"))
    assert not len(different), (different[:5], got.flat[different[:5]], want.flat[different[:5]])


@pytest.mark.parametrize("scale", [1.0, F32(640**0.5)])
@pytest.mark.parametrize("type", DENSE)
def test_every_number_becomes_its_float(ops: Ops, type: str, scale: float) -> None:
    """All of float16 and bfloat16, subnormal ones too, and floats of many sizes."""
    every = np.arange(1 << 16, dtype=np.uint16)
    stored = {"f16": every, "bf16": every, "f32": np.concatenate([numbers(4096), numbers(64) * F32(1e-40)])}[type]
    values = {"f16": every.view(np.float16), "bf16": widen_bf16(every), "f32": stored}[type].astype(F32)
    out = np.empty(len(stored), F32)
    ops.ops.dense[DENSE[type]].widen(ops.at(stored, "void *"), len(stored), scale, ops.at(out))
    with np.errstate(over="ignore", invalid="ignore"):
        want = values * F32(scale)
    finite = np.isfinite(want)
    assert_same(out[finite], want[finite])
    assert not np.isfinite(out[~finite]).any()


def test_floats_become_the_nearest_half(ops: Ops) -> None:
    """Through the cache: borders between halves and their neighbours, subnormal halves, the greatest ones, NaN."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    middle = ((halves[:-1] + halves[1:]) / 2).astype(F32)
    x = np.concatenate([middle, np.nextafter(middle, F32(0)), np.nextafter(middle, F32(1e9)), halves.astype(F32)])
    x = np.concatenate([x, -x, TRICKY, numbers(1000), F32([np.inf, -np.inf, np.nan])])
    x = np.pad(x, (0, -len(x) % 128))
    for row in x.reshape(-1, 128):
        k, v = np.zeros((1, 128, 16), np.uint16), np.zeros((16, 128), np.uint16)
        ops.ops.attention_f16.write(ops.at(row), ops.at(row), 128, 5, ops.at(k, "void *"), ops.at(v, "void *"))
        want = lab.half(np.where(np.isnan(row), F32(-65504), row))
        assert_same(v[5], want)
        assert_same(k[0, :, 5].copy(), want)
        assert not k[:, :, :5].any() and not k[:, :, 6:].any() and not v[:5].any() and not v[6:].any()


@pytest.mark.parametrize("d", [2, 36, 128, 1024])
def test_rows_become_codes_and_a_scale(ops: Ops, d: int) -> None:
    """Ties, zeros, numbers too small and too great for a scale, infinities and NaN, each in its place of the layout."""
    g, dg, dp, attention = ops.group, -(-d // ops.group) * ops.group, -(-d // 16) * 16, ops.ops.attention_i8
    ties = ((np.arange(d) % 254 - 127) / 2).astype(F32)
    ties[0] = 127
    endless = np.where(np.arange(d) % 3 == 0, np.inf, np.where(np.arange(d) % 3 == 1, -np.inf, np.nan)).astype(F32)
    rows = (numbers(d), ties, -ties, np.zeros(d, F32), np.full(d, 1e-30, F32), np.full(d, 3e38, F32), endless)
    for x, at in zip(rows, (0, 1, 17, 255, 256, 300, 511), strict=True):
        minus = -x
        kc, vc = np.zeros((2, 256 * (dg + 4)), np.int8), np.zeros((2, 256 * (dp + 4)), np.int8)
        attention.write(ops.at(x), ops.at(minus), d, at, ops.at(kc, "void *"), ops.at(vc, "void *"))
        block, p = divmod(at, 256)
        for cache, width, row in ((kc, dg, x), (vc, dp, minus)):
            codes, scale = lab.rounded(np.where(np.isnan(row), F32(-np.inf), row), 127)
            numbers_, scales = cache[block, : 256 * width], cache[block, 256 * width :].view(F32)
            if cache is kc:
                got = numbers_.reshape(16, dg // g, 16, g)[p // 16, :, p % 16].reshape(-1)[:d]
            else:
                got = numbers_.reshape(dp // 16, 256 // g, 16, g)[:, p // g, :, p % g].reshape(-1)[:d]
            assert_same(got.copy(), codes.astype(np.int8))
            assert scales[p] == scale and np.count_nonzero(scales) == 1
            assert np.count_nonzero(numbers_) == np.count_nonzero(codes)
            assert not cache[1 - block].any()


@pytest.mark.parametrize("n", WIDTHS)
def test_rmsnorm(ops: Ops, n: int) -> None:
    x, g = np.clip(numbers(n), -1e15, 1e15), numbers(n, 1)
    x_row, g_row, y = ops.row(x), ops.row(g), np.full(len(ops.row(x)), 7, F32)
    ops.ops.rmsnorm(ops.at(x_row), ops.at(g_row), n, 1e-5, ops.at(y))
    assert_same(y[:n], lab.rms_norm(x, g, 1e-5))
    assert not y[n:].any()
    close = reference.rms_norm(x, g, 1e-5)
    assert np.allclose(y[:n], close, rtol=1e-5, atol=1e-30)
    ops.ops.rmsnorm(ops.at(x_row), ops.at(g_row), n, 1e-5, ops.at(x_row))  # in place
    assert_same(x_row, y)


@pytest.mark.parametrize("d", [2, 16, 36, 128])
def test_rmsnorm_of_heads(ops: Ops, d: int) -> None:
    """Each head alone; what lies behind the last one stays."""
    x, g = np.clip(numbers(3 * d + 1), -1e15, 1e15), numbers(d, 1)
    want, g_row = np.append(lab.rms_norm(x[:-1].reshape(3, d), g, 1e-6), x[-1]), ops.row(g)
    ops.ops.rmsnorm_heads(ops.at(x), 3, d, ops.at(g_row), 1e-6)
    assert_same(x, want)


@pytest.mark.parametrize("n", WIDTHS)
def test_quantise(ops: Ops, n: int) -> None:
    ties = (np.arange(n) % 254 - 127 + 0.5).astype(F32)
    ties[0] = 127
    for x in (numbers(n), ties, -ties, np.zeros(n, F32), np.full(n, 1e-6, F32), np.full(n, -3e38, F32)):
        row, q = ops.row(x), np.full(n + 1, 99, np.int8)
        s = ops.ops.quantise(ops.at(row), n, ops.at(q, "int8_t *"))
        want, scale = reference.quantise(x[None])
        assert F32(s) == scale[0]
        assert_same(q[:n], want[0])
        assert q[n] == 99


@pytest.mark.parametrize("n", WIDTHS)
def test_sums_become_activations(ops: Ops, n: int) -> None:
    rng = np.random.default_rng(n)
    gate, up = (rng.integers(-(2**b), 2**b, n).astype(np.int32) for b in (20, 24))
    at = [ops.at(a, "int32_t *") for a in (gate, up)]
    f, g = F32(3e-4), F32(7e-5)
    for n_, got, want in (
        (ops.ops.sums.dequantise, np.full(n, 2, F32), gate.astype(F32) * f),
        (ops.ops.sums.add_dequantised, np.full(n, 2, F32), F32(2) + gate.astype(F32) * f),
    ):
        n_(at[0], n, f, ops.at(got))
        assert_same(got, want)
    z, u = gate.astype(F32) * f, up.astype(F32) * g
    relu = np.maximum(z, F32(0))
    acts = ((ops.ops.sums.relu2, relu * relu), (ops.ops.sums.silu, lab.silu(z)), (ops.ops.sums.gelu, lab.gelu(z)))
    for op, want in ((op, act * u) for op, act in acts):
        y = np.full(len(ops.row(z)), 7, F32)
        op(at[0], at[1], n, f, g, ops.at(y))
        assert_same(y[:n] + F32(0), want + F32(0))  # -0 and 0 are the same to everything that follows
        assert not y[n:].any()
    assert np.allclose(lab.silu(z), z / (1 + np.exp(-z.astype(np.float64))), rtol=1e-6)
    z64 = z.astype(np.float64)
    tanh = np.tanh((2 / np.pi) ** 0.5 * (z64 + 0.044715 * z64**3))
    assert np.allclose(lab.gelu(z), z64 * (1 + tanh) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", WIDTHS)
def test_floats_of_kernels_with_groups_become_activations(ops: Ops, n: int) -> None:
    """Whatever the factors are."""
    z, u = np.random.default_rng(n).normal(0, 3, (2, n)).astype(F32)
    at = [ops.at(a, "int32_t *") for a in (z, u)]
    floats = ops.ops.floats
    for op, got, want in (
        (floats.dequantise, np.full(n, 2, F32), z),
        (floats.add_dequantised, np.full(n, 2, F32), F32(2) + z),
    ):
        op(at[0], n, 0.1, ops.at(got))
        assert_same(got, want)
    y, relu = np.full(len(ops.row(z)), 7, F32), np.maximum(z, F32(0))
    for op, act in ((floats.relu2, relu * relu), (floats.silu, lab.silu(z)), (floats.gelu, lab.gelu(z))):
        op(at[0], at[1], n, 0.1, 9.0, ops.at(y))
        assert_same(y[:n] + F32(0), act * u + F32(0))
        assert not y[n:].any()


@pytest.mark.parametrize(("d", "n"), [(2, 2), (32, 32), (100, 100), (128, 128), (128, 64), (40, 6)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(ops: Ops, d: int, n: int, interleaved: bool) -> None:
    x = np.random.default_rng(d).normal(0, 1, (3, d)).astype(F32)
    angle = np.random.default_rng(1).uniform(0, 6, n // 2)
    c, s = np.cos(angle).astype(F32), np.sin(angle).astype(F32)
    y, turning = x.copy(), x[:, :n]
    (ops.ops.rope_pairs if interleaved else ops.ops.rope_halves)(ops.at(y), 3, d, n, ops.at(c), ops.at(s))
    a, b = (turning[:, 0::2], turning[:, 1::2]) if interleaved else (turning[:, : n // 2], turning[:, n // 2 :])
    turned = a * c - b * s, b * c + a * s
    assert_same(y[:, :n], np.stack(turned, -1).reshape(3, n) if interleaved else np.concatenate(turned, -1))
    assert_same(y[:, n:], x[:, n:])


@pytest.mark.parametrize("n", WIDTHS)
def test_exponentials(ops: Ops, n: int) -> None:
    x = np.random.default_rng(n).uniform(-120, 0, n).astype(F32)
    x[0] = 0
    p = np.empty(n, F32)
    ops.ops.exp_row(ops.at(x), n, 0.0, 1.0, ops.at(p))
    assert_same(p, np.where(x >= -87, lab.exp(x), F32(0)))
    true = np.exp(x.astype(np.float64))
    assert p[0] == 1 and np.all(np.abs(p - true)[x >= -87] <= 1.5 * np.spacing(true.astype(F32))[x >= -87])
    x[n // 2] = np.nan
    want = np.nanmax(x) if n > 1 else -np.inf
    assert ops.ops.greatest(ops.at(x), n) == want


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(("d", "rows"), [(32, 4), (100, 3), (16, 16), (128, 7), (2, 1), (256, 2), (96, 5)])
def test_attention_over_a_block(ops: Ops, cache: Cache, d: int, rows: int) -> None:
    rng = np.random.default_rng(rows)
    attention = getattr(ops.ops, f"attention_{cache.replace('int', 'i')}")
    dp = -(-d // 16) * 16
    assert (attention.width, attention.beside) == {"f16": (2, 0), "f32": (4, 0), "int8": (1, 4)}[cache]
    k, v = rng.normal(0, 1, (512, d)).astype(F32), rng.normal(0, 1, (512, d)).astype(F32)
    v *= np.exp(rng.normal(0, 2, (512, 1))).astype(F32)
    kc, vc = (np.zeros(512 * (n * attention.width + attention.beside), np.uint8) for n in (-(-d // 4) * 4, dp))
    for i in range(512):
        attention.write(ops.at(k[i]), ops.at(v[i]), d, i, ops.at(kc, "void *"), ops.at(vc, "void *"))
    q = rng.normal(0, 2, (rows, d)).astype(F32)
    scale = F32(1) / np.sqrt(F32(d))
    parts = []
    some = np.sort(rng.integers(1, 257, rows))
    for first, begins, ends in (
        (0, np.sort(rng.integers(0, 256, rows)), np.full(rows, 256)),
        (256, rng.integers(0, some), some),
        (256, np.zeros(rows, np.int64), some),
    ):
        part = np.full((rows, dp + 16), 9, F32)
        pointers = [ops.ffi.new("float *[]", [ops.at(a[i]) for i in range(rows)]) for a in (q, part)]
        attention.block(
            pointers[0], ops.ffi.new("int32_t[]", begins.tolist()), ops.ffi.new("int32_t[]", ends.tolist()), rows, d,
            scale, ops.at(kc, "void *"), ops.at(vc, "void *"), first, 1, pointers[1],
        )  # fmt: skip
        cut = slice(first, first + 256)
        want = lab.attend_block(q[:, None], k[cut, None], v[cut, None], begins, ends, cache)
        assert_same(part[:, :d].copy(), want[0][:, 0])
        assert_same(part[:, dp].copy(), want[2][:, 0])
        assert_same(part[:, dp + 1].copy(), want[1][:, 0])
        parts.append((part, want))
    (into, a), _, (part, b) = parts
    out, total, _ = lab.merge(a, b)
    for r in range(rows):
        y = np.empty(d, F32)
        attention.merge(ops.at(into[r]), ops.at(part[r]), d)
        attention.finish(ops.at(into[r]), d, ops.at(y))
        assert_same(y, (out / total[..., None])[r, 0])


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("d", [2, 24, 100, 128])
def test_positions_out_of_a_cache_and_into_another(ops: Ops, cache: Cache, d: int) -> None:
    """A position's row is what the definition says, in whatever layout the level has it; both caches are the same."""
    rng = np.random.default_rng(d)
    attention = getattr(ops.ops, f"attention_{cache.replace('int', 'i')}")
    k, v = rng.normal(0, 1, (260, d)).astype(F32), rng.normal(0, 9, (260, d)).astype(F32)
    sizes = [512 * (n * attention.width + attention.beside) for n in (-(-d // 4) * 4, -(-d // 16) * 16)]
    (kc, vc), (other_k, other_v) = ([np.zeros(size, np.uint8) for size in sizes] for _ in range(2))
    row = np.full(2 * (d * attention.width + attention.beside) + 1, 0xAB, np.uint8)
    for i in (0, 1, 15, 16, 255, 256, 259):
        attention.write(ops.at(k[i]), ops.at(v[i]), d, i, ops.at(kc, "void *"), ops.at(vc, "void *"))
        attention.copy(ops.at(row, "uint8_t *"), 0, d, i, ops.at(kc, "void *"), ops.at(vc, "void *"))
        if cache == "int8":
            codes, scales = zip(*(lab.rounded(x[i], lab.COARSE) for x in (k, v)), strict=True)
            want = b"".join([*(c.astype(np.int8).tobytes() for c in codes), *(F32(s).tobytes() for s in scales)])
        else:
            want = b"".join((lab.half(x[i]) if cache == "f16" else x[i]).tobytes() for x in (k, v))
        assert row[:-1].tobytes() == want and row[-1] == 0xAB
        attention.copy(ops.at(row, "uint8_t *"), 1, d, i, ops.at(other_k, "void *"), ops.at(other_v, "void *"))
        assert row[:-1].tobytes() == want
    assert np.array_equal(kc, other_k) and np.array_equal(vc, other_v)


def test_integer_attention_is_attention(ops: Ops) -> None:
    """The int8 cache's block against plain attention in double precision over what the cache holds."""
    d, rng, attention = 128, np.random.default_rng(0), ops.ops.attention_i8
    q, k, v = (rng.normal(0, 1, (n, d)).astype(F32) for n in (4, 256, 256))
    kc, vc = (np.zeros(256 * (d + 4), np.uint8) for _ in range(2))
    for i in range(256):
        attention.write(ops.at(k[i]), ops.at(v[i]), d, i, ops.at(kc, "void *"), ops.at(vc, "void *"))
    part = np.zeros((4, d + 16), F32)
    pointers = [ops.ffi.new("float *[]", [ops.at(a[i]) for i in range(4)]) for a in (q, part)]
    attention.block(
        pointers[0], ops.ffi.new("int32_t[]", [0] * 4), ops.ffi.new("int32_t[]", [256] * 4), 4, d, d**-0.5,
        ops.at(kc, "void *"), ops.at(vc, "void *"), 0, 1, pointers[1],
    )  # fmt: skip
    k64, v64 = (
        codes * scales[:, None].astype(np.float64) for codes, scales in (lab.rounded(k, 127), lab.rounded(v, 127))
    )
    p = np.exp(q @ k64.T / np.sqrt(d))
    want = p @ v64 / p.sum(-1, keepdims=True)
    assert np.abs(part[:, :d] / part[:, d + 1, None] - want).max() < 1e-3 * np.abs(want).max()


@pytest.mark.parametrize(("k", "vocab"), [(16, 1), (48, 37), (112, 70), (2560, 5)])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_head(ops: Ops, k: int, vocab: int, n: int) -> None:
    rng = np.random.default_rng(k + n)
    x = rng.normal(0, 1, (n, k)).astype(F32)
    rows = rng.normal(0, 1, (vocab, k)).astype(F32)
    codes = rng.integers(-128, 128, (vocab, k), dtype=np.int8)
    scales = rng.uniform(0.01, 0.1, vocab).astype(F32)
    row0, row1 = vocab // 3, vocab
    for type in (*DENSE, "int8"):
        y = np.full((n, vocab + 3), 5, F32)
        rest = (k, row0, row1, ops.at(x), n, ops.at(y), vocab + 3)
        if type == "int8":
            ops.ops.head.i8(ops.at(codes, "int8_t *"), ops.at(scales), *rest)
            want = lab.dot(x[:, None], codes.astype(F32)[None]) * scales
        else:
            stored = {"f16": rows.astype(np.float16), "bf16": narrow_bf16(rows), "f32": rows}[type]
            values = widen_bf16(stored) if type == "bf16" else stored.astype(F32)
            ops.ops.dense[DENSE[type]].multiply(ops.at(stored, "void *"), *rest)
            want = lab.dot(x[:, None], values[None])
        assert_same(y[:, row0:row1].copy(), want[:, row0:])
        assert (y[:, :row0] == 5).all() and (y[:, row1:] == 5).all()


@pytest.mark.parametrize("k", [256, 512, 2560])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 32])
def test_screen(ops: Ops, k: int, n: int) -> None:
    """Random numbers and extremes; every number of tokens and rows that is multiplied in a way of its own."""
    rng = np.random.default_rng(k + n)
    for rows in (1, 2, 5, 64):
        for low, high in ((-127, 128), (127, 128), (-127, -126)):
            w, x = (rng.integers(low, high, (m, k), dtype=np.int8) for m in (rows, n))
            upper, lower = head_rows.upper_bits(w), head_rows.lower_bits(w)
            sums, refined = np.full((n, rows), 5, np.int32), np.full((2, rows), 5, np.int32)
            at = ops.ffi.new("int8_t *[]", [ops.at(row, "int8_t *") for row in x])
            pair = ops.ffi.new("int8_t *[]", [at[0], at[n - 1]])
            ops.ops.head.screen(ops.at(upper, "uint8_t *"), k, rows, at, n, ops.at(sums, "int32_t *"))
            both = np.empty(2, np.int32)
            for r in range(rows):
                rows_at = (ops.at(part[r], "uint8_t *") for part in (upper, lower))
                ops.ops.head.refine(*rows_at, k, pair, ops.at(both, "int32_t *"))
                refined[:, r] = both
            codes = w.astype(np.int32) + 128
            assert np.array_equal(sums, x.astype(np.int32) @ (codes >> 2).T)
            assert np.array_equal(refined, x[[0, n - 1]].astype(np.int32) @ codes.T)


def test_reading_depends_on_every_byte(ops: Ops) -> None:
    data = np.zeros(1 << 17, np.uint8)

    def seen() -> int:
        return ops.ops.read(ops.at(data, "uint8_t *"), len(data))

    nothing = seen()
    for at in (0, 1, 63, 64, 16383, 16384, 65535, 65536, len(data) - 1):
        data[at] = 1
        assert seen() != nothing
        data[at] = 0
