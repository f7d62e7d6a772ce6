"""Prompt-lookup decoding: guess the next tokens from what the text said before (Saxena, 2023).

No second model: the tokens that followed the latest earlier occurrence of the last few are proposed, the model
runs over all of them in one forward pass, and those that equal its own choice are kept. Logits are the same bits
however tokens are batched and draws are numbered by step, so the text is the same with and without proposals,
greedy or sampled; only the number of passes differs.
"""

from __future__ import annotations

from collections.abc import Iterable

LOOKUP = 8  # tokens to propose at most, where nobody says
GRAMS = (3, 2)  # tokens that must recur, the longest first
REGAIN = 1 / 8  # credit that a step without any gains


class PromptLookup:
    """Proposes up to `most` tokens at a time, fewer while proposals fail.

    A proposal costs computation, so there is a credit: each token accepted adds one and each refused takes one
    away, and as many are proposed as there is credit. Where nothing repeats, one token in eight steps is tried.
    """

    def __init__(self, most: int, tokens: Iterable[int] = ()) -> None:
        self.most = most
        self._credit = 1.0
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> the index that followed it last
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """The text goes on."""
        for token in tokens:
            for n in GRAMS:
                self._after[tuple(self._tokens[-n:])] = len(self._tokens)
            self._tokens.append(token)

    def propose(self, room: int) -> list[int]:
        """What may come next, at most `room` tokens; often nothing."""
        if self._credit < 1:
            self._credit += REGAIN
        count = min(self.most, room, int(self._credit))
        at = next((self._after[g] for n in GRAMS if (g := tuple(self._tokens[-n:])) in self._after), None)
        if at is None or count < 1:
            return []
        text = self._tokens[at : at + count]
        while len(text) < count:  # it ends where the text does: a loop, which goes on
            text += text[: count - len(text)]
        return text

    def learn(self, proposed: int, accepted: int) -> None:
        """How many of the proposed tokens were right."""
        self._credit = min(max(self._credit + 2 * accepted - proposed, 0.0), self.most)
