"""The C runtime: equal to its definition in NumPy bit for bit, on every level, thread count and batching; its
sampler; its errors; and damaged files, under the sanitizers."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import struct
import subprocess
from collections import Counter
from pathlib import Path

import emulate_avx512
import numpy as np
import places
import pytest
import runtime_lab as lab

from bitgen import headers, targets
from bitgen.checkpoints import reference
from bitgen.compile import binding, head_rows, library, pack
from bitgen.compile.clang import BuildOptions, find_compiler
from bitgen.engine.opened import CACHES, Cache
from bitgen.spec import round_up

E = {
    name: getattr(binding.ffi().dlopen(None), name)
    for name in ("BG_E_ARGUMENT", "BG_E_CONTEXT", "BG_E_TOKEN", "BG_E_VALUE", "BG_E_ISA", "BG_E_IO", "BG_E_FORMAT")
}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.view(np.int32), b.view(np.int32))


# ---- logits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", lab.SHAPES)
def test_logits_are_what_the_definition_says(name: str, cache: Cache) -> None:
    bench = lab.bench(name)
    tokens = lab.tokens(bench.shape, 40)
    want = lab.logits(bench.checkpoint, tokens, cache)
    assert same_bits(bench.logits(tokens, cache=cache), want)


@pytest.mark.parametrize("name", lab.SHAPES)
def test_the_definition_is_the_right_one(name: str) -> None:
    """Nearly all tokens agree with the plain reference to float32's accuracy. In the others some activation lies so
    close to the border between two int8 values that the last bit of a float decides; such a step shows."""
    bench = lab.bench(name)
    tokens = lab.tokens(bench.shape, 40)
    want = reference.forward(bench.checkpoint, tokens)
    error = np.abs(bench.logits(tokens, cache="f32") - want).max(-1) / np.abs(want).max(-1)
    assert np.median(error) < 5e-6 and error.max() < 0.1


@pytest.mark.parametrize("cache", ["f16", "int8"])
@pytest.mark.parametrize("name", lab.SHAPES)
def test_same_bits_on_every_level_thread_count_and_batching(name: str, cache: Cache) -> None:
    bench = lab.bench(name)
    tokens = lab.tokens(bench.shape, 40)
    want = bench.logits(tokens, cache=cache)
    for level in range(len(bench.packed)):
        for threads, chunk in ((1, 1), (2, 40), (3, 7), (2, 1)):
            assert same_bits(bench.logits(tokens, level, threads, chunk, cache), want), (level, threads, chunk)


@pytest.mark.parametrize("choice", [1, 2, 3])
def test_same_bits_from_other_formats_and_tiles(choice: int) -> None:
    want, other = lab.bench("flagship"), lab.bench("flagship", choice)
    tokens = lab.tokens(want.shape, 20)
    assert same_bits(other.logits(tokens, threads=2), want.logits(tokens))
    assert same_bits(other.logits(tokens, chunk=1), want.logits(tokens))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(("name", "n"), [("flagship", 270), ("gemma3", 270), ("gemma3-inputs", 570)])
def test_contexts_of_several_blocks(name: str, n: int, cache: Cache) -> None:
    """Positions beyond the first 256 are attended to block by block, whoever computes the blocks; blocks that lie
    before a layer's window are not."""
    bench = lab.bench(name)
    tokens = lab.tokens(bench.shape, max(n, 530))
    want = bench.logits(tokens, cache=cache)
    assert same_bits(want[:n], lab.logits(bench.checkpoint, tokens[:n], cache))
    for level, threads, chunk in ((0, 2, 1), (0, 3, 100), (len(bench.packed) - 1, 2, 129)):
        assert same_bits(bench.logits(tokens, level, threads, chunk, cache), want)


def test_the_callers_rounding_does_not_matter() -> None:
    """Host programs have been seen to round otherwise or to flush denormals; that is theirs, and stays theirs."""
    bench = lab.bench("flagship")
    tokens = lab.tokens(bench.shape, 40)
    want = bench.logits(tokens)
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    upward = {"x86_64": 0x800, "arm64": 0x400000, "riscv64": 3}[targets.host_arch()]
    libm.fesetround(upward)
    try:
        got = bench.logits(tokens, threads=3)
        kept = libm.fegetround()
    finally:
        libm.fesetround(0)
    assert kept == upward and same_bits(got, want)


def test_int8_head() -> None:
    f16, int8 = lab.bench("odd-sizes"), lab.bench("odd-sizes", 0, "int8")
    tokens = lab.tokens(f16.shape, 9)
    got = int8.logits(tokens)
    scales, codes = head_rows.int8_rows(f16.checkpoint.dense("token_embd.weight"))
    assert np.abs(got - f16.logits(tokens)).max() < 0.02 * np.abs(got).max()
    for level in range(len(int8.packed)):
        assert same_bits(int8.logits(tokens, level, threads=2, chunk=4), got)
    with int8.open() as session:  # one token at a time, and only the last of several
        last = np.empty(int8.shape.vocab, np.float32)
        assert session.code(tokens, last, 0) == 0
    assert same_bits(last, got[-1])
    assert codes.dtype == np.int8 and len(scales) == round_up(int8.shape.vocab, head_rows.LANES)


def test_rewind_and_logits_on_demand() -> None:
    bench = lab.bench("flagship")
    tokens = lab.tokens(bench.shape, 30)
    want = bench.logits(tokens)
    with bench.open(threads=2) as session:
        assert session.code(tokens[:20], None, 0) == 0  # no logits wanted
        assert session.code([1, 2, 3, 4, 5], None, 0) == 0
        assert bench.lib.bg_rewind(session.handle, 20) == 0 == session.code(tokens[20:29], None, 0)
        last = np.empty(bench.shape.vocab, np.float32)
        assert session.code(tokens[29:], last, 0) == 0
        assert bench.lib.bg_position(session.handle) == 30
    assert same_bits(last, want[-1])


def test_wrong_calls_change_nothing() -> None:
    bench = lab.bench("flagship")
    tokens = lab.tokens(bench.shape, 5)
    with bench.open(context=6) as session:
        first = session.forward(tokens)
        none, lib = session.ffi.NULL, bench.lib
        assert session.code([320], None, 0) == session.code([-1], None, 0) == E["BG_E_TOKEN"]
        assert session.code([1, 2], None, 0) == E["BG_E_CONTEXT"]
        assert lib.bg_forward(session.handle, none, 1, none, 0) == E["BG_E_ARGUMENT"]
        assert lib.bg_forward(none, none, 1, none, 0) == E["BG_E_ARGUMENT"]
        assert session.code([], None, 0) == E["BG_E_ARGUMENT"]
        assert lib.bg_rewind(session.handle, 6) == lib.bg_rewind(session.handle, -1) == E["BG_E_ARGUMENT"]
        assert lib.bg_position(session.handle) == 5
        assert lib.bg_rewind(session.handle, 0) == 0
        assert same_bits(session.forward(tokens), first)
        other = session.ffi.new("bg_session **")
        for threads, context, cache in (
            (0, 6, 0),
            (-1, 6, 0),
            (1 << 20, 6, 0),
            (1, 0, 0),
            (1, 601, 0),
            (1, -5, 0),
            (1, 6, 3),
            (1, 6, -1),
        ):
            assert lib.bg_session_open(session.model, threads, context, cache, other) == E["BG_E_ARGUMENT"]
            assert other[0] == none


# ---- many sequences ------------------------------------------------------------------------------------------


def forward_batch(session: lab.Session, handles: list, runs: list[list[int]], out: np.ndarray, every: bool) -> int:  # type: ignore[type-arg]
    ffi, ids = session.ffi, np.concatenate([np.asarray(run, np.int32) for run in runs])
    at, lengths = ffi.cast("int32_t *", ids.ctypes.data), ffi.new("int32_t[]", [len(run) for run in runs])
    floats = ffi.cast("float *", out.ctypes.data)
    return int(
        session.lib.bg_forward_batch(ffi.new("bg_session *[]", handles), len(handles), at, lengths, floats, every)
    )


@pytest.mark.parametrize("cache", ["f16", "f32"])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["flagship", "one-kv", "thirds", "gemma3"])
def test_together_as_alone(name: str, threads: int, cache: str) -> None:
    """Sequences at different positions, with runs of one token and of many, some cut by the end of a chunk."""
    bench = lab.bench(name)
    texts = [lab.tokens(bench.shape, n, seed) for seed, n in enumerate((420, 40, 1, 400, 17, 9, 3))]
    want = [bench.logits(text, cache=cache) for text in texts]
    turns = [  # tokens of each sequence in each call
        (100, 0, 0, 100, 1, 0, 0),
        (290, 7, 1, 267, 3, 0, 3),
        *[(1, 1, 0, 1, 1, 1, 0)] * 8,
        (22, 25, 0, 25, 5, 1, 0),
    ]
    with bench.open(threads=threads, cache=cache) as session:
        handles = [session.handle, *(session.share(len(text)) for text in texts[1:])]
        done = [0] * len(texts)
        for turn, counts in enumerate(turns):
            who = [i for i in reversed(range(len(texts))) if counts[i]]
            runs = [texts[i][done[i] : done[i] + counts[i]] for i in who]
            every = turn % 2 == 0
            out = np.full((sum(counts) if every else len(who), bench.shape.vocab), np.nan, np.float32)
            assert forward_batch(session, [handles[i] for i in who], runs, out, every) == 0
            rows = iter(out)
            for i in who:
                done[i] += counts[i]
                for at in range(done[i] - (counts[i] if every else 1), done[i]):
                    assert same_bits(next(rows), want[i][at]), (turn, i, at)
        assert done == [len(text) for text in texts]
        assert [bench.lib.bg_position(handle) for handle in handles] == done
        for handle in handles[1:]:
            bench.lib.bg_session_close(handle)


@pytest.mark.parametrize("name", ["flagship", "gemma3", "gemma3-inputs"])
def test_a_few_rows_of_a_long_context(name: str) -> None:
    """Their attention is divided by blocks; in many rows, or alone, it is not. Blocks begin within the run."""
    bench = lab.bench(name)
    tokens = lab.tokens(bench.shape, 530)
    want = bench.logits(tokens)
    for threads in (1, 3):
        with bench.open(threads=threads) as session:
            assert session.code(tokens[:509], None, 0) == 0
            for first, n in ((509, 5), (508, 8), (511, 2), (505, 9), (500, 1), (501, 16)):
                assert bench.lib.bg_rewind(session.handle, first) == 0
                assert same_bits(session.forward(tokens[first : first + n]), want[first : first + n]), (first, n)


def test_sessions_that_share_may_close_in_any_order() -> None:
    bench = lab.bench("flagship")
    tokens = lab.tokens(bench.shape, 12)
    out = np.empty((1, bench.shape.vocab), np.float32)
    with bench.open(threads=2) as session:
        first, second = session.share(12), session.share(600)
        bench.lib.bg_session_close(first)
        bench.lib.bg_session_close(session.handle)
        assert forward_batch(session, [second], [tokens], out, False) == 0
        session.handle = second  # closed at the end
    assert same_bits(out[0], bench.logits(tokens)[-1])


@pytest.mark.parametrize("threads", [1, 3])
def test_a_prompt_taken_in_pieces_beside_others(threads: int) -> None:
    """Two sequences decode while a long prompt is appended in pieces; then it decodes with them."""
    bench = lab.bench("wide-heads", 0, "certified", library.host_isas()[:1])
    how = {"temperature": 0.8, "top_k": 20, "repeat_penalty": 1.2, "seed": 4}
    prompts = [lab.tokens(bench.shape, n, seed) for seed, n in enumerate((3, 540, 9))]
    texts = []
    for prompt in prompts:
        text = list(prompt)
        with bench.open(threads=threads) as session:
            for step in range(12):
                text += session.next(text[len(prompt) + step - 1 :] if step else text, text, step, **how)  # type: ignore[operator]
        texts.append(text[len(prompt) :])
    with bench.open(threads=threads) as session:
        handles = [session.handle, session.share(600), session.share(600)]
        got: list[list[int]] = [[], [], []]
        pieces = [prompts[1][i : i + 90] for i in range(0, 540, 90)]
        while len(got[1]) < 12:
            runs, asks = [], []
            for i, chosen in enumerate(got):
                history = prompts[i] + chosen
                run = [chosen[-1]] if chosen else pieces.pop(0) if i == 1 else prompts[i]
                count = 0 if i == 1 and pieces else 1
                runs.append(run)
                asks.append({"how": how, "history": history, "count": count, "step": len(chosen)})
            for chosen, new in zip(got, session.next_batch(handles, runs, asks), strict=True):  # type: ignore[arg-type]
                chosen += new  # type: ignore[arg-type]
        assert got[1] == texts[1]
        assert all(chosen[:12] == text and len(chosen) == 17 for chosen, text in zip(got[::2], texts[::2], strict=True))
        for handle in handles[1:]:
            bench.lib.bg_session_close(handle)


def test_wrong_batches_change_nothing() -> None:
    bench = lab.bench("flagship")
    lib, none = bench.lib, binding.ffi().NULL
    out = np.empty((8, bench.shape.vocab), np.float32)
    with bench.open(context=20) as session, bench.open(context=20) as stranger:
        a, b = session.handle, session.share(5)
        assert forward_batch(session, [a, b], [[1, 2, 3], [4, 5]], out, False) == 0
        for handles, runs, code in (
            ([a, b], [[1], [2, 3, 4, 5]], "BG_E_CONTEXT"),
            ([b, a], [[2], [1] * 18], "BG_E_CONTEXT"),
            ([a, b], [[1], [320]], "BG_E_TOKEN"),
            ([a, b], [[-1], [1]], "BG_E_TOKEN"),
            ([a, a], [[1], [1]], "BG_E_ARGUMENT"),
            ([a, b, a], [[1], [1], [1]], "BG_E_ARGUMENT"),
            ([a, stranger.handle], [[1], [1]], "BG_E_ARGUMENT"),
            ([a, none], [[1], [1]], "BG_E_ARGUMENT"),
            ([a, b], [[1], []], "BG_E_ARGUMENT"),
            ([], [[1]], "BG_E_ARGUMENT"),
        ):
            assert forward_batch(session, handles, runs, out, False) == E[code], (runs, code)
        assert lib.bg_forward_batch(none, 1, none, none, none, 0) == E["BG_E_ARGUMENT"]
        assert [lib.bg_position(s) for s in (a, b, stranger.handle)] == [3, 2, 0]
        other = session.ffi.new("bg_session **")
        for handle, context in ((a, 0), (a, 601), (a, -1), (none, 5)):
            assert lib.bg_session_share(handle, context, other) == E["BG_E_ARGUMENT"]
        assert lib.bg_session_share(a, 5, none) == E["BG_E_ARGUMENT"]
        assert forward_batch(session, [b, a], [[6], [7]], out, False) == 0
        lib.bg_session_close(b)
    assert same_bits(out[0], bench.logits([4, 5, 6])[-1]) and same_bits(out[1], bench.logits([1, 2, 3, 7])[-1])


def test_levels_and_error_texts() -> None:
    lib, ffi = lab.bench("flagship").lib, binding.ffi()
    names = [ffi.string(lib.bg_isa_name(i)).decode() for i in range(lib.bg_isa_count())]
    assert tuple(names) == library.host_isas() and lib.bg_isa_best() == 0
    assert lib.bg_isa_runs(len(names)) == lib.bg_isa_runs(-1) == 0
    assert lib.bg_kernel_count(len(names)) == E["BG_E_ISA"] and lib.bg_kernel_count(-1) > 0
    texts = {ffi.string(lib.bg_strerror(code)) for code in range(-12, 1)}
    assert len(texts) == 13 and all(len(text) > 5 for text in texts)


def test_kernels_one_by_one() -> None:
    lib, ffi = lab.bench("flagship").lib, binding.ffi()
    info, seconds = ffi.new("bg_kernel_info *"), ffi.new("double[3]")
    rng = np.random.default_rng(3)
    for index in range(lib.bg_kernel_count(0)):
        assert lib.bg_kernel_get(0, index, info) == 0
        w = rng.integers(0, 2, info.weight_bytes, dtype=np.uint8) * 0x11  # valid codes in every format
        n = min(5, info.max_n)
        q = rng.integers(-128, 128, (n, info.k), dtype=np.int8)
        results = []
        for threads in (1, 2, 3):
            y = np.full((n, info.m_pad), -1, np.int32)
            at = [ffi.cast(t, a.ctypes.data) for t, a in (("uint8_t *", w), ("int8_t *", q), ("int32_t *", y))]
            assert lib.bg_kernel_run(0, index, at[0], at[1], n, at[2], threads) == 0
            results.append(y)
        assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
        assert lib.bg_kernel_time(0, index, at[0], 1, at[1], n, 2, 3, seconds) == 0 and min(seconds) > 0
        if info.max_n == 1:
            assert lib.bg_kernel_run(0, index, at[0], at[1], 2, at[2], 1) == E["BG_E_ARGUMENT"]
    assert lib.bg_kernel_get(0, lib.bg_kernel_count(0), info) == E["BG_E_ARGUMENT"]


def test_read_bandwidth_is_plausible() -> None:
    lib, ffi = lab.bench("flagship").lib, binding.ffi()
    buffer, rate = np.ones(1 << 22, np.uint8), ffi.new("double *")
    for level in range(lib.bg_isa_count()):
        assert lib.bg_read_bandwidth(level, ffi.cast("void *", buffer.ctypes.data), buffer.nbytes, 2, 3, rate) == 0
        assert 1e7 < rate[0] < 1e13
    assert lib.bg_read_bandwidth(0, ffi.NULL, 4096, 1, 1, rate) == E["BG_E_ARGUMENT"]


# ---- sampling ------------------------------------------------------------------------------------------------


def probabilities(scores: np.ndarray, temperature: float) -> np.ndarray:
    p = np.exp((scores.astype(np.float64) - scores.max()) / temperature)
    return p / p.sum()


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    """320 different numbers in [-4, 4], every digit of them known."""
    return ((np.arange(320) * 7919 % 1009) / np.float32(126) - 4).astype(np.float32)


def draws(scores: np.ndarray, count: int, **how: float) -> Counter[int]:
    with lab.bench("flagship").open() as session:
        return Counter(session.sample(scores, step=i, **how) for i in range(count))


def test_greedy_takes_the_lowest_of_equals(scores: np.ndarray) -> None:
    tied = scores.copy()
    tied[[40, 200, 319]] = 50
    with lab.bench("flagship").open() as session:
        assert session.sample(scores, temperature=0) == scores.argmax()
        assert session.sample(tied, temperature=0) == 40
        tied[3] = np.nan
        tied[0] = np.nan
        assert session.sample(tied, temperature=0) == 40


def test_draws_follow_the_distribution(scores: np.ndarray) -> None:
    n, p = 20000, probabilities(scores, 0.7)
    seen = draws(scores, n, temperature=0.7, seed=11)
    common = np.flatnonzero(p * n > 10)
    chi2 = sum((seen[i] - n * p[i]) ** 2 / (n * p[i]) for i in common)
    assert chi2 < len(common) + 5 * (2 * len(common)) ** 0.5


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ({"top_k": 1}, lambda p: 1),
        ({"top_k": 7}, lambda p: 7),
        ({"top_k": 10**6}, lambda p: len(p)),
        ({"top_p": 0.5}, lambda p: int((np.cumsum(p) < 0.5).sum()) + 1),
        ({"top_p": 0.999}, lambda p: int((np.cumsum(p) < 0.999).sum()) + 1),
        ({"top_p": 1e-6}, lambda p: 1),
        ({"min_p": 0.2}, lambda p: int((p >= 0.2 * p[0]).sum())),
        ({"min_p": 1.0}, lambda p: 1),
        ({"top_k": 20, "top_p": 0.8}, lambda p: int((np.cumsum(p[:20] / p[:20].sum()) < 0.8).sum()) + 1),
        ({"top_k": 20, "min_p": 0.3}, lambda p: int((p[:20] >= 0.3 * p[0]).sum())),
    ],
)
def test_filters_keep_the_most_probable(scores: np.ndarray, how: dict[str, float], kept) -> None:  # type: ignore[no-untyped-def]
    p = probabilities(scores, 1.0)
    order = np.argsort(-p, kind="stable")
    allowed = set(order[: kept(p[order])].tolist())
    seen = set(draws(scores, 4000, **how))
    assert seen <= allowed
    sure = {i for i in allowed if p[i] / p[list(allowed)].sum() > 0.01}
    assert sure <= seen


def test_the_same_seed_and_step_draw_the_same(scores: np.ndarray) -> None:
    """Golden: these draws hold on every host and forever."""
    with lab.bench("flagship").open() as session:
        got = [session.sample(scores, step=i, temperature=0.9, top_p=0.95, seed=42) for i in range(8)]
        for level in range(len(lab.bench("flagship").packed)):
            with lab.bench("flagship").open(level) as other:
                assert got == [other.sample(scores, step=i, temperature=0.9, top_p=0.95, seed=42) for i in range(8)]
    assert got == [159, 33, 106, 272, 86, 272, 67, 20]


def test_repetition_penalty(scores: np.ndarray) -> None:
    first, second = np.argsort(-scores)[:2].tolist()
    how = {"temperature": 0.0, "repeat_penalty": 5.0}
    with lab.bench("flagship").open() as session:
        assert session.sample(scores, [first, first], **how) == second
        assert session.sample(scores, [first, 0, 0], repeat_last=2, **how) == first  # too long ago
        assert session.sample(scores, [first], repeat_last=0, **how) == first
        assert (
            session.sample(-np.abs(scores) - 1, [int((-np.abs(scores)).argmax())], **how)
            == np.argsort(np.abs(scores))[1]
        )
        assert session.sample(scores, [320], **how) == E["BG_E_TOKEN"]


def test_scores_that_are_no_numbers(scores: np.ndarray) -> None:
    with lab.bench("flagship").open() as session:
        for bad in (np.nan, np.inf, -np.inf):
            assert session.sample(np.full(320, bad)) == E["BG_E_VALUE"]
        masked = np.where(np.arange(320) == 7, scores, -np.inf)
        assert session.sample(masked) == session.sample(masked, temperature=1e-30) == 7
        masked[9] = np.nan
        assert {session.sample(masked, step=i, top_p=0.9) for i in range(50)} == {7}


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": np.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"min_p": 1.5},
        {"repeat_penalty": 0.0},
    ],
)
def test_wrong_sampling_is_refused(scores: np.ndarray, wrong: dict[str, float]) -> None:
    with lab.bench("flagship").open() as session:
        assert session.sample(scores, **wrong) == E["BG_E_ARGUMENT"]


# ---- packed files, under the sanitizers ----------------------------------------------------------------------


def sanitized_program(bench: lab.Bench, main: Path | None = None) -> Path:
    """A model's runner at the best level, or with another main, under the sanitizers."""
    if find_compiler(targets.platform_of()).zig:
        pytest.skip("zig has no AddressSanitizer runtime; install clang")
    return lab.sanitized(bench.artefact.folder, library.host_isas()[0], main)


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return sanitized_program(lab.bench("flagship", levels=library.host_isas()[:1]))


def run(program: Path, packed: Path, ids: str = "1 2 3", *options: str) -> subprocess.CompletedProcess[bytes]:
    command = [str(program), "logits", str(packed), *options]
    return subprocess.run(command, input=ids.encode(), capture_output=True, timeout=120)


def refused(program: Path, packed: Path, word: str) -> bool:
    done = run(program, packed)
    assert b"Sanitizer" not in done.stderr and b"runtime error" not in done.stderr, done.stderr.decode()
    return done.returncode == 1 and done.stdout == b"" and word in done.stderr.decode()


def test_the_runner_agrees_and_is_clean(sanitized: Path) -> None:
    bench = lab.bench("flagship", levels=library.host_isas()[:1])
    tokens = lab.tokens(bench.shape, 300)
    ids = " ".join(map(str, tokens))
    for options in (("--threads", "3"), ("--threads", "2", "--chunk", "7"), ("--chunk", "1", "--context", "300")):
        done = run(sanitized, bench.packed[0], ids, *options)
        assert done.returncode == 0, done.stderr.decode()
        got = np.frombuffer(done.stdout, np.float32).reshape(300, -1)
        assert same_bits(got, bench.logits(tokens))
    command = [str(sanitized), "generate", str(bench.packed[0]), "5"]
    greedy = subprocess.run(command, input=b"1 2 3", capture_output=True).stdout.split()
    assert len(greedy) == 5 and int(greedy[0]) == bench.logits([1, 2, 3])[-1].argmax()


NO_NUMBERS = ("", " 1", "1 ", "0x1", "1e1", "1.0", "-1", "1x", "99999999999", "99999999999999999999999")


@pytest.mark.parametrize(
    ("arguments", "ids", "said"),
    [
        *((("logits", "MODEL", "--threads", n), "1", "--threads: must be a whole number from 1 to 1024\n")
          for n in NO_NUMBERS),
        *((("logits", "MODEL", "--chunk", n), "1", "--chunk: must be a whole number") for n in ("0", *NO_NUMBERS)),
        *((("generate", "MODEL", n), "1", "COUNT: must be a whole number from 0 to") for n in NO_NUMBERS),
        (("logits", "MODEL", "--context", "2147483648"), "1", "--context: must be a whole number from 1 to 2147483647"),
        (("logits", "MODEL", "--cache", "f64"), "1", "--cache: must be f16, f32 or int8"),
        (("logits", "MODEL", "--chunk"), "1", "--chunk: its value is missing"),
        (("logits", "MODEL", "--chunks", "1"), "1", "--chunks: no such option"),
        (("logits", "MODEL", "--isa", "sse9"), "1", "no such ISA level"),
        *((("logits", "MODEL"), ids, "standard input: must be token ids")
          for ids in ("", "x", "1 2 x", "1,2", "1 2147483648", "0x1", "1 " + "0" * 20)),
        (("logits", "MODEL"), "1 320", "outside the vocabulary"),
        (("logits", "MODEL"), "1 -2", "outside the vocabulary"),
        (("kernels", "ISA"), "123", "standard input: ends within a call"),
        (("kernels", "ISA", "--threads", "2x"), "", "--threads: must be"),
        (("logits",), "", "usage: "),
    ],
)  # fmt: skip
def test_the_runner_refuses(sanitized: Path, arguments: tuple[str, ...], ids: str, said: str) -> None:
    """In one sentence, and not some part of what it was told."""
    packed = lab.bench("flagship", levels=library.host_isas()[:1]).packed[0]
    meant = {"MODEL": str(packed), "ISA": library.host_isas()[0]}
    command = [str(sanitized), *(meant.get(word, word) for word in arguments)]
    done = subprocess.run(command, input=ids, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("runner: ") and said in done.stderr


@pytest.mark.parametrize("name", ["wide-heads", "qwen35-rotated"])
def test_sequences_together_are_clean(name: str) -> None:
    bench = lab.bench(name, 0, "certified", library.host_isas()[:1])
    program = sanitized_program(bench, places.LABS / "batch_lab.c")
    for threads, cache in (("1", "BG_CACHE_F16"), ("3", "BG_CACHE_I8"), ("2", "BG_CACHE_F32")):
        number = str(headers.constants("bitgen.h", "bg_cache")[cache])
        command = [str(program), str(bench.packed[0]), threads, number]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_files_cut_short(sanitized: Path, tmp_path: Path) -> None:
    whole = lab.bench("flagship", levels=library.host_isas()[:1]).packed[0].read_bytes()
    damaged = tmp_path / "m.bgpk"
    assert refused(sanitized, damaged, "cannot be opened")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")  # nobody ever writes there
        assert refused(sanitized, tmp_path / "fifo", "cannot be opened")
    sizes = [0, 1, 511, 512, len(whole) - 64, len(whole) - 1, *range(600, len(whole), len(whole) // 23)]
    for size in sizes:
        damaged.write_bytes(whole[:size])
        assert refused(sanitized, damaged, "not a packed model"), size
        if size >= 512:  # a header that agrees with the shorter file
            damaged.write_bytes(whole[:16] + struct.pack("<Q", size) + whole[24:size])
            assert refused(sanitized, damaged, "not a packed model"), size
    damaged.write_bytes(whole[:16] + struct.pack("<Q", len(whole) + 64) + whole[24:] + bytes(64))
    assert refused(sanitized, damaged, "not a packed model")


SIZES = ("hidden", "intermediate", "layers", "heads", "kv_heads", "head_dim", "vocab", "context")
DELTA = ("period", "key_heads", "value_heads", "key_dim", "value_dim", "taps", "rates")
ABSURD: dict[str, tuple[float, ...]] = {
    "version": (0, 1),
    "header_bytes": (0,),
    "file_bytes": (2**64 - 1,),
    **dict.fromkeys(("rope_magnitude", "embedding_scale"), (0, -1, np.nan, np.inf)),
    **dict.fromkeys(("residual_scale", "logit_divisor"), (0, -1, np.nan, np.inf)),
    **dict.fromkeys(("norm_eps", "attention_scale"), (-1, np.nan, np.inf)),
    **dict.fromkeys(("activation", "head", "embedding", "output"), (-1, 9)),
    **dict.fromkeys(("sub_norms", "rope_interleaved", "qk_norm", "input_norms", "post_norms"), (-1, 2)),
    "qk_norm_after_rope": (-1, 1, 2),  # this model has no such norm
    "rope_dims": (-2, 0, 1, 3, 34, 1 << 30),
    "window": (-1, 1 << 30),
    "window_period": (-1, 0, 1 << 30),
    "attention_gate": (-1, 2),
    **{f"delta_{field}": (-1, 1, 1 << 30) for field in DELTA},
    "hadamard_block": (-4, 1, 2, 3, 8, 256, 1 << 30),
    **dict.fromkeys(("hadamard_signed", "hadamard_regrouped"), (-1, 1, 2)),  # it has no rotation
}
"""Field of bg_header -> values that mean nothing, whatever the model."""


def test_absurd_headers(sanitized: Path, tmp_path: Path) -> None:
    whole = lab.bench("flagship", levels=library.host_isas()[:1]).packed[0].read_bytes()
    damaged = tmp_path / "m.bgpk"

    def patched(field: str, value: float | bytes) -> Path:
        changed = bytearray(whole)
        setattr(headers.declared("core/model.h").from_buffer("bg_header *", changed), field, value)
        damaged.write_bytes(changed)
        return damaged

    for field in SIZES:
        for value in (0, -1, 3, 2**30, 2**31 - 1, -(2**31)):
            if field == "context" and 0 < value <= 1 << 24:
                continue  # no other size depends on it
            assert refused(sanitized, patched(field, value), ""), (field, value)
    for field, values in ABSURD.items():
        for value in values:
            assert refused(sanitized, patched(field, value), "not a packed model"), (field, value)
    for field, text in (("magic", b"GGUF"), ("layout", b"x" * 256)):  # with no NUL behind it
        assert refused(sanitized, patched(field, text), "not a packed model"), field
    assert refused(sanitized, patched("layout", b"qkv=other"), "other kernels")
    for field in ("input_norms", "attention_gate"):  # for matrices that are apart, or larger
        assert refused(sanitized, patched(field, 1), "lacks a kernel")


def test_values_that_are_no_numbers(sanitized: Path, tmp_path: Path) -> None:
    bench = lab.bench("flagship", levels=library.host_isas()[:1])
    whole, s = bench.packed[0].read_bytes(), bench.shape
    damaged = tmp_path / "m.bgpk"
    output_norm = 512 + s.vocab * s.hidden * 2
    frequencies = output_norm + 4 * s.hidden
    for bad in (-0.5, 1e6, np.nan, np.inf):
        damaged.write_bytes(whole[:frequencies] + struct.pack("<f", bad) + whole[frequencies + 4 :])
        assert refused(sanitized, damaged, "not a packed model"), bad
    for offset in (output_norm, frequencies + 2 * s.head_dim, len(whole) - 64):  # the last is a layer's scales
        for bad in (np.nan, np.inf, -np.inf):
            damaged.write_bytes(whole[:offset] + struct.pack("<f", bad) + whole[offset + 4 :])
            assert refused(sanitized, damaged, "NaN or infinity"), offset


def test_any_weights_and_embeddings_are_harmless(sanitized: Path, tmp_path: Path) -> None:
    """Garbage in the sections that are not checked gives garbage logits, and touches nothing else."""
    bench = lab.bench("flagship", levels=library.host_isas()[:1])
    whole = bytearray(bench.packed[0].read_bytes())
    rng = np.random.default_rng(9)
    s = bench.shape
    whole[512 : 512 + s.vocab * s.hidden * 2] = rng.integers(0, 256, s.vocab * s.hidden * 2, np.uint8).tobytes()
    first = 512 + s.vocab * s.hidden * 2 + 4 * (s.hidden + s.head_dim // 2 + sum(s.norms.values()))
    whole[first : first + 4096] = rng.integers(0, 256, 4096, np.uint8).tobytes()
    damaged = tmp_path / "m.bgpk"
    damaged.write_bytes(whole)
    ids = " ".join(map(str, lab.tokens(s, 70)))  # more than a prefill kernel takes at once
    done = run(sanitized, damaged, ids, "--threads", "2")
    assert done.returncode == 0 and done.stderr == b"", done.stderr.decode()


# ---- other architectures -------------------------------------------------------------------------------------


def test_same_bits_with_avx512(tmp_path: Path) -> None:
    """On an emulated CPU, since few hosts have it."""
    missing = emulate_avx512.available()
    if missing:
        pytest.skip(missing)
    bench = lab.bench("thirds")
    tokens = lab.tokens(bench.shape, 20)
    want = bench.logits(tokens)
    found = lab.lookup(bench.shape, "avx512vnni")
    program = library.for_model(bench.shape, [found], BuildOptions(targets.platform_of("x86_64"), "runner.c")).path
    pack.write(tmp_path / "m.bgpk", bench.checkpoint, found)
    for chunk in ("20", "1"):
        args = ["logits", "m.bgpk", "--isa", "avx512vnni", "--chunk", chunk]
        files = {"m.bgpk": (tmp_path / "m.bgpk").read_bytes()}
        out = emulate_avx512.run(program, args, files, " ".join(map(str, tokens)).encode())
        assert same_bits(np.frombuffer(out, np.float32).reshape(want.shape), want), chunk


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("arm64", "thirds"),
        ("riscv64", "thirds"),
        ("arm64", "gemma3-inputs"),
        *((arch, "qwen35-rotated") for arch in ("arm64", "riscv64")),
    ],
)
def test_same_bits_on_other_architectures(arch: str, name: str, tmp_path: Path) -> None:
    qemu = f"qemu-{targets.platform_of(arch).triple.split('-')[0]}-static"
    if shutil.which(qemu) is None:
        pytest.skip(f"{qemu} is not installed (Debian: qemu-user-static)")
    bench = lab.bench(name)
    tokens = lab.tokens(bench.shape, 20)
    want = bench.logits(tokens)
    lookups = [lab.lookup(bench.shape, target.isa) for target in targets.levels(targets.platform_of(arch))]
    program = library.for_model(bench.shape, lookups, BuildOptions(targets.platform_of(arch), "runner.c")).path
    for found in lookups:
        packed = tmp_path / f"{found.isa}.bgpk"
        pack.write(packed, bench.checkpoint, found)
        command = [qemu, *(("-cpu", "max") if arch == "arm64" else ()), str(program), "logits", str(packed)]
        done = subprocess.run(
            [*command, "--isa", found.isa, "--threads", "2", "--chunk", "9"],
            input=" ".join(map(str, tokens)).encode(),
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert same_bits(np.frombuffer(done.stdout, np.float32).reshape(want.shape), want), found.isa
