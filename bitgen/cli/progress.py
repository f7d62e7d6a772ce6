"""What a wait shows: on a terminal one line that moves, elsewhere a line every ten seconds, for a short one nothing.

    compiling kernels ━━━━━━━━━━━━╸━━━━━━━━━━━━ 12 of 34  0:19  about 0:21 left
    bitgen: compiling kernels, 12 of 34, 0:20, about 0:21 left

The time is that of the whole wait and moves every second. What is left is of the stage, by its speed up to now: while
nothing is done, it grows. Where the total is not known, or too little is done to tell, nothing is said of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import Progress, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bitgen.spec import Listener

TICK_S, PATIENCE_S, SILENCE_S = 0.5, 0.3, 10.0
"""Between two looks at the clock; before a terminal shows a wait; between two lines where there is no terminal."""
COUNTED = 9999
"""Most of something that is counted in words ("3 of 40"); of more, as of bytes, the share is said."""
TELLING_S = 2.0
"""A stage must go on for this long before its speed is taken for one."""
LEAST_BAR, LONGEST_BAR = 8, 40


class Wait:
    """One wait: `listen` is told what goes on, `tick` shows it when it is time to.

    live: on a terminal whose lines can be drawn again. say: prints a line elsewhere. clock: seconds.
    """

    def __init__(
        self, console: Console, live: bool, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._begun = self._said = clock()
        self._clock, self._live, self._say, self._lock = clock, live, say, threading.RLock()
        self._line = _Line(console, self.elapsed, clock)
        self._task = self._line.add_task("starting", total=None)

    def listen(self, stage: str, done: int, total: int) -> None:
        """A `Listener`: another total, or less done than before, begins another stage, whose speed is its own."""
        with self._lock:
            task = self._line.tasks[0]
            if task.total != (total or None) or done < task.completed:
                self._line.remove_task(self._task)
                self._task = self._line.add_task(stage, total=total or None, completed=done, first=done)
            else:
                self._line.update(self._task, completed=done, description=stage)

    def tick(self) -> None:
        """Draw the line anew, or print one if there was none for SILENCE_S."""
        with self._lock:
            now = self._clock()
            if self._live and now - self._begun >= PATIENCE_S:
                self._line.start()
                self._line.refresh()
            elif not self._live and now - self._said >= SILENCE_S:
                self._said = now
                words = _words(self._line.tasks[0], self.elapsed())
                self._say(f"bitgen: {', '.join(filter(None, words))}")

    def end(self) -> None:
        """Remove the line."""
        if self._live:  # rich would print an empty line
            self._line.stop()

    def elapsed(self) -> str:
        """Since the wait began."""
        return _face(self._clock() - self._begun)


@contextmanager
def shown(wait: Wait) -> Iterator[Listener]:
    """The listener of a wait, which a thread shows until the context ends."""
    over = threading.Event()

    def watch() -> None:
        try:
            while not over.wait(TICK_S):
                wait.tick()
        except OSError:  # nobody reads standard error any more; the command notices when it writes there
            return

    thread = threading.Thread(target=watch, daemon=True, name="bitgen-progress")
    thread.start()
    try:
        yield wait.listen
    finally:
        over.set()
        thread.join()
        wait.end()


class _Line(Progress):
    """A stage on one line of whatever width there is."""

    def __init__(self, console: Console, elapsed: Callable[[], str], clock: Callable[[], float]) -> None:
        self._elapsed = elapsed
        super().__init__(
            console=console, auto_refresh=False, transient=True, redirect_stdout=False, get_time=clock,
        )  # fmt: skip

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from (self._row(task) for task in self.tasks)

    def _row(self, task: Task) -> Table:
        """The bar takes what the words leave; where they leave too little, what matters least is left out."""
        stage, *rest = _words(task, self._elapsed())
        for least in (2, 0):  # what is left, the amount
            if self._room(stage, rest) < 0:
                rest[least] = ""
        text, room = Text(stage), self._room(stage, rest) - 1
        text.truncate(max(1, cell_len(stage) + room + 1), overflow="ellipsis")
        cells: list[RenderableType] = [text]
        if room >= LEAST_BAR:
            total, width = task.total, min(room, LONGEST_BAR)
            cells.append(ProgressBar(total or 1, task.completed, width, total is None, animation_time=self.get_time()))
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_row(*cells, *(Text(word, no_wrap=True) for word in rest if word))
        return row

    def _room(self, stage: str, rest: list[str]) -> int:
        """Columns that the words leave, each after a blank; the last stays free, as some terminals wrap there."""
        return self.console.width - 1 - cell_len(stage) - sum(1 + cell_len(word) for word in rest if word)


def _words(task: Task, elapsed: str) -> list[str]:
    """The stage, how much of it is done, the time, and what is left; "" where that is not known."""
    left = _left(task)
    amount = "" if task.total is None else _amount(int(task.completed), int(task.total))
    return [task.description, amount, elapsed, f"about {_face(left)} left" if left >= 1 else ""]


def _left(task: Task) -> float:
    """Seconds that the rest of a stage takes at its speed; 0: not known."""
    done, elapsed = task.completed - task.fields.get("first", 0), task.elapsed or 0.0
    return elapsed * task.remaining / done if done > 0 and task.remaining and elapsed >= TELLING_S else 0.0


def _amount(done: int, total: int) -> str:
    return f"{done} of {total}" if total <= COUNTED else f"{100 * done // total}%"


def _face(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some: 0:07, 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
