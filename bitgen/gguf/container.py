"""The GGUF container of a model: one file, or the parts of a split one read as one; and the head of a new file."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.errors import BitgenError
from bitgen.gguf import split
from bitgen.gguf.cursor import ARRAY, MAGIC, SCALARS, STRING
from bitgen.gguf.file import File, Tensor
from bitgen.gguf.types import ALIGNMENT, tensor_bytes, type_name
from bitgen.spec import round_up


class Container:
    """A model's file, or, given any part of a split model, all of its parts: key-values and tensors.

    `path` is what was given and appears in errors, `files` are all that are read, in order; `size` is theirs, in bytes.
    The key-values are the first file's. FormatError, UnsupportedError: as of file.File and split.together.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._parts = split.together(File(self.path))
        self.files = tuple(part.path for part in self._parts)
        self.size = sum(part.size for part in self._parts)
        self.complete = True  # False: the tensors' bytes are not there, and are not to be read
        self.metadata: dict[str, Any] = self._parts[0].metadata
        self.tensors: dict[str, Tensor] = {
            name: replace(tensor, part=i) for i, part in enumerate(self._parts) for name, tensor in part.tensors.items()
        }

    def bytes_of(self, tensor: Tensor) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor as a read-only view of the mapped file; pages of earlier views are dropped."""
        for part in self._parts:
            part.drop_pages()
        return self._parts[tensor.part].bytes_of(tensor)


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
