"""The pairs of tokens that byte-pair encoding joins, first to last, as each kind of vocabulary says them.

A vocabulary is untrusted. The pairs of n pieces may be n^2 / 2, so they are counted before any is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bitgen.errors import FormatError, UnsupportedError, quoted

Merges = list[tuple[str, str]]

LONGEST_PIECE = 1024
MOST_PAIRS, MOST_CHARACTERS = 1 << 21, 1 << 25
"""Pairs of all pieces, and characters of these: Gemma's 262,144 pieces have a quarter and a tenth of that."""


def listed_merges(merges: Sequence[Any], ids: Mapping[str, int]) -> Merges:
    """The pairs of a list of texts like "lo w". FormatError: one is no pair of tokens that makes a token."""
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
        if not left or not right:
            raise FormatError(f"tokenizer.ggml.merges holds {quoted(merge)}; expected two tokens")
        if left not in ids or right not in ids or left + right not in ids:
            raise FormatError(f"tokenizer.ggml.merges holds {quoted(merge)}; the two or what they make are no tokens")
        pairs.append((left, right))
    return pairs


def merges_of_pieces(scores: Mapping[str, float], ids: Mapping[str, int]) -> Merges:
    """The pairs of pieces that make a piece, best score first. scores: of the pieces that may be joined.

    SentencePiece joins the neighbours whose union scores best, the leftmost of equals. A merge list says the same once
    all the pairs of one piece rank next to each other.
    UnsupportedError: a piece is too long, or the pairs are too many.
    """
    pieces = [piece for piece in scores if piece]
    if any(len(piece) > LONGEST_PIECE for piece in pieces):
        raise UnsupportedError(f"tokenizer.ggml.tokens holds a piece of more than {LONGEST_PIECE} characters")
    cuts = _cuts(pieces)
    pairs = sum(places.bit_count() for places in cuts.values())
    characters = sum(places.bit_count() * len(piece) for piece, places in cuts.items())
    if pairs > MOST_PAIRS or characters > MOST_CHARACTERS:
        raise UnsupportedError(
            f"tokenizer.ggml.tokens: {pairs} pairs of pieces, of {characters} characters, make a piece; "
            f"{MOST_PAIRS} pairs of {MOST_CHARACTERS} characters can be read"
        )
    own = {piece: piece for piece in pieces}  # no pair holds a copy
    ranked = sorted(cuts, key=lambda piece: (-scores[piece], ids[piece]))
    return [(own[piece[:cut]], own[piece[cut:]]) for piece in ranked for cut in _bits(cuts[piece])]


def _cuts(pieces: Sequence[str]) -> dict[str, int]:
    """Piece -> bit c where it falls into two pieces before character c; those that fall nowhere are left out."""
    longest = max(map(len, pieces), default=0)
    starts = _prefixes(pieces, lambda length: length)
    ends = _prefixes((piece[::-1] for piece in pieces), lambda length: longest - length)
    cuts = {piece: starts[piece] & ends[piece[::-1]] >> longest - len(piece) for piece in pieces}
    return {piece: places for piece, places in cuts.items() if places}


def _prefixes(words: Sequence[str] | Iterator[str], bit: Callable[[int], int]) -> dict[str, int]:
    """Word -> bit(length) of every other word that it begins with. In sorted order these are a stack."""
    found: dict[str, int] = {}
    begun = [("", 0)]
    for word in sorted(words):
        while not word.startswith(begun[-1][0]):
            begun.pop()
        found[word] = begun[-1][1]
        begun.append((word, found[word] | 1 << bit(len(word))))
    return found


def _bits(places: int) -> Iterator[int]:
    """The bits that are set, the highest first."""
    while places:
        highest = places.bit_length() - 1
        yield highest
        places ^= 1 << highest
