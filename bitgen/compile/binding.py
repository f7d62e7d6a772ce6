"""The cffi binding. Its declarations come from the runtime's headers, so that each signature and each struct
of a file is written once.
"""

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
    """The declarations of a runtime header: the text between its lines `// <cdef>` and `// </cdef>`."""
    text = (data.folder("runtime") / header).read_text(encoding="utf-8")
    made = cffi.FFI()
    made.cdef(text.split("// <cdef>")[1].split("// </cdef>")[0])
    return made


def ffi() -> cffi.FFI:
    """The public ABI, runtime/bitgen.h."""
    return declared("bitgen.h")


def constants(header: str, enum: str) -> dict[str, int]:
    """Name -> value of the constants of an enum that a header declares."""
    return dict(declared(header).typeof(f"enum {enum}").relements)


def record(header: str, struct: str, fields: Mapping[str, Any]) -> bytes:
    """The bytes of a struct that a file holds. Every field must be given, except the reserved `zero`."""
    made = declared(header)
    names = [name for name, _ in made.typeof(struct).fields if name != "zero"]
    return bytes(made.buffer(made.new(f"{struct} *", {name: fields[name] for name in names})))


def capacity(header: str, struct: str, field: str) -> int:
    """Elements of an array in a struct."""
    return int(dict(declared(header).typeof(struct).fields)[field].type.length)


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
