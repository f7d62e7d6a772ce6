"""GGUF files as Checkpoints: ternary codes and scales from whatever tensor type an engine wrote.

file.py parses a file, metadata.py the key-values, blocks.py the bytes of each type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bitgen.checkpoints.checkpoint import ALL, Scale, Scales, row_pieces
from bitgen.checkpoints.groups import group_scales, one_scale
from bitgen.checkpoints.tensors import SIGNS, is_beyond, is_ternary, sign_shapes, tensor_shapes
from bitgen.errors import FormatError, UnsupportedError, brief
from bitgen.gguf.blocks import Scaled
from bitgen.gguf.container import Container
from bitgen.gguf.file import Tensor
from bitgen.gguf.hybrid_keys import signs_of
from bitgen.gguf.metadata import model_shape
from bitgen.gguf.rope_keys import TABLES
from bitgen.gguf.tensors import EMBEDDINGS, TERNARY, VECTORS, Reading, floats, renamed, scale_name
from bitgen.gguf.tl_tiles import SCRIPTS, parse_tiles, tile_of
from bitgen.gguf.types import F32, TENSOR_TYPES
from bitgen.spec import ModelShape

I2sLayout = Literal["x86", "arm", "rows4"]


def read_gguf(
    path: str | Path, i2s_layout: I2sLayout = "x86", activation: str | None = None, tl_tiles: str = ""
) -> GgufCheckpoint:
    """A GGUF file, or any part of a split one, as a Checkpoint; see GgufCheckpoint for what is checked and raised.

    i2s_layout: the layout of I2_S tensors in this file; "arm" and "rows4" are of other builds of bitnet.cpp
    (blocks.i2s_block).
    activation: "relu2" or "silu", instead of what the file says.
    tl_tiles: "MxK=BM/BK/bm,...", the tiles of TL1 and TL2 tensors that tl_tiles.SCRIPTS does not know.
    """
    return GgufCheckpoint(Container(path), Reading(i2s_layout, parse_tiles(tl_tiles)), activation)


class GgufCheckpoint:
    """A Checkpoint over a GGUF file, or over the parts of a split one: `files`. Opening checks every name, shape and
    type; weights are read on demand. `left_out` are tensors of layers that only predict further tokens.

    FormatError: the file contradicts itself or its architecture, or a tensor is not what its type says.
    UnsupportedError: the file is sound, but bitgen cannot run such a model.
    Both name the file and the tensor or key.
    """

    def __init__(self, container: Container, reading: Reading | None = None, activation: str | None = None) -> None:
        self.container, self.reading = container, reading or Reading()
        self.path, self.files = container.path, container.files
        self._shape, self.activation_reason = model_shape(container, self.reading, activation)
        kind, layers = self._shape.architecture, self._shape.layers
        own = {renamed(kind, tensor.name): tensor for tensor in container.tensors.values()}
        stated = container.metadata[f"{kind}.block_count"]
        self.left_out = [name for name in own if is_beyond(name, layers) and not is_beyond(name, stated)]
        self._tensors = {name: tensor for name, tensor in own.items() if name not in self.left_out}
        self._check_left_out()
        self._check_tensors()

    @property
    def shape(self) -> ModelShape:
        """Dimensions and architecture, from the metadata."""
        return self._shape

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's key-values."""
        return self.container.metadata

    def ternary(self, name: str) -> tuple[npt.NDArray[np.int8], Scale]:
        """Codes {-1, 0, +1} int8 [M, K] and the scale, W = scale * codes; with groups, scales float32 [M, K / group].

        FormatError: the values are not ternary, or a scale is not a finite number of at least 0.
        UnsupportedError: the matrix has other scales than the model's shape says.
        """
        codes, scales = self.scaled(name)
        with self._about(name):
            if self._shape.group:
                return codes, group_scales(codes, scales, self._shape.group)
            scale = one_scale(codes, scales)
            if scale == 0 and codes.any():
                raise FormatError("the scale is 0; the file is corrupt")
        return codes, scale

    def scaled(self, name: str) -> Scaled:
        """Codes {-1, 0, +1} int8 [M, K] and scales float32 [R, G], as blocks.py defines them."""
        tensor, beside = self._tensor(name), self._tensors.get(scale_name(name))
        m, k = tensor.shape
        with self._about(name):
            codes, scales = TERNARY[tensor.type_name](self.container.bytes_of(tensor), m, k, self.reading)
            if beside is not None:
                scales = scales * self._floats(beside, ALL)
            return codes, _sound(scales)

    def ternary_rows(self, name: str, rows: slice) -> Scaled:
        """Rows of a ternary embedding or head: codes int8 [n, K] and scales float32 [n, K / group]."""
        tensor = self._tensor(name)
        raw = self.container.bytes_of(tensor).reshape(tensor.shape[0], -1)[rows]
        with self._about(name):
            codes, scales = TERNARY[tensor.type_name](raw.reshape(-1), len(raw), tensor.shape[1], self.reading)
            return codes, group_scales(codes, _sound(scales), self._shape.group)

    def dense(self, name: str, rows: slice = ALL) -> npt.NDArray[np.floating[Any]]:
        """Rows of a float tensor, float16 where it is stored so, else float32. FormatError: a value is not finite."""
        if name.startswith(SIGNS):
            return self._signs(name)[rows]
        tensor = self._tensor(name)
        values = self._floats(tensor, rows)
        for piece in row_pieces(values.shape):
            if not np.isfinite(values[piece]).all():
                raise FormatError(
                    f"{self.path}: tensor {tensor.name} holds NaN or infinite values; the file is corrupt"
                )
        return values

    def _signs(self, name: str) -> npt.NDArray[np.float32]:
        if name not in sign_shapes(self._shape):
            raise FormatError(f"{self.path}: this model has no {name}")
        return signs_of(self.metadata, int(name.removeprefix(SIGNS)))

    @property
    def stored_types(self) -> dict[str, int]:
        """Name -> type id of each matrix of floats, whose bytes a copy takes over. Ambiguous ids are left out."""
        matrices = ((n, t) for n, t in self._tensors.items() if len(t.shape) == 2 and not is_ternary(n))
        return {name: t.type for name, t in matrices if len(TENSOR_TYPES[t.type]) == 1}

    def stored(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        """The bytes of a float tensor, some rows at a time, after a check that their values are finite."""
        tensor = self._tensor(name)
        raw = self.container.bytes_of(tensor).reshape(tensor.shape[0], -1)
        for rows in row_pieces(tensor.shape):
            self.dense(name, rows)
            yield raw[rows]

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            stored = renamed(self._shape.architecture, name)
            raise FormatError(f"{self.path}: the tensor {stored} is missing")
        return self._tensors[name]

    def _floats(self, tensor: Tensor, rows: slice) -> npt.NDArray[np.floating[Any]]:
        raw = self.container.bytes_of(tensor).reshape(tensor.shape[0], -1)[rows]
        with self._about(tensor.name):
            return floats(tensor.type_name, raw.reshape(-1), (len(raw), *tensor.shape[1:]))

    @contextmanager
    def _about(self, name: str) -> Iterator[None]:
        """Give errors the tensor's name, and keep NumPy from warning about NaN, which is checked for."""
        try:
            with np.errstate(invalid="ignore", over="ignore"):
                yield
        except (FormatError, UnsupportedError) as error:
            raise type(error)(f"{self.path}: tensor {name}: {error}") from None

    def _check_left_out(self) -> None:
        """Layers that predict further tokens have tensors nextn.*; without them a layer may be one of the others."""
        for layer in {name.split(".")[1] for name in self.left_out}:
            if not any(name.startswith(f"blk.{layer}.nextn.") for name in self.left_out):
                raise FormatError(
                    f"{self.path}: blk.{layer} is said to predict further tokens, but has no tensor blk.{layer}.nextn.*"
                )

    def _check_tensors(self) -> None:
        """Every tensor of the architecture has its shape and a readable type, and no other tensor is there."""
        expected = tensor_shapes(self._shape)
        for name, dims in expected.items():
            tensor = self._tensor(name)
            if tensor.shape != dims:
                raise FormatError(
                    f"{self.path}: tensor {tensor.name} is {list(tensor.shape)}; the metadata asks for {list(dims)}"
                )
            self._check_type(tensor)
        scales = {scale_name(name) for name in expected if is_ternary(name)}
        for name, tensor in self._tensors.items():
            if name in scales:
                if tensor.shape != (1,) or tensor.type != F32:
                    raise FormatError(f"{self.path}: tensor {name}: expected one F32 value")
            elif name not in expected and name not in TABLES:
                raise UnsupportedError(
                    f"{self.path}: the tensor {brief(tensor.name)} has no place in a model of architecture "
                    f"{self._shape.architecture}; running without it would give wrong results"
                )

    def _check_type(self, tensor: Tensor) -> None:
        """The tensor's type can be read where it stands, with a tile that is known if it needs one."""
        type = tensor.type_name
        readable = TERNARY if is_ternary(tensor.name) else EMBEDDINGS if len(tensor.shape) == 2 else VECTORS
        if type not in readable:
            named = type.removeprefix("type ")
            raise UnsupportedError(f"{self.path}: tensor {tensor.name} is of type {named}, which cannot be read here")
        if type in SCRIPTS:  # a missing tile is an error when the file opens, not when the tensor is read
            with self._about(tensor.name):
                m, k = tensor.shape
                tile_of(type, m, k, self.reading.tiles)


def _sound(scales: Scales) -> Scales:
    """Scales as they are, once they are known to be finite and not negative."""
    wrong = ~(np.isfinite(scales) & (scales >= 0))
    if wrong.any():
        raise FormatError(f"the scale is {scales[wrong][0]}; the file is corrupt")
    return scales
