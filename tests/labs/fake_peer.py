"""A peer for test_bench.py: bitgen behind the protocol of peer_engines.py, with the fault named by its argument."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitgen import Model
from bitgen.measure.peer_engines import serve

FAULT, LONG = sys.argv[1], 64


class Fake:
    """Right, but for its fault."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self._session = Model.load(path).session(threads, context)
        self.about = "fake 1.0"

    @staticmethod
    def prepare(source: Path, to: Path) -> None:
        if FAULT == "refuses":
            raise ValueError("no such model")
        shutil.copy(source, to)

    def clear(self) -> None:
        self._session.rewind(0)

    def append(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        print("chatter on stdout")  # engines do that; it must not spoil the protocol
        if FAULT == "dies":
            os.abort()
        logits = self._session.forward(tokens)
        if FAULT == "long prompts" and len(tokens) > LONG:
            return np.roll(logits, 1)
        return logits * np.float32("nan") if FAULT == "nan" else logits


serve(Fake)
