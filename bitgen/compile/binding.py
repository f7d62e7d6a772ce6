"""The cffi binding. Its declarations are lifted from the runtime's headers, so that no signature is written twice, and
no layout of a file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cffi

from bitgen import data
from bitgen.errors import EngineError


@functools.cache
def declared(header: str) -> cffi.FFI:
    """What a header of the runtime declares between its two marker lines."""
    text = (data.folder("runtime") / header).read_text(encoding="utf-8")
    made = cffi.FFI()
    made.cdef(text.split("// <cdef>")[1].split("// </cdef>")[0])
    return made


def ffi() -> cffi.FFI:
    """The public ABI."""
    return declared("bitgen.h")


def constants(header: str, enum: str) -> dict[str, int]:
    """Name -> value of the constants of an enum."""
    return dict(declared(header).typeof(f"enum {enum}").relements)


def record(header: str, struct: str, fields: Mapping[str, Any]) -> bytes:
    """The bytes of a struct in a file. Every field of it must be given, but `zero`."""
    made = declared(header)
    names = [name for name, _ in made.typeof(struct).fields if name != "zero"]
    return bytes(made.buffer(made.new(f"{struct} *", {name: fields[name] for name in names})))


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
        raise error(lib, code, what)
    return code


def error(lib: Any, code: int, what: str) -> EngineError:
    """The exception for an error code, which says what failed and why."""
    return EngineError(f"{what}: {ffi().string(lib.bg_strerror(code)).decode()}")
