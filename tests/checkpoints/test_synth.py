"""Synthetic models: the same from the same seed, of sane values, and small in memory while written."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf_files import SHAPES, SMALLEST, TINY, TINY_LLAMA

from bitgen.checkpoints import presets, reference, synth
from bitgen.checkpoints.tensors import is_ternary, tensor_shapes
from bitgen.errors import FormatError
from bitgen.gguf.reader import read_gguf
from bitgen.gguf.rope_keys import TABLE
from bitgen.gguf.tensors import renamed
from bitgen.gguf.writer import default_type, tensor_table, write_gguf
from bitgen.text.tokenizer import Tokenizer

UP = "blk.1.ffn_up.weight"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_seed_is_a_file(tmp_path: Path) -> None:
    """The digest is of this file on every host and with every NumPy: only raw generator bits go into it."""
    write_gguf(tmp_path / "a.gguf", synth.SynthCheckpoint(SMALLEST, 5))
    write_gguf(tmp_path / "b.gguf", synth.SynthCheckpoint(SMALLEST, 5))
    write_gguf(tmp_path / "c.gguf", synth.SynthCheckpoint(SMALLEST, 6))
    assert digest(tmp_path / "a.gguf") == digest(tmp_path / "b.gguf") != digest(tmp_path / "c.gguf")
    assert digest(tmp_path / "a.gguf") == "7cff8cc86b9788080505f1ba9792ca2c043c7c17e44e1ac0202c59600e7b9b36"


def test_tensors_do_not_depend_on_the_order_they_are_asked_for() -> None:
    a, b = synth.SynthCheckpoint(TINY, 1), synth.SynthCheckpoint(TINY, 1)
    last = a.ternary(UP)
    for name in filter(is_ternary, tensor_shapes(TINY)):
        b.ternary(name)
    assert np.array_equal(last[0], b.ternary(UP)[0]) and last[1] == b.ternary(UP)[1]
    assert not np.array_equal(a.ternary("blk.0.ffn_up.weight")[0], last[0])
    assert a.ternary("blk.0.ffn_up.weight")[1] != last[1]


def test_chunks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = synth.SynthCheckpoint(TINY, 1)
    codes, embedding = whole.ternary(UP)[0], whole.dense("token_embd.weight")
    monkeypatch.setattr(synth, "_CHUNK", 4096)
    monkeypatch.setattr(synth, "_CODES", 4096)
    assert np.array_equal(whole.ternary(UP)[0], codes)
    assert np.array_equal(whole.dense("token_embd.weight"), embedding)


def test_binary_codes_are_signs() -> None:
    shape = dataclasses.replace(presets.load("stories"), binary=True)
    codes, scale = synth.SynthCheckpoint(shape, 1).ternary(UP)
    assert codes.all() and abs(codes.mean()) < 0.01 and 0.9 <= np.asarray(scale) * 16 <= 1.1


def test_codes_have_the_shares_of_trained_models() -> None:
    codes, scale = synth.SynthCheckpoint(presets.load("stories"), 1).ternary(UP)
    assert codes.shape == (1024, 256) and codes.dtype == np.int8
    shares = [(codes == code).mean() for code in (-1, 0, 1)]
    assert np.allclose(shares, [77 / 256, 107 / 256, 72 / 256], atol=0.005)
    assert 0.9 / np.sqrt(256 * 149 / 256) <= scale <= 1.1 / np.sqrt(256 * 149 / 256)


@pytest.mark.parametrize("shape", [TINY, TINY_LLAMA])
def test_a_layer_keeps_the_size_of_its_input(shape: object) -> None:
    checkpoint = synth.SynthCheckpoint(shape, 3)  # type: ignore[arg-type]
    x = np.random.default_rng(0).standard_normal((64, 256))
    for name in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"):
        codes, scale = checkpoint.ternary(f"blk.0.{name}.weight")
        assert 0.8 < np.std(x @ codes.T * scale) < 1.25
    norm = checkpoint.dense("blk.0.attn_norm.weight")
    assert norm.dtype == np.float32 and norm.shape == (256,) and 0.9 <= norm.min() < norm.max() <= 1.1


@pytest.mark.parametrize("name", ["qwen35", "qwen35 rotated"])
def test_states_of_a_hybrid_neither_grow_nor_vanish(name: str) -> None:
    checkpoint = synth.SynthCheckpoint(SHAPES[name], 3)
    decay, step = checkpoint.dense("blk.0.ssm_a"), checkpoint.dense("blk.0.ssm_dt.bias")
    assert -2 <= decay.min() < decay.max() <= -0.05 and -4 <= step.min() < step.max() <= -1
    x = np.random.default_rng(0).standard_normal((64, 256))
    assert 0.3 < np.std(x @ checkpoint.dense("blk.0.ssm_alpha.weight").astype(np.float64).T) < 0.8
    logits = reference.forward(checkpoint, np.random.default_rng(1).integers(0, 300, 120))
    assert np.isfinite(logits).all()
    spread = logits.std(axis=1)
    assert 1 < spread.min() < spread.max() < 4


def test_the_embedding_is_not_degenerate() -> None:
    embedding = synth.SynthCheckpoint(TINY, 3).dense("token_embd.weight")
    assert embedding.shape == (300, 256) and embedding.dtype == np.float16
    assert len(np.unique(embedding, axis=0)) == 300
    logits = np.random.default_rng(0).standard_normal((16, 256)) @ embedding.astype(np.float64).T
    assert 1.5 < logits.std() < 2.5


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_has_a_file(name: str) -> None:
    shape = presets.load(name)
    entries = [e for e in tensor_table(shape, default_type(shape)) if e.name != TABLE]
    assert [renamed(shape.architecture, e.name) for e in entries] == list(tensor_shapes(shape))


@pytest.mark.parametrize("size", [1, 40, 256, 257, 258, 259, 1000])
def test_the_vocabulary_spells_what_it_can(size: int) -> None:
    keys = synth.vocabulary(size)
    spelt = 256 if size == 257 else size
    assert len(keys["tokenizer.ggml.tokens"]) == len(keys["tokenizer.ggml.token_type"]) == spelt
    tokenizer = Tokenizer.from_metadata(keys)
    if size < 258:
        assert tokenizer.bos is None
        return
    text = "Once upon a time… 你好\n"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos == size - 2 and tokenizer.stop_ids == {size - 1}
    assert tokenizer.decode(ids) == text
    assert all(tokenizer.decode([id]) for id in range(258, size - 2))


def test_other_tensors_are_refused() -> None:
    checkpoint = synth.SynthCheckpoint(TINY)
    for name in ("blk.2.attn_q.weight", "output.weight"):
        with pytest.raises(FormatError, match=name):
            checkpoint.dense(name)
    with pytest.raises(FormatError):
        checkpoint.ternary("token_embd.weight")


def test_2b4t_is_written_in_little_memory(tmp_path: Path) -> None:
    """Two of its thirty layers: memory follows the largest tensor, the embedding, and not the layers."""
    code = (
        "import dataclasses, re, sys\n"
        "from bitgen.checkpoints import presets, synth\n"
        "from bitgen.gguf.writer import write_gguf\n"
        "shape = dataclasses.replace(presets.load('2B4T'), layers=2)\n"
        "write_gguf(sys.argv[1], synth.SynthCheckpoint(shape, 1))\n"
        "status = open('/proc/self/status').read()\n"  # ru_maxrss would begin with that of the parent
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1])\n"
    )
    path = tmp_path / "m.gguf"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.2 * 1024**2  # KiB; 2 GiB are allowed
    shape = read_gguf(path).shape
    assert shape == dataclasses.replace(presets.load("2B4T"), layers=2)
    assert path.stat().st_size < 900e6
