"""Tables that fit their terminal: columns are left out by importance, which is said; words fold; no figure is cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bitgen.cli.console import printable

FOLDED = 20
"""Columns of the screen that a column of words is left, where it must fold."""


@dataclass(frozen=True)
class Column:
    """A column of figures, flush right, or of words, which may fold.

    spare: where there is no room, the column with the most goes first, and one with 0 stays.
    """

    name: str
    spare: int = 0
    words: bool = False


class Grid:
    """A title, columns, rows of text, and a line `about` below. more: where the columns are that are left out."""

    def __init__(
        self, title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], about: str = "",
        more: str = "--json has all",
    ) -> None:  # fmt: skip
        self.title, self.columns, self.rows, self.about, self.more = title, columns, list(rows), about, more

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        kept = list(self.columns)
        spare = sorted((column for column in kept if column.spare), key=lambda column: column.spare)
        while spare and self._width(console, options, kept) > options.max_width:
            kept.remove(spare.pop())
        yield self._table(kept)
        if self.about:
            yield Text(printable(self.about))
        if left_out := [column.name for column in self.columns if column not in kept]:
            yield Text(f"no room for {', '.join(left_out)}: {self.more}")

    def _width(self, console: Console, options: ConsoleOptions, columns: Sequence[Column]) -> int:
        """What the columns take on one line, those of words folded."""
        table = self._table(columns, FOLDED)
        table.title = None
        return Measurement.get(console, options.update(width=1 << 16, max_width=1 << 16), table).maximum

    def _table(self, columns: Sequence[Column], folded: int | None = None) -> Table:
        table = Table(title=printable(self.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            if column.words:
                table.add_column(column.name, overflow="fold", max_width=folded)
            else:
                table.add_column(column.name, justify="right", overflow="fold", no_wrap=folded is not None)
        places = [self.columns.index(column) for column in columns]
        for row in self.rows:
            table.add_row(*(printable(row[at]) for at in places))
        return table
