"""Read safetensors files: a u64 header length, a JSON header {name: dtype, shape, data_offsets}, raw bytes.

The NumPy reader of the `safetensors` package cannot read bfloat16, the usual type of ternary checkpoints, and maps
whole shards, whose pages then count as this process's memory. Here rows of a tensor are read on demand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.checkpoints.checkpoint import ALL, widen_bf16
from bitgen.convert.json_files import parse_object, read_object
from bitgen.errors import FormatError, UnsupportedError, quoted

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # the upper half of a float32; see `widen_bf16`
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "BOOL": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
"""Types as the header spells them -> types of the bytes on disk."""

LONGEST_HEADER = 100_000_000
"""Bytes that the format allows a header."""
MOST_DIMENSIONS = 8

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor is: `offset` is in bytes from the start of the file."""

    name: str
    path: Path
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def read(self, rows: slice = ALL) -> npt.NDArray[Any]:
        """Rows of the tensor (of a scalar, its value), bfloat16 as float32, everything else as stored."""
        dtype, row = DTYPES[self.dtype], math.prod(self.shape[1:])
        start, stop, _ = rows.indices(self.shape[0] if self.shape else 1)
        count = (stop - start) * row
        raw = np.fromfile(self.path, dtype, count, offset=self.offset + start * row * dtype.itemsize)
        if raw.size != count:
            raise FormatError(f"{self.path}: tensor {self.name} is cut short; download the file again")
        values = widen_bf16(raw) if self.dtype == "BF16" else raw
        return values.reshape((stop - start, *self.shape[1:]) if self.shape else ())


def open_directory(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model directory: of `model.safetensors`, which comes first, or of the shards of its index."""
    if (directory / SINGLE).is_file():
        return open_file(directory / SINGLE)
    index = directory / INDEX
    entries = read_object(index)
    if entries is not None:
        return _open_shards(index, entries)
    hint = ""
    if any(directory.glob("*.bin")):
        hint = "; it holds pickled PyTorch weights (*.bin): save the model with safe_serialization=True first"
    raise FormatError(f"{directory}: neither {SINGLE} nor {INDEX} is there{hint}")


def open_file(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file, from its header. Their ranges must fill the file, one after the other.

    FormatError: the file is broken. UnsupportedError: a tensor's type is none of DTYPES.
    """
    header, data_start, size = _header(path)
    header.pop("__metadata__", None)
    tensors = [_entry(path, name, entry, data_start) for name, entry in header.items()]
    at = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != at:
            raise FormatError(f"{path}: the tensor {quoted(tensor.name)} does not begin where the one before it ends")
        at += tensor.nbytes
    if at > size:
        raise FormatError(f"{path}: cut short inside its tensors; download the file again")
    if at < size:
        raise FormatError(f"{path}: {size - at} bytes after the last tensor belong to none")
    return {tensor.name: tensor for tensor in tensors}


def _entry(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    """A tensor of the header, whose shape fits its range of bytes."""
    where = f"{path}: tensor {quoted(name)}"
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise FormatError(f"{where}: header entry {quoted(entry)} is not understood") from None
    counts = all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, begin, end))
    if not isinstance(dtype, str) or not counts or len(shape) > MOST_DIMENSIONS:
        raise FormatError(f"{where}: header entry {quoted(entry)} is not understood")
    if dtype not in DTYPES:
        raise UnsupportedError(f"{where} is of type {quoted(dtype)}; known: {', '.join(DTYPES)}")
    tensor = StoredTensor(name, path, dtype, shape, data_start + begin)
    if end - begin != tensor.nbytes:
        raise FormatError(f"{where}: {dtype} {quoted(list(shape))} does not fill [{begin}, {end})")
    return tensor


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The parsed header, the offset of the data, and the size of the file, in bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size or length > LONGEST_HEADER:
            raise FormatError(f"{path}: not a safetensors file, or cut short inside its header")
        try:
            header = file.read(length).decode()
        except UnicodeDecodeError:
            raise FormatError(f"{path}: the safetensors header is not UTF-8") from None
    return parse_object(header, f"{path}: the safetensors header"), 8 + length, size


def _open_shards(index: Path, entries: dict[str, Any]) -> dict[str, StoredTensor]:
    """Every tensor of the shards that an index names, its own list of tensors being a part of them."""
    weight_map = entries.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise FormatError(f"{index}: no usable weight_map")
    tensors: dict[str, StoredTensor] = {}
    beside = {path.name for path in index.parent.iterdir() if path.is_file()}
    for file in sorted(set(weight_map.values())):
        if file not in beside:
            raise FormatError(f"{index}: names the shard {quoted(file)}, which is not beside it; download it too")
        shard = open_file(index.parent / file)
        twice = next((name for name in shard if name in tensors), None)
        if twice is not None:
            raise FormatError(f"{index}: {tensors[twice].path.name} and {file} both hold the tensor {quoted(twice)}")
        tensors |= shard
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].path.name != file:
            raise FormatError(f"{index}: {file} does not hold the tensor {quoted(name)}")
    return tensors
