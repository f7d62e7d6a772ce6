"""A Hugging Face model directory (config.json + safetensors) read as a Checkpoint, and written as GGUF.

Two ways of storing a ternary matrix are in use, told apart by `quantization_config`:

packed ("offline")   uint8 [M/4, K]: bits 2i, 2i+1 of row r hold the code + 1 of row r + i*M/4. Beside it a
                     `weight_scale`, by which `autobitlinear` multiplies and `bitlinear` divides.
master ("online")    float [M, K], made ternary at run time: s = 1/max(mean|W|, 1e-5), W ~ round(W*s)/s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen import gguf_io
from bitgen.checkpoint import ALL, row_pieces
from bitgen.convert.hf_config import Config, Storage
from bitgen.convert.safetensors import StoredTensor, open_directory
from bitgen.errors import FormatError, UnsupportedError
from bitgen.spec import ModelShape

ABSMEAN_FLOOR = np.float32(1e-5)

TOP: dict[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
"""GGUF name -> stored name, outside the layers."""

LAYER: dict[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF name -> module, within a layer; the sub-norms' modules differ by family."""


class HfCheckpoint:
    """A Checkpoint over a model directory. Opening it checks every name and shape; weights are read later.

    Raises FormatError where the files contradict themselves, UnsupportedError where they are sound but ask
    for what bitgen does not do; both name the file and the key or tensor.
    """

    def __init__(self, directory: str | Path, name: str | None = None) -> None:
        """name: the model's; None: the directory's."""
        self.directory = Path(directory)
        config = Config(self.directory / "config.json")
        self._family = config.family()
        self._storage = config.storage(self._family)
        shape = config.shape(self._family)
        self._shape = shape if name is None else replace(shape, name=name)
        self._dims = gguf_io.tensor_shapes(self._shape)
        self._tensors = open_directory(self.directory)
        self._check_tensors()

    @property
    def shape(self) -> ModelShape:
        """Dimensions and architecture, from config.json."""
        return self._shape

    @property
    def files(self) -> list[Path]:
        """The files that hold the weights."""
        return sorted({tensor.path for tensor in self._tensors.values()})

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """GGUF key-values: the model's name, its tokenizer and chat template."""
        from bitgen.convert.hf_tokenizer import metadata_from_hf

        return {"general.name": self._shape.name, **metadata_from_hf(self.directory)}

    def ternary(self, name: str) -> tuple[npt.NDArray[np.int8], float]:
        """Codes {-1, 0, +1} int8 [M, K] and the multiplier: W = scale * codes."""
        weight = self._tensor(name, ternary=True)
        if self._storage == "master":
            codes, scale = absmean(weight)
        else:
            packed = weight.shape != self._dims[name]
            codes = unpack_quarters(weight) if packed else ternary_values(weight)
            scale = packed_scale(self._tensors[weight.name + "_scale"], self._storage)
        if self._shape.rope_interleaved and name.endswith(("attn_q.weight", "attn_k.weight")):
            codes = interleave_rows(codes, self._shape.head_dim)
        return codes, scale

    def dense(self, name: str, rows: slice = ALL) -> npt.NDArray[np.floating[Any]]:
        """Rows of a float tensor (embedding, norm, head): float16 where stored so, else float32."""
        return finite(self._tensor(name, ternary=False), rows)

    def _stored_name(self, name: str) -> str:
        """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
        if name in TOP:
            return TOP[name]
        _, layer, part, _ = name.split(".")
        return f"model.layers.{layer}.{(LAYER | self._family.sub_norms)[part]}.weight"

    def _tensor(self, name: str, ternary: bool) -> StoredTensor:
        if name not in self._dims or gguf_io.is_ternary(name) != ternary:
            raise FormatError(f"{self.directory}: this model has no {'ternary' if ternary else 'float'} tensor {name}")
        return self._tensors[self._stored_name(name)]

    def _check_tensors(self) -> None:
        """Every tensor the architecture has is there in the right shape, and none that would go unused."""
        expected: dict[str, set[tuple[int, ...]]] = {}
        for name, dims in self._dims.items():
            stored = self._stored_name(name)
            expected[stored] = {dims}
            if gguf_io.is_ternary(name) and self._storage != "master":
                expected[stored + "_scale"] = {(1,), ()}
                if dims[0] % 4 == 0:  # else only unpacked, as transformers 4 saves a loaded model
                    expected[stored].add((dims[0] // 4, dims[1]))
        for name, shapes in expected.items():
            if name not in self._tensors:
                raise FormatError(f"{self.directory}: the tensor {name} is missing")
            found = self._tensors[name]
            if found.shape not in shapes:
                wanted = " or ".join(str(list(shape)) for shape in sorted(shapes))
                raise FormatError(f"{found.path}: {name} is {list(found.shape)}; config.json means {wanted}")
        for name in sorted(self._tensors.keys() - expected.keys()):
            if not self._may_go_unused(name):
                path = self._tensors[name].path
                raise UnsupportedError(f"{path}: this architecture has no place for the tensor {name}")

    def _may_go_unused(self, name: str) -> bool:
        """The head of a tied model is its embedding; RoPE tables, stored of old, follow from rope_theta."""
        return (self._shape.tied and name == "lm_head.weight") or name.endswith("rotary_emb.inv_freq")


def unpack_quarters(weight: StoredTensor) -> npt.NDArray[np.int8]:
    """uint8 [M/4, K] -> codes {-1, 0, +1} int8 [M, K]; a byte holds rows r, r + M/4, r + M/2, r + 3M/4."""
    if weight.dtype != "U8":
        raise FormatError(f"{weight.path}: {weight.name} is {weight.dtype}; packed ternary weights are U8")
    rows, k = weight.shape
    codes = np.empty((4, rows, k), np.int8)
    for piece in row_pieces(weight.shape):
        packed = weight.read(piece)
        if np.any(packed & (packed >> 1) & 0x55):
            raise FormatError(f"{weight.path}: {weight.name} holds the code 3, which stands for no ternary value")
        for quarter in range(4):
            codes[quarter, piece] = (packed >> (2 * quarter)) & 3
    codes -= 1
    return codes.reshape(4 * rows, k)


def ternary_values(weight: StoredTensor) -> npt.NDArray[np.int8]:
    """Codes stored one by one as floats -1, 0, +1."""
    codes = np.empty(weight.shape, np.int8)
    for rows in row_pieces(weight.shape):
        values = weight.read(rows)
        if not np.isin(values, (-1, 0, 1)).all():
            raise FormatError(f"{weight.path}: {weight.name} is not packed, and not ternary either")
        codes[rows] = values
    return codes


def packed_scale(scale: StoredTensor, storage: Storage) -> float:
    """The multiplier a `weight_scale` stands for, a positive float32."""
    value = np.float32(finite(scale).reshape(()))
    with np.errstate(divide="ignore", over="ignore"):
        multiplier = value if storage == "multiply" else np.float32(1) / value
    if not 0 < multiplier < np.inf:
        raise FormatError(f"{scale.path}: {scale.name} is {value}, which is no scale")
    return float(multiplier)


def absmean(weight: StoredTensor) -> tuple[npt.NDArray[np.int8], float]:
    """Master weights [M, K] -> codes clamp(round(W*s), -1, 1), where s = 1/max(mean|W|, 1e-5), and 1/s.

    In float32 as in training; only the mean is summed in float64, so that it depends on no summation order. The
    matrix is read twice, some rows at a time.
    """
    total, codes = 0.0, np.empty(weight.shape, np.int8)
    for rows in row_pieces(weight.shape):
        total += float(np.abs(finite(weight, rows)).sum(dtype=np.float64))
    mean = np.float32(total / codes.size)
    scale = np.float32(1) / max(mean, ABSMEAN_FLOOR)
    for rows in row_pieces(weight.shape):
        values = finite(weight, rows).astype(np.float32) * scale
        codes[rows] = np.clip(np.rint(values), -1, 1)
    return codes, float(np.float32(1) / scale)


def interleave_rows(codes: npt.NDArray[np.int8], head_dim: int) -> npt.NDArray[np.int8]:
    """Per head, row b*D/2 + j moves to 2j + b: RoPE that paired halves then pairs neighbours."""
    m, k = codes.shape
    halves = codes.reshape(m // head_dim, 2, head_dim // 2, k)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(m, k)


def finite(tensor: StoredTensor, rows: slice = ALL) -> npt.NDArray[np.floating[Any]]:
    """The values of some rows of a float tensor (float64 narrowed to float32), refused where NaN or infinite."""
    if tensor.dtype not in ("F64", "F32", "F16", "BF16"):
        raise FormatError(f"{tensor.path}: {tensor.name} is {tensor.dtype}, not a float type")
    values = tensor.read(rows)
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise FormatError(f"{tensor.path}: {tensor.name} holds NaN or infinite values")
    return values
