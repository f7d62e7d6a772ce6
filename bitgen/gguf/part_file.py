"""A large file that is written in parts and survives an interruption.

`model.gguf` is written as `.model.gguf.part`. Beside it, the first line of `.model.gguf.part.log` identifies what is
being written, and each further line a part that is complete: its name, length and SHA-256. A run that writes the same
goes on after the last part whose bytes have the hash in the log; any other run starts over.

Others can foresee these names. A link, a pipe or a second name of another file that waits there is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bitgen import data, store
from bitgen.errors import BitgenError


class PartFile:
    """A context in which `path` is written part by part. The file appears when the context ends without an error.

    identity: two runs with the same identity write the same bytes, so that one may continue the other. None: every run
    starts over, and leaves nothing if it fails.

    An interrupt, a full disk or a killed process leaves the complete parts. A BitgenError removes them: what is wrong
    with the source will be wrong in the next run.
    """

    def __init__(self, path: Path, identity: str | None) -> None:
        self.path, self._identity = data.target(path), identity
        self._part, self._log = (self.path.with_name(f".{self.path.name}.{end}") for end in ("part", "part.log"))
        self.done: set[str] = set()

    def __enter__(self) -> PartFile:
        with ExitStack() as opened:
            if not self._identity:
                self._part = opened.enter_context(store.work_folder(self.path.parent)) / "part"
            self._file = opened.enter_context(_exclusively(self._part))
            sound = self._opened_log(opened) if self._identity else []
            self.done = {line["part"] for line in sound}
            self._file.seek(sum(line["bytes"] for line in sound))
            self._file.truncate()
            self._open = opened.pop_all()
        return self

    def _opened_log(self, opened: ExitStack) -> list[dict[str, Any]]:
        """Open the log and keep its sound lines, which are returned."""
        self._lines = opened.enter_context(os.fdopen(store.own_file(self._log), "r+", encoding="utf-8", buffering=1))
        sound = self._sound_lines()
        self._lines.seek(0)
        self._lines.truncate()
        for line in ({"writing": self._identity}, *sound):
            self._lines.write(json.dumps(line) + "\n")
        return sound

    def append(self, part: str, pieces: Iterable[npt.NDArray[Any] | bytes]) -> int:
        """Write a part and return its number of bytes."""
        digest, count = hashlib.sha256(), 0
        for piece in pieces:
            raw = np.ascontiguousarray(piece).data.cast("B") if isinstance(piece, np.ndarray) else piece
            digest.update(raw)
            count += self._file.write(raw)
        if self._identity:
            self._file.flush()
            self._lines.write(json.dumps({"part": part, "bytes": count, "sha256": digest.hexdigest()}) + "\n")
        return count

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._open:
            if error is not None and self._identity and not isinstance(error, BitgenError):
                return
            if error is None:
                self._file.flush()
            if os.name == "nt":  # Windows neither renames nor removes an open file
                self._file.close()
                if self._identity:
                    self._lines.close()
            if error is None:
                store.publish(self._part, self.path)
            self._part.unlink(missing_ok=True)
            self._log.unlink(missing_ok=True)

    def _sound_lines(self) -> list[dict[str, Any]]:
        """Lines of the log, up to the first part whose bytes in the file are not those of the log."""
        sound: list[dict[str, Any]] = []
        try:
            first, *lines = self._lines.read().splitlines()
            if json.loads(first) != {"writing": self._identity}:
                return []
            for text in lines:
                line = json.loads(text)
                if _hash_of_next(self._file, line["bytes"]) != line["sha256"]:
                    break
                sound.append({key: line[key] for key in ("part", "bytes", "sha256")})
        except (ValueError, TypeError, KeyError, RecursionError):
            pass  # no log, or one that was cut short
        return sound


def _hash_of_next(file: BinaryIO, count: int) -> str | None:
    """SHA-256 of the next `count` bytes; None where the file ends before."""
    digest = hashlib.sha256()
    while count > 0:
        raw = file.read(min(count, 1 << 20))
        if not raw:
            return None
        digest.update(raw)
        count -= len(raw)
    return digest.hexdigest()


def _exclusively(path: Path) -> BinaryIO:
    """The file, created if need be, open and locked until it is closed. BitgenError: another process holds it."""
    file = store.locked(path)
    if file is None:
        raise BitgenError(f"{path} is being written by another process; wait for it to end")
    return file
