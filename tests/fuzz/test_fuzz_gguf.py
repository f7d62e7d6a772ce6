"""Whatever a GGUF file says, it is read or refused in a sentence, in bounded memory and time.

A few seconds; BITGEN_FUZZ_MINUTES=60 goes on for an hour.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import Edit, edited, edits, fuzz, limits, numbers
from gguf_files import SHAPES, SMALLEST, contents, store
from hypothesis import strategies as st

from bitgen.checkpoints.tensors import is_ternary, tensor_shapes
from bitgen.engine.embed import pooling_of
from bitgen.errors import LONGEST, BitgenError
from bitgen.gguf import cursor, i2s_layout, info
from bitgen.gguf.file import File
from bitgen.gguf.reader import read_gguf
from bitgen.spec import DeltaShape, Hadamard
from bitgen.text import tables
from bitgen.text.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA and /proc are Linux's")

WINDOWS = dataclasses.replace(
    SHAPES["gemma3 inputs"], hidden=64, intermediate=64, layers=2, heads=2, kv_heads=1, head_dim=32, vocab=300
)
GROUPS = dataclasses.replace(
    SHAPES["minicpm"], hidden=64, intermediate=64, layers=1, heads=2, kv_heads=1, head_dim=32, vocab=300, group=64
)
HYBRID = dataclasses.replace(
    SHAPES["qwen35"], hidden=64, intermediate=64, layers=2, heads=2, kv_heads=1, head_dim=32, vocab=300, group=64,
    delta=DeltaShape(period=2, key_heads=1, value_heads=2, key_dim=16, value_dim=32, taps=4),
    hadamard=Hadamard(16, signed=True, regrouped=True),
)  # fmt: skip


def bitnet() -> tuple[dict[str, Any], dict[str, Any]]:
    """A byte-level vocabulary, one scale a matrix."""
    return contents(SMALLEST)


def gemma() -> tuple[dict[str, Any], dict[str, Any]]:
    """Pieces with scores, flags of windows, every norm."""
    metadata, tensors = contents(WINDOWS)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(8)), *(c * n for c in "ab▁" for n in range(1, 9))]
    metadata |= {
        "gemma3.attention.sliding_window_pattern": np.array([True, False]),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": -np.arange(len(pieces), dtype="<f4"),
        "tokenizer.ggml.token_type": np.array([2, 3, 3, *[6] * 8, *[1] * (len(pieces) - 11)], "<i4"),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return metadata, tensors


def ternary_groups() -> tuple[dict[str, Any], dict[str, Any]]:
    """A scale for every block, and the scales of an architecture."""
    return contents(GROUPS, "q2_0")


def hybrid() -> tuple[dict[str, Any], dict[str, Any]]:
    """Gated DeltaNet, a rotation with its signs."""
    return contents(HYBRID, "q2_0")


MAKERS = [bitnet, gemma, ternary_groups, hybrid]
Contents = tuple[dict[str, Any], dict[str, Any]]


def use(path: Path) -> bool:
    """Read all there is; False where it was refused. What else is raised, memory included, is a bug."""
    read = False
    with limits():
        for reading in (_weights, _text, _facts):
            try:
                reading(path)
                read = True
            except BitgenError as error:
                assert len(str(error)) < len(str(path)) + 5 * LONGEST
                assert str(error).isprintable(), error
    return read


def _weights(path: Path) -> None:
    checkpoint = read_gguf(path)
    i2s_layout.warning(checkpoint)
    for name in tensor_shapes(checkpoint.shape):
        checkpoint.ternary(name) if is_ternary(name) else checkpoint.dense(name)


def _text(path: Path) -> None:
    tokenizer = Tokenizer.from_metadata(File(path).metadata)
    tokenizer.decode(tokenizer.encode("a <|eot_id|> bb"))
    tables.blob(tokenizer)
    pooling_of(File(path).metadata)


def _facts(path: Path) -> None:
    json.dumps(info.describe(path))


@functools.cache
def fields(make: Callable[[], Contents], folder: Path) -> tuple[bytes, list[tuple[int, int]]]:
    """A file, and where its integers are: counts, lengths, types, dimensions, offsets, as (place, bytes)."""

    class Noting(cursor.Cursor):
        def integer(self, format: str, what: str) -> int:
            found.append((self.at, struct.calcsize(format)))
            return super().integer(format, what)

    found: list[tuple[int, int]] = []
    path = store(folder / f"{make.__name__}.gguf", *make())
    assert use(path)
    mapped = File(path)
    noting = Noting(path, mapped._map)
    tensors, entries = noting.header()
    noting.key_values(entries)
    noting.tensor_table(tensors)
    return path.read_bytes(), found


@pytest.mark.parametrize("make", MAKERS)
def test_bytes_changed_anywhere(tmp_path: Path, make: Callable[[], Contents]) -> None:
    path = tmp_path / "m.gguf"
    raw, _ = fields(make, tmp_path)

    def test(changes: list[Edit]) -> None:
        path.write_bytes(edited(raw, changes))
        use(path)

    fuzz(test, edits, examples=120, share=1 / 9)


@pytest.mark.parametrize("make", MAKERS)
def test_numbers_that_say_how_much(tmp_path: Path, make: Callable[[], Contents]) -> None:
    path = tmp_path / "m.gguf"
    raw, places = fields(make, tmp_path)

    def test(changes: list[tuple[int, int]]) -> None:
        out = bytearray(raw)
        for which, number in changes:
            at, size = places[which % len(places)]
            out[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
        path.write_bytes(out)
        use(path)

    which = st.one_of(st.integers(0, 20), st.integers(0, len(places) - 1))
    fuzz(test, st.lists(st.tuples(which, numbers), min_size=1, max_size=3), examples=150, share=1 / 9)


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_values = st.one_of(
    st.booleans(), st.integers(-3, 300), numbers, st.floats(width=32), _texts, st.lists(_texts, max_size=40),
    st.lists(st.sampled_from(["a", "aa", "aaa", "b", "ab", "▁", ""]), max_size=40),
    st.lists(st.integers(-2, 300), min_size=1, max_size=400).map(np.array),
    st.lists(st.floats(width=32), min_size=1, max_size=400).map(lambda values: np.array(values, "<f4")),
    st.lists(st.booleans(), max_size=6).map(lambda values: np.array(values, bool)),
)  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
def test_keys_with_other_values(tmp_path: Path, make: Callable[[], Contents]) -> None:
    path = tmp_path / "m.gguf"
    metadata, tensors = make()
    arch = metadata["general.architecture"]
    more = ("attention.key_length", "expert_count", "rope.scaling.type", "attention.scale", "pooling_type")
    keys = [*metadata, *(f"{arch}.{key}" for key in more), "general.alignment", "split.count", "split.no"]

    def test(changes: dict[str, Any]) -> None:
        store(path, metadata | changes, tensors)
        use(path)

    changes = st.dictionaries(st.sampled_from(keys), _values, min_size=1, max_size=3)
    fuzz(test, changes, examples=150, share=1 / 9)
