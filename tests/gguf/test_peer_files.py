"""Whole files between engines: theirs run here, ours run in llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import SHAPES, TINY_LLAMA, floats, store

from bitgen import Model
from bitgen.checkpoints import synth
from bitgen.checkpoints.checkpoint import ALL, Checkpoint
from bitgen.checkpoints.rope import yarn_magnitude
from bitgen.checkpoints.tensors import is_ternary
from bitgen.data import shipped_path
from bitgen.gguf import types
from bitgen.gguf.container import Container
from bitgen.gguf.reader import read_gguf
from bitgen.gguf.writer import FILE_TYPES, write_gguf
from bitgen.measure import peer_engines
from bitgen.spec import ModelShape, RopeScaling

TOKENS = [1, 17, 300, 299, 5, 4, 319]


# ---- theirs, here ----


def like(source: Path, other: Path, to: Path) -> Path:
    """`source` with the embedding of `other`: some tools quantise it."""
    file = Container(source)
    tensors = {t.name: (t.shape, t.type, file.bytes_of(t).tobytes()) for t in file.tensors.values()}
    tensors["token_embd.weight"] = floats(read_gguf(other).dense("token_embd.weight"), types.F32)
    return store(to, file.metadata, tensors)


@pytest.mark.parametrize("name", ["bitnetcpp-i2_s", "ik-iq1_bn", "ik-iq2_bn", "ik-iq2_bn_r4"])
def test_a_file_of_another_engine_runs_like_its_source(fixtures: Path, tmp_path: Path, name: str) -> None:
    path = fixtures / f"{name}.gguf"
    theirs = Model.load(path)
    source = like(fixtures / "src-b158-f32.gguf", path, tmp_path / "source.gguf")
    ours = Model.load(source, activation=theirs.shape.activation)
    assert theirs.warning is None
    assert np.array_equal(theirs.logits(TOKENS), ours.logits(TOKENS))


# ---- ours, in llama.cpp ----

PROMPTS = ("Once upon a time", "The dog", "One day, a girl named Sue", "Tom and Ann")
STEPS = 24
MARGIN = 0.3
"""Twice the largest difference of a logit: llama.cpp rounds activations by blocks of 256, bitgen by tokens."""


class AsBitnet:
    """The shipped model as the BitNet that llama.cpp has: the same weights, SiLU for relu2."""

    def __init__(self, inner: Checkpoint) -> None:
        self.inner = inner

    @property
    def shape(self) -> ModelShape:
        return replace(self.inner.shape, architecture="bitnet", activation="silu")

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.inner.metadata

    def ternary(self, name: str) -> tuple[np.ndarray, float]:
        return self.inner.ternary(name)

    def dense(self, name: str, rows: slice = ALL) -> np.ndarray:
        return self.inner.dense(name, rows)


def llama(path: Path) -> Any:
    """A file opened by llama.cpp; the logits of all positions are kept."""
    cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install llama-cpp-python")
    return cpp.Llama(str(path), n_ctx=128, n_threads=1, logits_all=True, verbose=False)


def logits(engine: Any, tokens: list[int]) -> np.ndarray:
    """llama.cpp's logits [n, vocab] of some tokens."""
    engine.reset()
    engine.eval(tokens)
    return engine.scores[: len(tokens)].copy()


def greedy(engine: Any, tokens: list[int]) -> list[int]:
    """What llama.cpp appends, its likeliest token each time."""
    start = len(tokens)
    tokens = list(tokens)
    logits(engine, tokens)
    for _ in range(STEPS):
        tokens.append(int(engine.scores[len(tokens) - 1].argmax()))
        engine.eval(tokens[-1:])
    return tokens[start:]


def assert_same_choices(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Nearly the same logits, and the same likeliest token wherever it is no near tie."""
    for a, b in zip(ours, theirs, strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.999
        second, first = np.sort(a)[-2:]
        assert a.argmax() == b.argmax() or first - second < MARGIN


@pytest.mark.peers
@pytest.mark.parametrize("type", ["tq1_0", "tq2_0"])
def test_llama_cpp_continues_our_files_alike(tmp_path: Path, type: str) -> None:
    """The same tokens of a prompt, and the same greedy text, but for one prompt that has a near tie on its way."""
    write_gguf(tmp_path / "m.gguf", AsBitnet(read_gguf(shipped_path())), type)
    theirs, ours = llama(tmp_path / "m.gguf"), Model.load(tmp_path / "m.gguf")
    equal = 0
    for prompt in PROMPTS:
        tokens = ours.tokenizer.encode(prompt)
        assert theirs.tokenize(prompt.encode()) == tokens
        generation = ours.generate(prompt, STEPS, temperature=0, repeat_penalty=1, stop=False)
        list(generation)
        equal += greedy(theirs, tokens) == generation.token_ids
        text = tokens + generation.token_ids
        assert_same_choices(ours.logits(text), logits(theirs, text))
    assert equal >= len(PROMPTS) - 1


@pytest.mark.peers
@pytest.mark.parametrize("type", ["tq1_0", "tq2_0"])
def test_llama_cpp_agrees_on_the_llama_architecture(tmp_path: Path, type: str) -> None:
    """Permuted rows of q and k, an output matrix, scales beside the matrices."""
    write_gguf(tmp_path / "m.gguf", synth.SynthCheckpoint(TINY_LLAMA, 1), type)
    theirs, ours = llama(tmp_path / "m.gguf"), Model.load(tmp_path / "m.gguf")
    tokens = [1, 7, 200, 31, 5, 299]
    assert_same_choices(ours.logits(tokens), logits(theirs, tokens))


YARN = replace(
    SHAPES["qwen3"], context=64,
    rope_scaling=RopeScaling("yarn", 4.0, original_context=16, magnitude=yarn_magnitude(4.0)),
)  # fmt: skip
"""Qwen3 in small, its positions stretched as those of Bonsai are."""


@pytest.mark.peers
@pytest.mark.parametrize(
    ("group", "type"), [(64, "q2_0"), (128, "q2_0"), (128, "pq2_0"), (128, "ptq1_0"), (128, "q1_0")]
)
def test_llama_cpp_agrees_on_each_form_of_bonsai(tmp_path: Path, group: int, type: str) -> None:
    """The published form runs here. llama.cpp, whose Q2_0 has blocks of 64 alone, gets the same weights in those."""
    published, written = tmp_path / "m.gguf", tmp_path / "llama.gguf"
    write_gguf(published, synth.SynthCheckpoint(replace(YARN, group=group, binary=type == "q1_0"), 1), type)
    (theirs,) = {t.type for t in Container(published).tensors.values() if is_ternary(t.name)}
    assert theirs == {"q2_0": 42, "pq2_0": 142, "ptq1_0": 143, "q1_0": 41}[type]
    for_llama = peer_engines.ForLlama(read_gguf(published))
    codes, scales = for_llama.ternary("blk.1.ffn_up.weight")
    own, columns = ("q1_0", 128) if type == "q1_0" else ("q2_0", 64)
    assert for_llama.type == own and np.asarray(scales).shape == (512, 256 // columns) and codes.shape == (512, 256)
    write_gguf(written, for_llama, for_llama.type)
    tokens = [1, 7, 200, 31, 5, 299] * 8  # beyond the original context
    got, want = Model.load(published).logits(tokens), logits(llama(written), tokens)
    assert_same_choices(got, want)
    assert abs(got.std() / want.std() - 1) < 0.02


@pytest.mark.peers
@pytest.mark.parametrize(
    ("name", "group", "type"),
    [
        ("llama", 256, "tq2_0"),
        ("llama", 256, "tq1_0"),
        ("minicpm", 256, "tq2_0"),
        ("hunyuan", 256, "tq2_0"),
        ("qwen3", 64, "q2_0"),
        ("qwen3", 128, "q1_0"),
        ("bitnet", 0, "q1_0"),
    ],
)
def test_llama_cpp_agrees_on_scales_of_groups(tmp_path: Path, name: str, group: int, type: str) -> None:
    """The blocks' own scales; embeddings, residuals and logits that are scaled, and norms of heads after RoPE."""
    shape = replace(SHAPES[name], group=group, binary=FILE_TYPES[type].binary)
    write_gguf(tmp_path / "m.gguf", synth.SynthCheckpoint(shape, 1), type)
    try:
        theirs = llama(tmp_path / "m.gguf")
    except ValueError:  # the first llama.cpp with Q2_0 or Q1_0 is of 2026
        pytest.skip(f"this llama.cpp opens no {type} file of a {name} model")
    tokens = [1, 7, 200, 31, 5, 299]
    got, want = Model.load(tmp_path / "m.gguf").logits(tokens), logits(theirs, tokens)
    assert_same_choices(got, want)
    assert abs(got.std() / want.std() - 1) < 0.02  # of logits that are scaled, this is the scale
