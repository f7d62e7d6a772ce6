"""Chat templates rendered: those that ship in this process, any other in one that can be ended (render_worker.py)."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from bitgen.errors import LONGEST, BitgenError, FormatError, UnsupportedError, brief
from bitgen.text import render_worker
from bitgen.text.chat_templates import NAMED
from bitgen.text.render_worker import CHARACTERS, SECONDS, Renderer

START_SECONDS = 60.0
PATIENCE = 10.0
"""Seconds by the clock, where CPU time is not limited: Windows."""


class Template:
    """A Jinja2 template, compiled. `name` begins what errors say of it.

    FormatError: it is no Jinja2. UnsupportedError: it cannot be compiled within the limits.
    """

    def __init__(self, source: str, name: str = "the chat template") -> None:
        self._name = name
        self._renderer = Renderer() if source in NAMED.values() else RenderProcess()
        reply = self._renderer.answer({"source": source})
        if "text" not in reply:
            kind, words = (
                (FormatError, "is not a Jinja2 template") if reply["syntax"] else (UnsupportedError, "does not compile")
            )
            raise kind(self._error(words, reply["fault"], "; name another one: --chat-template"))

    def render(self, context: Mapping[str, Any]) -> str:
        """The text that the template makes of variables, which JSON can hold; BitgenError where it makes none."""
        reply = self._renderer.answer({"context": dict(context)})
        if "text" not in reply:
            raise BitgenError(self._error("refuses this conversation", reply["fault"]))
        return str(reply["text"])

    def _error(self, words: str, fault: str, advice: str = "") -> str:
        """A sentence of at most LONGEST characters, whose words a template may have chosen."""
        name = brief(self._name, 60)
        return f"{name} {words}: {brief(fault, LONGEST - len(name) - len(words) - len(advice) - 3)}{advice}"


class RenderProcess:
    """A `Renderer` in a process of its own, started when it is needed. It may be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._compile: dict[str, Any] | None = None  # the request that comes first

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """As `Renderer.answer`. A template that exceeds its limits ends the process; the next request has a new one."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
                if self._compile:
                    self._ask(self._compile)
            self._compile = self._compile or request
            return self._ask(request)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process
        return _exchange(self._process, json.dumps(request).encode() + b"\n", PATIENCE)

    def _start(self) -> subprocess.Popen[bytes]:
        folders = {str(Path(str(module.__file__)).parents[1]) for module in (jinja2, markupsafe)}
        command = [sys.executable or "python3", "-I", str(render_worker.__file__), *folders]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as e:
            raise BitgenError(f"cannot start {command[0]}, which renders chat templates: {e.strerror}") from None
        weakref.finalize(self, _end, process)
        if "fault" in _exchange(process, b"", START_SECONDS):
            raise BitgenError(f"{command[0]} does not start, which renders chat templates")
        return process


def _exchange(process: subprocess.Popen[bytes], message: bytes, seconds: float) -> dict[str, Any]:
    """Send a message; the reply, which is a fault where the process ends or does not reply within so many seconds."""
    assert process.stdin and process.stdout
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        process.stdin.write(message)
        process.stdin.flush()
        line = process.stdout.readline(12 * CHARACTERS + 100)  # JSON spells a character with up to twelve
    except OSError:  # a broken pipe
        line = b""
    except BaseException:
        process.kill()  # its late reply would be taken for the next one
        raise
    finally:
        late = timer.finished.is_set()
        timer.cancel()
    if line.endswith(b"\n"):
        reply: dict[str, Any] = json.loads(line)
        return reply
    process.kill()
    if late or process.wait() == -getattr(signal, "SIGPROF", 0):
        return {"fault": f"it takes more than {SECONDS:g} s of CPU time", "syntax": False}
    return {"fault": "Python does not survive it", "syntax": False}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what is still in the buffer of a broken pipe
            pipe.close()  # type: ignore[union-attr]
