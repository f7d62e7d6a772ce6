"""Declarations lifted from headers."""

from __future__ import annotations

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
