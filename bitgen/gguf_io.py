"""GGUF models to canonical ternary codes and scales, and back.

Reading takes what other engines write (the tables of gguf_tensors.py); writing gives what they read. The container is
gguf_container.py's concern, the bits of each type blocks.py's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bitgen import blocks, layout
from bitgen.chat_templates import corrected
from bitgen.checkpoint import ALL, Checkpoint, Scale, row_pieces
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.gguf_container import Container, Entry, Tensor, head, padded
from bitgen.gguf_tensors import EMBEDDINGS, GROUPED, TERNARY, VECTORS, WHY_NOT, Reading, floats
from bitgen.gguf_types import F16, F32, FORMS, I2_S, Q2_0, T5, TQ1_0, TQ2_0
from bitgen.part_file import PartFile
from bitgen.shapes import ARCHITECTURES, Architecture, architecture, shape_from, window_period
from bitgen.spec import Activation, ModelShape
from bitgen.tl_tiles import SCRIPTS, tile_of
from bitgen.tl_tiles import parse as parse_tiles

I2sLayout = Literal["x86", "arm", "rows4"]
TernaryType = Literal["i2_s", "tq1_0", "tq2_0", "t5", "q2_0"]
Progress = Callable[[int, int], None]

HIDDEN_ACTIVATIONS: dict[str, Activation] = {
    "relu2": "relu2",
    "relu_squared": "relu2",
    "silu": "silu",
    "swish": "silu",
    "gelu_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Values of the key <arch>.hidden_activation."""

GEMMA3_PERIOD, GEMMA3_WINDOW_THETA = 6, 10000.0
"""What a file of gemma3 that gives a window means where it is silent about the rest, as in llama.cpp."""

VOCAB_1BITLLM = 32002
"""Tokens of the first BitNet models, whose FFN is SiLU even under the newer name bitnet-b1.58."""

ORDER = (
    *("attn_norm", "attn_q_norm_in", "attn_q", "attn_k_norm_in", "attn_k", "attn_v_norm_in", "attn_v"),
    *("attn_q_norm", "attn_k_norm", "attn_sub_norm", "attn_output_norm_in", "attn_output", "post_attention_norm"),
    *("ffn_norm", "ffn_gate_norm_in", "ffn_gate", "ffn_up_norm_in", "ffn_up"),
    *("ffn_sub_norm", "ffn_down_norm_in", "ffn_down", "post_ffw_norm"),
)
"""The tensors that a layer can have, in the order they are written, which is the order they act."""

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
TERNARY_TYPES = (I2_S, TQ1_0, TQ2_0, T5, Q2_0)
Q2_0_GROUPS = (64, 128)
"""Weights of a block of Q2_0, by the number of its form."""


def tensor_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """GGUF name -> shape of every tensor of a model, in the order they are written."""
    q, kv, h, inter = (
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
        shape.hidden,
        shape.intermediate,
    )
    matrices = {
        "attn_q": (q, h),
        "attn_k": (kv, h),
        "attn_v": (kv, h),
        "attn_output": (h, q),
        "ffn_gate": (inter, h),
        "ffn_up": (inter, h),
        "ffn_down": (h, inter),
    }
    norms = {name: (length,) for name, length in shape.norms.items()}
    layer: dict[str, tuple[int, ...]] = {name: (norms | matrices)[name] for name in ORDER if name in norms | matrices}
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocab, h), "output_norm.weight": (h,)}
    if not shape.tied:
        shapes["output.weight"] = (shape.vocab, h)
    return shapes | {f"blk.{n}.{name}.weight": dims for n in range(shape.layers) for name, dims in layer.items()}


def is_ternary(name: str) -> bool:
    """Whether a tensor is one of the ternary matrices of a layer."""
    parts = name.split(".")
    return len(parts) == 4 and parts[0] == "blk" and parts[2] in MATRICES and parts[3] == "weight"


# ---- reading ----------------------------------------------------------------------------------------------


def open(
    path: str | Path, i2s_layout: I2sLayout = "x86", activation: str | None = None, tl_tiles: str = ""
) -> GgufCheckpoint:
    """A GGUF file as a Checkpoint; see GgufCheckpoint for what is checked and raised.

    i2s_layout: "arm" and "rows4" read the I2_S of other builds of bitnet.cpp (blocks.i2s_block).
    activation: "relu2" or "silu" overrules the file.
    tl_tiles: "MxK=BM/BK/bm,...", the tiles of TL1 and TL2 tensors where tl_tiles.SCRIPTS does not know them.
    """
    return GgufCheckpoint(Container(path), Reading(i2s_layout, parse_tiles(tl_tiles)), activation)


class GgufCheckpoint:
    """A Checkpoint over a GGUF file. Opening checks every name, shape and type; weights are read on demand.

    FormatError: the file contradicts itself or its architecture, or a tensor is not what its type says.
    UnsupportedError: a sound file that asks for what bitgen does not do.
    Both name the file and the tensor or key.
    """

    def __init__(self, container: Container, reading: Reading | None = None, activation: str | None = None) -> None:
        self.container, self.reading = container, reading or Reading()
        self.path, self._tensors = container.path, container.tensors
        keys = _Keys(container, self.reading)
        self._shape, self.activation_reason = keys.shape(activation)
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
        """Codes {-1, 0, +1} int8 [M, K] and the multiplier: W = scale * codes; of groups, float32 [M, K/group].

        FormatError where the values are not ternary or a scale is not a finite number of at least 0,
        UnsupportedError where the matrix has other scales than the model's shape says.
        """
        codes, scales = self.scaled(name)
        with self._about(name):
            if self._shape.group:
                return codes, blocks.group_scales(codes, scales, self._shape.group)
            scale = blocks.one_scale(codes, scales)
            if scale == 0 and codes.any():
                raise FormatError("the scale is 0; the file is corrupt")
        return codes, scale

    def scaled(self, name: str) -> blocks.Scaled:
        """Codes {-1, 0, +1} int8 [M, K] and the multipliers float32 [R, G], as blocks.py has them."""
        tensor, beside = self._tensor(name), self._tensors.get(_scale_name(name))
        m, k = tensor.shape
        with self._about(name):
            codes, scales = TERNARY[tensor.type_name](self.container.bytes_of(tensor), m, k, self.reading)
            if beside is not None:
                scales = scales * self._floats(beside, ALL)
            wrong = ~(np.isfinite(scales) & (scales >= 0))
            if wrong.any():
                raise FormatError(f"the scale is {scales[wrong][0]}; the file is corrupt")
        return codes, scales

    def dense(self, name: str, rows: slice = ALL) -> npt.NDArray[np.floating[Any]]:
        """Rows of a float tensor: float16 where its values are, else float32. FormatError where one is not finite."""
        values = self._floats(self._tensor(name), rows)
        for piece in row_pieces(values.shape):
            if not np.isfinite(values[piece]).all():
                raise FormatError(f"{self.path}: tensor {name} holds NaN or infinite values; the file is corrupt")
        return values

    @property
    def kept(self) -> dict[str, int]:
        """Name -> type of the embedding and the head, which a copy keeps as they are stored, if one id says how."""
        matrices = (t for t in self._tensors.values() if len(t.shape) == 2 and not is_ternary(t.name))
        return {t.name: t.type for t in matrices if len(FORMS[t.type]) == 1}

    def stored(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        """The bytes of a float tensor, some rows at a time and once their values are known to be finite."""
        tensor = self._tensor(name)
        raw = self.container.bytes_of(tensor).reshape(tensor.shape[0], -1)
        for rows in row_pieces(tensor.shape):
            self.dense(name, rows)
            yield raw[rows]

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise FormatError(f"{self.path}: the tensor {name} is missing")
        return self._tensors[name]

    def _floats(self, tensor: Tensor, rows: slice) -> npt.NDArray[np.floating[Any]]:
        raw = self.container.bytes_of(tensor).reshape(tensor.shape[0], -1)[rows]
        with self._about(tensor.name):
            return floats(tensor.type_name, raw.reshape(-1), (len(raw), *tensor.shape[1:]))

    @contextmanager
    def _about(self, name: str) -> Iterator[None]:
        """Errors that do not know the tensor are given its name; NumPy does not warn of NaN, which is looked for."""
        try:
            with np.errstate(invalid="ignore", over="ignore"):
                yield
        except (FormatError, UnsupportedError) as error:
            raise type(error)(f"{self.path}: tensor {name}: {error}") from None

    def _check_tensors(self) -> None:
        """All tensors of the architecture in shape and in a readable type; none that would go unused."""
        expected = tensor_shapes(self._shape)
        for name, dims in expected.items():
            tensor = self._tensor(name)
            if tensor.shape != dims:
                raise FormatError(
                    f"{self.path}: tensor {name} is {list(tensor.shape)}; the metadata asks for {list(dims)}"
                )
            self._check_type(tensor)
        scales = {_scale_name(name) for name in expected if is_ternary(name)}
        for name, tensor in self._tensors.items():
            if name in scales:
                if tensor.shape != (1,) or tensor.type != F32:
                    raise FormatError(f"{self.path}: tensor {name}: expected one F32 value")
            elif name not in expected:
                raise UnsupportedError(
                    f"{self.path}: the tensor {name} has no place in a model of architecture "
                    f"{self._shape.architecture}; running without it would give wrong results"
                )

    def _check_type(self, tensor: Tensor) -> None:
        form = tensor.type_name
        readable = TERNARY if is_ternary(tensor.name) else EMBEDDINGS if len(tensor.shape) == 2 else VECTORS
        if form not in readable:
            reason = WHY_NOT.get(form, "which cannot be read here")
            named = form.removeprefix("type ")
            raise UnsupportedError(f"{self.path}: tensor {tensor.name} is of type {named}: {reason}")
        if form in SCRIPTS:  # said when the file opens, not when its turn comes
            with self._about(tensor.name):
                m, k = tensor.shape
                tile_of(form, m, k, self.reading.tiles)


def _scale_name(name: str) -> str:
    """blk.0.attn_q.weight -> blk.0.attn_q.scale: where it exists, the matrix's output is multiplied by it."""
    return name.removesuffix("weight") + "scale"


class _Keys:
    """A file's metadata as a ModelShape; errors name the file and the key."""

    def __init__(self, container: Container, reading: Reading) -> None:
        self.container, self.reading = container, reading
        self.where, self.tensors, self.values = str(container.path), container.tensors, container.metadata
        self.arch = self.get("general.architecture", str)
        self.kind: Architecture = architecture(self.arch, self.where)

    def shape(self, override: str | None) -> tuple[ModelShape, str]:
        """The shape, and why it has its activation."""
        self._refuse_variants()
        vocab = self._vocab()
        heads, hidden = self.own("attention.head_count", int), self.own("embedding_length", int)
        activation, reason = self._activation(override, vocab)
        values = {
            "name": self.get("general.name", str, Path(self.where).stem) or Path(self.where).stem,
            "architecture": self.arch,
            "hidden": hidden,
            "intermediate": self.own("feed_forward_length", int),
            "layers": self.own("block_count", int),
            "heads": heads,
            "kv_heads": self.own("attention.head_count_kv", int, heads),
            "head_dim": self._head_dim(hidden, heads),
            "vocab": vocab,
            "context": self.own("context_length", int),
            "rope_theta": _shortest(self.own("rope.freq_base", float, 10000.0)),
            "norm_eps": _shortest(self.own("attention.layer_norm_rms_epsilon", float)),
            "activation": activation,
            "sub_norms": self.kind.sub_norms,
            "tied": "output.weight" not in self.tensors,
            "rope_interleaved": self.kind.rope_interleaved,
            "input_norms": "blk.0.attn_q_norm_in.weight" in self.tensors,
            "attention_scale": _shortest(self.own("attention.scale", float, 0.0)),
            "group": self._group(),
        }
        return shape_from(values | self._window(), self.where), reason

    def own(self, key: str, type: type, default: Any = None) -> Any:
        """The value of <architecture>.<key>."""
        return self.get(f"{self.arch}.{key}", type, default)

    def get(self, key: str, type: type, default: Any = None) -> Any:
        """A value of a type; integers serve as floats. Without a default the key must be there."""
        value = self.values.get(key, default)
        if value is None:
            raise FormatError(f"{self.where}: the key {key} is missing")
        if type is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, type) or (type is int and isinstance(value, bool)):
            raise FormatError(f"{self.where}: {key} is {_brief(value)}; expected {type.__name__}")
        return value

    def _vocab(self) -> int:
        """Rows of the embedding, which the key and the tokenizer must not contradict."""
        embedding = self.tensors.get("token_embd.weight")
        if embedding is None:
            raise FormatError(f"{self.where}: the tensor token_embd.weight is missing")
        rows = embedding.shape[0]
        stated = self.own("vocab_size", int, rows)
        tokens = self.values.get("tokenizer.ggml.tokens", [])
        if stated != rows:
            raise FormatError(f"{self.where}: vocab_size is {stated}, but token_embd.weight has {rows} rows")
        if isinstance(tokens, list) and len(tokens) > rows:
            raise FormatError(f"{self.where}: {len(tokens)} tokens, but token_embd.weight has {rows} rows")
        return rows

    def _head_dim(self, hidden: int, heads: int) -> int:
        """attention.key_length, else rope.dimension_count, else hidden / heads."""
        if heads < 1:
            raise FormatError(f"{self.where}: {self.arch}.attention.head_count is {heads}")
        rope = self.own("rope.dimension_count", int, 0)
        dim = int(self.own("attention.key_length", int, rope or hidden // heads))
        value_dim = self.own("attention.value_length", int, dim)
        if (rope or dim) != dim or value_dim != dim:
            raise UnsupportedError(
                f"{self.where}: heads of {dim} with RoPE over {rope or dim} and values of {value_dim}; "
                "all three must be equal"
            )
        return dim

    def _group(self) -> int:
        """Weights of a row that share a scale: a block of Q2_0; 0 where the blocks of the first matrix agree on one."""
        first = self.tensors.get("blk.0.attn_q.weight")
        if first is None or first.type_name not in GROUPED or len(first.shape) != 2:
            return 0
        try:
            codes, scales = TERNARY[first.type_name](self.container.bytes_of(first), *first.shape, self.reading)
        except FormatError as error:
            raise FormatError(f"{self.where}: tensor {first.name}: {error}") from None
        one = len(np.unique(scales[codes.reshape(*scales.shape, -1).any(axis=2)])) <= 1
        return 0 if one else codes.shape[1] // scales.shape[1]

    def _window(self) -> dict[str, Any]:
        """Which layers see a window of positions, and the RoPE of those; nothing where all see all."""
        window = self.own("attention.sliding_window", int, 0) if self.kind.windows else 0
        if not window:
            return {}
        pattern = self.values.get(f"{self.arch}.attention.sliding_window_pattern")
        if isinstance(pattern, np.ndarray):  # a flag for each layer
            period = window_period(pattern.tolist()[: self.own("block_count", int)], self.where)
        else:
            period = self.own("attention.sliding_window_pattern", int, GEMMA3_PERIOD)
        return {
            "window": window,
            "window_period": period,
            "window_theta": _shortest(self.own("rope.freq_base_swa", float, GEMMA3_WINDOW_THETA)),
        }

    def _activation(self, override: str | None, vocab: int) -> tuple[Activation, str]:
        """The FFN's activation and the reason: the caller, the file's key, or the architecture's rule."""
        key = f"{self.arch}.hidden_activation"
        stated = override or self.get(key, str, "")
        if stated:
            by = "chosen by the caller" if override else f"the key {key}"
            if stated not in HIDDEN_ACTIVATIONS:
                known = ", ".join(dict.fromkeys(HIDDEN_ACTIVATIONS.values()))
                raise UnsupportedError(f"{self.where}: activation {stated!r} ({by}) is unknown; known: {known}")
            return HIDDEN_ACTIVATIONS[stated], by
        if self.kind.activation == "relu2" and vocab == VOCAB_1BITLLM:
            return "silu", f"a vocabulary of {VOCAB_1BITLLM}: a 1bitLLM model under a newer architecture name"
        return self.kind.activation, f"architecture {self.arch}"

    def _refuse_variants(self) -> None:
        """Refuse keys that change the arithmetic, unless their value says that nothing changes."""
        for key, neutral in (
            ("rope.scaling.type", ("none", "linear")),
            ("rope.scaling.factor", (0.0, 1.0)),
            ("rope.scale_linear", (0.0, 1.0)),
            ("expert_count", (0,)),
            *([] if self.kind.windows else [("attention.sliding_window", (0,))]),
            ("attention.causal", (True,)),
            ("attn_logit_softcapping", (0.0,)),
            ("final_logit_softcapping", (0.0,)),
        ):
            value = self.values.get(f"{self.arch}.{key}", neutral[0])
            if isinstance(value, list | np.ndarray) or value not in neutral:
                raise UnsupportedError(f"{self.where}: {self.arch}.{key} = {_brief(value)} is not supported")


def _shortest(value: float) -> float:
    """A float32 as the decimal it was written from: 1e-05, not 9.999999747378752e-06. Same float32."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- writing ----------------------------------------------------------------------------------------------

FILE_TYPES: dict[str, tuple[int, int]] = {
    "i2_s": (I2_S, 40),
    "tq1_0": (TQ1_0, 36),
    "tq2_0": (TQ2_0, 37),
    "t5": (T5, T5),
    "q2_0": (Q2_0, 41),
}
"""Type of a file -> tensor type id of its matrices, general.file_type."""


def write(
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
    entries = _entries(checkpoint.shape, type, checkpoint.kept if isinstance(checkpoint, GgufCheckpoint) else {})
    start = head(_metadata(checkpoint, type), entries)
    if identity is not None:
        identity = hashlib.sha256(start + identity.encode()).hexdigest()
    total, done = sum(padded(entry.nbytes) for entry in entries), 0
    scales: dict[str, Scale] = {}
    try:
        with PartFile(path, identity) as part:
            if "head" not in part.done:
                part.append("head", [start])
            for entry in entries:
                if entry.name not in part.done:
                    _write_tensor(part, entry, _payload(checkpoint, entry, scales))
                done += padded(entry.nbytes)
                if progress:
                    progress(done, total)
    except OSError as error:
        kept = "; what is done is kept, and the same command goes on from there" if identity else ""
        raise BitgenError(f"cannot write {path}: {error.strerror}{kept}") from error


def _entries(shape: ModelShape, type: str, kept: Mapping[str, int] = MappingProxyType({})) -> list[Entry]:
    """The tensor table of a file, checked against what the type can hold. `kept`: types of float matrices."""
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
            entries.append(Entry(name, dims, F32 if len(dims) == 1 else kept.get(name, F16)))
            continue
        m, k = dims
        if id == I2_S and m * k % 128:
            raise UnsupportedError(f"{name}: {m} x {k} weights are not whole I2_S blocks of 128")
        if id in (TQ1_0, TQ2_0) and k % blocks.TQ_BLOCK:
            raise UnsupportedError(f"{name}: rows of {k} are not whole {type} blocks of 256; take i2_s")
        entries.append(Entry(name, dims, id, Q2_0_GROUPS.index(shape.group) if id == Q2_0 else 0))
        if id in (TQ1_0, TQ2_0):
            entries.append(Entry(_scale_name(name), (1,), F32))
    return entries


CHAT_TEMPLATE = "tokenizer.chat_template"


def _metadata(checkpoint: Checkpoint, type: str) -> dict[str, Any]:
    """The key-values: dimensions from the shape; tokenizer and general notes from the checkpoint's own, put right."""
    s, arch = checkpoint.shape, checkpoint.shape.architecture
    ours = {
        "general.architecture": arch,
        "general.name": s.name,
        "general.file_type": FILE_TYPES[type][1],
        "general.quantization_version": 2,
    }
    notes = {
        key: value
        for key, value in checkpoint.metadata.items()
        if (key.startswith(("general.", "tokenizer.")) and key not in ours and key != "general.alignment")
        or key == f"{arch}.pooling_type"
    }
    if template := notes.get(CHAT_TEMPLATE):
        notes[CHAT_TEMPLATE] = corrected(str(template))
    dimensions = {
        "vocab_size": s.vocab,
        "context_length": s.context,
        "embedding_length": s.hidden,
        "block_count": s.layers,
        "feed_forward_length": s.intermediate,
        "rope.dimension_count": s.head_dim,
        "attention.head_count": s.heads,
        "attention.head_count_kv": s.kv_heads,
        "attention.layer_norm_rms_epsilon": s.norm_eps,
        "rope.freq_base": s.rope_theta,
        "hidden_activation": s.activation,
    }
    if s.heads * s.head_dim != s.hidden:
        dimensions |= {"attention.key_length": s.head_dim, "attention.value_length": s.head_dim}
    if s.attention_scale:
        dimensions["attention.scale"] = s.attention_scale
    if s.window:
        dimensions |= {
            "attention.sliding_window": s.window,
            "attention.sliding_window_pattern": s.window_period,
            "rope.freq_base_swa": s.window_theta,
        }
    return ours | {f"{arch}.{key}": value for key, value in dimensions.items()} | notes


def _payload(checkpoint: Checkpoint, entry: Entry, scales: dict[str, Scale]) -> Iterable[npt.NDArray[Any]]:
    """A tensor's data: a matrix in one piece, floats in several. `scales` keeps what goes beside the matrices."""
    if entry.type in TERNARY_TYPES:
        codes, scale = checkpoint.ternary(entry.name)
        scales[_scale_name(entry.name)] = scale
        return _packed(entry, codes, scale)
    if entry.name.endswith(".scale"):
        if entry.name not in scales:  # an earlier run wrote the matrix
            scales[entry.name] = checkpoint.ternary(entry.name.removesuffix("scale") + "weight")[1]
        return [np.array([scales[entry.name]], "<f4")]
    if isinstance(checkpoint, GgufCheckpoint) and entry.name in checkpoint.kept:
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
    fill = bytes(padded(entry.nbytes) - entry.nbytes)
    written = part.append(entry.name, chain(pieces, [fill])) - len(fill)
    if written != entry.nbytes:
        raise BitgenError(f"{entry.name}: {written} bytes where {entry.nbytes} were planned")
