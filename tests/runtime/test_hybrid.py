"""Gated DeltaNet and the rotation before matrices: operations against their definition, and states that come back."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_lab as lab
from lanes import F32, hadamard, log1p, sigmoid, silu, softplus
from test_ops import ALSO, Ops, assert_same
from test_runtime import DELTA, refused, run, sanitized_program

from bitgen import headers
from bitgen.checkpoints import delta, rotation
from bitgen.compile import library
from bitgen.engine.opened import CACHES, Cache
from bitgen.headers import constants

REWINDABLE = constants("bitgen.h", "bg_rewindable")["REWINDABLE"]
HYBRIDS = [name for name, shape in lab.SHAPES.items() if shape.delta]


@pytest.fixture(scope="module", params=dict.fromkeys([*library.host_isas(), *ALSO]))
def ops(request: pytest.FixtureRequest) -> Ops:
    return Ops(request.param)


# ---- operations ----------------------------------------------------------------------------------------------


def test_the_logarithm_is_within_its_error() -> None:
    """log1p's stated 2 ulp, and softplus beside numbers of double precision."""
    x = np.concatenate([np.linspace(0, 1, 1 << 16), np.exp(np.linspace(-87, 0, 1 << 14))]).astype(F32)
    true = np.log1p(x.astype(np.float64))
    assert np.all(np.abs(log1p(x) - true) <= 2 * np.spacing(true.astype(F32)))
    wide = np.linspace(-90, 90, 1 << 16).astype(F32)
    assert np.allclose(softplus(wide), np.logaddexp(0, wide.astype(np.float64)), rtol=1e-6, atol=1e-37)


def test_rates(ops: Ops) -> None:
    rng = np.random.default_rng(0)
    alpha, beta = (np.concatenate([rng.normal(0, 9, 46), [-200, 200]]).astype(F32) for _ in range(2))
    a, dt = -rng.uniform(0, 4, 48).astype(F32), rng.normal(0, 2, 48).astype(F32)
    decay, strength = alpha.copy(), beta.copy()
    ops.ops.delta.rates(ops.at(a), ops.at(dt), 48, ops.at(decay), ops.at(strength))
    assert_same(decay, lab.exp(a * softplus(alpha + dt)))
    assert_same(strength, sigmoid(beta))
    assert np.allclose(decay, np.exp(a * delta.softplus(alpha + dt)), rtol=1e-5)
    assert np.allclose(strength, delta.sigmoid(beta), rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize(("n", "taps"), [(128, 4), (13, 3), (1, 1), (40, 7), (16, 2)])
def test_convolution(ops: Ops, n: int, taps: int) -> None:
    rng = np.random.default_rng(n)
    x, w = rng.normal(0, 1, (taps, n)).astype(F32), rng.normal(0, 1, (taps, n + 5)).astype(F32)
    y, want = np.full(n + 1, 7, F32), np.zeros(n, F32)
    rows = ops.ffi.new("float *[]", [ops.at(row) for row in x])
    ops.ops.delta.convolve(rows, ops.at(w), n + 5, taps, n, ops.at(y))
    for tap in range(taps):
        want = lab.fma(x[tap], w[tap, :n], want)
    assert_same(y[:n], silu(want))
    assert y[n] == 7
    close = delta.causal_convolution(x, np.ascontiguousarray(w[:, :n].T))[-1].astype(np.float64)
    assert np.allclose(y[:n], close / (1 + np.exp(-close)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 13, 16, 128, 1000])
def test_unit(ops: Ops, n: int) -> None:
    for size in (1e-8, 1e-3, 1, 1e9):
        x = (np.random.default_rng(n).normal(0, 1, n + 1) * size).astype(F32)
        want = np.append(x[:n] * (F32(0.25) / np.sqrt(lab.dot(x[:n], x[:n]) + F32(1e-6))), x[n])
        close = delta.unit(x[:n]) / 4
        ops.ops.delta.unit(ops.at(x), n, 0.25)
        assert_same(x, want)
        assert np.allclose(x[:n], close, rtol=1e-5)


@pytest.mark.parametrize(("key_dim", "columns"), [(128, 16), (13, 5), (1, 1), (6, 16), (1024, 3)])
def test_tokens_pass_over_a_slice(ops: Ops, key_dim: int, columns: int) -> None:
    """The definition to the bit; float64; tokens of one call and of many alike; the padding stays zero."""
    rng, n = np.random.default_rng(key_dim), 9
    row = 2 * key_dim + columns + 3
    mixed = rng.normal(0, 1, (n, row)).astype(F32)
    q, k = (delta.unit(mixed[:, at : at + key_dim]) for at in (0, key_dim))
    mixed[:, :key_dim], mixed[:, key_dim : 2 * key_dim] = q, k
    v = slice(2 * key_dim, 2 * key_dim + columns)
    rates = np.stack([rng.uniform(0.5, 1, n), rng.uniform(0, 1, n)], axis=1).astype(F32)
    first = np.zeros((key_dim, 16), F32)
    first[:, :columns] = rng.normal(0, 1, (key_dim, columns))

    def run(state: np.ndarray, rows: np.ndarray, rates: np.ndarray) -> None:
        at = [ops.at(rows[:, i:]) for i in (0, key_dim, 2 * key_dim)]
        strengths = ops.at(rates[:, 1:])
        ops.ops.delta.pass_tokens(ops.at(state), key_dim, columns, *at, row, ops.at(rates), strengths, 2, len(rows))

    once, state = mixed.copy(), first.copy()
    run(state, once, rates)
    want_state = first[None, :, :columns].copy()
    arguments = (q[:, None], k[:, None], mixed[:, None, v], rates[:, :1], rates[:, 1:])
    want = lab.delta_rule(*arguments, want_state)
    assert_same(np.ascontiguousarray(once[:, v]), np.ascontiguousarray(want[:, 0]))
    assert_same(np.ascontiguousarray(state[:, :columns]), want_state[0])
    assert not state[:, columns:].any()
    once[:, v] = mixed[:, v]
    assert_same(once, mixed)  # nothing else is written
    for cut in (1, 4):
        pieces, again = mixed.copy(), first.copy()
        for part in (slice(0, cut), slice(cut, n)):
            run(again, pieces[part], np.ascontiguousarray(rates[part]))
        assert_same(again, state)
        assert_same(np.ascontiguousarray(pieces[:, v]), np.ascontiguousarray(want[:, 0]))
    exact = first[:, :columns].astype(np.float64)
    for t in range(n):
        exact = exact * rates[t, 0]
        exact += np.outer(k[t], rates[t, 1] * (mixed[t, v] - k[t] @ exact))
        assert np.allclose(want[t, 0], q[t] @ exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "block"), [(4, 4), (36, 4), (48, 16), (192, 64), (5120, 1024), (4096, 4096)])
def test_rotation(ops: Ops, n: int, block: int) -> None:
    rng = np.random.default_rng(n)
    x, signs = rng.normal(0, 1, n).astype(F32), rng.choice(np.array([-1, 1], F32), n)
    null = ops.ffi.NULL
    for s in (None, signs):
        for inverse in (0, 1):
            y, padded_signs = ops.row(x), ops.row(signs)
            ops.ops.hadamard(ops.at(y), null if s is None else ops.at(padded_signs), n, block, inverse)
            by = F32(1) if s is None else s
            assert_same(y[:n] + F32(0), (hadamard(x, block) * by if inverse else hadamard(x * by, block)) + F32(0))
            assert not y[n:].any()
            turn = rotation.rotate_back if inverse else rotation.rotate
            assert np.allclose(y[:n], turn(x[None], block, s)[0], atol=1e-5)


@pytest.mark.parametrize("n", [1, 15, 16, 100])
def test_gates(ops: Ops, n: int) -> None:
    rng = np.random.default_rng(n)
    sums, x, f = rng.integers(-(2**20), 2**20, n).astype(np.int32), rng.normal(0, 1, n + 1).astype(F32), F32(1e-5)
    z = sums.astype(F32) * f
    for rows, gates in ((ops.ops.sums, sums), (ops.ops.floats, z)):
        for op, act in ((rows.gate_sigmoid, sigmoid), (rows.gate_silu, silu)):
            y = x.copy()
            op(ops.at(gates, "int32_t *"), n, f, ops.at(y))
            assert_same(y, np.append(x[:n] * act(z), x[n]))


# ---- models --------------------------------------------------------------------------------------------------


def state_of(session: lab.Session) -> np.ndarray:
    """The state as bytes, behind and before bytes that must stay."""
    size = int(session.lib.bg_state_bytes(session.handle))
    room = np.full(size + 2, 0xAB, np.uint8)
    assert session.lib.bg_state_save(session.handle, session.ffi.from_buffer("uint8_t[]", room[1:-1])) == 0
    assert room[0] == room[-1] == 0xAB
    return room[1:-1]


def load_state(session: lab.Session, position: int, state: np.ndarray) -> int:
    return int(session.lib.bg_state_load(session.handle, position, session.ffi.from_buffer("uint8_t[]", state)))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.view(np.int32), b.view(np.int32))


@pytest.mark.parametrize("name", HYBRIDS)
def test_the_state_has_the_size_that_is_said(name: str) -> None:
    bench = lab.bench(name)
    s, d = bench.shape, bench.shape.delta
    with bench.open() as session:
        got = int(bench.lib.bg_state_bytes(session.handle))
        padded = d.value_heads * d.key_dim * -(-d.value_dim // 16) * 16
        assert got == (s.layers - s.attending) * 4 * (padded + (d.taps - 1) * d.channels) >= s.state_bytes
        width = int(bench.lib.bg_position_bytes(session.handle))
        assert width == s.attending * s.kv_heads * 2 * s.head_dim * 2
    with lab.bench("flagship").open() as session:
        assert session.lib.bg_state_bytes(session.handle) == 0
        assert load_state(session, 0, np.zeros(1, np.uint8)) == 0


@pytest.mark.parametrize("name", HYBRIDS)
def test_back_within_the_latest_call(name: str) -> None:
    """To every position that can be reached, by the log: the state's bits, and those of the logits that follow."""
    bench = lab.bench(name)
    tokens, other = lab.tokens(bench.shape, 80), lab.tokens(bench.shape, 80, 1)
    want = bench.logits(tokens)
    states = {}
    with bench.open() as session:
        for at in range(len(tokens)):
            states[at] = state_of(session)
            session.code(tokens[at : at + 1], None, 0)
    for threads in (1, 3):
        with bench.open(threads=threads) as session:
            session.code(tokens[:30], None, 0)
            for n in (REWINDABLE, 5, 9, 1, REWINDABLE):
                at = session.lib.bg_position(session.handle)
                for back in (*range(n), 0):
                    session.code(other[:n], None, 0)
                    assert bench.lib.bg_rewind(session.handle, at + n) == 0
                    # what goes back must be what was appended
                    assert bench.lib.bg_rewind(session.handle, at) == 0
                    assert np.array_equal(state_of(session), states[at])
                    session.code(tokens[at : at + n], None, 0)
                    assert bench.lib.bg_rewind(session.handle, at + back) == 0
                    assert np.array_equal(state_of(session), states[at + back])
                    assert same_bits(session.forward(tokens[at + back : at + n]), want[at + back : at + n])
                    assert bench.lib.bg_rewind(session.handle, at) == 0
                session.code(tokens[at : at + n], None, 0)
            assert bench.lib.bg_rewind(session.handle, 0) == 0
            assert np.array_equal(state_of(session), states[0])
            assert same_bits(session.forward(tokens), want)


def test_back_too_far_changes_nothing() -> None:
    bench = lab.bench("qwen35")
    lib, error = bench.lib, bench.lib.BG_E_STATE
    tokens = lab.tokens(bench.shape, 60)
    want = bench.logits(tokens)
    with bench.open() as session:
        session.code(tokens[:30], None, 0)  # too many for the log
        assert lib.bg_rewind(session.handle, 29) == error and lib.bg_position(session.handle) == 30
        for i in range(30, 50):
            session.code(tokens[i : i + 1], None, 0)
        assert lib.bg_rewind(session.handle, 30) == error and lib.bg_position(session.handle) == 50
        assert same_bits(session.forward(tokens[50:]), want[50:])
        assert lib.bg_rewind(session.handle, 45) == error  # the base is at 46
        assert lib.bg_rewind(session.handle, 60) == 0
        assert lib.bg_rewind(session.handle, 0) == 0
        assert same_bits(session.forward(tokens), want)


def test_a_sequence_that_fails_is_as_it_was() -> None:
    """After a long call and after a short one, beside others; the base stays where it was meanwhile."""
    bench = lab.bench("qwen35", 0, "certified", library.host_isas()[:1])
    tokens = lab.tokens(bench.shape, 200)
    want = bench.logits(tokens)
    fine: dict[str, Any] = {"how": {"temperature": 0.0}, "count": 1, "step": 0}
    bad: dict[str, Any] = {"how": {"repeat_penalty": 1.5}, "count": 1, "step": 0, "history": [bench.shape.vocab]}
    for first in (0, 1, 7, 40):
        for n in (1, REWINDABLE, REWINDABLE + 1, 100):
            with bench.open(threads=2) as session:
                other = session.share(200)
                if first:
                    session.code(tokens[:first], None, 0)
                before = state_of(session)
                runs = [tokens[first : first + n], tokens[:3]]
                found = session.next_batch([session.handle, other], runs, [bad, {**fine, "history": tokens[:3]}])
                assert found == [bench.lib.BG_E_TOKEN, [int(want[2].argmax())]]
                assert bench.lib.bg_position(session.handle) == first
                assert np.array_equal(state_of(session), before)
                assert same_bits(session.forward(tokens[first : first + 30]), want[first : first + 30])
                bench.lib.bg_session_close(other)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", ["qwen35", "qwen35-odd"])
def test_another_session_goes_on_with_the_same_bits(name: str, cache: Cache) -> None:
    bench = lab.bench(name)
    tokens = lab.tokens(bench.shape, 70)
    want = bench.logits(tokens, cache=cache)
    with bench.open(threads=2, cache=cache) as source:
        source.code(tokens[:50], None, 0)
        state = state_of(source)
        width = int(bench.lib.bg_position_bytes(source.handle))
        positions = np.empty((50, width), np.uint8)
        assert bench.lib.bg_session_save(source.handle, 0, 50, source.ffi.from_buffer("uint8_t[]", positions)) == 0
    for level in range(len(bench.packed)):
        with bench.open(level, cache=cache) as session:
            session.code(tokens[::-1], None, 0)
            assert bench.lib.bg_rewind(session.handle, 0) == 0
            for part in (positions[:20], positions[20:]):
                raw = session.ffi.from_buffer("uint8_t[]", np.ascontiguousarray(part))
                assert bench.lib.bg_session_load(session.handle, len(part), raw) == 0
                assert session.code(tokens[50:], None, 0) == bench.lib.BG_E_STATE  # the state is another's
                assert bench.lib.bg_rewind(session.handle, 5) == bench.lib.BG_E_STATE
                null = session.ffi.from_buffer("uint8_t[]", np.empty(len(state), np.uint8))
                assert bench.lib.bg_state_save(session.handle, null) == bench.lib.BG_E_STATE
            assert load_state(session, 51, state) == load_state(session, -1, state) == bench.lib.BG_E_ARGUMENT
            assert load_state(session, 50, state) == 0
            assert np.array_equal(state_of(session), state)
            assert same_bits(session.forward(tokens[50:]), want[50:]), level
            assert load_state(session, 50, state) == 0  # back to where it was saved
            assert same_bits(session.forward(tokens[50:]), want[50:]), level


def test_any_bytes_are_taken_for_a_state() -> None:
    bench, rng = lab.bench("qwen35", 0, "certified", library.host_isas()[:1]), np.random.default_rng(0)
    tokens = lab.tokens(bench.shape, 4)
    with bench.open(threads=2) as session:
        size = int(bench.lib.bg_state_bytes(session.handle))
        for fill in (
            rng.integers(0, 256, size, np.uint8),
            np.full(size, 0xFF, np.uint8),
            np.full(size, 0x7F, np.uint8),
        ):
            assert bench.lib.bg_rewind(session.handle, 0) == load_state(session, 0, fill) == 0
            assert np.array_equal(state_of(session), fill)
            chosen = session.next(tokens, tokens, temperature=0.0)
            assert chosen == bench.lib.BG_E_VALUE or 0 <= chosen[0] < bench.shape.vocab  # type: ignore[index]


@pytest.mark.parametrize("name", ["qwen35", "qwen35-rotated"])
def test_every_step_is_timed(name: str) -> None:
    bench = lab.bench(name)
    s = bench.shape
    with bench.open() as session:
        bench.lib.bg_profile(session.handle, 1, session.ffi.NULL)
        session.code(lab.tokens(s, 5), None, 0)
        times = session.ffi.new("bg_step_time[]", bench.lib.BG_STEPS)
        bench.lib.bg_profile(session.handle, 0, times)
    steps = session.ffi.typeof("enum bg_step").elements
    calls = {steps[i].removeprefix("BG_STEP_").lower(): times[i].calls for i in range(bench.lib.BG_STEPS)}
    deltas = s.layers - s.attending
    assert [calls[step] for step in ("qkv", "o", "attention", "split_heads")] == [s.attending] * 4
    of_delta = ("delta_in", "delta_out", "enter_delta", "delta_rates", "convolve", "delta", "leave_delta")
    assert [calls[step] for step in of_delta] == [deltas] * 7
    assert calls["gate_up"] == calls["down"] == s.layers


# ---- packed files, under the sanitizers ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return sanitized_program(lab.bench("qwen35-rotated", levels=library.host_isas()[:1]))


def test_the_runner_agrees_and_is_clean(sanitized: Path) -> None:
    bench = lab.bench("qwen35-rotated", levels=library.host_isas()[:1])
    tokens = lab.tokens(bench.shape, 150)
    for options in (("--threads", "3"), ("--chunk", "7"), ("--chunk", "1", "--context", "150")):
        done = run(sanitized, bench.packed[0], " ".join(map(str, tokens)), *options)
        assert done.returncode == 0, done.stderr.decode()
        assert same_bits(np.frombuffer(done.stdout, F32).reshape(150, -1), bench.logits(tokens))


def test_absurd_headers(sanitized: Path, tmp_path: Path) -> None:
    """Dimensions that are not those of the matrices and sections; signs that are none; sections cut short."""
    whole = lab.bench("qwen35-rotated", levels=library.host_isas()[:1]).packed[0].read_bytes()
    damaged = tmp_path / "m.bgpk"

    def patched(field: str, value: int) -> Path:
        changed = bytearray(whole)
        header = headers.declared("core/model.h").from_buffer("bg_header *", changed)
        assert getattr(header, field) != value
        setattr(header, field, value)
        damaged.write_bytes(changed)
        return damaged

    for field in DELTA[:-1]:
        for value in (-1, 0, 1, 5, 1 << 14, 2**30, 2**31 - 1, -(2**31)):
            assert refused(sanitized, patched(f"delta_{field}", value), ""), (field, value)
    for field, values in (
        ("delta_rates", (-1, 1 << 30, 2)),
        ("hadamard_block", (-1, 0, 3, 128, 1 << 22, 2**31 - 1)),
        ("hadamard_signed", (-1, 0, 2)),
        ("hadamard_regrouped", (-1, 2)),
        ("attention_gate", (-1, 0, 2)),
        *((field, (1,)) for field in ("sub_norms", "input_norms", "post_norms")),
    ):
        for value in values:
            assert refused(sanitized, patched(field, value), ""), (field, value)
    signs = lab.bench("qwen35-rotated", levels=library.host_isas()[:1]).checkpoint.dense("hadamard_signs.256")
    first = whole.index(signs.astype(F32).tobytes())
    damaged.write_bytes(whole[:first] + struct.pack("<f", 0.5) + whole[first + 4 :])
    assert refused(sanitized, damaged, "not a packed model")
    for size in range(600, len(whole), len(whole) // 40):
        damaged.write_bytes(whole[:16] + struct.pack("<Q", size) + whole[24:size])
        assert refused(sanitized, damaged, "not a packed model"), size


# ---- faults that must be noticed -----------------------------------------------------------------------------

FAULTS = {  # file of runtime/, what stands there, what does not belong there
    "the gate is missing": ("core/forward.c", "c->attention_gate && head", "0 && head"),
    "heads are not regrouped": ("core/forward.c", "return c->hadamard_regrouped ?", "return 0 ?"),
    "states are not rotated before the head": ("core/forward.c", "  rotate(s, WIDTH_HIDDEN, h, 0);\n", ""),
    "a state outlives its sequence": ("core/delta_tasks.c", "memset(d->base, 0, delta_bytes(of));", ";"),
    "the base is not copied": ("core/delta_tasks.c", "memcpy(d->now + at, d->base + at", "memcpy(d->now, d->now"),
    "inputs are not logged": ("core/delta_tasks.c", "memcpy(logged_inputs(s, d, position) + of->at, x", "memcpy(x, x"),
    "rates are not logged": ("core/delta_tasks.c", "memcpy(logged_rates(s, d, position), decay", "memcpy(decay, decay"),
    "a failed sequence keeps its state": ("core/session.c", "go_back(sessions[i], sessions[i]->began);",
                                          "sessions[i]->position = sessions[i]->began;"),
}  # fmt: skip


def goes_wrong(bench: lab.Bench) -> bool:
    """Whether a short story of appending, failing and going back shows other bits than the definition."""
    tokens = lab.tokens(bench.shape, 60)
    want = lab.logits(bench.checkpoint, tokens, "f16")
    bad: dict[str, Any] = {"how": {"repeat_penalty": 1.5}, "count": 1, "step": 0, "history": [bench.shape.vocab]}
    with bench.open() as session:
        session.code(tokens[::-1][:20], None, 0)
        bench.lib.bg_rewind(session.handle, 0)
        parts = [session.forward(tokens[:3])]
        session.next_batch([session.handle], [tokens[:2]], [bad])
        parts.append(session.forward(tokens[3:30]))
        for at in range(30, 60, 6):
            session.code([*tokens[at : at + 4], 0, 1], None, 0)
            bench.lib.bg_rewind(session.handle, at + 4)
            parts.append(session.forward(tokens[at + 3 : at + 6][1:]))
            want[at : at + 4] = np.nan
    got = np.concatenate(parts)
    return not same_bits(got, want[~np.isnan(want[:, 0])])


def test_the_story_goes_right_as_it_is() -> None:
    assert not goes_wrong(lab.bench("qwen35-rotated", levels=library.host_isas()[:1]))


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, right, wrong = FAULTS[fault]
    files = library.runtime_files

    def with_fault(*patterns: str) -> dict[str, str]:
        found = files(*patterns)
        if file in found:
            assert right in found[file]
            found[file] = found[file].replace(right, wrong)
        return found

    monkeypatch.setattr(library, "runtime_files", with_fault)
    assert goes_wrong(lab.bench.__wrapped__("qwen35-rotated", levels=library.host_isas()[:1]))
