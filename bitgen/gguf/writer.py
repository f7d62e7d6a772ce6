"""Checkpoints as GGUF files that other engines read. Another type to write is a row of FILE_TYPES."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bitgen.checkpoints.architectures import ARCHITECTURES, IMPLIED
from bitgen.checkpoints.checkpoint import NARROW, Checkpoint, DenseType, Scale, dense_type, row_pieces
from bitgen.checkpoints.tensors import is_ternary, part_of, tensor_shapes, ternary_ends
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.gguf import blocks
from bitgen.gguf.container import Entry, aligned, head
from bitgen.gguf.metadata import key_values
from bitgen.gguf.part_file import PartFile
from bitgen.gguf.reader import GgufCheckpoint
from bitgen.gguf.rope_keys import TABLE, rope_table
from bitgen.gguf.tensors import renamed, scale_name
from bitgen.gguf.types import BF16, F16, F32, I2_S, PQ2_0, PTQ1_0, Q1_0, Q2_0, T5, TQ1_0, TQ2_0
from bitgen.kernels.layout import Bytes, Codes, Scales
from bitgen.spec import ModelShape, Progress

TernaryType = Literal["i2_s", "tq1_0", "tq2_0", "t5", "q2_0", "pq2_0", "ptq1_0", "q1_0"]


@dataclass(frozen=True)
class FileType:
    """A way to write the ternary matrices of a file."""

    id: int  # tensor type id of the matrices
    file_type: int  # general.file_type
    pack: Callable[[Codes, Scales], Bytes]  # codes [M, K], scales [] or [M, K / group] -> the tensor's bytes
    groups: tuple[int, ...] = (0,)  # columns that may share a scale; 0: a matrix has one
    binary: bool = False  # weights are -1 and +1 alone
    scale_beside: bool = False  # one scale goes into a tensor blk.N.*.scale behind each matrix, whose blocks hold 1


Q2_0_GROUPS = (64, 128)
"""Weights of a block of Q2_0, in the order of TENSOR_TYPES."""

DEFAULT_TYPE = {0: "i2_s", 64: "q2_0", 128: "q2_0", 256: "tq2_0"}
"""Columns that share a scale -> the type that is written where none is named and q1_0 does not serve."""


def _in_blocks(pack: Callable[[Codes, Scales | float], Bytes]) -> Callable[[Codes, Scales], Bytes]:
    """Scales of groups stand in the blocks; one scale stands beside, and 1 in the blocks."""
    return lambda codes, scales: pack(codes, scales if scales.ndim else 1.0)


FILE_TYPES: dict[str, FileType] = {
    "i2_s": FileType(I2_S, 40, blocks.pack_i2_s_tensor),
    "tq1_0": FileType(TQ1_0, 36, _in_blocks(blocks.pack_tq1_0), groups=(0, 256), scale_beside=True),
    "tq2_0": FileType(TQ2_0, 37, _in_blocks(blocks.pack_tq2_0), groups=(0, 256), scale_beside=True),
    "t5": FileType(T5, T5, blocks.pack_t5_tensor),
    "q2_0": FileType(Q2_0, 41, blocks.pack_q2_0, groups=Q2_0_GROUPS),
    "pq2_0": FileType(PQ2_0, 141, blocks.pack_q2_0, groups=(128,)),
    "ptq1_0": FileType(PTQ1_0, 143, blocks.pack_ptq1_0, groups=(128,)),
    "q1_0": FileType(Q1_0, 40, _in_blocks(blocks.pack_q1_0), groups=(0, 128), binary=True, scale_beside=True),
}
"""What --type names -> how matrices are written."""


def default_type(shape: ModelShape) -> str:
    """The type that is written where none is named."""
    if shape.binary and shape.group in FILE_TYPES["q1_0"].groups:
        return "q1_0"
    return DEFAULT_TYPE.get(shape.group, "q2_0")


PACKERS = {known.id: known.pack for known in FILE_TYPES.values()}


def write_gguf(
    path: str | Path,
    checkpoint: Checkpoint,
    type: str | None = None,
    progress: Progress | None = None,
    identity: str | None = None,
    check: Callable[[bytes, int], None] | None = None,
) -> None:
    """Write a checkpoint as a GGUF file, one matrix in memory at a time. The file appears whole or not at all.

    type: "i2_s" (the default) for bitnet.cpp, "tq1_0" or "tq2_0" for llama.cpp, "t5", the smallest, for bitgen alone.
    Models with a scale for every 64 or 128 weights are written as "q2_0" (the default) and, where it is 128, as "pq2_0"
    or "ptq1_0"; with one for every 256 as "tq2_0" (the default) or "tq1_0". Binary models with one scale, or one for
    every 128 weights, are written as "q1_0" (the default), or as if they were ternary.
    The one scale of a matrix is float32, and those of TQ and Q1_0 blocks are float16. So the blocks hold 1, and the
    scale goes beside the matrix, exactly, as blk.N.*.scale (llama.cpp multiplies by it: in bitnet it always did, in
    llama since 2026).
    Vectors are F32. Matrices of floats are copied as they are stored in a GGUF file; of other checkpoints embedding and
    head are of the matrices' type where they are ternary with such scales, and all else is F16 where it holds every
    number exactly, else BF16 or F32; those of ALWAYS_F32 are that.
    identity: of the checkpoint's weights. Where it is given, an interrupted run leaves what it wrote (part_file.py),
    and the next run with the same metadata, type and identity goes on from there.
    progress: called with (bytes done, bytes in all).
    check: called with the file's first bytes, all that is read to open it, and how many follow, before anything is
    written.

    UnsupportedError: the type or the architecture cannot express the shape. FormatError: weights are not ternary or
    not finite.
    """
    path = Path(path)
    type = type or default_type(checkpoint.shape)
    if type not in FILE_TYPES:
        raise UnsupportedError(f"unknown file type {type!r}; known: {', '.join(FILE_TYPES)}")
    entries = tensor_table(checkpoint.shape, type, _dense_types(checkpoint))
    start = head(key_values(checkpoint, FILE_TYPES[type].file_type), entries)
    if check is not None:
        table = rope_table(checkpoint.shape).tobytes()  # the first tensor, which is read with the keys
        check(start + table, sum(aligned(entry.nbytes) for entry in entries) - len(table))
    if identity is not None:
        identity = hashlib.sha256(start + identity.encode()).hexdigest()
    try:
        with PartFile(path, identity) as part:
            if "head" not in part.done:
                part.append("head", [start])
            _write_tensors(part, checkpoint, entries, progress)
    except OSError as error:
        advice = "; what is done is kept, and the same command goes on from there" if identity else ""
        raise BitgenError(f"cannot write {path}: {error.strerror}{advice}") from error


_DENSE: dict[DenseType, int] = {"f16": F16, "bf16": BF16, "f32": F32}


ALWAYS_F32 = ("ssm_conv1d",)
"""Matrices of floats for which other engines have one type."""


def _dense_types(checkpoint: Checkpoint) -> Mapping[str, int]:
    """Name -> type id of each matrix of floats: as stored, or the smallest that is exact, of ALWAYS_F32 that."""
    stored = checkpoint.stored_types if isinstance(checkpoint, GgufCheckpoint) else {}
    dims = tensor_shapes(checkpoint.shape)
    ternary = {*ternary_ends(checkpoint.shape), *stored, *filter(is_ternary, dims)}
    floats = [name for name, size in dims.items() if len(size) == 2 and name not in ternary]
    names = [name for name in floats if part_of(name) not in ALWAYS_F32]
    return {**stored, **{name: _DENSE[dense_type(checkpoint, name, dims[name])] for name in names}}


def tensor_table(shape: ModelShape, type: str, dense: Mapping[str, int] = MappingProxyType({})) -> list[Entry]:
    """The tensors of a file, in order; UnsupportedError where the type or the architecture cannot express the shape.

    dense: name -> type id of matrices of floats, where they are neither F16 nor of the type of a ternary embedding.
    """
    _check_traits(shape)
    _check_weights(shape, type)
    table = rope_table(shape)
    entries = [Entry(TABLE, table.shape, F32)] if len(table) else []
    for name, dims in tensor_shapes(shape).items():
        ternary = is_ternary(name) or (name in ternary_ends(shape) and name not in dense)
        if not ternary:
            usual = F32 if part_of(name) in ALWAYS_F32 else F16
            stored = renamed(shape.architecture, name)
            entries.append(Entry(stored, dims, F32 if len(dims) == 1 else dense.get(name, usual)))
            continue
        _check_blocks(name, dims, type)
        variant = Q2_0_GROUPS.index(shape.group) if type == "q2_0" else 0
        entries.append(Entry(name, dims, FILE_TYPES[type].id, variant))
        if FILE_TYPES[type].scale_beside and not shape.group:
            entries.append(Entry(scale_name(name), (1,), F32))
    return entries


def _check_traits(shape: ModelShape) -> None:
    """An architecture's name must imply what the shape has: GGUF has no keys for these."""
    known = ARCHITECTURES.get(shape.architecture)
    traits = ("sub_norms", "rope_interleaved", *IMPLIED)
    other = known is None or any(getattr(known, trait) != getattr(shape, trait) for trait in traits)
    if known is None or other or known.delta != (shape.delta is not None):
        has = ", ".join(f"{trait}={getattr(shape, trait)}" for trait in traits)
        raise UnsupportedError(f"architecture {shape.architecture!r} with {has} has no GGUF form")


def _check_weights(shape: ModelShape, type: str) -> None:
    """The type holds such weights and scales of such groups; else UnsupportedError names those that do."""
    if _holds(shape, FILE_TYPES[type]):
        return
    has = f"a scale for every {shape.group} weights" if shape.group else "one scale for each matrix"
    if FILE_TYPES[type].binary and not shape.binary:
        has += " and weights that are 0"
    others = [name for name, known in FILE_TYPES.items() if _holds(shape, known)]
    instead = f"take {' or '.join(others)}" if others else "no type that is written here holds them"
    raise UnsupportedError(f"a model with {has} cannot be written as {type}: {instead}")


def _holds(shape: ModelShape, type: FileType) -> bool:
    return shape.group in type.groups and (shape.binary or not type.binary)


def _check_blocks(name: str, dims: tuple[int, ...], type: str) -> None:
    """A matrix must be whole blocks of its type."""
    m, k = dims
    if type == "i2_s" and m * k % 128:
        raise UnsupportedError(f"{name}: {m} x {k} weights are not whole I2_S blocks of 128")
    if type in ("tq1_0", "tq2_0") and k % blocks.TQ_BLOCK:
        raise UnsupportedError(f"{name}: rows of {k} are not whole {type} blocks of 256; take i2_s")
    if type == "q1_0" and k % blocks.Q1_BLOCK:
        raise UnsupportedError(f"{name}: rows of {k} are not whole q1_0 blocks of 128; take i2_s")


def _write_tensors(part: PartFile, checkpoint: Checkpoint, entries: Sequence[Entry], progress: Progress | None) -> None:
    """Append the tensors that an earlier run did not complete, each with its padding."""
    total, done = sum(aligned(entry.nbytes) for entry in entries), 0
    scales: dict[str, Scale] = {}
    for entry in entries:
        if entry.name not in part.done:
            fill = bytes(aligned(entry.nbytes) - entry.nbytes)
            written = part.append(entry.name, chain(payload(checkpoint, entry, scales), [fill])) - len(fill)
            if written != entry.nbytes:
                raise BitgenError(f"{entry.name}: {written} bytes where {entry.nbytes} were planned")
        done += aligned(entry.nbytes)
        if progress:
            progress(done, total)


def payload(checkpoint: Checkpoint, entry: Entry, scales: dict[str, Scale]) -> Iterable[npt.NDArray[Any]]:
    """A tensor's bytes: a matrix in one piece, floats in several. `scales` carries scales to the tensors beside."""
    name = renamed(checkpoint.shape.architecture, entry.name)
    if isinstance(checkpoint, GgufCheckpoint) and name in checkpoint.stored_types:
        return checkpoint.stored(name)
    if entry.name in ternary_ends(checkpoint.shape):
        return _ternary_rows(checkpoint, entry)
    if entry.type in PACKERS:
        codes, scale = checkpoint.ternary(entry.name)
        scales[scale_name(entry.name)] = scale
        return [_packed(entry, codes, np.asarray(scale, np.float32))]
    if entry.name == TABLE:
        return [rope_table(checkpoint.shape)]
    if entry.name.endswith(".scale"):
        if entry.name not in scales:  # an earlier run wrote the matrix
            scales[entry.name] = checkpoint.ternary(entry.name.removesuffix("scale") + "weight")[1]
        return [np.array([scales[entry.name]], "<f4")]
    return _converted(entry, checkpoint, name)


def _ternary_rows(checkpoint: Checkpoint, entry: Entry) -> Iterator[Bytes]:
    """An embedding or head in the matrices' type, some rows at a time: rows are whole blocks."""
    for rows in row_pieces(entry.shape):
        codes, scales = checkpoint.ternary_rows(entry.name, rows)
        if codes.shape != (rows.stop - rows.start, entry.shape[1]):
            raise _misshapen(entry, codes)
        yield _in_type(entry, codes, scales)


def _packed(entry: Entry, codes: Codes, scales: Scales) -> Bytes:
    """A matrix in its tensor type. The packers check the codes."""
    if codes.shape != entry.shape:
        raise _misshapen(entry, codes)
    return _in_type(entry, codes, scales)


def _in_type(entry: Entry, codes: Codes, scales: Scales) -> Bytes:
    wrong = ~(np.isfinite(scales) & (scales >= 0))
    if wrong.any():
        raise FormatError(f"{entry.name}: the scale is {scales[wrong][0]}; expected a finite number of at least 0")
    try:
        return PACKERS[entry.type](codes, scales)
    except BitgenError as error:
        raise type(error)(f"{entry.name}: {error}") from None


def _converted(entry: Entry, checkpoint: Checkpoint, name: str) -> Iterator[npt.NDArray[Any]]:
    """A float tensor as F32, F16 or BF16, some rows at a time. name: our name of it."""
    narrow = next(NARROW[type] for type, id in _DENSE.items() if id == entry.type)
    for rows in row_pieces(entry.shape):
        values = checkpoint.dense(name, rows)
        if values.shape != (rows.stop - rows.start, *entry.shape[1:]):
            raise _misshapen(entry, values)
        if not np.isfinite(values).all():
            raise FormatError(f"{entry.name} holds NaN or infinite values")
        yield narrow(values)


def _misshapen(entry: Entry, data: npt.NDArray[Any]) -> FormatError:
    return FormatError(f"{entry.name} is {list(data.shape)}; the model's shape asks for {list(entry.shape)}")
