"""config.json of a Hugging Face model: the architecture, the dimensions, how ternary weights are stored."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bitgen.errors import FormatError, UnsupportedError
from bitgen.shapes import ARCHITECTURES, shape_from
from bitgen.spec import Activation, ModelShape

Storage = Literal["multiply", "divide", "master"]
"""How a ternary matrix is stored: packed with a scale to multiply or to divide by, or as master weights."""

STORAGES: dict[tuple[str, str], Storage] = {
    ("autobitlinear", "offline"): "multiply",
    ("autobitlinear", "online"): "master",
    ("bitlinear", "offline"): "divide",
}
"""quantization_config's (linear_class, quantization_mode) -> Storage."""

ACTIVATIONS: dict[str, Activation] = {"relu2": "relu2", "silu": "silu", "swish": "silu"}
"""hidden_act -> ours."""


@dataclass(frozen=True)
class Family:
    """What an entry of `architectures` stands for."""

    gguf: str  # general.architecture of the GGUF: a row of shapes.ARCHITECTURES
    quantised_by: Literal["quantization_config", "weight_bits"]  # the key that says it is ternary
    sub_norms: dict[str, str] = field(default_factory=dict)  # GGUF name -> module, of the norms Llama lacks


FAMILIES: dict[str, Family] = {
    "BitNetForCausalLM": Family(
        "bitnet-b1.58",
        "quantization_config",
        {"attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"},
    ),
    "BitnetForCausalLM": Family(
        "bitnet",
        "weight_bits",
        {"attn_sub_norm": "self_attn.inner_attn_ln", "ffn_sub_norm": "mlp.ffn_layernorm"},
    ),
    "LlamaForCausalLM": Family("llama", "quantization_config"),
}
"""The 2B4T class, the custom code of bitnet_b1_58-{large, xl, 3B}, and Llama with ternary linears."""


class Config:
    """config.json. Errors name the file and the key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FormatError(f"{path} is missing: a Hugging Face model directory holds one") from None
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"{path}: cannot be read as JSON: {error}") from None
        if not isinstance(values, dict):
            raise FormatError(f"{path}: not a JSON object")
        self.values: dict[str, Any] = values

    def family(self) -> Family:
        """The row of FAMILIES."""
        names = self.values.get("architectures")
        if not isinstance(names, list) or len(names) != 1:
            raise FormatError(f"{self.path}: architectures must name one architecture, not {names!r}")
        name = str(names[0])
        if name not in FAMILIES:
            raise UnsupportedError(f"{self.path}: architectures names {name!r}; known: {', '.join(FAMILIES)}")
        return FAMILIES[name]

    def shape(self, family: Family) -> ModelShape:
        """Dimensions and architecture."""
        heads, hidden = self._get("num_attention_heads"), self._get("hidden_size")
        values = {
            "name": self.path.resolve().parent.name,
            "architecture": family.gguf,
            "hidden": hidden,
            "intermediate": self._get("intermediate_size"),
            "layers": self._get("num_hidden_layers"),
            "heads": heads,
            "kv_heads": self._get("num_key_value_heads", default=heads),
            "head_dim": self._get("head_dim", default=self._head_dim(hidden, heads)),
            "vocab": self._get("vocab_size"),
            "context": self._get("max_position_embeddings"),
            "rope_theta": self._rope_theta(),
            "norm_eps": self._get("rms_norm_eps"),
            "activation": self._activation(),
            "sub_norms": ARCHITECTURES[family.gguf].sub_norms,
            "tied": self._get("tie_word_embeddings"),
            "rope_interleaved": ARCHITECTURES[family.gguf].rope_interleaved,
        }
        return shape_from(values, str(self.path))

    def storage(self, family: Family) -> Storage:
        """How the ternary matrices are stored, or an error where the model is not ternary."""
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
        """The rules of transformers' BitNet integration; absent keys mean its defaults."""
        where = f"{self.path}: quantization_config"
        if quantised.get("use_rms_norm"):
            raise UnsupportedError(f"{where}.use_rms_norm (a norm inside each linear) is not supported")
        kept = quantised.get("modules_to_not_convert")
        if kept not in (None, ["lm_head"]):
            raise UnsupportedError(f"{where}.modules_to_not_convert is {kept!r}; only ['lm_head'] is supported")
        linear = str(quantised.get("linear_class", "bitlinear"))
        mode = str(quantised.get("quantization_mode", "offline"))
        if (linear, mode) not in STORAGES:
            raise UnsupportedError(
                f"{where} has linear_class {linear!r} and quantization_mode {mode!r}; "
                f"known: {', '.join(map(' '.join, STORAGES))}"
            )
        return STORAGES[linear, mode]

    def _head_dim(self, hidden: Any, heads: Any) -> int | None:
        """hidden / heads where that is a whole number: what an absent head_dim means."""
        whole = isinstance(hidden, int) and isinstance(heads, int) and heads > 0 and hidden % heads == 0
        return hidden // heads if whole else None

    def _activation(self) -> Activation:
        name = str(self._get("hidden_act"))
        if name not in ACTIVATIONS:
            raise UnsupportedError(f"{self.path}: hidden_act is {name!r}; known: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def _rope_theta(self) -> Any:
        """`rope_theta`, on its own (transformers 4) or in `rope_parameters` (5); scaled RoPE is refused."""
        theta = None
        for key in ("rope_scaling", "rope_parameters"):
            rope = self.values.get(key) or {}
            if not isinstance(rope, dict):
                raise FormatError(f"{self.path}: {key} must be an object, not {rope!r}")
            kind = rope.get("rope_type", rope.get("type", "default"))
            if kind != "default" and (kind, rope.get("factor")) != ("linear", 1.0):
                raise UnsupportedError(f"{self.path}: {key} asks for {kind!r} RoPE, which is not supported")
            if rope.get("partial_rotary_factor") not in (None, 1.0):
                raise UnsupportedError(f"{self.path}: {key}.partial_rotary_factor is not supported")
            theta = rope.get("rope_theta", theta)
        return self._get("rope_theta") if theta is None else theta

    def _get(self, key: str, default: Any = None) -> Any:
        """The value of a key; absent or null it is `default`, or an error without one."""
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise FormatError(f"{self.path}: the key {key} is missing")
        return value
