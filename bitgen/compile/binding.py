"""The cffi binding of a library, by runtime/bitgen.h."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import cffi

from bitgen import headers
from bitgen.errors import EngineError


def ffi() -> cffi.FFI:
    """The public ABI."""
    return headers.declared("bitgen.h")


@functools.cache
def load(path: Path) -> Any:
    """A bitgen library, opened once per process; EngineError when it cannot be."""
    try:
        return ffi().dlopen(str(path))
    except OSError as e:
        raise EngineError(f"cannot load {path}: {e}; delete its folder and it is built again") from e


def check(lib: Any, code: int, what: str) -> int:
    """Return a non-negative result; turn an error code into an EngineError that says what failed."""
    if code < 0:
        raise error(lib, code, what)
    return code


def error(lib: Any, code: int, what: str) -> EngineError:
    """The exception for an error code, which says what failed and why."""
    return EngineError(f"{what}: {ffi().string(lib.bg_strerror(code)).decode()}")
