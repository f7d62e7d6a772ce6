"""config.json of a Hugging Face model: its architecture, its dimensions, and how its ternary weights are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from bitgen.checkpoints.architectures import ARCHITECTURES, layer_period, shape_from
from bitgen.convert.families import FAMILIES, Family
from bitgen.convert.hf_rope import ORIGINAL, Rope
from bitgen.convert.json_files import read_object
from bitgen.errors import FormatError, UnsupportedError, quoted
from bitgen.spec import Activation, ModelShape

Layers = Literal["full_attention", "sliding_attention"]
OF_ALL = ("architectures", "model_type", "tie_word_embeddings", "quantization_config")
"""Keys that stand beside text_config."""
Storage = Literal["multiply", "divide", "master", "values"]
"""How ternary matrices are stored: packed, with a scale that multiplies or divides; as master weights; or as floats
-s, 0 and +s."""

STORAGES: dict[tuple[str, str], Storage] = {
    ("autobitlinear", "offline"): "multiply",
    ("autobitlinear", "online"): "master",
    ("bitlinear", "offline"): "divide",
}
"""quantization_config's (linear_class, quantization_mode) -> Storage."""

ACTIVATIONS: dict[str, Activation] = {
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""hidden_act -> activation."""

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "use_sliding_window": (None, False),
    "use_bidirectional_attention": (None, False),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "partial_rotary_factor": (None, 1.0),
    "transformers_weights": (None,),
    "sparse_config": (None,),
    "use_qk_norm": (None, True),
    "use_cla": (None, False),
    "attn_output_gate": (None, True),
    "position_embedding_xdrope": (None, False),
}
"""Keys that change the arithmetic -> the values that leave it as it is."""


class Config:
    """config.json. Errors name the file and the key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        values = read_object(path)
        if values is None:
            raise FormatError(f"{path} is missing: a Hugging Face model directory holds one")
        self.values: dict[str, Any] = values
        self._defaults: dict[str, Any] = {}
        self._partial = 0.0

    def family(self) -> Family:
        """The row of FAMILIES."""
        names = self.values.get("architectures")
        if not isinstance(names, list) or len(names) != 1:
            raise FormatError(f"{self.path}: architectures must name one architecture, not {quoted(names)}")
        name = str(names[0])
        if name not in FAMILIES:
            raise UnsupportedError(f"{self.path}: architectures names {quoted(name)}; known: {', '.join(FAMILIES)}")
        family = FAMILIES[name]
        if self.values.get("model_type", family.model_type) != family.model_type:
            given = quoted(self.values["model_type"])
            raise UnsupportedError(f"{self.path}: model_type is {given}, but {name} is of type {family.model_type!r}")
        if family.nested:
            text = self.values.get("text_config")
            if not isinstance(text, dict):
                raise FormatError(f"{self.path}: text_config is {quoted(text)}; expected an object")
            self.values = text | {key: self.values[key] for key in OF_ALL if key in self.values}
        return family

    def shape(self, family: Family, input_norms: bool = False) -> ModelShape:
        """Dimensions and architecture; input_norms: whether each matrix has a norm of its own for its input."""
        self._defaults, self._partial = family.defaults, family.partial_rotary
        if family.ntk_alpha:
            self._stretch_rope()
        for key, neutral in UNSUPPORTED.items():
            if key == "partial_rotary_factor" and family.partial_rotary:
                continue
            if self.values.get(key) not in neutral:
                raise UnsupportedError(f"{self.path}: {key} = {quoted(self.values[key])} is not supported")
        heads, hidden = self._get("num_attention_heads"), self._get("hidden_size")
        default = self._head_dim(hidden, heads)
        head_dim = self._get("head_dim", default=default, nullable="head_dim" not in family.defaults)
        windows, delta = ARCHITECTURES[family.gguf].windows, ARCHITECTURES[family.gguf].delta
        kinds = {
            "full_attention",
            *(["sliding_attention"] if windows else []),
            *(["linear_attention"] if delta else []),
        }
        if set(self._layer_types() or ()) - kinds:
            raise UnsupportedError(f"{self.path}: layer_types holds more than {' and '.join(sorted(kinds))}")
        values = {
            "name": self.path.resolve().parent.name.encode(errors="replace").decode(),
            "architecture": family.gguf,
            "hidden": hidden,
            "intermediate": self._get("intermediate_size"),
            "layers": self._get("num_hidden_layers"),
            "heads": heads,
            "kv_heads": self._get("num_key_value_heads", default=heads, nullable=True),
            "head_dim": head_dim,
            "vocab": self._get("vocab_size"),
            "context": self._get("max_position_embeddings"),
            "norm_eps": self._get("rms_norm_eps"),
            "activation": self._activation(),
            "sub_norms": ARCHITECTURES[family.gguf].sub_norms,
            "tied": self._has_no_head() or self._get("tie_word_embeddings"),
            "rope_interleaved": ARCHITECTURES[family.gguf].rope_interleaved,
            "input_norms": input_norms,
            "attention_scale": self._attention_scale(),
            **(self._window() if windows else {}),
            **(self._scales() if ARCHITECTURES[family.gguf].own_scales else {}),
            **({"delta": self._delta()} if delta else {}),
            **self._rope_fields(head_dim),
        }
        return shape_from(values, str(self.path))

    def _has_no_head(self) -> bool:
        """Whether the class has no head but ends in hidden states; the model is then taken as tied."""
        return str(self.values["architectures"][0]).endswith("Model")

    def storage(self, family: Family, input_norms: bool = False) -> Storage:
        """How the ternary matrices are stored, or an error where the model is not ternary.

        Models whose matrices have norms for their inputs, and no quantization_config, hold master weights.
        """
        if family.may_be_plain and self.values.get("quantization_config") is None:
            return "master" if input_norms else "values"
        quantised = self.values.get(family.quantised_by)
        if family.quantised_by == "weight_bits":
            if (quantised, self.values.get("input_bits")) != (1, 8):
                raise UnsupportedError(
                    f"{self.path}: weight_bits and input_bits must be 1 and 8: this is not a b1.58 model"
                )
            return "master"
        if not isinstance(quantised, dict) or quantised.get("quant_method") != "bitnet":
            raise UnsupportedError(
                f"{self.path}: quantization_config.quant_method must be 'bitnet': this model is not ternary"
            )
        return self._bitnet_storage(quantised)

    def _bitnet_storage(self, quantised: dict[str, Any]) -> Storage:
        """Storage by the rules of transformers' BitNet integration, with its defaults for absent keys."""
        where = f"{self.path}: quantization_config"
        if quantised.get("use_rms_norm"):
            raise UnsupportedError(f"{where}.use_rms_norm (a norm inside each linear) is not supported")
        dense = quantised.get("modules_to_not_convert")
        if dense not in (None, ["lm_head"]):
            raise UnsupportedError(f"{where}.modules_to_not_convert is {quoted(dense)}; only ['lm_head'] is supported")
        linear = str(quantised.get("linear_class", "bitlinear"))
        mode = str(quantised.get("quantization_mode", "offline"))
        if (linear, mode) not in STORAGES:
            raise UnsupportedError(
                f"{where} has linear_class {quoted(linear)} and quantization_mode {quoted(mode)}; "
                f"known: {', '.join(map(' '.join, STORAGES))}"
            )
        return STORAGES[linear, mode]

    def _head_dim(self, hidden: Any, heads: Any) -> int | None:
        """hidden / heads, the default of head_dim; None where that is no whole number."""
        whole = isinstance(hidden, int) and isinstance(heads, int) and heads > 0 and hidden % heads == 0
        return hidden // heads if whole else None

    def _activation(self) -> Activation:
        key = "hidden_activation" if "hidden_activation" in self._defaults else "hidden_act"
        name = str(self._get(key))
        if name not in ACTIVATIONS:
            raise UnsupportedError(f"{self.path}: {key} is {quoted(name)}; known: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def _attention_scale(self) -> float:
        """query_pre_attn_scalar^-0.5, a float32 by its shortest decimal; 0 where that is head_dim^-0.5."""
        if "query_pre_attn_scalar" not in self._defaults:
            return 0.0
        scalar = self._get("query_pre_attn_scalar")
        if not isinstance(scalar, int | float) or not 0 < scalar < 1e9:
            raise FormatError(f"{self.path}: query_pre_attn_scalar is {quoted(scalar)}; expected a number above 0")
        return 0.0 if scalar == self._get("head_dim") else float(str(np.float32(scalar**-0.5)))

    def _scales(self) -> dict[str, float]:
        """The fields of architectures.SCALES, as MiniCPM's numbers give them."""
        names = ("scale_emb", "scale_depth", "dim_model_base", "hidden_size", "num_hidden_layers")
        for name in names:
            value = self._get(name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 1e-9 < value < 1e9:
                raise FormatError(f"{self.path}: {name} is {quoted(value)}; expected a number above 0")
        embedding, depth, base, hidden, layers = (self._get(name) for name in names)
        exact = {"embedding_scale": embedding, "residual_scale": depth / layers**0.5, "logit_divisor": hidden / base}
        return {field: float(str(np.float32(value))) for field, value in exact.items()}

    def _layer_types(self) -> list[str] | None:
        """What each layer attends to, where config.json says so."""
        types = self.values.get("layer_types")
        if types is None:
            return None
        if not isinstance(types, list) or not all(isinstance(kind, str) for kind in types):
            raise UnsupportedError(f"{self.path}: layer_types is {quoted(types)}; expected a list of texts")
        if len(types) != self._get("num_hidden_layers"):
            raise FormatError(f"{self.path}: layer_types has {len(types)} entries, one for each layer is expected")
        return types

    def _period(self, key: str) -> Any:
        """The n for which every n-th layer has full attention and no other, of layer_types or else of a key."""
        types = self._layer_types()
        if types is None:
            return self._get(key)
        return layer_period([kind != "full_attention" for kind in types], str(self.path))

    def _delta(self) -> dict[str, Any]:
        """Dimensions of the layers with Gated DeltaNet."""
        if self._activation() != "silu":
            raise UnsupportedError(f"{self.path}: hidden_act beside linear attention must be silu")
        keys = {
            "key_heads": "linear_num_key_heads",
            "value_heads": "linear_num_value_heads",
            "key_dim": "linear_key_head_dim",
            "value_dim": "linear_value_head_dim",
            "taps": "linear_conv_kernel_dim",
        }
        own = {field: self._get(key) for field, key in keys.items()}
        return {"period": self._period("full_attention_interval"), **own}

    def _window(self) -> dict[str, Any]:
        """Fields of the shape about layers with a window; none where every layer is global."""
        window, period = self._get("sliding_window"), self._period("sliding_window_pattern")
        if period == 1:
            return {}
        return {"window": window, "window_period": period, "window_theta": self._rope_theta("sliding_attention")}

    def _rope_fields(self, head_dim: Any) -> dict[str, Any]:
        """Fields of the shape about RoPE: its theta, what it turns, and how layers without a window stretch it."""
        theta, context = self._rope_theta("full_attention"), self._get("max_position_embeddings")
        original = self.values.get(ORIGINAL)
        numbers = (theta, head_dim, context, 2 if original is None else original)
        for value in numbers:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 1e12:
                return {"rope_theta": theta}  # shape_from says what is wrong with it
        rope, fields = self._rope("full_attention"), {"rope_theta": theta}
        if self._partial:
            rotary = rope.rotary(head_dim, self.values.get("partial_rotary_factor", self._partial))
            if not rotary:
                raise FormatError(f"{self.path}: partial_rotary_factor leaves RoPE nothing of a head of {head_dim}")
            fields, head_dim = {**fields, "rope_dims": 0 if rotary == head_dim else rotary}, rotary
        return {**fields, **rope.fields(theta, head_dim, context, original)}

    def _stretch_rope(self) -> None:
        """Hunyuan's "dynamic" RoPE with a fixed alpha only stretches its base: theta alpha^(d / (d - 2)), always."""
        for key in ("rope_scaling", "rope_parameters"):
            rope = self.values.get(key)
            if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) != "dynamic":
                continue
            hidden, heads = self._get("hidden_size"), self._get("num_attention_heads")
            d = self._get("head_dim", default=self._head_dim(hidden, heads), nullable=True)
            alpha: Any = rope.get("alpha")
            theta: Any = rope.get("rope_theta") or self._get("rope_theta")
            for name, value in (("alpha", alpha), ("rope_theta", theta), ("head_dim", d)):
                if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e9:
                    raise FormatError(f"{self.path}: {key}: {name} is {quoted(value)}; expected a number above 0")
            if not isinstance(d, int) or d < 3:
                raise FormatError(f"{self.path}: head_dim is {d}; with alpha it must be a whole number above 2")
            if rope.get("factor") not in (None, 1, 1.0):
                raise UnsupportedError(f"{self.path}: {key}.factor beside alpha is not supported")
            base = float(str(np.float32(theta * alpha ** (d / (d - 2)))))
            self.values = self.values | {key: {"rope_type": "default", "rope_theta": base}}

    def _rope_theta(self, layers: Layers) -> Any:
        """RoPE's theta in one kind of layer: a key (transformers 4), or within what describes RoPE (5)."""
        theta = self._rope(layers).values.get("rope_theta")
        if theta is not None:
            return theta
        return self._get("rope_theta" if layers == "full_attention" else "rope_local_base_freq")

    def _rope(self, layers: Layers) -> Rope:
        """What describes RoPE in one kind of layer; UnsupportedError where layers with a window stretch it."""
        given = [key for key in ("rope_scaling", "rope_parameters") if self.values.get(key)]
        if len(given) > 1:
            raise UnsupportedError(f"{self.path}: has rope_scaling and rope_parameters; one of them is expected")
        key = given[0] if given else "rope_parameters"
        values = self.values.get(key) or {}
        if isinstance(values, dict) and any(isinstance(value, dict) for value in values.values()):
            key, values = f"{key}.{layers}", values.get(layers) or {}
        elif layers == "sliding_attention":
            values = {}
        rope = Rope(self.path, key, values, bool(self._partial))
        if layers == "sliding_attention" and rope.kind != "default":
            raise UnsupportedError(
                f"{self.path}: {key} asks for {rope.kind} RoPE in layers with a window; not supported"
            )
        return rope

    def _get(self, key: str, default: Any = None, nullable: bool = False) -> Any:
        """The value of a key; where it is absent, the family's default, else `default`, which null may mean too."""
        value = self.values.get(key, self._defaults.get(key))
        if value is None and (nullable or key not in self.values):
            value = default
        if value is None:
            state = "null" if key in self.values else "missing"
            raise FormatError(f"{self.path}: the key {key} is {state}")
        return value
