"""Key-values of a file -> ModelShape, and checkpoint -> key-values."""

from __future__ import annotations

from typing import Any

import numpy as np

from bitgen.checkpoints.architectures import ARCHITECTURES, Architecture, architecture, layer_period, shape_from
from bitgen.checkpoints.checkpoint import Checkpoint
from bitgen.errors import FormatError, UnsupportedError, brief, quoted
from bitgen.gguf.container import Container
from bitgen.gguf.groups import has_groups, is_binary, scale_group
from bitgen.gguf.hybrid_keys import (
    check_hadamard,
    check_sections,
    delta_fields,
    delta_keys,
    hadamard_fields,
    hadamard_keys,
)
from bitgen.gguf.rope_keys import rope_fields, rope_keys
from bitgen.gguf.tensors import Reading
from bitgen.spec import Activation, ModelShape
from bitgen.text.chat_templates import KEY, carried, corrected

HIDDEN_ACTIVATIONS: dict[str, Activation] = {
    "relu2": "relu2",
    "relu_squared": "relu2",
    "silu": "silu",
    "swish": "silu",
    "gelu_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Value of the key <arch>.hidden_activation -> activation."""

SCALE_KEYS = {
    "embedding_scale": "embedding_scale",
    "residual_scale": "residual_scale",
    "logit_divisor": "logit_scale",
}
"""Field of architectures.SCALES -> key, without <arch>."""

GEMMA3_PERIOD, GEMMA3_WINDOW_THETA = 6, 10000.0
"""Defaults for a gemma3 file that has a window and not the other keys, as in llama.cpp."""

AHEAD = "nextn_predict_layers"
"""Layers behind the others, counted in block_count, that predict further tokens; a text is the same without them."""

VOCAB_1BITLLM = 32002
"""Tokens of the first BitNet models, whose FFN uses SiLU even where a file has the newer name bitnet-b1.58."""


# ---- reading ----------------------------------------------------------------------------------------------


def model_shape(container: Container, reading: Reading, activation: str | None = None) -> tuple[ModelShape, str]:
    """The shape that a file's key-values and tensor table describe, and the reason for its activation.

    activation: "relu2" or "silu", instead of what the file says. Errors name the file and the key.
    """
    return _Keys(container, reading).shape(activation)


class _Keys:
    """A file's metadata, looked up key by key."""

    def __init__(self, container: Container, reading: Reading) -> None:
        self.container, self.reading = container, reading
        self.where, self.tensors, self.values = str(container.path), container.tensors, container.metadata
        self.arch = self.get("general.architecture", str)
        self.kind: Architecture = architecture(self.arch, self.where)

    def shape(self, override: str | None) -> tuple[ModelShape, str]:
        """The shape, and the reason for its activation."""
        self._refuse_variants()
        vocab = self._vocab()
        heads, hidden = self.own("attention.head_count", int), self.own("embedding_length", int)
        activation, reason = self._activation(override, vocab)
        layers = self._layers()
        group = scale_group(self.container, self.reading, layers)
        values = {
            "name": self.get("general.name", str, "") or self.container.files[0].stem,
            "architecture": self.arch,
            "hidden": hidden,
            "intermediate": self.own("feed_forward_length", int),
            "layers": layers,
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
            "group": group,
            "binary": is_binary(self.container, group, layers),
            "delta": delta_fields(self.own) if self.kind.delta else None,
            "hadamard": hadamard_fields(self.values, self.where),
        }
        embedding = self.tensors.get("token_embd.weight")
        values["ternary_embedding"] = has_groups(embedding, group)
        values["ternary_head"] = has_groups(self.tensors.get("output.weight", embedding), group)
        rope = rope_fields(self.container, self.own, self.arch, values["head_dim"], values["context"])
        shape = shape_from(values | self._window() | self._scales() | rope, self.where)
        check_hadamard(self.values, shape, self.where)
        check_sections(self.values, self.arch, shape.rotary, self.where)
        return shape, reason

    def own(self, key: str, type: type, default: Any = None) -> Any:
        """The value of <architecture>.<key>."""
        return self.get(f"{self.arch}.{key}", type, default)

    def get(self, key: str, type: type, default: Any = None) -> Any:
        """The value of a key, of this type; integers may stand for floats. Without a default the key must be there."""
        value = self.values.get(key, default)
        if value is None:
            raise FormatError(f"{self.where}: the key {brief(key)} is missing")
        if type is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, list | np.ndarray):
            raise UnsupportedError(f"{self.where}: {brief(key)} has {len(value)} values; only one can be read")
        if not isinstance(value, type) or (type is int and isinstance(value, bool)):
            raise FormatError(f"{self.where}: {brief(key)} is {quoted(value)}; expected {type.__name__}")
        return value

    def _vocab(self) -> int:
        """Rows of the embedding. FormatError: the key vocab_size or the tokenizer contradicts them."""
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

    def _layers(self) -> int:
        """The layers that a text goes through: block_count without those of AHEAD, which are the last."""
        ahead = self.own(AHEAD, int, 0) if self.kind.delta else 0
        if ahead < 0:
            raise FormatError(f"{self.where}: {self.arch}.{AHEAD} is {ahead}")
        return int(self.own("block_count", int)) - int(ahead)

    def _head_dim(self, hidden: int, heads: int) -> int:
        """attention.key_length, else hidden / heads; values have as many."""
        if heads < 1:
            raise FormatError(f"{self.where}: {self.arch}.attention.head_count is {heads}")
        dim = int(self.own("attention.key_length", int, hidden // heads))
        value_dim = self.own("attention.value_length", int, dim)
        if value_dim != dim:
            raise UnsupportedError(f"{self.where}: heads of {dim} and values of {value_dim}; they must be equal")
        return dim

    def _window(self) -> dict[str, Any]:
        """Fields of the shape about layers with a window; none where every layer is global."""
        window = self.own("attention.sliding_window", int, 0) if self.kind.windows else 0
        if not window:
            return {}
        pattern = self.values.get(f"{self.arch}.attention.sliding_window_pattern")
        if isinstance(pattern, np.ndarray):  # a flag for each layer
            layers = self.own("block_count", int)
            if len(pattern) < layers:
                key = f"{self.arch}.attention.sliding_window_pattern"
                raise FormatError(f"{self.where}: {key} has {len(pattern)} flags for {layers} layers")
            period = layer_period(pattern[:layers].tolist(), self.where)
        else:
            period = self.own("attention.sliding_window_pattern", int, GEMMA3_PERIOD)
        return {
            "window": window,
            "window_period": period,
            "window_theta": _shortest(self.own("rope.freq_base_swa", float, GEMMA3_WINDOW_THETA)),
        }

    def _scales(self) -> dict[str, float]:
        """The fields of architectures.SCALES; UnsupportedError: a model of an architecture without them has them."""
        if self.kind.own_scales:
            for key in SCALE_KEYS.values():
                if f"{self.arch}.{key}" not in self.values:
                    raise FormatError(
                        f"{self.where}: the key {self.arch}.{key} is missing, as converters of 2024 left it out: "
                        "convert the model again"
                    )
            return {field: _shortest(self.own(key, float)) for field, key in SCALE_KEYS.items()}
        for key in SCALE_KEYS.values():
            value = self.own(key, float, 1.0)
            if value != 1:
                raise UnsupportedError(f"{self.where}: {self.arch}.{key} = {value:g} is not supported")
        return {}

    def _activation(self, override: str | None, vocab: int) -> tuple[Activation, str]:
        """The FFN's activation and the reason: the caller, the file's key, or the architecture."""
        key = f"{self.arch}.hidden_activation"
        stated = override or self.get(key, str, "")
        if stated:
            by = "chosen by the caller" if override else f"the key {key}"
            if stated not in HIDDEN_ACTIVATIONS:
                known = ", ".join(dict.fromkeys(HIDDEN_ACTIVATIONS.values()))
                raise UnsupportedError(f"{self.where}: activation {quoted(stated)} ({by}) is unknown; known: {known}")
            return HIDDEN_ACTIVATIONS[stated], by
        if self.kind.activation == "relu2" and vocab == VOCAB_1BITLLM:
            return "silu", f"a vocabulary of {VOCAB_1BITLLM}: a 1bitLLM model under a newer architecture name"
        return self.kind.activation, f"architecture {self.arch}"

    def _refuse_variants(self) -> None:
        """UnsupportedError for keys that change the arithmetic, unless their value leaves it as it is."""
        for key, neutral in (
            ("expert_count", (0,)),
            *([] if self.kind.delta else [(AHEAD, (0,))]),
            *([] if self.kind.windows else [("attention.sliding_window", (0,))]),
            ("attention.causal", (True,)),
            ("attn_logit_softcapping", (0.0,)),
            ("final_logit_softcapping", (0.0,)),
        ):
            value = self.values.get(f"{self.arch}.{key}", neutral[0])
            if isinstance(value, list | np.ndarray) or value not in neutral:
                raise UnsupportedError(f"{self.where}: {self.arch}.{key} = {quoted(value)} is not supported")


def _shortest(value: float) -> float:
    """A float32 by its shortest decimal: 1e-05, not 9.999999747378752e-06. Same float32."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


# ---- writing ----------------------------------------------------------------------------------------------


def key_values(checkpoint: Checkpoint, file_type: int) -> dict[str, Any]:
    """Key-values of a checkpoint: dimensions from its shape, the rest from its metadata, with a corrected template."""
    s, arch = checkpoint.shape, checkpoint.shape.architecture
    ours = {
        "general.architecture": arch,
        "general.name": s.name,
        "general.file_type": file_type,
        "general.quantization_version": 2,
    }
    notes = {
        key: value
        for key, value in checkpoint.metadata.items()
        if (key.startswith(("general.", "tokenizer.")) and key not in ours and key != "general.alignment")
        or key == f"{arch}.pooling_type"
    }
    if template := carried(notes).get("default"):
        notes[KEY] = corrected(template)
    dimensions = {f"{arch}.{key}": value for key, value in _dimensions(s).items()}
    return ours | dimensions | hadamard_keys(checkpoint) | notes


def _dimensions(s: ModelShape) -> dict[str, Any]:
    """The keys <arch>.*, without that prefix."""
    dimensions: dict[str, Any] = {
        "vocab_size": s.vocab,
        "context_length": s.context,
        "embedding_length": s.hidden,
        "block_count": s.layers,
        "feed_forward_length": s.intermediate,
        "rope.dimension_count": s.rotary,
        "attention.head_count": s.heads,
        "attention.head_count_kv": s.kv_heads,
        "attention.layer_norm_rms_epsilon": s.norm_eps,
        "rope.freq_base": s.rope_theta,
        **rope_keys(s),
        **delta_keys(s),
        "hidden_activation": s.activation,
    }
    if s.heads * s.head_dim != s.hidden:
        dimensions |= {"attention.key_length": s.head_dim, "attention.value_length": s.head_dim}
    if s.attention_scale:
        dimensions["attention.scale"] = s.attention_scale
    if ARCHITECTURES[s.architecture].own_scales:
        dimensions |= {key: getattr(s, field) for field, key in SCALE_KEYS.items()}
    if s.window:
        dimensions |= {
            "attention.sliding_window": s.window,
            "attention.sliding_window_pattern": s.window_period,
            "rope.freq_base_swa": s.window_theta,
        }
    return dimensions
