"""The GGUF container: header, key-values and tensor table. It knows nothing of models.

The `gguf` package cannot open the files this project is about (it raises on type 36, I2_S, and mistakes type 39), so
the container is parsed here, strictly: every count and length is checked against the bytes that are left before
anything is allocated, and anything wrong raises a FormatError with file, place and reason.

A file is: magic, version, counts | key-values | tensor table | padding | tensor data. All is little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.gguf.types import ALIGNMENT, TENSOR_TYPES, TensorType, tensor_bytes, type_name
from bitgen.spec import round_up

MAGIC, VERSIONS = b"GGUF", (2, 3)
MAX_ENTRIES = 1 << 16
"""Most key-values, and most tensors, of a file: more than any model has."""
MAX_NAME, MAX_DIMS = 256, 4

STRING, ARRAY = 8, 9
SCALARS: dict[int, str] = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4",
    7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
"""Value type id -> NumPy dtype."""

Row = tuple[str, tuple[int, ...], int, int]
"""A row of the tensor table: name, dims (contiguous one first), type id, offset from the start of the data."""


@dataclass(frozen=True)
class Tensor:
    """One row of the tensor table."""

    name: str
    shape: tuple[int, ...]  # rows first, as in NumPy
    type: int  # type id
    type_name: str  # of the one type that the id stands for in this file
    offset: int  # from the start of the file
    nbytes: int | None  # None: the size of this type is unknown

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class Container:
    """A GGUF file, memory-mapped: its key-values, its tensor table, and the bytes of any tensor.

    `path` appears in every error. `size` is the file's, in bytes. In `metadata` strings are str, arrays of numbers
    NumPy arrays, arrays of strings lists.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._map = _mapped(self.path)
        self.size = len(self._map)
        cursor = _Cursor(self.path, self._map)
        tensors, entries = cursor.header()
        self.metadata: dict[str, Any] = cursor.key_values(entries)
        self.alignment = self._alignment()
        table = cursor.tensor_table(tensors)
        data_start = round_up(cursor.at, self.alignment)
        types = self._types(table, data_start)
        self.tensors: dict[str, Tensor] = {row[0]: self._tensor(*row, data_start, types.get(row[2])) for row in table}
        self._check_ranges()

    def bytes_of(self, tensor: Tensor) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor as a read-only view of the mapped file.

        Pages that earlier views brought in are dropped from this process's memory; a view in use reads them again.
        """
        if tensor.nbytes is None:
            raise FormatError(f"{self.path}: tensor {tensor.name} has the unknown type {tensor.type_name}")
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)
        return np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.offset)

    def _alignment(self) -> int:
        value = self.metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(value, int) or not 1 <= value <= 1 << 20 or value & (value - 1):
            raise FormatError(f"{self.path}: general.alignment is {value!r}; expected a power of two")
        return value

    def _types(self, table: Sequence[Row], data_start: int) -> dict[int, TensorType]:
        """Type id -> the type that it stands for in this file.

        Where it may stand for several, the one whose sizes fill the room of each tensor, which ends at the next tensor
        or the end of the file, but for padding.
        """
        starts = sorted({data_start + offset for *_, offset in table})
        ends = dict(pairwise([*starts, self.size]))
        chosen: dict[int, TensorType] = {}
        for type in {row[2] for row in table} & TENSOR_TYPES.keys():
            rooms = {
                name: (math.prod(dims[1:]), dims[0], ends[data_start + offset] - data_start - offset)
                for name, dims, of, offset in table
                if of == type
            }
            known = TENSOR_TYPES[type]
            chosen[type] = known[0] if len(known) == 1 else self._fitting(type, rooms)
        return chosen

    def _fitting(self, type: int, rooms: dict[str, tuple[int, int, int]]) -> TensorType:
        """The type whose sizes fit every tensor of this id. rooms: tensor name -> (rows, columns, bytes of room)."""
        fitting: dict[tuple[int | None, ...], TensorType] = {}
        for known in TENSOR_TYPES[type]:
            sizes = [known.size(rows, columns) for rows, columns, _ in rooms.values()]
            slack = [-1 if n is None else room - n for n, (*_, room) in zip(sizes, rooms.values(), strict=True)]
            if all(0 <= spare < self.alignment for spare in slack):
                fitting.setdefault(tuple(sizes), known)
        if len(fitting) == 1:
            return next(iter(fitting.values()))
        name, (rows, columns, room) = next(iter(rooms.items()))
        wanted = ", ".join(f"{t.name}: {t.size(rows, columns) or 'no whole blocks'}" for t in TENSOR_TYPES[type])
        where = f"{self.path}: tensor {name}, {rows} x {columns}, has room for {room} bytes ({wanted}); tensors of type"
        if fitting:
            raise UnsupportedError(f"{where} {type} could be any of {type_name(type)} by their sizes")
        raise FormatError(f"{where} {type} fit neither {type_name(type)}: the file is cut short or corrupt")

    def _tensor(
        self, name: str, dims: tuple[int, ...], type: int, offset: int, data_start: int, known: TensorType | None
    ) -> Tensor:
        """A row of the table, checked: whole blocks, aligned, inside the file."""
        where = f"{self.path}: tensor {name}"
        elements = math.prod(dims)
        if elements > 64 * self.size:  # no type takes less than an eighth of a bit
            raise FormatError(f"{where}: {list(dims)} elements do not fit a file of {self.size} bytes")
        if offset % self.alignment:
            raise FormatError(f"{where}: offset {offset} is not a multiple of the alignment, {self.alignment}")
        nbytes = known.size(elements // dims[0], dims[0]) if known else None
        if known and nbytes is None:
            raise FormatError(f"{where}: rows of {dims[0]} are not whole {known.name} blocks")
        start = data_start + offset
        if start + (nbytes or 0) > self.size:
            raise FormatError(
                f"{where}: needs bytes {start} to {start + (nbytes or 0)} of a file of {self.size}; "
                "the file is cut short or corrupt: fetch it again"
            )
        return Tensor(name, dims[::-1], type, known.name if known else type_name(type), start, nbytes)

    def _check_ranges(self) -> None:
        """No two tensors share bytes."""
        placed = sorted((t for t in self.tensors.values() if t.nbytes), key=lambda t: t.offset)
        for before, after in pairwise(placed):
            if before.offset + (before.nbytes or 0) > after.offset:
                raise FormatError(f"{self.path}: tensors {before.name} and {after.name} overlap; the file is corrupt")


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as f:
            return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except ValueError:
        raise FormatError(f"{path}: the file is empty") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None


class _Cursor:
    """Reads forward through a mapped file and never past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def header(self) -> tuple[int, int]:
        """Magic and version; then (tensor count, key-value count)."""
        if self.take(4, "the magic number") != MAGIC:
            raise FormatError(f"{self.path}: not a GGUF file (it does not begin with 'GGUF')")
        version = self.integer("<I", "the version")
        if version not in VERSIONS:
            big = version.to_bytes(4, "little")[::-1]
            hint = " (big-endian)" if int.from_bytes(big, "little") in VERSIONS else ""
            raise FormatError(f"{self.path}: GGUF version {version}{hint}; versions 2 and 3 can be read")
        counts = self.integer("<Q", "the tensor count"), self.integer("<Q", "the key-value count")
        for what, count in zip(("tensors", "key-values"), counts, strict=True):
            if count > MAX_ENTRIES:
                raise self.corrupt(f"{count} {what}")
        return counts

    def key_values(self, count: int) -> dict[str, Any]:
        """The metadata, in the file's order."""
        found: dict[str, Any] = {}
        for i in range(count):
            key = self.string(f"key {i + 1} of {count}")
            if key in found:
                raise self.corrupt(f"the key {key!r} appears twice")
            found[key] = self.value(self.integer("<I", f"the type of {key}"), key)
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
            raise self.corrupt(f"{key} has the value type {type}")
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
                raise self.corrupt(f"the tensor {name!r} appears twice")
            n_dims = self.integer("<I", f"the dimensions of {name}")
            if not 1 <= n_dims <= MAX_DIMS:
                raise self.corrupt(f"tensor {name} has {n_dims} dimensions")
            dims = tuple(self.integer("<Q", f"the dimensions of {name}") for _ in range(n_dims))
            if 0 in dims:
                raise self.corrupt(f"tensor {name} has a dimension of 0")
            type, offset = self.integer("<I", f"the type of {name}"), self.integer("<Q", f"the offset of {name}")
            rows[name] = (name, dims, type, offset)
        return list(rows.values())

    def string(self, what: str, longest: int | None = None) -> str:
        length = self.integer("<Q", f"the length of {what}")
        if longest is not None and length > longest:
            raise self.corrupt(f"{what} is {length} bytes long")
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


# ---- writing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]  # rows first
    type: int
    variant: int = 0  # which of TENSOR_TYPES[type]

    @property
    def nbytes(self) -> int:
        size = tensor_bytes(self.type, self.shape, self.variant)
        if size is None:
            raise BitgenError(f"tensor {self.name}: {type_name(self.type)} cannot be written")
        return size


def head(metadata: Mapping[str, Any], entries: Sequence[Entry]) -> bytes:
    """Everything before the tensor data, padded to ALIGNMENT. The tensors follow in order, each padded likewise.

    Python ints become u32 (i32 when negative, u64 when large), floats f32; NumPy values keep their type.
    """
    parts = [MAGIC, struct.pack("<IQQ", 3, len(entries), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(key, value)]
    offset = 0
    for entry in entries:
        dims = entry.shape[::-1]
        parts += [_string(entry.name), struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, entry.type, offset)]
        offset += aligned(entry.nbytes)
    raw = b"".join(parts)
    return raw.ljust(aligned(len(raw)), b"\0")


def aligned(nbytes: int) -> int:
    """Bytes rounded up to ALIGNMENT, that of the files written here."""
    return round_up(nbytes, ALIGNMENT)


def _string(text: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise BitgenError(f"the text {text!r} is not valid Unicode and cannot be written") from None
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Any) -> bytes:
    """A value as the file has it: value type id, then its bytes."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    numbers = value if isinstance(value, np.ndarray | np.generic) else _narrow(np.asarray(value))
    if numbers.ndim > 1:
        raise BitgenError(f"metadata {key}: a list of lists cannot be written")
    array = struct.pack("<I", ARRAY) if numbers.ndim else b""
    length = struct.pack("<Q", numbers.size) if numbers.ndim else b""
    return array + struct.pack("<I", _type_id(key, numbers)) + length + numbers.tobytes()


def _narrow(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Python numbers in the width that other readers expect: 32 bits where they fit, scalars unsigned."""
    if values.dtype == np.float64:
        return values.astype("<f4")
    if values.dtype == np.int64:
        for narrow in ("<i4",) if values.ndim else ("<u4", "<i4"):
            if (values.astype(narrow) == values).all():
                return values.astype(narrow)
    return values


def _type_id(key: str, value: npt.NDArray[Any] | np.generic) -> int:
    for type, dtype in SCALARS.items():
        if value.dtype == np.dtype(dtype):
            return type
    raise BitgenError(f"metadata {key}: values of type {value.dtype} cannot be written")
