"""Where commands print: results on stdout, progress and warnings on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from bitgen.spec import Listener

ERR = Console(stderr=True)
OUT = Console(width=None if sys.stdout.isatty() else 160)  # a table in a file or a pipe is not squeezed


@contextmanager
def progress_bar() -> Iterator[Listener]:
    """A listener that draws one bar per stage on stderr; silent where stderr is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def listen(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield listen


def warn(text: str | None) -> None:
    """Print a warning, if there is one."""
    if text:
        click.echo(f"bitgen: warning: {text}", err=True)
