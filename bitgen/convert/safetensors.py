"""Read safetensors files: a u64 header length, a JSON header {name: dtype, shape, data_offsets}, raw bytes.

The NumPy reader of the `safetensors` package cannot read bfloat16, the usual type of ternary checkpoints, and maps
whole shards, whose pages then count as this process's memory. Here rows of a tensor are read on demand.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.checkpoints.checkpoint import ALL, widen_bf16
from bitgen.errors import FormatError

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
    """Every tensor of a model directory: of `model.safetensors`, or of the shards that its index names."""
    index = directory / INDEX
    if index.is_file():
        return _open_shards(index)
    if (directory / SINGLE).is_file():
        return open_file(directory / SINGLE)
    hint = ""
    if any(directory.glob("*.bin")):
        hint = "; it holds pickled PyTorch weights (*.bin): save the model with safe_serialization=True first"
    raise FormatError(f"{directory}: neither {SINGLE} nor {INDEX} is there{hint}")


def open_file(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file, from its header; every range is checked against the file's size."""
    header, data_start, size = _header(path)
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            itemsize = DTYPES[dtype].itemsize
            ints = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            raise FormatError(f"{path}: tensor {name}: header entry {entry!r} is not understood") from None
        if not ints or end - begin != math.prod(shape) * itemsize:
            raise FormatError(f"{path}: tensor {name}: {dtype} {list(shape)} does not fill [{begin}, {end})")
        if data_start + end > size:
            raise FormatError(f"{path}: cut short inside the tensor {name}; download the file again")
        tensors[name] = StoredTensor(name, path, dtype, shape, data_start + begin)
    return tensors


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The parsed header, the offset of the data, and the size of the file, in bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            raise FormatError(f"{path}: not a safetensors file, or cut short inside its header")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise FormatError(f"{path}: the safetensors header is not JSON") from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: the safetensors header is not a JSON object")
    return header, 8 + length, size


def _open_shards(index: Path) -> dict[str, StoredTensor]:
    """Every tensor of an index, in the shards beside it."""
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        weight_map = {str(name): str(file) for name, file in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FormatError(f"{index}: no usable weight_map") from None
    shards: dict[str, dict[str, StoredTensor]] = {}
    for file in sorted(set(weight_map.values())):
        path = index.parent / file
        if Path(file).name != file or not path.is_file():
            raise FormatError(f"{index}: names the shard {file!r}, which is not beside it; download it too")
        shards[file] = open_file(path)
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise FormatError(f"{index}: {file} does not hold the tensor {name}")
    return {name: shards[file][name] for name, file in weight_map.items()}
