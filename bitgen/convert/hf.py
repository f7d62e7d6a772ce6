"""A Hugging Face model directory (config.json and safetensors) as a Checkpoint.

`quantization_config` says which of two ways of storing ternary matrices a model has:

packed ("offline")   uint8 [M/4, K]: bits 2i, 2i+1 of row r hold the code + 1 of row r + i*M/4. Beside it a
                     `weight_scale`, by which `autobitlinear` multiplies and `bitlinear` divides.
master ("online")    float [M, K], made ternary at run time: s = 1/max(mean|W|, 1e-5), W ~ round(W*s)/s.

Without that key the stored floats [M, K] are ternary, with one scale for a matrix, or one for every 64, 128 or 256
weights of a row; or they are master weights, where each matrix has a norm for its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.checkpoints.checkpoint import ALL, Scale, row_pieces, ternary_floats
from bitgen.checkpoints.groups import RUN, coarsest_group, float_runs, floats_in_groups, group_scales
from bitgen.checkpoints.tensors import is_ternary, part_of, tensor_shapes
from bitgen.convert.generation_config import sampling_keys
from bitgen.convert.hf_config import Config, Storage
from bitgen.convert.hf_heads import HeadOrder
from bitgen.convert.hf_tokenizer import Vocabulary
from bitgen.convert.json_files import read_object
from bitgen.convert.safetensors import StoredTensor, open_directory
from bitgen.errors import FormatError, UnsupportedError, quoted
from bitgen.spec import ModelShape

ABSMEAN_FLOOR = np.float32(1e-5)

ADAPTER = "adapter_config.json"
"""A directory with this file holds the weights of an adapter, which transformers adds to those of its base model."""

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
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
    "ssm_dt": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
}
"""GGUF name -> module, within a layer. A family may have other modules for norms."""

FUSED_MODULES: dict[str, tuple[str, ...]] = {
    "self_attn.qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "mlp.gate_up_proj": ("ffn_gate", "ffn_up"),
}
"""Module -> GGUF names of its parts, whose rows it holds one after the other; some checkpoints have these."""

BARE = ("ssm_dt", "ssm_a")
"""Tensors whose stored names are those of LAYER without ".weight"."""

PREFIXES = ("", "model.", "model.language_model.")
"""What may stand before the names of a text model's tensors."""

POOLING_MODES = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}
"""Key of 1_Pooling/config.json of sentence-transformers -> GGUF's pooling_type."""


class HfCheckpoint:
    """A Checkpoint over a model directory. Opening checks every name and shape; weights are read on demand.

    FormatError: the files contradict themselves. UnsupportedError: they are sound, but bitgen cannot run such a model.
    Both name the file and the key or tensor.
    """

    def __init__(self, directory: str | Path, name: str | None = None) -> None:
        """name: of the model; None: the directory's name."""
        self.directory = Path(directory)
        config = Config(self.directory / "config.json")
        if (self.directory / ADAPTER).exists():
            raise UnsupportedError(f"{self.directory}: {ADAPTER} is an adapter's; merge it into the weights first")
        self._family = config.family()
        self._tensors = open_directory(self.directory) if self._family.may_be_plain else {}
        self._prefix = next((at for at in PREFIXES if f"{at}embed_tokens.weight" in self._tensors), "model.")
        input_norms = f"{self._prefix}layers.0.self_attn.q_proj.norm.weight" in self._tensors
        self._storage = config.storage(self._family, input_norms)
        shape = config.shape(self._family, input_norms)
        self._shape = shape if name is None else replace(shape, name=name)
        self._tensors = self._tensors or open_directory(self.directory)
        self._settle_head()
        self._dims = tensor_shapes(self._shape)
        self._check_tensors()
        self._heads = HeadOrder(self._shape.delta) if self._shape.delta else None
        self._group_from = ""  # the tensor that decided the group
        if self._storage == "values":  # a model that is not ternary is refused now, not halfway
            self._find_group()
            self._find_ternary_ends()

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
        """GGUF key-values: the model's name, tokenizer and chat template, and, where it has them, how its tokens are
        chosen and its pooling type."""
        keys = {"general.name": self._shape.name, **self._vocabulary.keys, **self._sampling[0]}
        pooling = pooling_type(self.directory)
        return keys if pooling is None else keys | {f"{self._shape.architecture}.pooling_type": pooling}

    @property
    def warning(self) -> str | None:
        """What a conversion leaves out, tokens, defaults of sampling or tensors, in sentences; None where it keeps
        all."""
        return "; ".join(filter(None, (self._vocabulary.warning, self._sampling[1], self._spared()))) or None

    def _spared(self) -> str | None:
        """Which tensors a text does not need."""
        found = {start: [name for name in self._tensors if name.startswith(start)] for start in self._family.spare}
        parts = [f"{len(names)} tensors {start}*" for start, names in found.items() if names]
        return f"{self.directory}: left out {' and '.join(parts)}, which a text does not need" if parts else None

    @cached_property
    def _sampling(self) -> tuple[dict[str, Any], str | None]:
        return sampling_keys(self.directory)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.read(self.directory, self._shape.vocab)

    def ternary(self, name: str) -> tuple[npt.NDArray[np.int8], Scale]:
        """Codes {-1, 0, +1} int8 [M, K] and the scale: W = scale * codes; of groups scales float32 [M, K / group]."""
        weight = self._tensor(name, ternary=True)
        _, rows, dims = self._place(name)
        scale: Scale
        if self._storage == "master":
            codes, scale = absmean(weight)
        elif self._storage == "values":
            codes, scale = self._scaled(weight, part_of(name))
        else:
            packed = weight.shape != dims
            codes = unpack_quarters(weight) if packed else unpacked_codes(weight)
            scale = packed_scale(self._tensors[weight.name + "_scale"], self._storage)
        part = part_of(name)
        if self._storage != "values":  # those are in order
            codes = self._columns(codes, part)
        turned = self._shape.rope_interleaved and part in ("attn_q", "attn_k")

        def of_rows(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            ordered = self._heads.rows(values[rows], part) if self._heads else values[rows]
            return interleave_rows(ordered, self._shape.head_dim) if turned else ordered

        return of_rows(codes), (of_rows(scale) if isinstance(scale, np.ndarray) else scale)

    def _find_group(self) -> None:
        """The shape takes the finest group of the first layer's matrices; UnsupportedError: they are not ternary."""
        widths = {gemm.k for gemm in self._shape.matrices.values()}
        first = (name for name in self._dims if name.startswith("blk.0.") and is_ternary(name))
        for name in dict.fromkeys(self._place(name)[0] for name in first):
            found = group_of(self._tensors[name], widths)
            if found and (found < self._shape.group or not self._shape.group):
                self._shape, self._group_from = replace(self._shape, group=found), name
            self._group_from = self._group_from or name
        self._shape = replace(self._shape, binary=self._is_binary())

    def _is_binary(self) -> bool:
        """Whether no weight is 0, but for those of groups that are 0 altogether. Only a binary model is read whole."""
        matrices = (name for name in self._dims if is_ternary(name))
        weights = (self._tensors[name] for name in dict.fromkeys(self._place(name)[0] for name in matrices))
        return not any(holds_zero(weight, self._shape.group) for weight in weights)

    def _find_ternary_ends(self) -> None:
        """Whether embedding and head are ternary in the groups of the layers; such rows are all read."""
        shape = self._shape
        embedding = self._in_groups("token_embd.weight")
        head = embedding if shape.tied else self._in_groups("output.weight")
        self._shape = replace(shape, ternary_embedding=embedding, ternary_head=head)

    def _in_groups(self, name: str) -> bool:
        weight, group = self._tensor(name, ternary=False), self._shape.group
        if not group or (self._shape.binary and holds_zero(weight, group)):
            return False
        return all(floats_in_groups(finite(weight, rows), group) for rows in row_pieces(weight.shape))

    def ternary_rows(self, name: str, rows: slice) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """Rows of a ternary embedding or head: codes int8 [n, K] and scales float32 [n, K / group]."""
        found = floats_in_groups(self.dense(name, rows), self._shape.group)
        if found is None:
            raise FormatError(f"{self.directory}: {name} has changed while it was read")
        return found

    def _columns(self, values: npt.NDArray[Any], part: str, of: int = 1) -> npt.NDArray[Any]:
        """Columns in GGUF's order of value heads; each stands for `of` columns of the matrix."""
        return self._heads.columns(values, part, of) if self._heads else values

    def _scaled(self, weight: StoredTensor, part: str) -> tuple[npt.NDArray[np.int8], Scale]:
        """A matrix of floats in the model's groups; UnsupportedError names two tensors that disagree about them."""
        group = self._shape.group
        try:
            if group:
                codes, scales = float_runs(weight.shape, lambda rows: finite(weight, rows))
                codes, scales = self._columns(codes, part), self._columns(scales, part, of=RUN)
                return codes, group_scales(codes, scales, group)
            codes, scale, other = ternary_floats(weight.shape, lambda rows: finite(weight, rows))
            if other is None:
                return self._columns(codes, part), float(scale)
            raise UnsupportedError(f"it holds {other:g} besides 0 and ±{scale:g}")
        except UnsupportedError as error:
            of = f"a scale for every {group} weights of a row" if group else "one scale"
            raise UnsupportedError(
                f"{weight.path}: {weight.name}: {error}; but {self._group_from} has {of}, and a model has one kind"
            ) from None

    def dense(self, name: str, rows: slice = ALL) -> npt.NDArray[np.floating[Any]]:
        """Rows of a float tensor (embedding, norm, head): float16 where stored so, else float32."""
        tensor, part = self._tensor(name, ternary=False), part_of(name)
        if self._heads and part.startswith("ssm_") and part != "ssm_norm":
            ordered = self._heads.rows(finite(tensor).reshape(self._dims[name]), part)[rows]
            return -np.exp(ordered.astype(np.float32)) if part == "ssm_a" else ordered
        values = finite(tensor, rows)
        if self._family.gain_offset and part.endswith("_norm") and part != "ssm_norm":
            return values.astype(np.float32) + np.float32(self._family.gain_offset)
        return values

    def _place(self, name: str) -> tuple[str, slice, tuple[int, ...]]:
        """A tensor's place: name of the stored tensor, rows of it, and the stored tensor's shape unpacked.

        blk.3.attn_k.weight -> model.layers.3.self_attn.k_proj.weight, or some rows of ...self_attn.qkv_proj.weight
        """
        if name in TOP:
            return self._top(name), ALL, self._dims[name]
        layer, part = name.split(".")[1], part_of(name)
        at = f"{self._prefix}layers.{layer}."
        for module, parts in FUSED_MODULES.items():
            if part in parts and f"{at}{module}.weight" in self._tensors:
                ends = np.cumsum([self._dims[f"blk.{layer}.{other}.weight"][0] for other in parts]).tolist()
                rows = slice(ends[parts.index(part)] - self._dims[name][0], ends[parts.index(part)])
                return f"{at}{module}.weight", rows, (ends[-1], self._dims[name][1])
        if part.endswith("_norm_in"):
            return f"{at}{LAYER[part.removesuffix('_norm_in')]}.norm.weight", ALL, self._dims[name]
        ending = "" if part in BARE else ".weight"
        dims = self._dims[name]
        if part == "ssm_conv1d":  # torch's convolutions have channels within groups
            dims = (dims[0], 1, dims[1])
        return f"{at}{(LAYER | self._family.norms)[part]}{ending}", ALL, dims

    def _top(self, name: str) -> str:
        """The stored name of a tensor outside the layers. A tied model may have its embedding under the head's name."""
        stored, head = TOP[name].replace("model.", self._prefix), TOP["output.weight"]
        alone = name == "token_embd.weight" and self._shape.tied and stored not in self._tensors
        return head if alone and head in self._tensors else stored

    def _settle_head(self) -> None:
        """A model that config.json ties has a head of its own where one is stored that is not the embedding."""
        head, embedding = (self._tensors.get(self._top(n)) for n in ("output.weight", "token_embd.weight"))
        if head is None or embedding is None or head is embedding or not self._shape.tied:
            return
        if head.shape != embedding.shape or len(head.shape) != 2 or not equal(head, embedding):
            self._shape = replace(self._shape, tied=False)

    def _tensor(self, name: str, ternary: bool) -> StoredTensor:
        if name not in self._dims or is_ternary(name) != ternary:
            raise FormatError(f"{self.directory}: this model has no {'ternary' if ternary else 'float'} tensor {name}")
        return self._tensors[self._place(name)[0]]

    def _check_tensors(self) -> None:
        """Every tensor of the architecture is there in its shape, and no other tensor is there."""
        expected: dict[str, set[tuple[int, ...]]] = {}
        for name in self._dims:
            stored, _, dims = self._place(name)
            expected[stored] = {dims}
            if is_ternary(name) and self._storage in ("multiply", "divide"):
                expected[stored + "_scale"] = {(1,), ()}
                if dims[0] % 4 == 0:  # else only unpacked, as transformers 4 saves a loaded model
                    expected[stored].add((dims[0] // 4, dims[1]))
        for name, shapes in expected.items():
            if name not in self._tensors:
                raise FormatError(f"{self.directory}: the tensor {name} is missing")
            found = self._tensors[name]
            if found.shape not in shapes:
                wanted = " or ".join(str(list(shape)) for shape in sorted(shapes))
                raise FormatError(f"{found.path}: {name} is {quoted(list(found.shape))}; config.json means {wanted}")
        for name in sorted(self._tensors.keys() - expected.keys()):
            if not self._may_go_unused(name):
                path = self._tensors[name].path
                raise UnsupportedError(f"{path}: this architecture has no place for the tensor {quoted(name)}")

    def _may_go_unused(self, name: str) -> bool:
        """The head of a tied model, equal to its embedding, RoPE tables, which all compute from rope_theta, and what
        `warning` names."""
        if name.startswith(self._family.spare):
            return True
        return (self._shape.tied and name == "lm_head.weight") or name.endswith("rotary_emb.inv_freq")


def unpack_quarters(weight: StoredTensor) -> npt.NDArray[np.int8]:
    """uint8 [M/4, K] -> codes {-1, 0, +1} int8 [M, K]; a byte holds rows r, r + M/4, r + M/2 and r + 3M/4."""
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


def unpacked_codes(weight: StoredTensor) -> npt.NDArray[np.int8]:
    """Floats [M, K] in {-1, 0, +1} -> codes int8 [M, K]; FormatError for any other value."""
    codes = np.empty(weight.shape, np.int8)
    for rows in row_pieces(weight.shape):
        values = weight.read(rows)
        if not np.isin(values, (-1, 0, 1)).all():
            raise FormatError(f"{weight.path}: {weight.name} is not packed, and not ternary either")
        codes[rows] = values
    return codes


def group_of(weight: StoredTensor, widths: Iterable[int]) -> int:
    """Columns of a row of floats that share a scale, of GROUPS and dividing all widths; 0: the matrix has one scale.

    UnsupportedError says what was found where the matrix is not ternary, or its scales are of other groups.
    """

    def read(rows: slice) -> npt.NDArray[np.floating[Any]]:
        return finite(weight, rows)

    if ternary_floats(weight.shape, read)[2] is None:
        return 0
    try:
        codes, scales = float_runs(weight.shape, read)
        return coarsest_group(codes, scales, widths)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{weight.path}: {weight.name}: {error}; without quantization_config floats must be ternary"
        ) from None


def holds_zero(weight: StoredTensor, group: int) -> bool:
    """Whether floats [M, K] hold a 0; with groups of columns: beside other numbers of its group."""
    for rows in row_pieces(weight.shape):
        zeros = finite(weight, rows) == 0
        groups = zeros.reshape(len(zeros), -1, group or 1)
        if (groups.any(axis=2) & ~groups.all(axis=2)).any() if group else zeros.any():
            return True
    return False


def packed_scale(scale: StoredTensor, storage: Storage) -> float:
    """The scale that multiplies, a positive float32, of a stored `weight_scale` that multiplies or divides."""
    value = np.float32(finite(scale).reshape(()))
    with np.errstate(divide="ignore", over="ignore"):
        multiplier = value if storage == "multiply" else np.float32(1) / value
    if not 0 < multiplier < np.inf:
        raise FormatError(f"{scale.path}: {scale.name} is {value}, which is no scale")
    return float(multiplier)


def absmean(weight: StoredTensor) -> tuple[npt.NDArray[np.int8], float]:
    """Master weights float [M, K] -> codes clamp(round(W*s), -1, 1) and 1/s, where s = 1/max(mean|W|, 1e-5).

    All in float32, as in training, but for the sum of the mean in float64, where its order does not matter. The matrix
    is read twice, some rows at a time.
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
    """Codes [M, K] with row b*D/2 + j of each head at 2j + b: RoPE turns rows 2j and 2j + 1, not j and j + D/2."""
    m, k = codes.shape
    halves = codes.reshape(m // head_dim, 2, head_dim // 2, k)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(m, k)


def pooling_type(directory: Path) -> int | None:
    """GGUF's pooling_type of a model of sentence-transformers; None where the directory has no pooling."""
    path = directory / "1_Pooling" / "config.json"
    modes = read_object(path)
    if modes is None:
        return None
    chosen = [key for key, on in modes.items() if key.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] not in POOLING_MODES:
        by = quoted(chosen) if chosen else "nothing"
        raise UnsupportedError(f"{path}: pools by {by}; supported: one of {', '.join(POOLING_MODES)}")
    return POOLING_MODES[chosen[0]]


def equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two matrices [M, K] of the same shape hold the same numbers."""
    return all((finite(one, rows) == finite(other, rows)).all() for rows in row_pieces(one.shape))


def finite(tensor: StoredTensor, rows: slice = ALL) -> npt.NDArray[np.floating[Any]]:
    """Rows of a float tensor, float64 narrowed to float32; FormatError where a value is NaN or infinite."""
    if tensor.dtype not in ("F64", "F32", "F16", "BF16"):
        raise FormatError(f"{tensor.path}: {tensor.name} is {tensor.dtype}, not a float type")
    values = tensor.read(rows)
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise FormatError(f"{tensor.path}: {tensor.name} holds NaN or infinite values")
    return values
