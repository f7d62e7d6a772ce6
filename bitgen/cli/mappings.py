"""A file that is cut short while it is mapped: a sentence and exit code 1 instead of the signal SIGBUS.

Only the command line does this. A program that uses bitgen as a library keeps its own handlers.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
from pathlib import Path


def guard() -> None:
    """From now on SIGBUS says what happened and ends the process.

    Through C: handlers of the signal module run between instructions of Python, and the one that faults never ends.
    """
    if hasattr(signal, "SIGBUS"):
        ctypes.CDLL(None).signal(int(signal.SIGBUS), _HANDLER)


def _on_sigbus(_: int) -> None:
    message = f"bitgen: {_cut()} was cut short while it was in use; write it again in full and repeat the command\n"
    os.write(2, message.encode(errors="replace"))
    os._exit(1)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(_on_sigbus)


def _cut() -> str:
    """The file that has become shorter than its mapping, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            addresses, _, offset, _, _, *path = line.split(maxsplit=5)
            first, last = (int(address, 16) for address in addresses.split("-"))
            with contextlib.suppress(OSError):
                if path and int(offset, 16) + last - first >= Path(path[0]).stat().st_size + mmap.PAGESIZE:
                    return repr(path[0])
    return "a file"
