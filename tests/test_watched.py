"""Progress in Python programs: bars, functions and tqdm; what is none of them is refused."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from typing import Any

import pytest

import bitgen
from bitgen import api
from bitgen.errors import ArgumentTypeError
from bitgen.progress import listening, watched

TOLD = [("compiling", 0, 2), ("compiling", 1, 2), ("compiling", 2, 2), ("waiting", 0, 0), ("packing", 3, 7)]
TEXT = "Tom has a red ball. " * 40


def test_a_function_is_told_as_it_is() -> None:
    told: list[tuple[str, int, int]] = []
    with listening(lambda *step: told.append(step)) as listen:
        for step in TOLD:
            listen(*step)
    assert told == TOLD


def test_nothing_is_told() -> None:
    for nothing in (None, False):
        with listening(nothing) as listen:
            listen("compiling", 1, 2)


def test_bars_of_tqdm() -> None:
    """A class makes a bar for each stage, and each is closed; a bar is set back, and left to its owner."""
    tqdm = pytest.importorskip("tqdm").tqdm
    made: list[Any] = []

    class Kept(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, file=io.StringIO(), **more)
            made.append(self)

    with listening(Kept) as listen:
        for step in TOLD:
            listen(*step)
    assert [(bar.desc.removesuffix(": "), bar.n, bar.total) for bar in made] == [
        ("compiling", 2, 2),
        ("waiting", 0, None),
        ("packing", 3, 7),
    ]
    assert all(bar.disable for bar in made)  # closed
    with listening(Kept) as listen:
        for n in range(1, 4):
            listen(f"perplexity {n}", n, 3)  # one stage, which says how far it is
    assert (made[-1].desc, made[-1].n, len(made)) == ("perplexity 3: ", 3, 4)
    with Kept() as bar:
        with listening(bar) as listen:
            for step in TOLD:
                listen(*step)
        assert (bar.desc, bar.n, bar.total) == ("packing: ", 3, 7) and not bar.disable


def test_a_model_and_a_verb() -> None:
    told: list[str] = []
    model = bitgen.Model.load(threads=1, progress=False)
    tell = lambda stage, done, total: told.append(f"{stage} {done}/{total}")  # noqa: E731
    value = api.perplexity(model, TEXT, ctx=32, progress=tell).value
    assert len(told) > 3 and told[-1].startswith("perplexity ")
    tqdm = pytest.importorskip("tqdm").tqdm
    with tqdm(file=io.StringIO()) as bar:
        assert api.perplexity(model, TEXT, ctx=32, progress=bar).value == value
        assert bar.n == bar.total == len([step for step in told if "windows" in step]) > 3


@pytest.mark.parametrize("wrong", [5, "bar", [print], {"update": 1}])
def test_what_is_none(wrong: Any) -> None:
    for call in (bitgen.Model.load, watched(lambda progress: progress)):
        with pytest.raises(ArgumentTypeError, match=r"^progress is .*, must be True, False, a function of \(stage"):
            call(progress=wrong)


def test_an_error_ends_the_bar() -> None:
    with pytest.raises(ZeroDivisionError), listening(True) as listen:
        listen("compiling", 1, 2)
        raise ZeroDivisionError


SCRIPT = """
from bitgen.progress import listening
with listening(True) as listen:
    listen("compiling kernels", 1, 2)
    listen("compiling kernels", 2, 2)
print("done")
"""


def test_a_terminal_has_a_bar_and_a_pipe_has_none() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("done\n", "")
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=follower, env=environment)
    os.close(follower)
    seen = b""
    try:
        while piece := os.read(leader, 4096):
            seen += piece
    except OSError:  # the end of a terminal, on Linux
        pass
    os.close(leader)
    assert process.wait(60) == 0 and b"compiling kernels" in seen and b"100%" in seen
