"""Where a text ends: at tokens, and before strings, which may be spelt over several tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from bitgen.engine.arguments import is_list, shown
from bitgen.errors import ArgumentError, ArgumentTypeError
from bitgen.text.tokenizer import TextStream, Tokenizer

Stop: TypeAlias = bool | str | Sequence[str]
"""True: the model's stop tokens; False: none; strings: these and the model's stop tokens."""


@dataclass(frozen=True)
class Stops:
    """What ends a text."""

    tokens: frozenset[int]
    strings: tuple[str, ...] = ()


def stops_of(stop: Any, tokenizer: Tokenizer) -> Stops:
    """What an argument `stop` asks for; ArgumentError where it is none.

    A string that is how a control token is spelt is that token too: such a token adds nothing to a text.
    """
    if isinstance(stop, (bool, np.bool_)):
        return Stops(tokenizer.stop_ids if stop else frozenset())
    words = "must be True (the model's stop tokens), False (none), a string or a list of strings"
    if not isinstance(stop, str) and not is_list(stop):
        raise ArgumentTypeError(f"stop is {shown(stop)}, {words}")
    strings = [stop] if isinstance(stop, str) else list(stop)
    if not all(isinstance(each, str) for each in strings):
        raise ArgumentTypeError(f"stop is {shown(stop)}, {words}")
    if not strings or not all(strings):
        what = "an empty string, which is everywhere" if strings else "an empty list"
        raise ArgumentError(f"stop is or holds {what}; it {words}, none of them empty")
    if any("\ud800" <= char <= "\udfff" for each in strings for char in each):
        raise ArgumentError(f"stop is {shown(stop)}, which holds lone surrogates; it {words}, of valid Unicode")
    named = {tokenizer.vocabulary.ids[string] for string in strings if string in tokenizer.control_words}
    return Stops(tokenizer.stop_ids | named, tuple(strings))


class StoppedText:
    """Text from ids as they come. Held back is what may be incomplete: a character, or the beginning of a stop string.

    The text ends before the first stop string that is complete; of two that end together the longer counts. So it
    depends neither on how the text is cut into tokens nor on how many come at once.
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str] = ()) -> None:
        self.found: str | None = None  # the stop string that ended the text
        self._stream = TextStream(tokenizer)
        self._searches = [_Search(string) for string in strings]
        self._held = ""

    def push(self, id: int) -> str:
        """The text that this token decides, perhaps none; nothing more once a stop string is found."""
        return self._decided(self._stream.push(id))

    def flush(self) -> str:
        """What is held back at the end of the text."""
        text = self._decided(self._stream.flush())
        held, self._held = self._held, ""
        return text + held

    def _decided(self, piece: str) -> str:
        if not self._searches or self.found is not None:
            return piece if self.found is None else ""
        for i, char in enumerate(piece, 1):
            complete = [search.string for search in self._searches if search.push(char)]
            if complete:
                self.found = max(complete, key=len)
                text, self._held = self._held + piece[:i], ""
                return text[: -len(self.found)]
        text = self._held + piece
        at = len(text) - max(search.matched for search in self._searches)
        self._held = text[at:]
        return text[:at]


class _Search:
    """One string searched for in a text that comes character by character (Knuth, Morris and Pratt, 1977)."""

    def __init__(self, string: str) -> None:
        self.string, self.matched = string, 0  # characters of the string that the text ends with
        self._shorter = [0]  # of a beginning that is n + 1 long: the longest shorter one with which it ends
        for char in string[1:]:
            self._shorter.append(self._longest(self._shorter[-1], char))

    def push(self, char: str) -> bool:
        """Whether the text, with one more character, ends with the string."""
        self.matched = self._longest(self.matched, char)
        return self.matched == len(self.string)

    def _longest(self, matched: int, char: str) -> int:
        while matched and self.string[matched] != char:
            matched = self._shorter[matched - 1]
        return matched + (self.string[matched] == char)
