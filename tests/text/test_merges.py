"""The pairs that byte-pair encoding joins: those of the definition, and never more than can be held."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgen.errors import FormatError, UnsupportedError
from bitgen.text import merges

_pieces = st.lists(st.text("ab▁😀", max_size=9), unique=True, max_size=60)


def of(pieces: Sequence[str], scores: Sequence[float] | None = None) -> merges.Merges:
    ids = {piece: i for i, piece in enumerate(pieces)}
    values = scores or [0.0] * len(pieces)
    return merges.merges_of_pieces(dict(zip(pieces, values, strict=True)), ids)


@settings(max_examples=150, deadline=None)
@given(_pieces, st.data())
def test_pairs_are_all_cuts_best_piece_first(pieces: list[str], data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.sampled_from([0.0, -1.0, -2.5]), min_size=len(pieces), max_size=len(pieces)))
    known = dict(zip(pieces, scores, strict=True))
    cuts = [
        (-score, pieces.index(piece), -cut, piece[:cut], piece[cut:])
        for piece, score in known.items()
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    assert of(pieces, scores) == [(left, right) for *_, left, right in sorted(cuts)]


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([c * n for c in "abcd" for n in range(1, 1025)], "2095104 pairs of pieces, of 1431654400 characters"),
        ([f"{i:0{n}b}" for n in range(1, 12) for i in range(1 << n)], "36868 pairs of pieces"),
        (["a" * 1025], "a piece of more than 1024 characters"),
    ],
    ids=["prefixes", "binary", "long"],
)
def test_too_many_pairs_are_refused_before_they_are_made(
    pieces: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merges, "MOST_PAIRS", 36867 if len(pieces) == 4094 else merges.MOST_PAIRS)
    tracemalloc.start()
    try:
        with pytest.raises(UnsupportedError, match=reason):
            of(pieces)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_pairs_hold_no_copies_of_pieces() -> None:
    pieces = [c * n for c in "ab" for n in range(1, 300)]
    tracemalloc.start()
    try:
        pairs = of(pieces)
        assert len(pairs) == 2 * sum(n - 1 for n in range(1, 300))
        assert tracemalloc.get_traced_memory()[0] < 100 * len(pairs)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("merge", ["a", "a ", " b", "", "a c", "c b", "b a", "x y", 3, None, "a b c"])
def test_a_listed_pair_is_two_tokens_that_make_one(merge: object) -> None:
    ids = {"a": 0, "b": 1, "ab": 2}
    assert merges.listed_merges(["a b"], ids) == [("a", "b")]
    with pytest.raises(FormatError, match=r"tokenizer\.ggml\.merges holds"):
        merges.listed_merges(["a b", merge], ids)
