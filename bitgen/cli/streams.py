"""The standard streams as they may be, closed or of any encoding, and the texts that commands are given: UTF-8."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from pathlib import Path

from bitgen.errors import BitgenError

STDIN = "-"
"""The name of a file that stands for standard input."""


def prepare() -> None:
    """Make the streams ready: printing never fails for what a character is, and reading never for what a byte is.

    Where output is closed, what is printed goes nowhere. A character that the encoding of an output lacks becomes "?".
    Bytes of the input that are not UTF-8 become lone surrogates, for `utf8` to find.
    """
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:  # or the next file opened would take a closed stream's place
        pass
    os.close(file)
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        with contextlib.suppress(io.UnsupportedOperation):  # something was read already
            if stream is sys.stdin:
                stream.reconfigure(encoding=stream.encoding if stream.isatty() else "utf-8", errors="surrogateescape")
            elif stream.errors == "strict" or codecs.lookup(stream.encoding).name != "utf-8":
                stream.reconfigure(errors="replace")


def utf8(text: str, what: str) -> str:
    """A text, whose bytes that are not UTF-8 are lone surrogates, without its byte order mark.

    BitgenError: there are such bytes. `what` names the text.
    """
    try:
        return text.encode(errors="surrogateescape").decode().removeprefix("\ufeff")
    except UnicodeError as e:
        assert isinstance(e, (UnicodeDecodeError, UnicodeEncodeError))
        raise BitgenError(f"{what} is not UTF-8 text ({e.reason} at byte {e.start})") from None


def read_text(file: str) -> str:
    """The text of a file, or of standard input where its name is STDIN; every line ends in a newline character."""
    what = "standard input" if file == STDIN else file
    try:
        data = _stdin_bytes() if file == STDIN else Path(file).read_bytes()
    except OSError as e:
        raise BitgenError(f"{what} cannot be read ({e.strerror or e})") from None
    return io.StringIO(utf8(data.decode(errors="surrogateescape"), what), newline=None).read()


def _stdin_bytes() -> bytes:
    if sys.stdin is None:
        raise BitgenError("standard input is closed; give it a text")
    return sys.stdin.buffer.read()


def discard(*streams: object) -> None:
    """Send what is still in the buffers of streams that cannot be written to nowhere: the exit flushes them."""
    for stream in streams:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[attr-defined]
