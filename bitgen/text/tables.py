"""A tokenizer as one block of bytes, for runtime/text/vocabulary.c: sorted tables that are used where they lie.

What letters, numbers and spaces are, and how characters compose, is asked of the `tokenizers` package, code point
by code point, so that C and Python agree whatever version of Unicode either knows. `runtime/text/vocabulary.h`
declares the bytes: numbers and structs are taken from there.
"""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, normalizers, pre_tokenizers

from bitgen import headers
from bitgen.errors import UnsupportedError
from bitgen.text.tokenizer import BYTE, BYTE_ALPHABET, CJK, GPT2, HUNYUAN, LLAMA3, QWEN2, QWEN35, Tokenizer, Vocabulary

HEADER, MAGIC = "text/vocabulary.h", b"BITGENTK"
CLASSES = {
    r"\p{L}": "LETTER",
    r"\p{N}": "NUMBER",
    r"[\p{P}\$\+<=>\^~\|]": "PUNCTUATION",
    r"\s": "SPACE",
    r"\p{M}": "MARK",
    r"[\p{P}\p{S}]": "SIGN",
}
"""Pattern for one character -> `enum character_class`."""
SPLITS = {
    LLAMA3: "SPLIT_LLAMA3",
    QWEN2: "SPLIT_QWEN2",
    GPT2: "SPLIT_GPT2",
    r"[\p{P}\$\+<=>\^~\|]+": "SPLIT_PUNCTUATION",
    r"\p{N}+": "SPLIT_NUMBERS",
    "[0-9][0-9][0-9]": "SPLIT_DIGITS",
    r"\p{N}{1,3}": "SPLIT_FEW_NUMBERS",
    CJK: "SPLIT_CJK",
    HUNYUAN: "SPLIT_HUNYUAN",
    QWEN35: "SPLIT_QWEN35",
}
"""Pattern that cuts text -> `enum split`: a function of runtime/text/pretokenizer.c."""

_CODES = [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]
"""Every code point that a text may hold."""
_FEW = 4096  # characters at a time: the package is slow on long texts
_HANGUL = range(0xAC00, 0xAC00 + 11172)

Array = npt.NDArray[Any]
Rows = list[Any]
"""Elements of a section, as the tuples that its struct is filled with."""


def blob(tokenizer: Tokenizer) -> bytes:
    """The bytes that `vocabulary_open` takes; UnsupportedError for a pattern that the C does not know."""
    v = tokenizer.vocabulary
    kind = _byte_level(v) if v.words else _sentencepiece(v)
    flags = kind.flags | ({"ADD_BOS"} if tokenizer.add_bos else set())
    numbers = headers.constants(HEADER, "flag")
    return _file(
        _sections(tokenizer, kind),
        tokens=len(v.tokens),
        flags=sum(numbers[name] for name in flags),
        bos=-1 if tokenizer.bos is None else tokenizer.bos,
        unknown=kind.unknown,
        splits=kind.splits,
    )


@dataclass(frozen=True)
class _Kind:
    """What the two kinds of vocabulary do differently."""

    flags: set[str]  # of `enum flag`
    spelt: dict[bytes, int]  # tokens that a word may be made of
    bytes: list[int]  # [256]: the token that a word's byte begins as, or -1
    splits: list[int]  # of `enum split`
    unknown: int  # the token for what cannot be spelt, or -1


def _byte_level(v: Vocabulary) -> _Kind:
    assert v.words
    flags = {"BYTE_LEVEL": True, "WHOLE_WORDS": v.words.ignore_merges, "NFC": v.words.nfc}
    return _Kind(
        {name for name, on in flags.items() if on},
        {bytes(map(BYTE_ALPHABET.__getitem__, t)): id for t, id in v.ids.items() if t and _is_spelt(t)},
        [v.ids.get(char, -1) for char in sorted(BYTE_ALPHABET, key=BYTE_ALPHABET.__getitem__)],
        [_split(pattern) for pattern in v.words.patterns],
        -1,
    )


def _sentencepiece(v: Vocabulary) -> _Kind:
    flags = {"SPACE_PREFIX": v.space_prefix, "BYTE_FALLBACK": BYTE in v.types}
    return _Kind(
        {name for name, on in flags.items() if on},
        {t.encode(): id for t, id in v.ids.items() if len(t) == 1},
        [v.ids.get(f"<0x{byte:02X}>", -1) for byte in range(256)],
        [],
        -1 if v.unknown is None else v.ids[v.unknown],
    )


def _is_spelt(token: str) -> bool:
    return all(char in BYTE_ALPHABET for char in token)


def _split(pattern: str) -> int:
    if pattern not in SPLITS:
        raise UnsupportedError(f"the pre-tokenizer's pattern {pattern!r} has no counterpart in text/pretokenizer.c")
    return headers.constants(HEADER, "split")[SPLITS[pattern]]


def _sections(tokenizer: Tokenizer, kind: _Kind) -> dict[str, Rows]:
    """Section -> its elements."""
    v = tokenizer.vocabulary
    strings, spans = bytearray(), dict[bytes, tuple[int, int]]()

    def span(text: bytes) -> tuple[int, int]:
        if text not in spans:
            spans[text] = len(strings), len(text)
            strings.extend(text)
        return spans[text]

    def entries(ids: Iterable[tuple[bytes, int]]) -> Rows:
        return [(span(text), id) for text, id in sorted(ids)]

    merge_first, merges = _merges(v.ids, v.merges, len(v.tokens))
    ranks, decomposed, codes, composed = _normal_forms() if "NFC" in kind.flags else ([0], [], [], [])
    return {
        "PIECES": [span(tokenizer.piece(id)) for id in range(len(v.tokens))],
        "SPELLINGS": entries(kind.spelt.items()),
        "SPECIALS": entries((text.encode(), v.ids[text]) for text, _ in v.specials(parse_special=True)),
        "BYTES": kind.bytes,
        "MERGE_FIRST": merge_first,
        "MERGES": merges,
        "CLASSES": _classes() if kind.splits else [0],
        "FOLDS": _folds() if kind.splits else [],
        "STOPS": sorted(tokenizer.stop_ids),
        "RANKS": ranks,
        "DECOMPOSED": decomposed,
        "CODES": codes,
        "COMPOSED": composed,
        "STRINGS": list(strings),  # last: all spans are made
    }


def _merges(ids: dict[str, int], merges: list[tuple[str, str]], tokens: int) -> tuple[Rows, Rows]:
    """Where each left token's merges start, [tokens + 1], and merges: right, rank, what they become."""
    ranked = {(ids[left], ids[right]): (rank, ids[left + right]) for rank, (left, right) in enumerate(merges)}
    rows = sorted((left, right, rank, id) for (left, right), (rank, id) in ranked.items())
    first = np.searchsorted([left for left, *_ in rows], np.arange(tokens + 1))
    return first.tolist(), [(right, rank, id) for _, right, rank, id in rows]


def _file(sections: dict[str, Rows], **fields: Any) -> bytes:
    """A header with these fields, and the sections."""
    declared, file = headers.declared(HEADER), headers.constants(HEADER, "vocabulary_file")
    pointers = dict(declared.typeof("vocabulary").fields)
    body, places = bytearray(declared.sizeof("vocabulary_header")), []
    order = headers.constants(HEADER, "section")
    for name in sorted(order, key=order.__getitem__)[: order["SECTIONS"]]:
        element = headers.dtype(pointers[name.lower()].type.item)
        places.append({"offset": len(body), "count": len(sections[name])})
        body += np.array(sections[name], element).tobytes()
        body += bytes(-len(body) % file["SECTION_ALIGN"])
    header = {"magic": MAGIC, "version": file["VOCABULARY_VERSION"], "bytes": len(body), "sections": places, **fields}
    return headers.record(HEADER, "vocabulary_header", header) + body[declared.sizeof("vocabulary_header") :]


# ---- what the package knows of characters ----


@functools.cache
def _classes() -> list[int]:
    """Steps of the classes of code points."""
    values, bits = np.zeros(sys.maxunicode + 1, np.uint32), headers.constants(HEADER, "character_class")
    for pattern, name in CLASSES.items():
        values[_members(pattern)] |= bits[name]
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
    values = np.zeros(sys.maxunicode + 1, np.uint32)
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


def _steps(values: Array) -> list[int]:
    """Where a value by code point changes: the value above the first code point that has it."""
    starts = np.flatnonzero(np.diff(values, prepend=~values[:1]))
    shift = headers.constants(HEADER, "vocabulary_file")["STEP_SHIFT"]
    return [int(values[start]) << shift | int(start) for start in starts]
