"""A terminal that is recorded: a command runs in it, and of every second it is known what its screen showed.

A second is explained where the screen has changed of late: a stage's time moved on, text came. While a command waits
for its user, whose prompt is the last line, nothing needs to move.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pyte

PROMPT = ">>>"
STILL_S = 2
"""Seconds that a screen may stand still: it is looked at once a second, and drawn twice."""
STARTING_S = 10
"""Seconds in which a screen may be empty: the interpreter starts in one, but not beside other tests."""
SHOWING = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "BITGEN_QUIET")
"""Variables by which the surroundings of the tests would change what is shown."""


@dataclass
class Recording:
    """What a command showed: a screen for each second, its lines without trailing blanks, and the last one."""

    command: Sequence[str]
    seconds: list[list[str]] = field(default_factory=list)
    last: list[str] = field(default_factory=list)
    code: int = -1

    @property
    def unexplained(self) -> list[str]:
        """A line for each second in which nothing moved: the second, and what the screen showed."""
        still = []
        for second in range(STILL_S, len(self.seconds)):
            shown = self.seconds[second]
            excused = shown[-1].startswith(PROMPT) if shown else second < STARTING_S
            if all(shown == before for before in self.seconds[second - STILL_S : second]) and not excused:
                still.append(f"second {second + 1} of {' '.join(self.command)}: {shown[-1] if shown else '(empty)'}")
        return still


def lines(screen: pyte.Screen) -> list[str]:
    shown = [line.rstrip() for line in screen.display]
    while shown and not shown[-1]:
        shown.pop()
    return shown


def record(
    command: Sequence[str],
    typed: Sequence[tuple[str, str]] = (),
    *,
    width: int = 80,
    height: int = 50,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 600,
) -> Recording:
    """Run a command on a terminal of its own. typed: (what the screen's last line begins with, what is typed then)."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (height, width))
    kept = {key: value for key, value in os.environ.items() if key not in SHOWING}
    variables = {**kept, "TERM": "xterm-256color", **(environment or {})}
    child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=variables, start_new_session=True)
    os.close(slave)
    screen, found, waiting = pyte.Screen(width, height), Recording(list(command)), list(typed)
    stream, begun = pyte.ByteStream(screen), time.monotonic()
    while _feed(master, stream, begun + len(found.seconds) + 1):
        now = time.monotonic() - begun
        if now >= len(found.seconds) + 1:
            found.seconds.append(lines(screen))
        if waiting and (lines(screen) or [""])[-1].startswith(waiting[0][0]):
            os.write(master, waiting.pop(0)[1].encode())
        if now > timeout_s:
            os.killpg(child.pid, signal.SIGKILL)
    os.close(master)
    found.last, found.code = lines(screen), child.wait()
    return found


def _feed(master: int, stream: pyte.ByteStream, until: float) -> bool:
    """Show what comes until then; False when the other side has closed."""
    ready, _, _ = select.select([master], [], [], max(0.0, until - time.monotonic()))
    if not ready:
        return True
    with suppress(OSError):  # Linux: the other side is closed
        if piece := os.read(master, 1 << 16):
            stream.feed(piece)
            return True
    return False


BITGEN = (sys.executable, "-m", "bitgen")
