"""What the runtime's headers declare between their `<cdef>` marks, through cffi: so no signature is written twice, and
no layout of a file."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Mapping
from typing import Any

import cffi
import numpy as np

from bitgen import data

_one_by_one = threading.Lock()


def _unlocked() -> None:
    """In a forked process: the thread that held the lock is not there."""
    global _one_by_one
    _one_by_one = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlocked)


def declared(header: str) -> cffi.FFI:
    """The declarations of a header, named from runtime/; the same for all threads: cffi keeps types of two apart."""
    with _one_by_one:
        return _declared(header)


@functools.cache
def _declared(header: str) -> cffi.FFI:
    text = (data.folder("runtime") / header).read_text(encoding="utf-8")
    made = cffi.FFI()
    made.cdef(text.split("// <cdef>")[1].split("// </cdef>")[0])
    if hasattr(os, "register_at_fork"):  # a process forked while a thread reads a declaration finds the lock free
        lock = made._lock
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return made


def constants(header: str, enum: str) -> dict[str, int]:
    """Name -> value of the constants of an enum."""
    return dict(declared(header).typeof(f"enum {enum}").relements)


def record(header: str, struct: str, fields: Mapping[str, Any]) -> bytes:
    """The bytes of a struct in a file. Every field of it must be given, but `zero`."""
    made = declared(header)
    names = [name for name, _ in made.typeof(struct).fields if name != "zero"]
    return bytes(made.buffer(made.new(f"{struct} *", {name: fields[name] for name in names})))


def capacity(header: str, struct: str, field: str) -> int:
    """Elements of an array in a struct."""
    return int(dict(declared(header).typeof(struct).fields)[field].type.length)


def dtype(type: Any) -> np.dtype[Any]:
    """NumPy's type for a C type: a number of fixed width, or a struct of such."""
    if type.kind == "struct":
        return np.dtype([(name, dtype(field.type)) for name, field in type.fields], align=True)
    name: str = type.cname
    return np.dtype(name.removesuffix("_t"))
