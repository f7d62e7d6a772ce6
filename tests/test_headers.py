"""Declarations lifted from headers, by several threads and in forked processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cffi
import pytest

from bitgen import headers


def test_all_threads_get_the_same_declarations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pointer made with one cffi.FFI is none for a library opened with another."""
    (tmp_path / "some.h").write_text("// <cdef>\ntypedef struct { int a; } some;\n// </cdef>\n")

    class Slow(cffi.FFI):
        def cdef(self, *of: object) -> None:
            time.sleep(0.05)
            super().cdef(*of)

    monkeypatch.setattr(headers.data, "folder", lambda name: tmp_path)
    monkeypatch.setattr(headers.cffi, "FFI", Slow)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(headers.declared, ["some.h"] * 4))) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_amid_a_declaration() -> None:
    """Another thread is about to make one, and will never end in the new process."""
    script = """
import os, signal
from bitgen import headers
with headers._one_by_one:
    if not (pid := os.fork()):
        signal.alarm(20)  # a hang is another status
        headers.declared("bitgen.h")
        os._exit(0)
print(os.waitpid(pid, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_leaves_no_declaration_locked() -> None:
    script = """
import os, signal, threading
from bitgen.headers import declared
ffi, stop = declared("bitgen.h"), threading.Event()
def work():
    n = 0
    while not stop.is_set():
        n += 1
        ffi.typeof(f"int32_t[{n}]")
thread = threading.Thread(target=work)
thread.start()
for n in range(1, 20):
    if not (pid := os.fork()):
        signal.alarm(20)  # a hang is another status
        ffi.typeof(f"char[{n}]")
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        print("hung")
        break
stop.set()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
