"""Checkpoints as GGUF files that other engines read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bitgen.checkpoints.architectures import ARCHITECTURES
from bitgen.checkpoints.checkpoint import Checkpoint, Scale, row_pieces
from bitgen.checkpoints.tensors import is_ternary, tensor_shapes
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.gguf import blocks
from bitgen.gguf.container import Entry, aligned, head
from bitgen.gguf.metadata import key_values
from bitgen.gguf.part_file import PartFile
from bitgen.gguf.reader import GgufCheckpoint
from bitgen.gguf.tensors import scale_name
from bitgen.gguf.types import F16, F32, I2_S, Q2_0, T5, TQ1_0, TQ2_0
from bitgen.kernels import layout
from bitgen.spec import ModelShape, Progress

TernaryType = Literal["i2_s", "tq1_0", "tq2_0", "t5", "q2_0"]

TERNARY_TYPES = (I2_S, TQ1_0, TQ2_0, T5, Q2_0)
Q2_0_GROUPS = (64, 128)
"""Weights of a block of Q2_0, in the order of TENSOR_TYPES."""

FILE_TYPES: dict[str, tuple[int, int]] = {
    "i2_s": (I2_S, 40),
    "tq1_0": (TQ1_0, 36),
    "tq2_0": (TQ2_0, 37),
    "t5": (T5, T5),
    "q2_0": (Q2_0, 41),
}
"""Type of a file -> tensor type id of its matrices, general.file_type."""


def write_gguf(
    path: str | Path,
    checkpoint: Checkpoint,
    type: str | None = None,
    progress: Progress | None = None,
    identity: str | None = None,
) -> None:
    """Write a checkpoint as a GGUF file, one matrix in memory at a time. It appears whole or not at all.

    type: "i2_s", in bitnet.cpp's own layout, where None; "tq1_0" or "tq2_0", for llama.cpp; "t5", the smallest, for
    bitgen alone. "q2_0" is for models with a scale for every 64 or 128 weights, and is what they are written as.
    The block scales of TQ types are float16 and a model's scale is not, so they hold 1 and the scale goes beside the
    matrix, exactly, as blk.N.*.scale (llama.cpp multiplies by it: in bitnet it always did, in llama since 2026).
    Embeddings and head are rounded to F16, or kept as they are where the checkpoint is a GGUF file; norms are F32.
    identity: of the checkpoint's weights; given, an interrupted run leaves what it wrote (part_file.py), and the next
    one for the same metadata, type and identity goes on from there.
    progress is called with (bytes done, bytes in all).

    UnsupportedError: a shape that the type or the architecture cannot express. FormatError: weights that are
    not ternary or not finite.
    """
    path = Path(path)
    type = type or ("q2_0" if checkpoint.shape.group else "i2_s")
    if type not in FILE_TYPES:
        raise UnsupportedError(f"unknown file type {type!r}; known: {', '.join(FILE_TYPES)}")
    entries = tensor_table(checkpoint.shape, type, _stored_types(checkpoint))
    start = head(key_values(checkpoint, FILE_TYPES[type][1]), entries)
    if identity is not None:
        identity = hashlib.sha256(start + identity.encode()).hexdigest()
    total, done = sum(aligned(entry.nbytes) for entry in entries), 0
    scales: dict[str, Scale] = {}
    try:
        with PartFile(path, identity) as part:
            if "head" not in part.done:
                part.append("head", [start])
            for entry in entries:
                if entry.name not in part.done:
                    _write_tensor(part, entry, payload(checkpoint, entry, scales))
                done += aligned(entry.nbytes)
                if progress:
                    progress(done, total)
    except OSError as error:
        advice = "; what is done is kept, and the same command goes on from there" if identity else ""
        raise BitgenError(f"cannot write {path}: {error.strerror}{advice}") from error


def _stored_types(checkpoint: Checkpoint) -> Mapping[str, int]:
    """Name -> type id of the float matrices that are copied as they are stored."""
    return checkpoint.stored_types if isinstance(checkpoint, GgufCheckpoint) else {}


def tensor_table(shape: ModelShape, type: str, stored: Mapping[str, int] = MappingProxyType({})) -> list[Entry]:
    """The tensors of a file, checked against what the type can hold.

    stored: name -> type id of float matrices that do not become F16.
    """
    known = ARCHITECTURES.get(shape.architecture)
    traits = ("sub_norms", "rope_interleaved", "qk_norm", "post_norms")
    if known is None or any(getattr(known, trait) != getattr(shape, trait) for trait in traits):
        has = ", ".join(f"{trait}={getattr(shape, trait)}" for trait in traits)
        raise UnsupportedError(f"architecture {shape.architecture!r} with {has} has no GGUF form")
    id, entries = FILE_TYPES[type][0], list[Entry]()
    if (id == Q2_0) != bool(shape.group) or (id == Q2_0 and shape.group not in Q2_0_GROUPS):
        has = f"a scale for every {shape.group} weights" if shape.group else "one scale for each matrix"
        raise UnsupportedError(
            f"a model with {has} cannot be written as {type}: q2_0 is for scales of 64 or 128 weights, "
            "the other types are for one scale"
        )
    for name, dims in tensor_shapes(shape).items():
        if not is_ternary(name):
            entries.append(Entry(name, dims, F32 if len(dims) == 1 else stored.get(name, F16)))
            continue
        m, k = dims
        if id == I2_S and m * k % 128:
            raise UnsupportedError(f"{name}: {m} x {k} weights are not whole I2_S blocks of 128")
        if id in (TQ1_0, TQ2_0) and k % blocks.TQ_BLOCK:
            raise UnsupportedError(f"{name}: rows of {k} are not whole {type} blocks of 256; take i2_s")
        entries.append(Entry(name, dims, id, Q2_0_GROUPS.index(shape.group) if id == Q2_0 else 0))
        if id in (TQ1_0, TQ2_0):
            entries.append(Entry(scale_name(name), (1,), F32))
    return entries


def payload(checkpoint: Checkpoint, entry: Entry, scales: dict[str, Scale]) -> Iterable[npt.NDArray[Any]]:
    """A tensor's data: a matrix in one piece, floats in several. `scales` keeps what goes beside the matrices."""
    if entry.type in TERNARY_TYPES:
        codes, scale = checkpoint.ternary(entry.name)
        scales[scale_name(entry.name)] = scale
        return _packed(entry, codes, scale)
    if entry.name.endswith(".scale"):
        if entry.name not in scales:  # an earlier run wrote the matrix
            scales[entry.name] = checkpoint.ternary(entry.name.removesuffix("scale") + "weight")[1]
        return [np.array([scales[entry.name]], "<f4")]
    if isinstance(checkpoint, GgufCheckpoint) and entry.name in checkpoint.stored_types:
        return checkpoint.stored(entry.name)
    return _converted(entry, checkpoint)


def _packed(entry: Entry, codes: npt.NDArray[np.int8], scale: Scale) -> list[npt.NDArray[Any]]:
    """A matrix in its file type; codes are checked by layout.py."""
    if codes.shape != entry.shape:
        raise _misshapen(entry, codes)
    values = np.asarray(scale, np.float32)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        raise FormatError(f"{entry.name}: the scale is {values[wrong][0]}; expected a finite number of at least 0")
    if entry.type == Q2_0:
        return [blocks.pack_q2_0(codes, values)]
    if entry.type == TQ1_0:
        return [blocks.pack_tq1_0(codes, 1.0)]
    if entry.type == TQ2_0:
        return [blocks.pack_tq2_0(codes, 1.0)]
    if entry.type == T5:
        return [layout.pack_t5(codes, 5, 1), np.array([scale], "<f4")]
    tail = np.zeros(8, "<f4")
    tail[0] = scale
    return [layout.pack_i2_s(codes.reshape(1, -1), 1, blocks.i2s_block("x86", entry.shape[1])), tail]


def _converted(entry: Entry, checkpoint: Checkpoint) -> Iterator[npt.NDArray[Any]]:
    """A float tensor in its file type, some rows at a time."""
    for rows in row_pieces(entry.shape):
        values = checkpoint.dense(entry.name, rows)
        if values.shape != (rows.stop - rows.start, *entry.shape[1:]):
            raise _misshapen(entry, values)
        with np.errstate(over="ignore"):
            out = values.astype("<f4" if entry.type == F32 else "<f2")
        if not np.isfinite(out).all():
            raise FormatError(f"{entry.name} holds NaN, infinity or values beyond the range of float16")
        yield out


def _misshapen(entry: Entry, data: npt.NDArray[Any]) -> FormatError:
    return FormatError(f"{entry.name} is {list(data.shape)}; the model's shape asks for {list(entry.shape)}")


def _write_tensor(part: PartFile, entry: Entry, pieces: Iterable[npt.NDArray[Any]]) -> None:
    """Append a tensor and its padding."""
    fill = bytes(aligned(entry.nbytes) - entry.nbytes)
    written = part.append(entry.name, chain(pieces, [fill])) - len(fill)
    if written != entry.nbytes:
        raise BitgenError(f"{entry.name}: {written} bytes where {entry.nbytes} were planned")
