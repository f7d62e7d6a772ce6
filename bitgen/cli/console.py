"""Where commands print: results on stdout, progress and warnings on stderr.

What a file says may hold characters that move a terminal's cursor, retitle it or turn text around. Commands print
through `say`, `stream` and the tables of tables.py, which spell such characters out, and through nothing else.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console

from bitgen.cli import progress
from bitgen.spec import Listener


@contextmanager
def naming(stream: str) -> Iterator[None]:
    """Errors of writing to a standard stream name it: "standard output", which has no file's name."""
    try:
        yield
    except OSError as e:
        e.filename = e.filename or stream
        raise


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        """As the base class; errors name the stream."""
        with naming(STDERR if self.stderr else STDOUT):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Leave it to main.sentences, which ends any command alike."""
        raise BrokenPipeError


STDOUT, STDERR = "standard output", "standard error"
# Pseudo-terminals of containers say that they have no columns.
_SURROUNDINGS = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES") or value != "0"}
ERR = _Console(stderr=True, markup=False, emoji=False, _environ=_SURROUNDINGS)
# A table in a file or a pipe is not squeezed, unless COLUMNS says so. Where standard output is closed, it is None.
_NARROW = "COLUMNS" in _SURROUNDINGS or (sys.stdout and sys.stdout.isatty())
OUT = _Console(width=None if _NARROW else 160, markup=False, emoji=False, _environ=_SURROUNDINGS)

CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
"""C0 but tab and newline, DEL, C1."""
_CONTROL = re.compile(f"[{CONTROLS}]")
_UNPRINTABLE = re.compile(rf"[{CONTROLS}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Besides, separators of lines, marks that turn the direction of text, lone surrogates."""


def printable(text: object) -> str:
    """A text with what is unprintable spelt as in Python: \\x1b."""
    return _UNPRINTABLE.sub(_spelt, str(text))


def _spelt(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def say(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a line, or several."""
    with naming(STDERR if err else STDOUT):
        click.echo(printable(text), err=err, nl=nl)


def say_json(value: object) -> None:
    """Print what --json asks for, on standard output: as JSON has no word for a number that is none, that is null."""
    say(json.dumps(_finite(value), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def stream(piece: str) -> None:
    """Print a piece of a model's text: as it is, but on a terminal without control characters."""
    with naming(STDOUT):
        click.echo(spelt_controls(piece) if sys.stdout.isatty() else piece, nl=False, color=True)


def spelt_controls(text: str) -> str:
    """A model's text without what steers a terminal; marks that turn the direction of text stay."""
    return _CONTROL.sub(_spelt, text)


@contextmanager
def progress_bar() -> Iterator[Listener]:
    """A listener that shows on stderr what a command waits for (progress.py); with `--quiet` one that shows nothing."""
    if is_quiet():
        yield lambda *_: None
        return
    with progress.shown(progress.Wait(ERR, is_live(), lambda line: say(line, err=True))) as listen:
        yield lambda stage, done, total: listen(printable(stage), done, total)


def awaited(stage: str, pieces: Iterable[str]) -> Iterator[str]:
    """The pieces of a text, the first one when it is asked for: until it is there, a stage says what is waited for."""
    rest = iter(pieces)
    with progress_bar() as listen:
        listen(stage, 0, 0)
        first = next(rest, None)
    if first is not None:
        yield first
        yield from rest


def is_live() -> bool:
    """Whether lines of stderr can be drawn again: on a terminal that knows how, whatever FORCE_COLOR says of a log."""
    return ERR.is_interactive and sys.stderr.isatty()


QUIET = "bitgen.quiet"
"""The key of the running command's `meta` under which `--quiet` is kept."""


def is_quiet() -> bool:
    """Whether the running command was given `--quiet`."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET) or context.params.get("quiet"))


def warn(text: str | None) -> None:
    """Print a warning, if there is one."""
    if text:
        say(f"bitgen: warning: {text}", err=True)
