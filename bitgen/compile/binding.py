"""The cffi binding. Its declarations are lifted from runtime/bitgen.h, so no signature is written twice."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import cffi

from bitgen import data
from bitgen.errors import EngineError


@functools.cache
def ffi() -> cffi.FFI:
    """The parsed public header."""
    text = (data.folder("runtime") / "bitgen.h").read_text(encoding="utf-8")
    made = cffi.FFI()
    made.cdef(text.split("// <cdef>")[1].split("// </cdef>")[0])
    return made


@functools.cache
def load(path: Path) -> Any:
    """A bitgen library, opened once per process."""
    try:
        return ffi().dlopen(str(path))
    except OSError as e:
        raise EngineError(f"cannot load {path}: {e}; delete its folder and it is built again") from e


def check(lib: Any, code: int, what: str) -> int:
    """Pass a non-negative result through; turn an error code into an exception that says what failed."""
    if code < 0:
        raise EngineError(f"{what}: {ffi().string(lib.bg_strerror(code)).decode()}")
    return code
