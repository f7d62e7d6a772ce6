"""Where a text ends: stop strings however they are spelt over tokens, in every way to generate."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bitgen
from bitgen.engine.stops import StoppedText, stops_of

PROMPT = "Once upon a time"
PLAIN: dict[str, Any] = {"temperature": 0, "repeat_penalty": 1}


@pytest.fixture(scope="module")
def model() -> bitgen.Model:
    return bitgen.Model.load(threads=2)


class Pieces:
    """A tokenizer whose tokens are pieces of bytes."""

    strips_first_space = False

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def piece(self, id: int) -> bytes:
        return self._pieces[id]


def pushed(text: bytes, cuts: list[int], stops: list[str]) -> tuple[list[str], str | None]:
    """What a stream gives of a text that is cut into tokens at these places."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    stream = StoppedText(Pieces(pieces), stops)  # type: ignore[arg-type]
    given = [stream.push(id) for id in range(len(pieces))]
    return [*given, stream.flush()], stream.found


def by_definition(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Before the first stop string that is complete; of two that end together the longer."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


letters = st.text("abé👩", max_size=12)


@given(
    letters, st.lists(st.text("abé👩", min_size=1, max_size=4), min_size=1, max_size=3), st.lists(st.integers(0, 99))
)
def test_the_text_does_not_depend_on_its_tokens(text: str, stops: list[str], cuts: list[int]) -> None:
    pieces, found = pushed(text.encode(), cuts, stops)
    assert ("".join(pieces), found) == by_definition(text, stops)


@given(st.binary(max_size=8), st.lists(st.sampled_from(["\ufffd", "a", "\ufffda", "é"]), min_size=1, max_size=2))
def test_bytes_that_are_no_text(raw: bytes, stops: list[str]) -> None:
    """They are U+FFFD, as everywhere, which a stop string may hold."""
    pieces, found = pushed(raw, list(range(9)), stops)
    assert ("".join(pieces), found) == by_definition(raw.decode(errors="replace"), stops)


@given(letters, st.lists(st.text("abé👩", min_size=1, max_size=4), min_size=1, max_size=3))
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    stream, said = StoppedText(Pieces([char.encode() for char in text]), stops), ""  # type: ignore[arg-type]
    for id in range(len(text)):
        said += stream.push(id)
        if stream.found is None:
            begun = [n for stop in stops for n in range(len(stop)) if text[: id + 1].endswith(stop[:n])]
            assert len(said) == id + 1 - max(begun)


def test_long_stop_strings_take_no_longer_than_the_text() -> None:
    """Where each place is looked at anew, this would take 10**10 steps."""
    stop, text = "a" * 100_000 + "b", b"a" * 200_000
    pieces, found = pushed(text, [], [stop])
    assert found is None and "".join(pieces) == text.decode()


def cases(text: str) -> list[tuple[Any, str]]:
    """Stop strings from within a text, and what is left of it."""
    middle = text[len(text) // 2 : len(text) // 2 + 9]
    stops: list[str | list[str]] = [
        middle,
        [middle],
        [middle[1:], middle[:3], "never said"],
        [middle, middle[2:4]],
        text[:1],
        ["never said"],
        [text + "and more"],
    ]
    return [(stop, by_definition(text, [stop] if isinstance(stop, str) else stop)[0]) for stop in stops]


@pytest.mark.parametrize("lookup", [0, 8])
def test_every_way_gives_the_same_text(model: bitgen.Model, lookup: int) -> None:
    prompt = "Tom has a red ball. Tom has a red ball. Tom has"
    whole = "".join(model.generate(prompt, 40, stop=False, **PLAIN))
    for stop, left in cases(whole):
        generation = model.generate(prompt, 40, stop=stop, prompt_lookup=lookup, **PLAIN)
        assert "".join(generation) == generation.text == left, stop
        assert generation.timing.stopped == ("length" if left == whole else "stop string")
        assert model.tokenizer.decode(generation.token_ids).startswith(left)
    stops = [stop for stop, _ in cases(whole)]
    with bitgen.Batch(model, 3) as batch:
        requests = [batch.submit(prompt, 40, stop=stop, **PLAIN) for stop in stops]
        pieces = dict.fromkeys(requests, "")
        while batch.busy:
            for request, piece in batch.step():
                pieces[request] += piece
    for request, (_, left) in zip(requests, cases(whole), strict=True):
        assert pieces[request] == request.text == left and request.error is None
    assert model.generate_many([prompt, PROMPT], 40, stop=stops[1], **PLAIN) == [
        cases(whole)[1][1],
        "".join(model.generate(PROMPT, 40, stop=stops[1], **PLAIN)),
    ]


def test_no_piece_is_given_that_is_not_text(model: bitgen.Model) -> None:
    whole = "".join(model.generate(PROMPT, 40, stop=False, **PLAIN))
    stop, said = whole[20:40], ""
    for piece in model.generate(PROMPT, 40, stop=[stop], **PLAIN):
        said += piece
        assert whole[:20].startswith(said)
    assert said == whole[:20]


def test_why_a_text_ends(model: bitgen.Model) -> None:
    end = "They lived happily ever after. The end."
    stopped = model.generate(end, 30, stop=["never said"], **PLAIN)
    assert "".join(stopped) == "" and stopped.timing.stopped == "stop token"  # the model's own count beside strings
    full = model.generate("word " * 120, 10**6, stop=False, **PLAIN)
    assert full.timing.stopped == "" and not full.finished
    list(full)
    assert full.timing.stopped == "context full" and len(full.history) == model.shape.context + 1
    for limit in (0, 3):
        short = model.generate(PROMPT, limit, stop=False, **PLAIN)
        assert "".join(short) is not None and short.timing.stopped == "length"
    with bitgen.Batch(model, 1, context=24) as batch:
        request = batch.submit(PROMPT, 10**6, stop=False, **PLAIN)
        while batch.busy:
            batch.step()
        assert request.timing.stopped == "context full"


def test_a_string_that_is_a_control_token(model: bitgen.Model) -> None:
    """It adds no text in which the string could be found."""
    word = "<|begin_of_text|>"
    (id,) = model.tokenizer.encode(word, add_bos=False)
    assert model.tokenizer.piece(id) == b"" and id not in model.tokenizer.stop_ids
    generation = model.generate(PROMPT, 5, stop=["abc", word])
    assert generation.accept([id]) == [] and generation.timing.stopped == "stop token"
    assert stops_of(word, model.tokenizer).tokens == {id, *model.tokenizer.stop_ids}


def test_an_answer_may_be_stopped(model: bitgen.Model) -> None:
    with bitgen.Chat(model, template="falcon3") as chat:
        whole = "".join(chat.say("Tell me a story.", 30, stop=False, **PLAIN))
        chat.clear()
        assert "".join(chat.say("Tell me a story.", 30, stop=whole[10:14], **PLAIN)) == whole[:10]
        assert chat.answer is not None and chat.answer.timing.stopped == "stop string"
        assert chat.messages[-1] == {"role": "assistant", "content": whole[:10]}


def test_what_an_argument_means(model: bitgen.Model) -> None:
    own = model.tokenizer.stop_ids
    assert own and stops_of(True, model.tokenizer).tokens == own and not stops_of(True, model.tokenizer).strings
    assert stops_of(False, model.tokenizer).tokens == frozenset()
    one = stops_of("abc", model.tokenizer)
    assert one.strings == ("abc",) and one.tokens == own
    assert stops_of(("a", "b"), model.tokenizer).strings == ("a", "b")
