"""Answers at a terminal: Markdown, drawn while it is written.

A block (a paragraph, a list, a fenced code) that is complete is printed once and scrolls away like any text. Only the
last one, which may still change, is drawn anew as it grows. What Markdown would hide (HTML, targets of links) is shown
as the model wrote it, and so is a block of which something would be lost.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import CodeBlock, Heading, Markdown, TableElement
from rich.padding import Padding
from rich.segment import ControlType, Segment, SegmentLines
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from bitgen.cli.console import spelt_controls

PARSER = (
    MarkdownIt("commonmark", {"html": False})
    .enable(["table", "strikethrough"])
    .disable(["link", "image", "autolink", "reference", "entity"])
)
REDRAW_S = 0.08
"""Seconds between two drawings."""
NARROW = 20
"""Columns below which text is only folded."""
_CLIP, _WRAP = (Segment(f"\x1b[?7{mode}", control=[(ControlType.CARRIAGE_RETURN,)]) for mode in "lh")
"""What tells a terminal to clip lines at its edge, and to wrap them again."""


class _Fence(CodeBlock):
    """Code as it is, to be read and copied: between its fences, without a frame, a margin or filled lines."""

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> _Fence:
        return cls(token)

    def __init__(self, token: Token) -> None:
        self._mark, self._info = token.markup, token.info.strip()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lexer = self._info.split(maxsplit=1)[0] if self._info else "text"
        code = Syntax("", lexer, theme="ansi_dark", background_color="default").highlight(str(self.text).rstrip("\n"))
        code.rstrip()
        code.overflow, code.no_wrap = "fold", False
        if not self._mark:  # code by indentation
            yield Padding(code, (0, 0, 0, 4), expand=False)
            return
        yield Text(self._mark + self._info, style="dim", overflow="fold")
        yield code
        yield Text(self._mark, style="dim")


class _Heading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.stylize("bold")
        yield self.text


class _Table(TableElement):
    """A table whose long words are folded, not cut."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in super().__rich_console__(console, options):
            if isinstance(part, Table):
                part.box, part.show_edge, part.pad_edge, part.collapse_padding = box.SIMPLE, False, False, True
                for column in part.columns:
                    column.overflow = "fold"
            yield part


class _Markdown(Markdown):
    elements = {  # noqa: RUF012  as in the base class
        **Markdown.elements,
        "fence": _Fence,
        "code_block": _Fence,
        "heading_open": _Heading,
        "table_open": _Table,
    }

    def __init__(self, text: str) -> None:
        super().__init__("")
        self.parsed = PARSER.parse(text)
        for token in self.parsed:
            for part in token.children or ():
                if part.type == "softbreak":
                    part.type = "hardbreak"  # a line ends where the model ended it


def _letters(text: str) -> Counter[str]:
    return Counter(filter(str.isalpha, text))


def rendered(console: Console, text: str) -> list[list[Segment]]:
    """The lines that show a text: as Markdown, or folded where that would lose some of its letters."""
    if console.width >= NARROW:
        lines = console.render_lines(_Markdown(text), pad=False)
        shown = _letters("".join(segment.text for line in lines for segment in line))
        if not _letters(text) - shown:
            filled = [i for i, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
            return lines[filled[0] : filled[-1] + 1] if filled else []
    return console.render_lines(Text(text, overflow="fold"), pad=False)


def last_block(text: str) -> int:
    """Where the last block of a Markdown text begins, the only one that more text can change."""
    starts = [token.map[0] for token in PARSER.parse(text) if token.level == 0 and token.map]
    return sum(len(line) + 1 for line in text.split("\n")[: starts[-1]]) if starts else 0


class Answer:
    """Text that is drawn as it comes: `push` the pieces; the end of the context prints what is left."""

    def __init__(self, console: Console) -> None:
        self._console, self._text, self._printed = console, "", False
        self._drawn = 0.0
        self._live = self._new()

    def __enter__(self) -> Answer:
        try:
            self._begin()
        except BaseException:  # Ctrl-C
            self._live.stop()
            raise
        return self

    def push(self, piece: str) -> None:
        """Draw a piece more of the text; those that follow at once are drawn together."""
        self._text += spelt_controls(piece)
        if time.monotonic() - self._drawn >= REDRAW_S:
            self._draw(last_block(self._text))
            self._drawn = time.monotonic()

    def __exit__(self, *_: object) -> None:
        try:
            self._draw(len(self._text))
        finally:
            self._live.stop()

    def _begin(self) -> None:
        self._width, self._live = self._console.width, self._new()
        self._live.start()

    def _new(self) -> Live:
        return Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )

    def _draw(self, end: int) -> None:
        """Print the text up to `end`, which is complete, and below it the last lines of what follows."""
        if self._console.width != self._width:  # the lines on the screen have moved: leave them
            self._console.clear_live()
            self._console.pop_render_hook()
            self._console.line()
            self._begin()
        complete, self._text = self._text[:end].strip("\n"), self._text[end:]
        tail = rendered(self._console, self._text) if self._text.strip() else []
        above: list[list[Segment]] = [[]] if tail and (self._printed or complete) else []
        room = max(self._console.height - 2, 1)
        with self._console:  # all in one write
            if complete.strip():
                self._console.print(SegmentLines(self._spaced(rendered(self._console, complete)), new_lines=True))
                self._printed = True
            # Clipped: a line that is wider on the terminal than here, as some emoji are, would take two rows, and what
            # is to be drawn over would not be where it is thought to be.
            lines = [[_CLIP, *line, _WRAP] for line in [*above, *tail][-room:]]
            self._live.update(SegmentLines(lines, new_lines=True), refresh=True)

    def _spaced(self, lines: Iterable[list[Segment]]) -> Iterator[list[Segment]]:
        """Lines with an empty one between them and what was printed before."""
        if self._printed:
            yield []
        yield from lines
