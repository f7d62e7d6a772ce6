"""Progress in Python programs: what an argument `progress` may be.

Model.load(progress=True)             a bar for each stage on stderr, on a terminal or in a notebook
Model.load(progress=tell)             calls tell(stage, done, total); total 0: unknown
Model.load(progress=tqdm)             a bar of tqdm, or of what has its methods, for each stage
with tqdm() as bar: Model.load(progress=bar)      that bar, set back for each stage
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeAlias, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from bitgen.errors import ArgumentTypeError, quoted
from bitgen.spec import Listener

Watch: TypeAlias = Any
"""None or False, True, a Listener, or a class or a bar with the methods of tqdm's."""

P = ParamSpec("P")
T = TypeVar("T")


def watched(function: Callable[P, T]) -> Callable[P, T]:
    """A function that takes a Listener as `progress` for one that takes a Watch."""

    @functools.wraps(function)
    def call(*args: P.args, **more: P.kwargs) -> T:
        with listening(more.get("progress")) as listen:
            more["progress"] = listen
            return function(*args, **more)

    return call


@contextmanager
def listening(progress: Watch) -> Iterator[Listener]:
    """What to tell of progress while something is done; ArgumentTypeError where `progress` is no Watch."""
    if progress is None or progress is False:
        yield lambda *_: None
    elif progress is True:
        with _drawn() as listen:
            yield listen
    elif hasattr(progress, "update") and hasattr(progress, "set_description"):
        bars = _Bars(progress)
        try:
            yield bars.tell
        finally:
            bars.close()
    elif callable(progress):
        yield progress
    else:
        raise ArgumentTypeError(
            f"progress is {quoted(progress)}, must be True, False, a function of (stage, done, total), or tqdm"
        )


@contextmanager
def _drawn() -> Iterator[Listener]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = Console(stderr=True, markup=False, emoji=False)
    silent = not (console.is_terminal or console.is_jupyter)
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task("", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total or None)


class _Bars:
    """A bar for each stage: new ones of a class like tqdm, or one bar that is set back. Where the count goes on, a
    stage of another name is the same one, which says more."""

    def __init__(self, made_by: Any) -> None:
        self._given, self._stage, self._total = made_by, "", 0
        self._bar: Any = None

    def tell(self, stage: str, done: int, total: int) -> None:
        anew = self._bar is None or total != self._total or done < self._bar.n
        if anew:
            self._begin(stage, total or None)
        elif stage != self._stage:
            self._bar.set_description(stage)
        self._stage, self._total = stage, total
        self._bar.update(done - self._bar.n)

    def _begin(self, stage: str, total: int | None) -> None:
        if isinstance(self._given, type):
            self.close()
            self._bar = self._given(total=total, desc=stage)
        else:
            self._bar = self._given
            self._bar.reset(total=total)
            self._bar.set_description(stage)

    def close(self) -> None:
        """Close the bar that was made here."""
        if self._bar is not None and self._bar is not self._given:
            self._bar.close()
