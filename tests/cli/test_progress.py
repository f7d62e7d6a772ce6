"""What a wait shows, on terminals of any width, in pipes and in logs; the clock is the test's."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from bitgen import api, cli
from bitgen.cli import console, progress
from bitgen.cli.main import COMMANDS

STAGE = "3840x2560 (2 of 4): timing 34 decode kernels"


class Clock:
    """Seconds, as the test moves them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Log:
    """A wait without a terminal: its lines, and time to pass in ticks of half a second."""

    def __init__(self) -> None:
        self.clock, self.lines = Clock(), list[str]()
        self.wait = progress.Wait(Console(file=io.StringIO()), False, self.lines.append, self.clock)

    def passes(self, seconds: float) -> list[str]:
        """The lines printed meanwhile."""
        before = len(self.lines)
        for _ in range(int(seconds / progress.TICK_S)):
            self.clock.now += progress.TICK_S
            self.wait.tick()
        return self.lines[before:]


def test_a_log_gets_a_line_every_ten_seconds_and_none_for_a_short_wait() -> None:
    log = Log()
    log.wait.listen("linking", 0, 0)
    assert log.passes(9.5) == []
    assert log.passes(25) == [f"bitgen: linking, {time}" for time in ("0:10", "0:20", "0:30")]


def test_many_short_stages_are_a_long_wait() -> None:
    log = Log()
    for number in range(1, 7):
        log.wait.listen(f"matrix {number}", 0, 0)
        log.passes(4)
    assert log.lines == ["bitgen: matrix 3, 0:10", "bitgen: matrix 5, 0:20"]


def test_what_is_left_is_said_where_the_speed_is_known() -> None:
    log = Log()
    log.wait.listen("compiling kernels", 0, 40)
    assert log.passes(10) == ["bitgen: compiling kernels, 0 of 40, 0:10"]
    for done in range(1, 11):
        log.wait.listen("compiling kernels", done, 40)
        last = log.passes(1)
    assert last == ["bitgen: compiling kernels, 10 of 40, 0:20, about 1:00 left"]
    log.wait.listen("linking", 0, 0)
    assert log.passes(10) == ["bitgen: linking, 0:30"], "the speed of a stage is its own, and an unknown total has none"
    log.wait.listen("packing the weights", 25_000_000, 100_000_000)
    assert log.passes(10) == ["bitgen: packing the weights, 25%, 0:40"], "done by an earlier run, it has no speed"
    log.wait.listen("packing the weights", 50_000_000, 100_000_000)
    assert log.passes(10) == ["bitgen: packing the weights, 50%, 0:50, about 0:40 left"], "it grows while it waits"


def test_a_stage_that_renames_itself_keeps_its_speed() -> None:
    log = Log()
    for done in range(11):
        log.wait.listen(f"perplexity so far {done}", done, 20)
        last = log.passes(1)
    log.passes(9)
    assert last == [] and log.lines[-1] == "bitgen: perplexity so far 10, 10 of 20, 0:20, about 0:20 left"


def test_an_hour_has_hours() -> None:
    log = Log()
    assert log.passes(3723)[-1] == "bitgen: starting, 1:02:00"


def drawn(width: int, script: str, **environment: str) -> tuple[pyte.Screen, bytes]:
    """The screen of a terminal after a Python script, and the bytes that it was sent."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24 if width else 0, width))
    variables = {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    child = subprocess.Popen([sys.executable, "-c", script], stdout=slave, stderr=slave, env=kept | variables)
    os.close(slave)
    sent = b""
    while True:
        try:
            piece = os.read(master, 1 << 16)
        except OSError:  # Linux: the other side is closed
            break
        if not piece:
            break
        sent += piece
    os.close(master)
    assert child.wait() == 0, sent
    screen = pyte.Screen(width or 80, 24)
    pyte.ByteStream(screen).feed(sent)
    return screen, sent


HALFWAY = f"""
from bitgen.cli import console, progress
now = [0.0]
wait = progress.Wait(console.ERR, console.is_live(), lambda line: console.say(line, err=True), lambda: now[0])
for done in range(4):
    wait.listen({STAGE!r}, done, 7)
    for _ in range(20):
        now[0] += 1
        wait.tick()
"""


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (44, "3840x2560 (2 of 4): timing 34 decode … 1:20"),
        (60, f"{STAGE} 3 of 7 1:20"),
        (80, f"{STAGE} 3 of 7 1:20 about 1:46 left"),
        (160, f"{STAGE} {'━' * 17}╺{'━' * 22} 3 of 7 1:20 about 1:46 left"),
    ],
)
def test_the_line_of_a_terminal(width: int, line: str) -> None:
    screen, _ = drawn(width, HALFWAY)
    shown = [row.rstrip() for row in screen.display if row.strip()]
    assert shown == [line]


def test_a_terminal_without_columns_is_taken_for_one_of_80() -> None:
    for environment in ({}, {"COLUMNS": "0", "LINES": "0"}):
        _, sent = drawn(0, HALFWAY, **environment)
        assert f"{STAGE} 3 of 7 1:20 about 1:46 left".encode() in re.sub(rb"\x1b\[[\d;]*m", b"", sent)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_encoding_without_bars_has_others(encoding: str) -> None:
    script = "from bitgen.cli import streams\nstreams.prepare()\n" + HALFWAY
    screen, _ = drawn(120, script, PYTHONIOENCODING=encoding)
    assert screen.display[0].startswith(STAGE) and "3 of 7 1:20" in screen.display[0]


@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_gives_the_cursor_back(signal: str, code: int, tmp_path: Path) -> None:
    script = f"""
import os, signal, sys, threading
from bitgen import api, cli
from bitgen.cli import progress
progress.PATIENCE_S, progress.TICK_S, drawn, tick = 0.0, 0.001, threading.Event(), progress.Wait.tick
def shown(self):
    tick(self)
    drawn.set()
def info(file, progress):
    progress("reading", 0, 0)
    drawn.wait(60)
    os.kill(os.getpid(), signal.{signal})
    threading.Event().wait(60)
progress.Wait.tick, api.info = shown, info
try:
    cli.main(["info", "m.gguf"])
except SystemExit as end:
    assert end.code == {code}, end.code
"""
    screen, sent = drawn(80, script)
    assert b"reading" in sent and sent.rindex(b"\x1b[?25h") > sent.rindex(b"\x1b[?25l")
    assert not any("reading" in line for line in screen.display)


def test_nothing_stays_on_a_terminal_and_its_cursor_comes_back() -> None:
    screen, sent = drawn(80, HALFWAY + "wait.end()\nprint('result')")
    assert [row.rstrip() for row in screen.display if row.strip()] == ["result"]
    assert sent.rindex(b"\x1b[?25h") > sent.rindex(b"\x1b[?25l")


def test_a_short_wait_draws_nothing() -> None:
    assert drawn(80, HALFWAY.replace("+= 1", "+= 0.003"))[1] == b""


def test_a_total_that_is_not_known_moves_all_the_same() -> None:
    once = HALFWAY.replace("done, 7", "0, 0")
    screen, _ = drawn(80, once)
    assert f"{STAGE} {'━' * 29} 1:20" == screen.display[0].rstrip()
    assert "left" not in screen.display[0] and "%" not in screen.display[0]


def test_without_colour_the_line_has_none() -> None:
    _, sent = drawn(160, HALFWAY, NO_COLOR="1")
    assert b"[38;" not in sent and b"[3" not in sent.replace(b"\x1b[?25", b"") and "━".encode() in sent


def test_a_dumb_terminal_gets_lines() -> None:
    _, sent = drawn(80, HALFWAY, TERM="dumb")
    assert b"\x1b" not in sent and sent.count(b"\r\n") == 8
    assert sent.startswith(f"bitgen: {STAGE}, 0 of 7, 0:10\r\n".encode())


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "CI", "CLICOLOR_FORCE"])
def test_a_log_has_no_escape_codes(variable: str) -> None:
    environment = {**os.environ, variable: "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", HALFWAY], capture_output=True, env=environment, check=True)
    assert found.stdout == b"" and b"\x1b" not in found.stderr and found.stderr.count(b"\n") == 8


# ---- commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bitgen info` tells of a stage, and waits until that has been seen twice, or would be."""
    monkeypatch.setattr(progress, "TICK_S", 0.001)
    monkeypatch.setattr(progress, "SILENCE_S", 0.0)
    ticks = threading.Semaphore(0)
    tick = progress.Wait.tick

    def counted(self: progress.Wait) -> None:
        tick(self)
        ticks.release()

    def info(_: Path, progress: Callable[[str, int, int], None]) -> dict[str, str]:
        progress("reading \x1b[2J", 3, 7)
        if not console.is_quiet():
            for _ in range(2):
                assert ticks.acquire(timeout=60)
        return {"name": "m"}

    monkeypatch.setattr(progress.Wait, "tick", counted)
    monkeypatch.setattr(api, "info", info)


def info(*args: str, **environment: str) -> Result:
    found = CliRunner(env=environment).invoke(cli.main, ["info", "m.gguf", "--json", *args])
    assert found.exit_code == 0, found.output
    return found


def test_a_command_tells_of_its_stages_and_its_output_stays_clean(slow: None) -> None:
    found = info()
    assert found.stdout == '{\n "name": "m"\n}\n'
    lines = found.stderr.splitlines()
    assert lines and all(line == r"bitgen: reading \x1b[2J, 3 of 7, 0:00" for line in lines if "starting" not in line)


def test_quiet_is_quiet(slow: None) -> None:
    for found in (info("--quiet"), info("-q"), info(BITGEN_QUIET="1")):
        assert found.stderr == "" and found.stdout
    assert info(BITGEN_QUIET="0").stderr
    assert CliRunner(env={"BITGEN_QUIET": "x"}).invoke(cli.main, ["info", "m.gguf"]).exit_code == 2


@pytest.mark.parametrize(
    "name",
    ["bench", "build", "chat", "convert", "doctor", "embed", "gen", "info", "perplexity", "synth", "tune", "verify"],
)
def test_a_command_that_waits_can_be_quiet(name: str) -> None:
    command = next(command for command in COMMANDS if command.name == name)
    assert "--quiet" in [option for param in command.params for option in param.opts]


def test_an_error_ends_the_line_and_the_thread(slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path, **__: object) -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "info", fail)
    assert CliRunner().invoke(cli.main, ["info", "m.gguf"]).exit_code == 130
    assert not watchers()


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "bitgen-progress"]


def test_a_closed_standard_error_is_no_matter_for_the_watcher() -> None:
    def broken(_: str) -> None:
        raise BrokenPipeError

    clock = Clock()
    wait = progress.Wait(Console(file=io.StringIO()), False, broken, clock)
    clock.now += 60
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "TICK_S", 0.001)
        with progress.shown(wait) as listen:
            listen("linking", 0, 0)
            for thread in watchers():
                thread.join(60)
            assert not watchers()


# ---- the first piece of a text -------------------------------------------------------------------------------------


def test_a_text_comes_whole_and_its_wait_is_named_before(slow: None, capsys: pytest.CaptureFixture[str]) -> None:
    def text() -> Iterator[str]:
        seen = threading.Event()
        threading.Timer(0.05, seen.set).start()
        assert seen.wait(60)
        yield "Once"
        yield " upon"

    pieces = console.awaited("reading the prompt", text())
    assert next(pieces) == "Once"
    assert "bitgen: reading the prompt, 0:00" in capsys.readouterr().err
    assert list(pieces) == [" upon"] and not watchers()
    assert list(console.awaited("reading the prompt", [])) == []


def test_an_interrupt_while_a_prompt_is_read_leaves_nothing(slow: None) -> None:
    def text() -> Iterator[str]:
        raise KeyboardInterrupt
        yield ""

    with pytest.raises(KeyboardInterrupt):
        list(console.awaited("reading the prompt", text()))
    assert not watchers()
