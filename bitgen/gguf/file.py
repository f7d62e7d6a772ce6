"""One GGUF file, mapped: its key-values, its tensor table, the bytes of any tensor. It knows nothing of models.

The `gguf` package cannot open the files this project is about (it raises on type 36, I2_S, and mistakes type 39), so
they are parsed here, strictly, and anything wrong is said with file, place and reason.

A file is: magic, version, counts | key-values | tensor table | padding | tensor data. All is little-endian.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen import data
from bitgen.errors import FormatError, UnsupportedError, brief, quoted
from bitgen.gguf.cursor import Cursor, Row
from bitgen.gguf.types import ALIGNMENT, CONTESTED, TENSOR_TYPES, TensorType, type_name
from bitgen.spec import round_up


@dataclass(frozen=True)
class Tensor:
    """One row of the tensor table."""

    name: str
    shape: tuple[int, ...]  # rows first, as in NumPy
    type: int  # type id
    type_name: str  # of the one type that the id stands for in this file
    offset: int  # from the start of the file
    nbytes: int | None  # None: the size of this type is unknown
    part: int = 0  # which file of a split model has it

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class File:
    """A GGUF file, memory-mapped: its key-values, its tensor table, and the bytes of any tensor.

    `path` appears in every error. `size` is the file's, in bytes. In `metadata` strings are str, arrays of numbers
    NumPy arrays, arrays of strings lists.

    FormatError: the file contradicts itself or ends too soon. UnsupportedError: it is sound, and not read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._map = _mapped(self.path)
        self.size = len(self._map)
        cursor = Cursor(self.path, self._map)
        tensors, entries = cursor.header()
        self.metadata: dict[str, Any] = cursor.key_values(entries)
        self.alignment = self._alignment()
        table = cursor.tensor_table(tensors)
        data_start = round_up(cursor.at, self.alignment)
        types = self._types(table, data_start)
        self.tensors: dict[str, Tensor] = {row[0]: self._tensor(*row, data_start, types.get(row[2])) for row in table}
        self._check_ranges()

    def bytes_of(self, tensor: Tensor) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor as a read-only view of the mapped file."""
        if tensor.nbytes is None:
            raise UnsupportedError(f"{self.path}: tensor {brief(tensor.name)} has the unknown type {tensor.type_name}")
        return np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.offset)

    def drop_pages(self) -> None:
        """Drop pages that views brought in from this process's memory; a view in use reads them again."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _alignment(self) -> int:
        """What offsets and the start of the data are multiples of: by the standard of 8, by llama.cpp a power of 2."""
        value = self.metadata.get("general.alignment", ALIGNMENT)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole or (value % 8 and value & (value - 1)):
            raise FormatError(f"{self.path}: general.alignment is {quoted(value)}; expected a multiple of 8")
        return int(value)

    def _types(self, table: Sequence[Row], data_start: int) -> dict[int, TensorType]:
        """Type id -> the type that it stands for in this file.

        Where it may stand for several, or is contested, the one whose sizes fill the room of each tensor, which ends at
        the next tensor or the end of the file, but for padding.
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
            sure = len(known) == 1 and type not in CONTESTED
            chosen[type] = known[0] if sure else self._fitting(type, rooms)
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
        where = (
            f"{self.path}: tensor {brief(name)}, {rows} x {columns}, has room for {room} bytes ({wanted}); "
            f"tensors of type {type}"
        )
        if fitting:
            raise UnsupportedError(f"{where} could be any of {type_name(type)} by their sizes")
        raise FormatError(
            f"{where} do not fit {type_name(type)}: the file is cut short, corrupt, or has another type by this number"
        )

    def _tensor(
        self, name: str, dims: tuple[int, ...], type: int, offset: int, data_start: int, known: TensorType | None
    ) -> Tensor:
        """A row of the table, checked: whole blocks, aligned, inside the file."""
        where = f"{self.path}: tensor {brief(name)}"
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
                names = f"{brief(before.name)} and {brief(after.name)}"
                raise FormatError(f"{self.path}: tensors {names} overlap; the file is corrupt")


def _mapped(path: Path) -> mmap.mmap:
    try:
        with data.regular(path).open("rb") as f:
            return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise FormatError(f"{path}: the file is empty") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
