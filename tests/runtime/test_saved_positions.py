"""Keys and values out of the cache and into it again: the same bits, on every level, in any pieces; wrong calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import runtime_lab as lab

from bitgen.compile import binding
from bitgen.engine.opened import CACHES, Cache

WIDTH = {"f16": (2, 0), "f32": (4, 0), "int8": (1, 4)}  # bytes of a number, of a position's scale


def saved(session: lab.Session, first: int, n: int) -> np.ndarray:
    """Positions as bytes [n][..], behind and before bytes that must stay."""
    size = int(session.lib.bg_position_bytes(session.handle))
    room = np.full(n * size + 2, 0xAB, np.uint8)
    code = session.lib.bg_session_save(session.handle, first, n, session.ffi.from_buffer("uint8_t[]", room[1:-1]))
    assert code == 0 and room[0] == room[-1] == 0xAB
    return room[1:-1].reshape(n, size)


def load(session: lab.Session, positions: np.ndarray) -> int:
    raw = np.ascontiguousarray(positions)
    return int(session.lib.bg_session_load(session.handle, len(raw), session.ffi.from_buffer("uint8_t[]", raw)))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", ["flagship", "odd-sizes", "gemma3", "qwen3-inputs"])
def test_another_session_goes_on_with_the_same_bits(name: str, cache: Cache) -> None:
    """Between levels, at lengths around a block, in pieces, into a context of another length."""
    bench = lab.bench(name)
    shape, tokens = bench.shape, lab.tokens(bench.shape, 262)
    want = bench.logits(tokens, cache=cache)
    number, scale = WIDTH[cache]
    with bench.open(threads=2, cache=cache) as source:
        source.code(tokens[:258], None, 0)
        positions = saved(source, 0, 258)
        assert positions.shape[1] == shape.layers * shape.kv_heads * 2 * (shape.head_dim * number + scale)
        assert np.array_equal(saved(source, 100, 33), positions[100:133])
    for level in range(len(bench.packed)):
        for n, cuts in ((1, []), (255, [7]), (256, []), (257, [256]), (258, [1, 250])):
            with bench.open(level, threads=1, context=262, cache=cache) as session:
                session.code(tokens[::-1], None, 0)  # what was there does not matter
                bench.lib.bg_rewind(session.handle, 0)
                for piece in np.split(positions[:n], cuts):
                    assert load(session, piece) == 0
                assert bench.lib.bg_position(session.handle) == n
                assert np.array_equal(saved(session, 0, n), positions[:n])
                got = session.forward(tokens[n:262])
                assert np.array_equal(got.view(np.int32), want[n:262].view(np.int32)), (level, n)


def test_wrong_calls_change_nothing() -> None:
    bench = lab.bench("flagship")
    argument, context = bench.lib.BG_E_ARGUMENT, bench.lib.BG_E_CONTEXT
    ffi, lib = binding.ffi(), bench.lib
    null = ffi.NULL
    tokens = lab.tokens(bench.shape, 12)
    with bench.open(context=12) as session:
        session.code(tokens[:10], None, 0)
        positions = saved(session, 0, 10)
        room: Any = ffi.from_buffer("uint8_t[]", np.zeros_like(positions).reshape(-1))
        calls = [(-1, 1), (0, 11), (10, 1), (9, 2), (0, -1), (2**31 - 1, 1), (1, 2**31 - 1), (-(2**31), 2**31 - 1)]
        for first, n in calls:
            assert lib.bg_session_save(session.handle, first, n, room) == argument
        assert lib.bg_session_save(session.handle, 10, 0, room) == 0
        assert load(session, positions[:3]) == context and load(session, positions[:2]) == 0
        assert lib.bg_rewind(session.handle, 10) == 0
        for n in (-1, -(2**31)):
            assert lib.bg_session_load(session.handle, n, room) == argument
        assert lib.bg_session_load(session.handle, 2**31 - 1, room) == context
        assert lib.bg_session_save(null, 0, 0, room) == lib.bg_session_load(null, 0, room) == argument
        assert lib.bg_session_save(session.handle, 0, 0, null) == argument
        assert lib.bg_session_load(session.handle, 0, null) == argument
        assert lib.bg_position_bytes(null) == argument
        assert lib.bg_position(session.handle) == 10
        assert np.array_equal(session.forward(tokens[10:]), bench.logits(tokens)[10:])


@pytest.mark.parametrize("cache", CACHES)
def test_any_bytes_are_taken(cache: Cache) -> None:
    """The logits are then any numbers, or none: then nothing can be chosen from them."""
    bench, rng = lab.bench("wide-heads", 0, "certified"), np.random.default_rng(0)
    tokens = lab.tokens(bench.shape, 4)
    for fill in ("random", 0x00, 0x80, 0xFF, 0x7F):
        with bench.open(threads=2, cache=cache) as session:
            width = int(bench.lib.bg_position_bytes(session.handle))
            bytes_ = rng.integers(0, 256, (300, width), np.uint8)
            positions = bytes_ if fill == "random" else np.full((300, width), fill, np.uint8)
            assert load(session, positions) == 0
            assert np.array_equal(saved(session, 0, 300), positions)
            chosen = session.next(tokens, tokens, temperature=0.0)
            assert chosen == bench.lib.BG_E_VALUE or 0 <= chosen[0] < bench.shape.vocab  # type: ignore[index]


def test_the_declared_definition() -> None:
    assert binding.ffi().typeof("enum bg_definition").relements == {"BG_DEFINITION": 1}
