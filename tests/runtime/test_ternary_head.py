"""A ternary embedding and head, multiplied as they are: the same bits as from a float head that holds the same numbers,
and choices that are those of all logits, whatever the rows and the states.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_lab as lab
from test_choose import SAMPLINGS, disagreements

from bitgen import headers
from bitgen.checkpoints.architectures import shape_from
from bitgen.checkpoints.checkpoint import ALL, Checkpoint
from bitgen.checkpoints.synth import SynthCheckpoint
from bitgen.compile import binding, head_rows, library, pack
from bitgen.errors import FormatError, UnsupportedError
from bitgen.kernels.formats import FORMATS

BOTH: dict[str, Any] = {"ternary_embedding": True, "ternary_head": True}
OF_GROUPS: dict[str, Any] = {"hidden": 256, "sub_norms": False, "qk_norm": True, "activation": "silu"}
OF_GROUPS |= {"intermediate": 384, "group": 128}
SHAPES = {
    s.name: s
    for s in (
        lab.shape("tied", vocab=3001, **BOTH, **OF_GROUPS, embedding_scale=12.0, logit_divisor=6.0),
        lab.shape("own", vocab=2049, tied=False, **BOTH, **OF_GROUPS | {"group": 64, "hidden": 128}),
        lab.shape("whole", heads=8, vocab=700, **BOTH, **OF_GROUPS | {"intermediate": 512, "group": 256}),
        lab.shape("head", vocab=1500, tied=False, ternary_head=True, **OF_GROUPS),
        lab.shape("embedding", vocab=1500, tied=False, ternary_embedding=True, **OF_GROUPS),
    )
}
VOCAB, HIDDEN, GROUP = 2048, 256, 128
SHAPE = lab.shape("ternary-choices", vocab=VOCAB, layers=1, tied=False, ternary_head=True, **OF_GROUPS)
Ends = tuple[np.ndarray, np.ndarray]  # codes int8 [n, K], scales float32 [n, K / group]


def floats_of(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float16 [n, K]."""
    halves = np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1).astype(np.float16)
    with np.errstate(invalid="ignore"):
        return np.multiply(codes, halves, dtype=np.float16)


class Floats(SynthCheckpoint):
    """The numbers of a model under a shape that does not say that embedding and head are ternary."""

    def __init__(self, ternary: SynthCheckpoint) -> None:
        super().__init__(replace(ternary.shape, ternary_embedding=False, ternary_head=False), seed=1)
        self._of = ternary

    def dense(self, name: str, rows: slice = ALL) -> Any:
        """As the ternary model has them."""
        return self._of.dense(name, rows)


def packed(checkpoint: SynthCheckpoint, head: pack.Head, isas: tuple[str, ...], choice: int = 0) -> lab.Bench:
    lookups = [lab.lookup(checkpoint.shape, isa, choice) for isa in isas]
    folder = Path(tempfile.mkdtemp(prefix="bitgen-test-"))
    paths = tuple(folder / f"{found.isa}.bgpk" for found in lookups)
    for path, found in zip(paths, lookups, strict=True):
        pack.write(path, checkpoint, found, head)
    return lab.Bench(checkpoint.shape, checkpoint, library.for_model(checkpoint.shape, lookups), paths)


# ---- the same bits ----


@cache
def floats(name: str, head: pack.Head) -> lab.Bench:
    """The model as bitgen packed it before: float16 and, with a certificate, int8 codes."""
    return packed(Floats(SynthCheckpoint(SHAPES[name], seed=1)), head, library.host_isas()[:1])


@pytest.mark.parametrize(
    ("name", "choice"), [("tied", 0), ("tied", 1), ("own", 0), ("whole", 2), ("head", 0), ("embedding", 0)]
)
def test_logits_are_those_of_a_float_head(name: str, choice: int) -> None:
    """And those of the definition in NumPy, at every level, thread count and chunking."""
    every = library.host_isas()
    bench = packed(SynthCheckpoint(SHAPES[name], 1), "certified", every if name == "tied" else every[::3], choice)
    tokens = lab.tokens(SHAPES[name], 19)
    want = floats(name, "f16").logits(tokens)
    assert np.array_equal(want, lab.logits(bench.checkpoint, tokens))
    for level in range(len(bench.packed)):
        assert np.array_equal(bench.logits(tokens, level, threads=1 + level % 3), want), level
    for threads in (1, 2, 3):
        for chunk in (1, 2, 7):
            assert np.array_equal(bench.logits(tokens, threads=threads, chunk=chunk), want), (threads, chunk)


@pytest.mark.parametrize("name", ["tied", "own", "embedding"])
def test_texts_are_those_of_a_float_head(name: str) -> None:
    """Token by token, of every kind of head that the model can have."""
    ternary = packed(SynthCheckpoint(SHAPES[name], 1), "certified", library.host_isas()[:1])
    widened = packed(SynthCheckpoint(SHAPES[name], 1), "f16", library.host_isas()[:1])
    for how in SAMPLINGS:
        texts = []
        for bench in (ternary, widened, floats(name, "certified"), floats(name, "f16")):
            with bench.open(threads=2) as session:
                text = [1]
                for step in range(12):
                    got = session.next(text[-1:], text, step, **how)
                    assert isinstance(got, list)
                    text += got
                texts.append(text)
        assert texts.count(texts[0]) == len(texts), how


# ---- choices ----


def head_of(kind: str) -> Ends:
    """An output matrix."""
    rng = np.random.default_rng(7)
    codes = rng.integers(-1, 2, (VOCAB, HIDDEN), np.int8)
    scales = rng.uniform(0.01, 0.03, (VOCAB, HIDDEN // GROUP))
    if kind == "near ties":
        codes[:] = codes[0]
        codes[np.arange(VOCAB), rng.integers(0, HIDDEN, VOCAB)] = 0
        scales[:] = scales[0]
    if kind == "some near ties":
        codes[100:160], scales[100:160] = codes[100], scales[100] * (1 + 2.0**-9 * rng.integers(0, 2, (60, 2)))
    if kind == "duplicates":
        codes[1024:], scales[1024:] = codes[:1024], scales[:1024]
    if kind == "all magnitudes":
        scales *= 10.0 ** rng.uniform(-6, 6, (VOCAB, 1))
    if kind == "sparse":
        codes[::2] = 0
        scales[1::3, 0] = 0
    return codes, scales.astype(np.float16).astype(np.float32)


KINDS = ("plain", "near ties", "some near ties", "duplicates", "all magnitudes", "sparse")


def states_of(head: Ends) -> np.ndarray:
    """Embeddings float32 [VOCAB, HIDDEN]: random, along rows, along what rounding takes, sparse, none, of one element,
    outliers in a group, and such that nearly all of a group is rounded to 0."""
    rng, rows = np.random.default_rng(8), floats_of(*head).astype(np.float32)
    states = rng.standard_normal(rows.shape).astype(np.float32)
    states[1::7] = rows[1::7]
    states[2::7] *= rng.random(states[2::7].shape) < 0.05
    states[3::7, ::GROUP] *= 50
    states[4::7] = np.sign(rows[4::7]) * 0.49
    states[4::7, ::GROUP] = 127
    states[5::70] = 0
    states[12::70] = np.eye(HIDDEN, dtype=np.float32)[rng.integers(0, HIDDEN, len(states[12::70]))]
    states[19::70] *= 1e-30
    return states


class Crafted(SynthCheckpoint):
    """No ternary weights in layers, so that a token's state is its normed embedding; and a given head."""

    def __init__(self, embedding: np.ndarray, head: Ends, norm: float) -> None:
        super().__init__(SHAPE, seed=1)
        last = np.full(HIDDEN, norm, np.float32)
        self._head = head
        self._given = {"token_embd.weight": embedding, "output.weight": floats_of(*head), "output_norm.weight": last}

    def ternary(self, name: str) -> Any:
        """Zeros."""
        codes, scale = super().ternary(name)
        return np.zeros_like(codes), scale

    def ternary_rows(self, name: str, rows: slice) -> Any:
        """Of the given head."""
        return self._head[0][rows], self._head[1][rows]

    def dense(self, name: str, rows: slice = ALL) -> Any:
        """The given matrices; all norms but the last as they come."""
        return self._given[name][rows] if name in self._given else super().dense(name, rows)


def crafted(head: Ends, embedding: np.ndarray | None = None, norm: float = 1, levels: int = 1) -> lab.Bench:
    """For some of the levels here, the best first."""
    isas = library.host_isas()
    return packed(Crafted(states_of(head) if embedding is None else embedding, head, norm), "certified", isas[:levels])


TOKENS = [int(t) for t in np.random.default_rng(3).permutation(VOCAB)[:70]] + [5, 75, 12, 82, 19, 89]


@pytest.mark.parametrize("kind", KINDS)
def test_choices_are_those_of_all_logits(kind: str) -> None:
    assert disagreements(crafted(head_of(kind)), TOKENS) == 0


@pytest.mark.parametrize("norm", [1e-44, 1e-30, 1e20, 1e29, 1e31, 1e36])
def test_states_of_every_size(norm: float) -> None:
    """Below the normal floats, and up to where all logits are computed since a bound might be infinite."""
    assert disagreements(crafted(head_of("plain"), norm=norm), TOKENS[-20:]) == 0


def test_few_rows_are_computed_where_they_differ() -> None:
    with crafted(head_of("plain")).open(threads=3) as session:
        tokens = list(range(0, VOCAB, 7))  # random states
        for i, token in enumerate(tokens):
            session.next([token], tokens[: i + 1], temperature=0.0)
        assert len(tokens) <= session.lib.bg_rescored(session.handle) < len(tokens) * 20


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("how", [SAMPLINGS[1], SAMPLINGS[4], SAMPLINGS[6]])
def test_many_choices_at_once_are_those_one_by_one(how: dict[str, Any], threads: int) -> None:
    with crafted(head_of("some near ties")).open(threads=threads) as session:
        alone = [session.next([t], TOKENS[: i + 1], 10 + i, **how)[0] for i, t in enumerate(TOKENS)]  # type: ignore[index]
        for count in (1, 2, 3, 16, 17, len(TOKENS)):
            session.lib.bg_rewind(session.handle, 0)
            assert session.next(TOKENS, TOKENS, 10 + len(TOKENS) - count, count, **how) == alone[-count:]


def test_sequences_choose_together_as_alone() -> None:
    """Each with a sampling of its own: some need few logits, some all."""
    with crafted(head_of("plain")).open(threads=2) as session:
        asks = [
            {"how": {**SAMPLINGS[i % len(SAMPLINGS)], "seed": i}, "history": [t], "count": 1, "step": 0}
            for i, t in enumerate(TOKENS[:40])
        ]
        handles = [session.handle, *(session.share(9) for _ in asks[1:])]
        alone = []
        for handle, ask in zip(handles, asks, strict=True):
            (chosen,) = session.next_batch([handle], [ask["history"]], [ask])  # type: ignore[misc]
            session.lib.bg_rewind(handle, 0)
            alone.append(chosen)
        assert session.next_batch(handles, [ask["history"] for ask in asks], asks) == alone
        for handle in handles[1:]:
            session.lib.bg_session_close(handle)


@pytest.mark.parametrize(("claim", "choice"), [(1, 7), (0.5, 9)])
@pytest.mark.parametrize("count", [1, 5])
def test_the_bound_is_reached(claim: float, choice: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state nearly all of whose elements are rounded to 0, and along these row 7: its screened logit is 0, its true
    one the whole bound. Row 9, which meets none of them, lies at 0.8 of it. Half the norm would choose row 9."""
    state, codes = np.full(HIDDEN, 0.49, np.float32), np.zeros((VOCAB, HIDDEN), np.int8)
    state[::GROUP] = 127
    codes[7] = 1
    codes[7, ::GROUP] = 0
    codes[9, 0] = 1
    scales = np.ones((VOCAB, HIDDEN // GROUP), np.float32)
    scales[9] = np.float16(0.8 * 0.49 * (HIDDEN - 2) / 127)
    honest = head_rows.RowNorms.add

    def claimed(self: Any, rows: slice, codes: np.ndarray, scales: np.ndarray) -> None:
        honest(self, rows, codes, scales)
        self.of_rows[rows] *= np.float32(claim)

    monkeypatch.setattr(head_rows.RowNorms, "add", claimed)
    with crafted((codes, scales), np.tile(state, (VOCAB, 1))).open() as session:
        many = [1] * count
        assert session.next(many, many, count=count, temperature=0.0) == [choice] * count


# ---- packing ----


@pytest.mark.parametrize(("name", "matrices"), [("tied", 1), ("own", 2)])
def test_nothing_is_kept_twice(name: str, matrices: int) -> None:
    """A packed model is smaller than one with a float16 head by all of its float16 numbers."""
    shape = SHAPES[name]
    isas = library.host_isas()[:1]
    small = packed(SynthCheckpoint(shape, 1), "certified", isas).packed[0].stat().st_size
    large = floats(name, "f16").packed[0].stat().st_size
    layout = lab.lookup(shape, isas[0]).matrices["head"].layout
    each = FORMATS[layout.format].geometry(shape.all_matrices["head"], layout).weight_bytes
    assert large - small == matrices * (2 * shape.vocab * shape.hidden - each) - -(-4 * shape.vocab // 64) * 64


def test_an_int8_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"the head of tied is ternary: .* take --head certified"):
        pack.write(tmp_path / "m.bgpk", SynthCheckpoint(SHAPES["tied"]), lab.lookup(SHAPES["tied"], "scalar"), "int8")
    assert not list(tmp_path.iterdir())


def test_shapes_that_cannot_be_are_refused() -> None:
    values = {**vars(replace(SHAPES["tied"], architecture="qwen3", embedding_scale=1.0, logit_divisor=1.0))}
    values = {k: v for k, v in values.items() if k not in ("rope_scaling", "delta", "hadamard")}
    with pytest.raises(FormatError, match="ternary_embedding and ternary_head differ"):
        shape_from(values | {"ternary_head": False}, "here")
    with pytest.raises(FormatError, match="group is 0; their scales are those of groups"):
        shape_from(values | {"group": 0}, "here")


@pytest.mark.parametrize("bad", [1 / 3, np.inf, np.nan, -1.0])
def test_scales_that_kernels_cannot_hold_are_refused(tmp_path: Path, bad: float) -> None:
    head = head_of("plain")
    head[1][3, 1] = bad
    checkpoint: Checkpoint = Crafted(np.ones((VOCAB, HIDDEN), np.float32), head, 1)
    with pytest.raises(UnsupportedError, match=r"output.weight: a scale of a group is not a finite float16 number"):
        pack.write(tmp_path / "m.bgpk", checkpoint, lab.lookup(SHAPE, "scalar"), "certified")
    assert not list(tmp_path.iterdir())


# ---- files that are not as they were written ----


def sanitized_run(program: Path, path: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [str(program), arguments[0], str(path), *arguments[1:], "--threads", "2"]
    return subprocess.run(command, input=b"1 2 3 4 5 6 7", capture_output=True, timeout=120)


def patched(packed: bytes, **fields: int) -> bytes:
    changed = bytearray(packed)
    header = headers.declared("core/model.h").from_buffer("bg_header *", changed)
    for field, value in fields.items():
        setattr(header, field, value)
    return bytes(changed)


@pytest.mark.parametrize("name", ["tied", "own"])
def test_bad_files_are_harmless(name: str, tmp_path: Path) -> None:
    """Under sanitizers: the sound file gives its logits; any kind of head is refused or computes something, and so do
    files cut short and any bytes in place of a packed matrix and its norms."""
    bench = packed(SynthCheckpoint(SHAPES[name], 1), "certified", library.host_isas()[:1])
    program, damaged = lab.sanitized(bench.artefact.folder, library.host_isas()[0]), tmp_path / "m.bgpk"
    sound = sanitized_run(program, bench.packed[0], "logits")
    assert sound.stderr == b"" and np.array_equal(
        np.frombuffer(sound.stdout, np.float32).reshape(7, -1), bench.logits([1, 2, 3, 4, 5, 6, 7])
    )
    whole = bench.packed[0].read_bytes()
    kinds = headers.constants("core/model.h", "bg_head")
    for head in range(kinds["HEAD_KINDS"]):
        for embedding in range(5):
            damaged.write_bytes(patched(whole, head=head, embedding=embedding))
            done = sanitized_run(program, damaged, "generate", "2")
            same = whole == damaged.read_bytes()
            assert done.returncode == (0 if same else 1) and done.stderr.count(b"\n") == (not same), (head, embedding)
    for size in range(len(whole) - 64, 512, -(len(whole) // 9)):
        damaged.write_bytes(patched(whole, file_bytes=size)[:size])
        assert sanitized_run(program, damaged, "logits").returncode == 1
    rng = np.random.default_rng(0)
    for start in (512, len(whole) - 4 * SHAPES[name].vocab - 50_000):
        noise = bytearray(whole)
        noise[start : start + 40_000] = rng.bytes(40_000)
        damaged.write_bytes(noise)
        done = sanitized_run(program, damaged, "generate", "3")
        assert done.stderr.count(b"\n") <= 1 and done.returncode in (0, 1), done.stderr.decode()


def test_a_library_without_kernels_for_a_ternary_head_refuses_one(tmp_path: Path) -> None:
    bench = lab.bench("flagship", levels=library.host_isas()[:1])
    whole, out = bench.packed[0].read_bytes(), binding.ffi().new("bg_model **")
    kinds = headers.constants("core/model.h", "bg_head")
    for fields in ({"head": kinds["HEAD_OWN_TERNARY"]}, {"head": kinds["HEAD_TIED_TERNARY"]}, {"embedding": 3}):
        (tmp_path / "m.bgpk").write_bytes(patched(whole, **fields))
        assert bench.lib.bg_open(str(tmp_path / "m.bgpk").encode(), 0, out) == bench.lib.BG_E_NO_KERNEL
