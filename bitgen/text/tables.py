"""A tokenizer as one block of bytes, for runtime/text/vocabulary.c: sorted tables that are used where they lie.

What letters, numbers and spaces are, and how characters compose, is asked of the `tokenizers` package, code point
by code point, so that C and Python agree whatever version of Unicode either knows. `runtime/text/vocabulary.h`
describes the bytes.
"""

from __future__ import annotations

import functools
import struct
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, normalizers, pre_tokenizers

from bitgen.errors import UnsupportedError
from bitgen.text.tokenizer import BYTE, BYTE_ALPHABET, GPT2, LLAMA3, QWEN2, Tokenizer

MAGIC, VERSION, ALIGN = b"BITGENTK", 1, 64
BYTE_LEVEL, WHOLE_WORDS, NFC, SPACE_PREFIX, ADD_BOS, BYTE_FALLBACK = (1 << n for n in range(6))
CLASSES = {r"\p{L}": 1, r"\p{N}": 2, r"[\p{P}\$\+<=>\^~\|]": 4, r"\s": 8}
"""Character classes of the patterns -> LETTER, NUMBER, PUNCTUATION, SPACE."""
SPLITS = {
    LLAMA3: 1,
    QWEN2: 2,
    GPT2: 3,
    r"[\p{P}\$\+<=>\^~\|]+": 4,
    r"\p{N}+": 5,
    "[0-9][0-9][0-9]": 6,
}
"""Patterns -> SPLIT_LLAMA3 and so on, functions of runtime/text/pretokenizer.c."""

_HEADER = struct.Struct("<8sIIIIii8s28I40x")
LAST_CODE = 0x10FFFF
_CODES = [*range(0xD800), *range(0xE000, LAST_CODE + 1)]
"""Every code point that a text may hold."""
_FEW = 4096  # characters at a time: the package is slow on long texts
_HANGUL = range(0xAC00, 0xAC00 + 11172)

Table = npt.NDArray[Any]


def blob(tokenizer: Tokenizer) -> bytes:
    """The bytes that `vocabulary_open` takes; UnsupportedError for a pattern that the C does not know."""
    v = tokenizer.vocabulary
    strings, where = bytearray(), dict[bytes, tuple[int, int]]()

    def span(text: bytes) -> tuple[int, int]:
        if text not in where:
            where[text] = len(strings), len(text)
            strings.extend(text)
        return where[text]

    def entries(ids: Iterable[tuple[bytes, int]]) -> list[tuple[int, ...]]:
        return [(*span(text), id) for text, id in sorted(ids)]

    pieces = [span(tokenizer.piece(id)) for id in range(len(v.tokens))]
    if v.words:
        spelt = {bytes(map(BYTE_ALPHABET.__getitem__, t)): id for t, id in v.ids.items() if t and _is_spelt(t)}
        singles = [v.ids.get(char, -1) for char in sorted(BYTE_ALPHABET, key=BYTE_ALPHABET.__getitem__)]
        splits, unknown = [_split(pattern) for pattern in v.words.patterns], -1
        flags = BYTE_LEVEL | WHOLE_WORDS * v.words.ignore_merges | NFC * v.words.nfc
    else:
        spelt = {t.encode(): id for t, id in v.ids.items() if len(t) == 1}
        singles, splits = [v.ids.get(f"<0x{byte:02X}>", -1) for byte in range(256)], []
        unknown = -1 if v.unknown is None else v.ids[v.unknown]
        flags = SPACE_PREFIX * v.space_prefix | BYTE_FALLBACK * (BYTE in v.types)
    first, merges = _merges(v.ids, v.merges, len(v.tokens))
    ranks, decomposed, codes, composed = _normal_forms() if flags & NFC else ([0], [], [], [])
    sections: list[Table] = [
        _table(pieces, 2),
        _table(entries(spelt.items()), 3),
        _table(entries((text.encode(), v.ids[text]) for text, _ in v.specials(parse_special=True)), 3),
        np.array(singles, np.int32),
        first,
        merges,
        np.array(_classes() if splits else [0], np.uint32),
        _table(_folds() if splits else [], 2),
        np.array(sorted(tokenizer.stop_ids), np.int32),
        np.array(ranks, np.uint32),
        _table(decomposed, 3),
        np.array(codes, np.uint32),
        _table(composed, 3),
    ]
    flags |= ADD_BOS * tokenizer.add_bos
    bos = -1 if tokenizer.bos is None else tokenizer.bos
    body, places = bytearray(_HEADER.size), list[int]()
    for section in (np.frombuffer(bytes(strings), np.uint8), *sections):
        places += [len(body), len(section)]
        body += section.tobytes()
        body += bytes(-len(body) % ALIGN)
    numbers = (len(body), len(v.tokens), flags, bos, unknown)
    body[: _HEADER.size] = _HEADER.pack(MAGIC, VERSION, *numbers, bytes(splits), *places)
    return bytes(body)


def _is_spelt(token: str) -> bool:
    return all(char in BYTE_ALPHABET for char in token)


def _split(pattern: str) -> int:
    if pattern not in SPLITS:
        raise UnsupportedError(f"the pre-tokenizer's pattern {pattern!r} has no counterpart in text/pretokenizer.c")
    return SPLITS[pattern]


def _table(rows: Sequence[tuple[int, ...]], width: int) -> Table:
    """Rows as uint32 [len(rows), width]."""
    return np.array(rows, np.int64).reshape(-1, width).astype(np.uint32)


def _merges(ids: dict[str, int], merges: list[tuple[str, str]], tokens: int) -> tuple[Table, Table]:
    """Where each left token's merges start, uint32 [tokens + 1], and merges [n, 3]: right, rank, what they become."""
    ranked = {(ids[left], ids[right]): (rank, ids[left + right]) for rank, (left, right) in enumerate(merges)}
    rows = sorted((left, right, rank, id) for (left, right), (rank, id) in ranked.items())
    table = _table(rows, 4)
    first = np.searchsorted(table[:, 0], np.arange(tokens + 1)).astype(np.uint32)
    return first, np.ascontiguousarray(table[:, 1:])


# ---- what the package knows of characters ----


@functools.cache
def _classes() -> list[int]:
    """Steps of the classes of code points."""
    values = np.zeros(LAST_CODE + 1, np.uint32)
    for pattern, bit in CLASSES.items():
        values[_members(pattern)] |= bit
    return _steps(values)


@functools.cache
def _folds() -> list[tuple[int, int]]:
    """Pairs of code points: a character, and the letter of a contraction that it matches in any case."""
    letters = "strvemld"
    candidates = [chr(code) for code in _members(f"(?i:[{letters}])")]
    return [(ord(c), ord(letter)) for letter in letters for c in candidates if _matches(f"(?i:{letter})", c)]


def _members(pattern: str) -> list[int]:
    """The code points that a pattern for one character matches."""
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed")
    member = np.ones(len(_CODES), bool)
    for at in range(0, len(_CODES), _FEW):
        for _, (start, stop) in split.pre_tokenize_str("".join(map(chr, _CODES[at : at + _FEW]))):
            member[at + start : at + stop] = False
    return [code for code, kept in zip(_CODES, member.tolist(), strict=True) if kept]


def _matches(pattern: str, character: str) -> bool:
    return not pre_tokenizers.Split(Regex(pattern), behavior="removed").pre_tokenize_str(character)


@functools.cache
def _normal_forms() -> tuple[list[int], list[tuple[int, ...]], list[int], list[tuple[int, ...]]]:
    """Steps of the ranks of combining marks, full decompositions with the code points they point into, and pairs
    that compose. Hangul is left out: it is computed."""
    nfd, nfc = normalizers.NFD().normalize_str, normalizers.NFC().normalize_str
    chars = [chr(code) for code in _CODES[1:]]
    full = {c: parts for c, parts in zip(chars, _each(nfd, chars), strict=True) if parts != c}
    codes, decomposed, composed = list[int](), list[tuple[int, ...]](), list[tuple[int, ...]]()
    for char, parts in full.items():
        if ord(char) in _HANGUL:
            continue
        decomposed.append((ord(char), len(codes), len(parts)))
        codes += map(ord, parts)
        start = nfc(parts[:-1])
        if nfc(parts) == char and len(start) == 1:
            composed.append((ord(start), ord(parts[-1]), ord(char)))
    return _ranks([c for c in chars if c not in full]), decomposed, codes, sorted(composed)


def _ranks(chars: list[str]) -> list[int]:
    """Steps of the order of combining marks: 0 where there is none, else one more than the classes before a mark's.

    A mark of a higher class moves behind one of a lower. The marks that stand for the classes are as old as those.
    """
    nfd = normalizers.NFD().normalize_str
    classes = {unicodedata.combining(c): c for c in reversed(chars)}
    del classes[0]
    values = np.zeros(LAST_CODE + 1, np.uint32)
    marks = set[str]()
    for other in (classes[min(classes)], classes[max(classes)]):
        for pairs in ([c + other for c in chars], [other + c for c in chars]):
            marks |= {c for c, pair, made in zip(chars, pairs, _each(nfd, pairs), strict=True) if pair != made}
    for c in marks:
        values[ord(c)] = 1 + sum(nfd(c + other) != c + other for other in classes.values())
    return _steps(values)


def _each(form: Callable[[str], str], texts: list[str]) -> list[str]:
    """`form` of every text, in few calls: U+0000 between them keeps them apart."""
    parts = (texts[at : at + _FEW] for at in range(0, len(texts), _FEW))
    return [made for part in parts for made in form("\0".join(part)).split("\0")]


def _steps(values: Table) -> list[int]:
    """Where a value by code point changes: the value << 24 | the first code point that has it."""
    starts = np.flatnonzero(np.diff(values, prepend=~values[:1]))
    return [int(values[start]) << 24 | int(start) for start in starts]
