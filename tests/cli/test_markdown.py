"""Answers as Markdown: nothing is hidden or lost, nothing steers the terminal, blocks are printed once."""

from __future__ import annotations

import io
import random

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from wcwidth import wcwidth

from bitgen.cli.markdown import Answer, last_block, rendered


class Screen:
    """A console whose terminal is a screen."""

    def __init__(self, columns: int = 60, rows: int = 12) -> None:
        self.file = io.StringIO()
        self.console = Console(file=self.file, force_terminal=True, width=columns, height=rows, markup=False)
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._screen.set_mode(pyte.modes.LNM)  # as the terminal's driver does with a newline
        self._stream = pyte.Stream(self._screen)

    @property
    def text(self) -> str:
        self._stream.feed(self.file.getvalue())
        self.file.seek(0)
        self.file.truncate()
        above = ["".join(line[x].data for x in sorted(line)).rstrip() for line in self._screen.history.top]
        return "\n".join([*above, *map(str.rstrip, self._screen.display)]).strip("\n")


def shown(text: str, columns: int = 60) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=columns, height=24, markup=False)
    return "\n".join("".join(segment.text for segment in line).rstrip() for line in rendered(console, text))


ANSWER = """\
# Sorting

Use *one* of **these**:
1. `sorted(x)` makes a list
2. `x.sort()` changes it
   - in place

```python
def f(x):
    return [y for y in x if y < 2]  # <b>

print(f(1))
```

| name | cost |
|:-----|-----:|
| quick | n log n |

> said
> twice

The end.
"""


def test_an_answer_looks_like_this() -> None:
    assert shown(ANSWER) == "\n".join(
        [
            "Sorting", "", "Use one of these:", "", " 1 sorted(x) makes a list", " 2 x.sort() changes it",
            "    • in place", "", "```python", "def f(x):", "    return [y for y in x if y < 2]  # <b>", "",
            "print(f(1))", "```", "", "name      cost", "──────────────", "quick  n log n", "",
            "▌ said", "▌ twice", "", "The end.",
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "vector<int> and <think>hm</think>",
        "<div>\nblock\n</div>",
        "[label](https://example.org \"title\") ![picture](x.png) <https://example.org/a>",
        "[a]: https://example.org\n\nmore",
        "&lt; &amp; &#27; &#x9b;",
        "one line\nanother line",
        "> " * 30 + "deep",
        "| a | b |\n|---|---|\n| " + "x" * 90 + " | y |",
        "|" + "abcdef|" * 30 + "\n|" + "---|" * 30,
        "| a |\n|---|\n| b | beyond the columns |",
        "a" * 200,
        "    indented = 1",
        "~~~~\n```\n~~~~",
        "漢字" * 40,
    ],
)  # fmt: skip
@pytest.mark.parametrize("columns", [24, 60])
def test_nothing_is_hidden(text: str, columns: int) -> None:
    def bare(text: str) -> str:
        return "".join(c for c in text if not c.isspace() and c not in "|-▌>•━─")

    found = bare(shown(text, columns))
    assert sorted(found) == sorted(bare(text)) or found == bare(text)
    for word in text.split():
        if word.isalpha() and len(word) < 10:
            assert word in shown(text, columns)


@settings(deadline=None, max_examples=150)
@given(st.text(st.sampled_from("ab <>*_`#-|>1.\n[]()!&;~\\ é漢"), max_size=120), st.integers(2, 60))
def test_any_text_is_shown_with_all_its_letters(text: str, columns: int) -> None:
    found = shown(text, columns)
    for letter in set(filter(str.isalpha, text)):
        assert found.count(letter) >= text.count(letter)


@pytest.mark.parametrize("seed", range(5))
def test_what_comes_in_pieces_is_what_comes_at_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is redrawn on the way, in the end every block is there once."""
    monkeypatch.setattr("bitgen.cli.markdown.REDRAW_S", 0)
    draw, text = random.Random(seed), ANSWER * 3
    screen = Screen()
    with Answer(screen.console) as answer:
        at = 0
        while at < len(text):
            step = draw.randint(1, 9)
            answer.push(text[at : at + step])
            at += step
    expected = "\n\n".join(shown(ANSWER) for _ in range(3))
    assert screen.text == expected


def test_a_block_that_is_complete_is_printed_and_the_last_one_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitgen.cli.markdown.REDRAW_S", 0)
    screen = Screen(rows=6)
    with Answer(screen.console) as answer:
        answer.push("one **two")
        assert screen.text == "one **two"
        answer.push("**")
        assert screen.text == "one two"
        answer.push("\n\nthree")
        assert screen.text == "one two\n\nthree"
        answer.push("\n" + "\n".join("abcdefgh") + "\n")  # higher than the screen: its end shows
        assert screen.text.endswith("g\nh") and "three" not in screen.text.splitlines()[-4:]
    assert screen.text == "one two\n\nthree\n" + "\n".join("abcdefgh")


def test_glyphs_that_a_terminal_thinks_wider_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitgen.cli.markdown.REDRAW_S", 0)
    screen, wide = Screen(), next(c for c in map(chr, range(0x18000, 0x19000)) if wcwidth(c) > cell_len(c))
    with Answer(screen.console) as answer:
        answer.push("before\n\n")
        for _ in range(50):
            answer.push(f"{wide} ")
            assert screen.text.startswith("before\n") and screen.text.count(wide) <= 50
    assert screen.text.count("before") == 1 and screen.text.count(wide) == 50


def test_a_window_that_changes_its_width_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitgen.cli.markdown.REDRAW_S", 0)
    screen = Screen()
    with Answer(screen.console) as answer:
        answer.push("first\n\n" + "second " * 12)
        screen.console.width = 30
        answer.push("third\n\nfourth")
    text = screen.text
    assert text.count("first") == 1 and text.count("third") == 1 and text.count("fourth") == 1
    assert text.count("second") >= 12


def test_controls_of_the_model_never_reach_the_terminal() -> None:
    screen = Screen()
    with Answer(screen.console) as answer:
        for piece in ("\x1b]0;title\x07", "\x1b[2J", "a\rb", "`\x9b1m`", "\n```\n\x1b[31m\n```\n", "&#27;[2J"):
            answer.push(piece)
    for evil in ("\x1b]0", "\x1b[2J", "\x07", "\x9b", "\rb"):
        assert evil not in screen.file.getvalue()
    assert r"\x1b]0;title\x07\x1b[2Ja\rb\x9b1m" in screen.text and "&#27;[2J" in screen.text


def test_where_the_last_block_begins() -> None:
    assert last_block("") == last_block("one\ntwo") == 0
    assert last_block("one\n\n* a\n* b\n") == len("one\n\n")
    assert last_block("one\u2028\x85\n\ntwo") == len("one\u2028\x85\n\n")
    assert last_block("```\na\n\nb") == 0
