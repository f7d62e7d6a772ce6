"""bitgen with a model that gives the answers it is told to: ANSWERS, a list of texts as JSON, one after the other.

All else is real: tokens, cache, timing. PAUSE, READING: seconds before each token, and before the first of an answer.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

from bitgen import cli
from bitgen.engine.session import Session

ANSWERS: list[str] = json.loads(os.environ["ANSWERS"])
PAUSE, READING = float(os.environ.get("PAUSE", "0")), float(os.environ.get("READING", "0"))


def scripted(self: Session, tokens: Sequence[int], sampling: Any, history: Any, step: int, count: int = 1) -> list[int]:
    """As Session.next."""
    self.append(tokens)
    tokenizer = self._model.tokenizer
    time.sleep(PAUSE if step else READING)
    ids = tokenizer.encode(ANSWERS[0], add_bos=False, parse_special=False)
    if step < len(ids):
        return [ids[step]]
    ANSWERS.append(ANSWERS.pop(0))
    return [min(tokenizer.stop_ids)]


if __name__ == "__main__":
    Session.next = scripted  # type: ignore[method-assign]
    cli.main()
