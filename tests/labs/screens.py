"""A program at a terminal that is not there: what is typed, and what its screen shows."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pexpect
import pyte
from places import REPO


class _Answering(pyte.HistoryScreen):
    """A screen that answers where its cursor is, as terminals do."""

    reply: Callable[[str], Any]

    def write_process_input(self, data: str) -> None:
        self.reply(data)


class Terminal:
    """A process whose terminal is a screen of `columns` x `rows`."""

    def __init__(
        self, command: Sequence[str], columns: int = 80, rows: int = 24, env: dict[str, str] | None = None
    ) -> None:
        environment = {**os.environ, "TERM": "xterm-256color", **(env or {})}
        for name in ("NO_COLOR", "EDITOR", "VISUAL"):
            if name not in (env or {}):
                environment.pop(name, None)
        self.process = pexpect.spawn(
            command[0], list(command[1:]), dimensions=(rows, columns), env=environment, timeout=60
        )  # fmt: skip
        self.process.delaybeforesend = None
        self._screen = _Answering(columns, rows, history=10_000)
        self._screen.reply = self.process.send
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.close(force=True)

    def send(self, keys: str) -> None:
        """Type."""
        self.process.send(keys)

    def paste(self, text: str) -> None:
        """Paste, as a terminal that marks pastes does."""
        self.send(f"\x1b[200~{text}\x1b[201~")

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the window."""
        self._screen.resize(rows, columns)
        self.process.setwinsize(rows, columns)

    @property
    def text(self) -> str:
        """What the terminal shows, and above it what has scrolled away."""
        scrolled = ["".join(line[x].data for x in sorted(line)).rstrip() for line in self._screen.history.top]
        return "\n".join([*scrolled, *map(str.rstrip, self._screen.display)]).rstrip() + "\n"

    @property
    def line(self) -> str:
        """The line of the cursor."""
        return self._screen.display[self._screen.cursor.y].rstrip()

    def wait(self, words: str | Callable[[], bool], seconds: float = 60) -> str:
        """Take what comes until the screen shows `words`, or until that is true. What the screen shows then."""
        until = time.monotonic() + seconds
        while not (words in self.text if isinstance(words, str) else words()):
            assert time.monotonic() < until, f"{words!r} did not come:\n{self.text}"
            try:
                self._take(self.process.read_nonblocking(1 << 16, 0.2))
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                assert words in self.text if isinstance(words, str) else words(), f"it ended:\n{self.text}"
        return self.text

    def prompt(self) -> str:
        """Wait for the prompt."""
        return self.wait(lambda: self.line == ">>>")

    def say(self, line: str) -> str:
        """Type a line, and wait until it is answered; what came meanwhile."""
        before = len(self.text.rstrip("\n"))
        self.send(f"{line}\r")
        self.wait(lambda: len(self.text.rstrip("\n")) > before + len(line) and self.line != f">>> {line}"[:80])
        return self.prompt()[before:]

    def end(self) -> int:
        """Wait until the process has ended; its exit code."""
        try:
            while True:
                self._take(self.process.read_nonblocking(1 << 16, 60))
        except pexpect.EOF:
            self.process.close()
        return int(self.process.exitstatus if self.process.exitstatus is not None else -self.process.signalstatus)

    def _take(self, data: bytes) -> None:
        self.raw += data
        self._stream.feed(data)


def chat(model: Path, *options: str, answers: Sequence[str] = ("Yes.",), columns: int = 80, **env: str) -> Terminal:
    """`bitgen chat` at a terminal, with answers that are written beforehand (scripted_chat.py)."""
    script = REPO / "tests" / "labs" / "scripted_chat.py"
    command = [sys.executable, str(script), "chat", "-m", str(model), "-t", "1", *options]
    return Terminal(command, columns=columns, env={"ANSWERS": json.dumps(list(answers)), **env})
