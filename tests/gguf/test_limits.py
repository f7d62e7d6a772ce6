"""What a small file asks for is counted before it is done: a GiB and some seconds are enough for any below 10 MB."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import limits
from gguf_files import SHAPES, SMALLEST, contents, store

from bitgen.errors import BitgenError
from bitgen.gguf import info
from bitgen.gguf.container import Container
from bitgen.text.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA and /proc are Linux's")


def said(path: Path, of: Callable[[Path], object]) -> str:
    """What `of` says of a file, or its error, in a GiB of memory and a minute."""
    assert path.stat().st_size < 10 << 20
    with limits():
        try:
            return str(of(path))
        except BitgenError as error:
            return str(error)


def tokenizer(path: Path) -> str:
    """The kind of a file's tokenizer. The file may have fewer rows in its embedding than tokens, to be small."""
    return Tokenizer.from_metadata(Container(path).metadata).kind


def vocabulary(kind: str, tokens: list[str], type: int = 1, **keys: Any) -> dict[str, Any]:
    """Keys of a tokenizer whose tokens are all of one type."""
    own = {
        "model": kind,
        "tokens": tokens,
        "token_type": np.full(len(tokens), type, "<i4"),
        "scores": np.zeros(len(tokens), "<f4"),
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (own | keys).items()}


def prefixes() -> dict[str, Any]:
    return vocabulary("llama", [c * n for c in "abcdefgh" for n in range(1, 1025)])


def long_pieces() -> dict[str, Any]:
    return vocabulary("llama", ["a" * 512 + f"{i:05}" + "b" * 500 for i in range(7000)])


def chains() -> dict[str, Any]:
    begun = [c * n for c in "ab" for n in range(1, 513)]
    return vocabulary("llama", begun + ["a" * 508 + f"{i:08}" + "b" * 508 for i in range(7000)])


def merges() -> dict[str, Any]:
    return vocabulary("gpt2", ["a", "b", "ab"], merges=["a b"] * 700_000)


def merges_beyond_tokens() -> dict[str, Any]:
    return vocabulary("gpt2", ["a", "b"], merges=["a b"])


def long_special() -> dict[str, Any]:
    return vocabulary("gpt2", ["a", "b" * 9_000_000], type=3)


def many_specials() -> dict[str, Any]:
    return vocabulary("gpt2", [f"{i:04}" + "x" * 900 for i in range(9000)], type=4)


def empty_tokens() -> dict[str, Any]:
    return vocabulary("gpt2", [""] * 600_000, type=5)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (prefixes, "pairs of pieces"),
        (long_pieces, "SentencePiece BPE"),
        (chains, "characters, make a piece"),
        (merges, "byte-level BPE"),
        (merges_beyond_tokens, "merges holds 'a b'"),
        (long_special, "special tokens of more than"),
        (many_specials, "special tokens of more than"),
        (empty_tokens, "byte-level BPE"),
    ],
)
def test_vocabularies(tmp_path: Path, keys: Callable[[], dict[str, Any]], expected: str) -> None:
    metadata, tensors = contents(SMALLEST)
    assert expected in said(store(tmp_path / "m.gguf", metadata | keys(), tensors), tokenizer)


@pytest.mark.parametrize("layers", [16_000, 1_000_000])
def test_windows_of_very_many_layers(tmp_path: Path, layers: int) -> None:
    """A pattern whose period is found last."""
    metadata, tensors = contents(SHAPES["gemma3"])
    flags = np.ones(layers, bool)
    flags[-1] = False
    metadata |= {"gemma3.block_count": layers, "gemma3.attention.sliding_window": 9}
    metadata |= {"gemma3.attention.sliding_window_pattern": flags}
    path = store(tmp_path / "m.gguf", metadata, tensors)
    assert f"layers is {layers}; expected a whole number from 1 to 512" in said(path, info.describe)


HEAD = b"GGUF" + struct.pack("<I", 3)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (struct.pack("<QQ", (1 << 64) - 1, 1), "18446744073709551615 tensors"),
        (struct.pack("<QQ", 0, 1 << 63), "9223372036854775808 key-values"),
        (struct.pack("<QQQ", 0, 1, (1 << 64) - 1), "ends within key 1"),
        (struct.pack("<QQQ1sIQ", 0, 1, 1, b"a", 8, 1 << 62), "ends within a"),
        (struct.pack("<QQQ1sIIQ", 0, 1, 1, b"a", 9, 8, 1 << 62), "a claims 4611686018427387904 strings"),
        (struct.pack("<QQQ1sIIQ", 0, 1, 1, b"a", 9, 10, 1 << 61), "ends within a"),
        (struct.pack("<QQQ1sII", 0, 1, 1, b"a", 9, 9) * 100_000, "array in an array"),
        (struct.pack("<QQQ1sI", 1, 0, 1, b"t", (1 << 32) - 1), "4294967295 dimensions"),
        (struct.pack("<QQQ1sIQQQIQ", 1, 0, 1, b"t", 3, (1 << 64) - 1, 1 << 63, 2, 0, 0), "do not fit a file of"),
        (struct.pack("<QQQ1sIQQIQ", 1, 0, 1, b"t", 2, 1 << 32, 1 << 32, 35, 0), "do not fit a file of"),
        (struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 1, 1, 0, (1 << 64) - 32), "cut short or corrupt"),
        (struct.pack("<QQQ17sIQ", 0, 1, 17, b"general.alignment", 10, 1 << 63) + struct.pack("<Q", 0), "is missing"),
    ],
)
def test_counts_and_sizes(tmp_path: Path, raw: bytes, expected: str) -> None:
    (tmp_path / "m.gguf").write_bytes(HEAD + raw)
    assert expected in said(tmp_path / "m.gguf", info.describe)


def test_entries_of_all_kinds_at_their_most(tmp_path: Path) -> None:
    """65,536 key-values and as many tensors, of a hundred bytes each."""
    path = tmp_path / "m.gguf"
    keys = b"".join(struct.pack("<Q50sIB", 50, f"{i:050}".encode(), 0, 1) for i in range(1 << 16))
    rows = b"".join(
        struct.pack("<Q50sIQIQ", 50, f"{i:050}".encode(), 1, 1, 0, 0) for i in range(1 << 16)
    )  # fmt: skip
    path.write_bytes(HEAD + struct.pack("<QQ", 1 << 16, 1 << 16) + keys + rows + bytes(64))
    assert "overlap; the file is corrupt" in said(path, info.describe)
