"""Frequencies of rotary positions: against NumPy, published figures and transformers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from gguf_files import SHAPES, TINY

from bitgen.checkpoints import presets
from bitgen.checkpoints.rope import divisors, frequencies, scaling_of, yarn_magnitude
from bitgen.convert.hf_rope import Rope
from bitgen.errors import FormatError
from bitgen.spec import RopeScaling

BONSAI = RopeScaling("yarn", 4.0, 8192, magnitude=1.138629)


@pytest.mark.parametrize("name", presets.names())
def test_they_are_powers_of_theta(name: str) -> None:
    shape = dataclasses.replace(presets.load(name), rope_scaling=None)
    want = float(np.float32(shape.rope_theta)) ** (-np.arange(0, shape.rotary, 2) / shape.rotary)
    assert np.array_equal(frequencies(shape), want.astype(np.float32))


def test_of_layers_with_a_window() -> None:
    shape = dataclasses.replace(SHAPES["gemma3 inputs"], rope_dims=32, rope_scaling=RopeScaling("linear", 8.0))
    exponents = -np.arange(0, 32, 2) / 32
    assert np.array_equal(frequencies(shape, windowed=True), (500.0**exponents).astype(np.float32))
    assert np.array_equal(frequencies(shape), (10000.0**exponents / 8).astype(np.float32))


@pytest.mark.parametrize(("original", "low", "high"), [(8192, 17, 34), (16384, 20, 37)])
def test_where_the_ramp_of_yarn_is(original: int, low: int, high: int) -> None:
    """Heads of 128 and theta 1e6, as in Ternary Bonsai."""
    by = divisors(dataclasses.replace(BONSAI, original_context=original), 1e6, 128)
    assert set(by[: low + 1]) == {1.0} and set(by[high:]) == {4.0}
    assert all(1 < one < other < 4 for one, other in zip(by[low + 1 : high], by[low + 2 : high], strict=False))
    assert yarn_magnitude(4.0) == pytest.approx(1.138629, abs=1e-6)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
CONFIGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.5},
    "llama3": LLAMA3,
    "llama3, short": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 8192},
    "yarn, no factor": {"factor": None, "original_max_position_embeddings": 4096},
    "yarn, betas": {"factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 64, "beta_slow": 2.0},
    "yarn, attention_factor": {"factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 0.75},
    "yarn, mscale": {
        "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.707,
    },
    "yarn, not truncated": {"factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False},
    "longrope": {
        "short_factor": [1 + i / 10 for i in range(64)], "long_factor": [2.0 + i for i in range(64)],
        "original_max_position_embeddings": 4096,
    },
    "longrope, attention_factor": {
        "short_factor": [0.997, *[1.5] * 63], "long_factor": [3.0] * 64, "factor": 2.0, "attention_factor": 1.19,
        "original_max_position_embeddings": 4096,
    },
}  # fmt: skip


@pytest.mark.transformers
@pytest.mark.parametrize("name", CONFIGS)
def test_those_of_transformers(name: str, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind, context, theta = name.partition(",")[0], 32768, 1e6
    values = {**CONFIGS[name], "rope_type": kind, "rope_theta": theta}
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=2, head_dim=128, max_position_embeddings=context,
        rope_parameters=dict(values),
    )  # fmt: skip
    want, magnitude = ROPE_INIT_FUNCTIONS[kind](config)
    fields = Rope(tmp_path, "rope_parameters", values).fields(theta, 128, context, None)
    shape = dataclasses.replace(TINY, head_dim=128, rope_theta=theta, rope_scaling=fields["rope_scaling"])
    assert np.allclose(frequencies(shape), want.numpy(), rtol=2e-6, atol=0)
    assert shape.rope_scaling is not None and shape.rope_scaling.magnitude == pytest.approx(magnitude, rel=1e-12)
    assert fields.get("context") == (4096 if kind == "longrope" else None)


@pytest.mark.parametrize(
    ("scaling", "reason"),
    [
        ({"kind": "ntk"}, "expected a kind of linear, yarn, table"),
        ({"kind": "yarn", "factr": 4}, "expected a kind"),
        ("yarn", "expected a kind"),
        ({"kind": "linear", "factor": 0.5}, "factor is 0.5; expected 1 to"),
        ({"kind": "linear", "factor": float("nan")}, "factor is nan"),
        ({"kind": "linear", "factor": True}, "factor is True"),
        ({"kind": "yarn", "factor": 4.0}, "needs an original context"),
        ({"kind": "yarn", "factor": 4.0, "original_context": 64, "beta_fast": 0}, "beta_fast is 0"),
        ({"kind": "linear", "factor": 2.0, "magnitude": 0.0}, "magnitude is 0.0"),
        ({"kind": "table", "divisors": [1.0] * 31}, "32 numbers from 0.5 to"),
        ({"kind": "table", "divisors": [0.1] * 32}, "32 numbers from 0.5 to"),
        ({"kind": "table", "divisors": [float("nan")] * 32}, "32 numbers"),
        ({"kind": "table", "divisors": "1" * 32}, "32 numbers"),
        ({"kind": "table"}, "32 numbers"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(scaling: object, reason: str) -> None:
    with pytest.raises(FormatError, match=f"^here: .*{reason}"):
        scaling_of({**vars(TINY), "rope_scaling": scaling}, "here")


def test_angles_stay_within_the_runtimes_range() -> None:
    table = {"kind": "table", "divisors": [0.5] * 32}
    assert scaling_of({**vars(TINY), "rope_scaling": table}, "here") is not None
    with pytest.raises(FormatError, match="more than a radian a position"):
        scaling_of({**vars(TINY), "rope_scaling": table, "context": (1 << 23) + 1}, "here")


def test_the_magnitude_of_yarn_is_the_usual_one_unless_given() -> None:
    yarn = {"kind": "yarn", "factor": 4.0, "original_context": 64}
    found = scaling_of({**vars(TINY), "rope_scaling": yarn}, "here")
    assert found == RopeScaling("yarn", 4.0, 64, magnitude=yarn_magnitude(4.0))
