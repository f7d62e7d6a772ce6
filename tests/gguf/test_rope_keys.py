"""RoPE's keys and tables in GGUF files: written, read as llama.cpp reads them, and refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import SHAPES, TINY_LLAMA, changed, contents, floats, store

from bitgen.checkpoints.rope import yarn_magnitude
from bitgen.checkpoints.synth import SynthCheckpoint
from bitgen.cli.facts import rope
from bitgen.errors import BitgenError, FormatError, UnsupportedError
from bitgen.gguf import types
from bitgen.gguf.info import describe
from bitgen.gguf.reader import read_gguf
from bitgen.gguf.rope_keys import LONG, SHORT, TABLE
from bitgen.gguf.writer import write_gguf
from bitgen.spec import ModelShape, RopeScaling

RISING = tuple(float(i + 1) for i in range(32))
YARN = RopeScaling("yarn", 4.0, 16, magnitude=yarn_magnitude(4.0))
SCALINGS = {
    "linear": RopeScaling("linear", 4.0),
    "yarn": YARN,
    "yarn, betas": dataclasses.replace(YARN, beta_fast=16.0, beta_slow=2.0),
    "yarn, attn_factor": dataclasses.replace(YARN, magnitude=0.5 * YARN.magnitude),
    "table": RopeScaling("table", divisors=RISING),
    "table, attn_factor": RopeScaling("table", divisors=RISING, magnitude=1.25),
    "magnitude alone": RopeScaling("linear", 1.0, magnitude=1.5),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    shape = dataclasses.replace(SHAPES["qwen3"], name="tiny", rope_scaling=SCALINGS[name])
    write_gguf(tmp_path / "a.gguf", SynthCheckpoint(shape, 1))
    again = read_gguf(tmp_path / "a.gguf")
    assert again.shape == shape
    write_gguf(tmp_path / "b.gguf", again)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_part_of_a_head(tmp_path: Path) -> None:
    shape = dataclasses.replace(TINY_LLAMA, rope_dims=16, rope_scaling=RopeScaling("table", divisors=RISING[:8]))
    write_gguf(tmp_path / "m.gguf", SynthCheckpoint(shape, 1))
    assert read_gguf(tmp_path / "m.gguf").shape == shape
    facts = describe(tmp_path / "m.gguf")
    assert facts["rope_scaling"] == {"kind": "table", "magnitude": 1.0}
    assert rope(facts) == "adjacent pairs, theta 10000, 16 of 64 elements, stretched by a table of its own"


def test_yarn_in_words(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", SynthCheckpoint(dataclasses.replace(TINY_LLAMA, rope_scaling=YARN), 1))
    assert rope(describe(tmp_path / "m.gguf")).endswith("theta 10000, stretched 4 times from 16 positions by YaRN")


def read(path: Path, keys: dict[str, Any], tables: dict[str, tuple[float, ...]] | None = None) -> ModelShape:
    """The shape of a llama file with these keys and tensors besides."""
    metadata, tensors = contents(TINY_LLAMA)
    for name, table in (tables or {}).items():
        tensors[name] = floats(np.array(table, np.float32), types.F32)
    return read_gguf(store(path / "m.gguf", metadata | {f"llama.{k}": v for k, v in keys.items()}, tensors)).shape


SCALING = "rope.scaling."


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({}, None),
        ({f"{SCALING}type": "linear"}, None),
        ({f"{SCALING}type": "none", f"{SCALING}factor": 8.0}, None),
        ({f"{SCALING}factor": 1.0}, None),
        ({"rope.scale_linear": 0.0}, None),
        ({f"{SCALING}factor": 8.0}, RopeScaling("linear", 8.0)),  # an absent type is linear
        ({"rope.scale_linear": 8.0}, RopeScaling("linear", 8.0)),
        (
            {f"{SCALING}type": "yarn", f"{SCALING}factor": 4.0, f"{SCALING}original_context_length": 16},
            YARN,
        ),
        (
            {f"{SCALING}type": "yarn", f"{SCALING}factor": 4.0, f"{SCALING}yarn_ext_factor": -1.0},
            dataclasses.replace(YARN, original_context=64),  # that of context_length
        ),
        ({f"{SCALING}finetuned": True, f"{SCALING}yarn_log_multiplier": 0.0}, None),
    ],
    ids=str,
)
def test_keys_have_llama_cpps_meaning(keys: dict[str, Any], scaling: RopeScaling | None, tmp_path: Path) -> None:
    assert read(tmp_path, keys).rope_scaling == scaling


def test_tables(tmp_path: Path) -> None:
    assert read(tmp_path, {}, {TABLE: (1.0,) * 32}).rope_scaling is None
    assert read(tmp_path, {}, {TABLE: RISING}).rope_scaling == RopeScaling("table", divisors=RISING)
    long = {f"{SCALING}type": "longrope", f"{SCALING}attn_factor": 1.5, f"{SCALING}original_context_length": 40}
    same, apart = read(tmp_path, long, {LONG: RISING, SHORT: RISING}), {LONG: RISING[::-1], SHORT: RISING}
    assert same.rope_scaling == RopeScaling("table", divisors=RISING, magnitude=1.5) and same.context == 64
    limited = read(tmp_path, long, apart)
    assert (limited.rope_scaling, limited.context) == (same.rope_scaling, 40)


@pytest.mark.parametrize(
    ("keys", "tables", "error", "reason"),
    [
        ({"type": "dynamic"}, {}, UnsupportedError, "rope.scaling.type = 'dynamic' is not supported; known"),
        ({"type": 3}, {}, FormatError, "rope.scaling.type is 3"),
        ({"alpha": 1000.0}, {}, UnsupportedError, "rope.scaling.alpha' = 1000.0 is not supported"),
        ({"type": "yarn", "factor": 4.0, "yarn_log_multiplier": 0.1}, {}, UnsupportedError, "yarn_log_multiplier"),
        ({"type": "yarn", "factor": 4.0, "yarn_ext_factor": 0.0}, {}, UnsupportedError, "yarn_ext_factor"),
        ({"factor": np.array([1.0, 2.0])}, {}, UnsupportedError, "has 2 values"),
        ({"factor": -4.0}, {}, FormatError, "factor is -4"),
        ({"type": "yarn", "factor": 4.0, "original_context_length": 0}, {}, FormatError, "needs an original context"),
        ({"type": "longrope"}, {LONG: RISING}, FormatError, "LongRoPE needs the tensors"),
        ({}, {SHORT: RISING}, FormatError, "type is not longrope"),
        ({"factor": 4.0}, {TABLE: RISING}, UnsupportedError, "beside llama.rope.scaling.factor"),
        ({}, {TABLE: RISING[:31]}, FormatError, "expected 32 F32 values"),
        ({}, {TABLE: (0.0, *RISING[1:])}, FormatError, "32 numbers from 0.5"),
        ({}, {TABLE: (float("inf"), *RISING[1:])}, FormatError, "32 numbers from 0.5"),
    ],
    ids=str,
)
def test_what_is_not_known_is_refused(
    keys: dict[str, Any], tables: dict[str, Any], error: type[BitgenError], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=reason):
        read(tmp_path, {f"{SCALING}{key}": value for key, value in keys.items()}, tables)


@pytest.mark.parametrize("turned", [0, 3, 66, -2, 1 << 40])
def test_dimensions_that_cannot_turn(turned: int, tmp_path: Path) -> None:
    path = changed(tmp_path / "m.gguf", lambda m, t: m.update({"llama.rope.dimension_count": turned}), shape=TINY_LLAMA)
    with pytest.raises(FormatError, match=r"RoPE cannot turn|rope_dims is|rope\.dimension_count is 0"):
        read_gguf(path)
