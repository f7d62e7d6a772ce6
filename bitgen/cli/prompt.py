"""The line at a terminal where messages are typed: pastes, several lines, completion, and a history that is kept."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

from bitgen import data, store
from bitgen.cli.console import warn
from bitgen.cli.talk import MORE, PROMPT, is_open
from bitgen.errors import BitgenError

KEPT_MESSAGES, KEPT_BYTES = 1000, 1 << 20
"""Of the history: the latest ones that both allow."""


class KeptHistory(History):
    """Messages in a file, each a line of JSON, which only this user can read."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        os.close(store.own_file(path))  # BitgenError where it is a link
        path.chmod(0o600)
        kept = self._kept()
        if path.stat().st_size > sum(map(len, kept)):
            with data.replacing(path) as part:
                part.write_bytes(b"".join(kept))
                part.chmod(0o600)

    def _kept(self) -> list[bytes]:
        """The latest lines, the oldest first."""
        with self._path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - KEPT_BYTES, 0))
            lines = file.read().splitlines(keepends=True)[-KEPT_MESSAGES:]
        return [line for line in lines if _message(line) is not None]

    def load_history_strings(self) -> Iterable[str]:
        """The messages, the latest first."""
        return [message for line in reversed(self._kept()) if (message := _message(line)) is not None]

    def store_string(self, string: str) -> None:
        """Append a message; one that cannot be written (a full disk) is in this run's history only."""
        with contextlib.suppress(OSError), self._path.open("ab") as file:
            file.write(json.dumps(string).encode() + b"\n")


def _message(line: bytes) -> str | None:
    """The message of a line; None where a kill or somebody else left none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, str) and line.endswith(b"\n") else None


def history(kept: bool) -> History:
    """The history of chats, kept in the cache, or of this one alone."""
    if not kept:
        return InMemoryHistory()
    try:
        return KeptHistory(data.cached("history") / "chat.jsonl")
    except (BitgenError, OSError) as e:
        reason = e if isinstance(e, BitgenError) else f"{e.filename}: {e.strerror}"
        warn(f"the history of this chat is not kept ({reason})")
        return InMemoryHistory()


class _Completer(Completer):
    """Completes the words of a command by `candidates`, which is given the words before the one to be completed."""

    def __init__(self, candidates: Callable[[list[str], str], Iterable[str]]) -> None:
        self._candidates = candidates

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        before = document.text_before_cursor
        if before.startswith("/") and "\n" not in before:
            *words, last = before.split(" ")
            for found in self._candidates(words, last):
                yield Completion(found, -len(last))


class Line:
    """Reads messages at a terminal."""

    def __init__(self, kept: bool, candidates: Callable[[list[str], str], Iterable[str]]) -> None:
        output = create_output()
        if isinstance(output, Vt100_Output):
            output.enable_cpr = False  # nothing here needs the cursor's row, and not every terminal answers when asked
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            output=output,
            history=history(kept),
            multiline=True,
            prompt_continuation=MORE,
            key_bindings=_keys(),
            completer=_Completer(candidates),
            complete_style=CompleteStyle.READLINE_LIKE,
            complete_while_typing=False,
            enable_suspend=True,
        )

    def read(self, draft: str = "") -> str:
        """A message, begun with `draft`. EOFError where the input ends, KeyboardInterrupt where it is given up."""
        return self._session.prompt(default=draft)

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """A context in which keys show nothing and wait for the next `read`, a paste as one message; Ctrl-C is an
        interrupt still."""
        output = self._session.output
        output.enable_bracketed_paste()
        output.flush()
        try:
            with _silent(sys.stdin.fileno()):
                yield
        finally:
            output.disable_bracketed_paste()
            output.flush()


def _keys() -> KeyBindings:
    keys, typing = KeyBindings(), has_focus(DEFAULT_BUFFER)

    @keys.add("enter", filter=typing)
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    def go_on(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


@contextlib.contextmanager
def _silent(terminal: int) -> Iterator[None]:
    """Without echo, without the limit on a line's length that the system edits, and with what was typed kept at
    Ctrl-C."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    before = termios.tcgetattr(terminal)
    changed = [*before]
    changed[0] &= ~termios.ICRNL
    changed[3] = changed[3] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH
    termios.tcsetattr(terminal, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)
