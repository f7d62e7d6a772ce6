"""Who may use what holds buffers and threads of the runtime: one thread at a time, of the process that made it."""

from __future__ import annotations

import os
import threading
from typing import NoReturn, SupportsIndex

from bitgen.errors import ArgumentTypeError, EngineError


class Turn:
    """The right to call into the runtime, for one thread at a time: `with turn.take(): ...`."""

    def __init__(self, of: str) -> None:
        self._of, self._process, self._lock = of, os.getpid(), threading.Lock()

    def take(self) -> threading.Lock:
        """The lock, for `with`. EngineError where a call is at work, or where this is a forked process: threads of the
        process before are not in it, and to wait for them would be for ever.

        Two threads that ask in the same instant may both find it free; then one waits for the other. A lock that is
        asked first and entered by `with` is never left locked by an interrupt.
        """
        if os.getpid() != self._process:
            raise EngineError(f"this {self._of} was made in another process; open another here")
        if self._lock.locked():
            raise EngineError(f"this {self._of} is at work in another call; it is for one thread at a time")
        return self._lock


class Uncopied:
    """What copy and pickle refuse: a copy would share the buffers and threads of what it was made from."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        kind = type(self).__name__
        raise ArgumentTypeError(f"a {kind} cannot be copied or pickled: it belongs to its process; make another {kind}")
