"""What stands before the tensor data of a GGUF file, read forward: header, key-values, tensor table.

Every count and length is checked against the bytes that are left before anything is made of them. What contradicts
itself or ends too soon is a FormatError; what the format allows and no model has is an UnsupportedError.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.errors import FormatError, UnsupportedError, brief, quoted

MAGIC, VERSIONS = b"GGUF", (2, 3)
MAX_ENTRIES = 1 << 16
"""Most key-values, and most tensors, of a file: more than any model has."""
MAX_NAME, MAX_DIMS = 256, 4
LEAST_ROW, LEAST_KEY_VALUE = 24, 13
"""Bytes of the shortest row of a tensor table, and of the shortest key-value."""

STRING, ARRAY = 8, 9
SCALARS: dict[int, str] = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4",
    7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
"""Value type id -> NumPy dtype."""

Row = tuple[str, tuple[int, ...], int, int]
"""A row of the tensor table: name, dims (contiguous one first), type id, offset from the start of the data."""


class Cursor:
    """Reads forward through a mapped file and never past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def header(self) -> tuple[int, int]:
        """Magic and version; then (tensor count, key-value count)."""
        if self.take(4, "the magic number") != MAGIC:
            raise FormatError(f"{self.path}: not a GGUF file (it does not begin with 'GGUF')")
        version = self.integer("<I", "the version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
            named = f"a big-endian file of version {swapped}" if swapped in VERSIONS else f"version {version}"
            raise self.unsupported(f"GGUF, {named}; little-endian files of versions 2 and 3 can be read")
        tensors, entries = self.integer("<Q", "the tensor count"), self.integer("<Q", "the key-value count")
        for what, count, least in (("tensors", tensors, LEAST_ROW), ("key-values", entries, LEAST_KEY_VALUE)):
            if count > MAX_ENTRIES:
                raise self.too_many(f"{count} {what}, of which {MAX_ENTRIES} can be read", count * least)
        return tensors, entries

    def key_values(self, count: int) -> dict[str, Any]:
        """The metadata, in the file's order."""
        found: dict[str, Any] = {}
        for i in range(count):
            key = self.string(f"key {i + 1} of {count}")
            if key in found:
                raise self.corrupt(f"the key {quoted(key)} appears twice")
            shown = brief(key)
            found[key] = self.value(self.integer("<I", f"the type of {shown}"), shown)
        return found

    def value(self, type: int, key: str) -> Any:
        """One value: a Python scalar, a str, a NumPy array or a list of str."""
        if type == STRING:
            return self.string(key)
        if type == ARRAY:
            return self.array(key)
        return self.numbers(type, 1, key)[0].item()

    def array(self, key: str) -> Any:
        """An array of numbers or strings. The standard has arrays of arrays too; no model has them."""
        type, count = self.integer("<I", f"the element type of {key}"), self.integer("<Q", f"the length of {key}")
        return self.strings(count, key) if type == STRING else self.numbers(type, count, key)

    def numbers(self, type: int, count: int, key: str) -> npt.NDArray[Any]:
        if type not in SCALARS:
            named = "array in an array" if type == ARRAY else str(type)
            raise self.unsupported(f"{key} has the value type {named}, which is not read")
        dtype = np.dtype(SCALARS[type])
        raw = self.take(count * dtype.itemsize, key)
        return np.frombuffer(raw, "u1") != 0 if dtype == np.bool_ else np.frombuffer(raw, dtype)

    def strings(self, count: int, key: str) -> list[str]:
        """An array of strings, in a tight loop: a vocabulary and its merges are 400,000 of them."""
        if count * 8 > len(self.data) - self.at:
            raise self.corrupt(f"{key} claims {count} strings")
        data, at, end, length_of = self.data, self.at, len(self.data), struct.Struct("<Q").unpack_from
        out: list[str] = []
        try:
            for _ in range(count):
                stop = at + 8 + length_of(data, at)[0]
                if stop > end:
                    raise self.corrupt(f"{key}[{len(out)}] runs past the end of the file")
                out.append(data[at + 8 : stop].decode())
                at = stop
        except struct.error:
            raise self.corrupt(f"{key} runs past the end of the file") from None
        except UnicodeDecodeError:
            raise self.corrupt(f"{key}[{len(out)}] is not UTF-8") from None
        self.at = at
        return out

    def tensor_table(self, count: int) -> list[Row]:
        """The rows, in the file's order."""
        rows: dict[str, Row] = {}
        for i in range(count):
            name = self.string(f"the name of tensor {i + 1} of {count}", MAX_NAME)
            if name in rows:
                raise self.corrupt(f"the tensor {quoted(name)} appears twice")
            shown = brief(name)
            n_dims = self.integer("<I", f"the dimensions of {shown}")
            if not 1 <= n_dims <= MAX_DIMS:
                raise self.too_many(f"tensor {shown} has {n_dims} dimensions; 1 to {MAX_DIMS} can be read", n_dims * 8)
            dims = tuple(self.integer("<Q", f"the dimensions of {shown}") for _ in range(n_dims))
            if 0 in dims:
                raise self.unsupported(f"tensor {shown} has a dimension of 0, which is not read")
            type, offset = self.integer("<I", f"the type of {shown}"), self.integer("<Q", f"the offset of {shown}")
            rows[name] = (name, dims, type, offset)
        return list(rows.values())

    def string(self, what: str, longest: int | None = None) -> str:
        length = self.integer("<Q", f"the length of {what}")
        if longest is not None and length > longest:
            raise self.too_many(f"{what} is {length} bytes long; {longest} can be read", length)
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise self.corrupt(f"{what} is not UTF-8") from None

    def integer(self, format: str, what: str) -> int:
        return int(struct.unpack(format, self.take(struct.calcsize(format), what))[0])

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        if count > len(self.data) - self.at:
            raise self.corrupt(f"the file ends within {what}")
        self.at += count
        return self.data[self.at - count : self.at]

    def corrupt(self, reason: str) -> FormatError:
        return FormatError(
            f"{self.path}: {reason} (near byte {self.at}); the file is cut short or corrupt: fetch it again"
        )

    def unsupported(self, reason: str) -> UnsupportedError:
        return UnsupportedError(f"{self.path}: {reason} (near byte {self.at})")

    def too_many(self, reason: str, needs: int) -> FormatError | UnsupportedError:
        """More than is read of what takes at least `needs` bytes: corrupt where so many are not left."""
        return self.corrupt(reason) if needs > len(self.data) - self.at else self.unsupported(reason)
