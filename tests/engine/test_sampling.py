"""One set of defaults: those of the call, of the file, and ours, in Python, on the command line and in programs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hf_models
import numpy as np
import pytest
from hf_models import Tiny

import bitgen
from bitgen import Sampling, api
from bitgen.checkpoints import synth
from bitgen.convert.generation_config import sampling_keys
from bitgen.data import shipped_path
from bitgen.engine.sampling import NEUTRAL, from_metadata
from bitgen.errors import ArgumentError
from bitgen.gguf.reader import read_gguf
from bitgen.gguf.writer import write_gguf

FILE = {"general.sampling.temp": 1.5, "general.sampling.top_k": 5, "general.sampling.penalty_repeat": 1.25}


class Renamed:
    """The shipped model with more key-values."""

    def __init__(self, more: Mapping[str, Any]) -> None:
        self._inner = read_gguf(shipped_path())
        self.metadata = {**self._inner.metadata, **more}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sampling") / "own.gguf"
    write_gguf(path, Renamed(FILE))  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> bitgen.Model:
    return bitgen.Model.load(path, threads=2)


def test_one_set_of_defaults() -> None:
    assert Sampling() == Sampling(0.7, 40, 0.9, 0.0, 1.1, 64, 0)
    model = bitgen.Model.load(threads=2)
    assert model.sampling == Sampling() and model.warning is None
    words = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0, "repeat_penalty": 1.1}
    assert "".join(model.generate("Once", 30)) == "".join(model.generate("Once", 30, **words, seed=0))


def test_the_files_own_win(model: bitgen.Model) -> None:
    assert model.sampling == Sampling(1.5, 5, repeat_penalty=1.25)
    assert model.sampling.given(None, {"top_k": 9, "seed": 4}) == Sampling(1.5, 9, repeat_penalty=1.25, seed=4)
    assert model.sampling.given(Sampling(seed=4), {}) == Sampling(seed=4)  # taken as it is
    generation = model.generate("Once", 30, seed=3)
    assert generation.sampling == Sampling(1.5, 5, repeat_penalty=1.25, seed=3)
    text, want = "".join(generation), "".join(model.generate("Once", 30, sampling=generation.sampling))
    assert text == want != "".join(model.generate("Once", 30, sampling=Sampling(seed=3)))
    assert model.generate_many(["Once"], 30, seed=3) == [text]
    with bitgen.Batch(model, 1) as batch:
        assert batch.submit("Once", 30, seed=3).sampling == generation.sampling
    with bitgen.Chat(model, template="llama3") as chat:
        list(chat.say("Once", 3))
        assert chat.answer is not None and chat.answer.sampling == model.sampling


def test_the_command_and_a_program_have_them_too(path: Path, model: bitgen.Model, tmp_path: Path) -> None:
    want = "Once" + "".join(model.generate("Once", 20, seed=3)) + "\n"
    other = "Once" + "".join(model.generate("Once", 20, temperature=0.3, seed=3)) + "\n"
    program = str(api.standalone(path, folder=tmp_path).files[0])
    for command in ([sys.executable, "-m", "bitgen", "run", "-m", str(path)], [program]):
        for more, text in (([], want), (["--temp", "0.3"], other)):
            command_line = [*command, "-p", "Once", "-n", "20", "--seed", "3", *more]
            done = subprocess.run(command_line, capture_output=True, text=True, timeout=300)
            assert done.stdout == text, done.stderr
    info = subprocess.run([program, "--info"], capture_output=True, text=True, timeout=300).stdout
    assert "sampling: --temp 1.5 --top-k 5 --top-p 0.9 --min-p 0 --repeat-penalty 1.25\n" in info
    assert api.info(path)["sampling"] == (
        "temperature 1.5, top_k 5, top_p 0.9, min_p 0, repeat_penalty 1.25 over 64 tokens"
    )


def test_a_program_whose_file_has_none_is_refused(path: Path, tmp_path: Path) -> None:
    program, weights = api.standalone(path, folder=tmp_path).files
    whole = weights.read_bytes()
    for tail in (bytes(24), b"\xff" * 24):
        weights.write_bytes(whole[:-24] + tail)
        done = subprocess.run([program, "-p", "a"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 1 and "does not say how tokens are chosen; write it again" in done.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temp", -1.0),
        ("temp", float("nan")),
        ("temp", float("inf")),
        ("temp", "warm"),
        ("temp", True),
        ("temp", np.zeros(2)),
        ("top_k", 2.5),
        ("top_k", -1),
        ("top_k", 2**40),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", 2),
        ("penalty_repeat", 0.0),
        ("penalty_last_n", -1),
    ],
)
def test_values_that_make_no_sense_are_passed_over_with_a_warning(key: str, value: Any) -> None:
    found, warning = from_metadata({f"general.sampling.{key}": value, "general.sampling.xtc_threshold": 7})
    assert found == Sampling()
    assert warning is not None and f"general.sampling.{key}" in warning and "must be" in warning and len(warning) < 300


@pytest.mark.parametrize("value", [2, 0.5, "on", [1], np.ones(2)])
def test_ways_to_choose_that_are_not_there(value: Any) -> None:
    for key in ("mirostat", "xtc_probability"):
        found, warning = from_metadata({f"general.sampling.{key}": value, "general.sampling.top_k": 7})
        assert found == Sampling(top_k=7) and f"general.sampling.{key} is" in str(warning)
        assert "which is not computed here" in str(warning) and len(str(warning)) < 300
    off = {
        "general.sampling.mirostat": 0,
        "general.sampling.xtc_probability": 0.0,
        "general.sampling.mirostat_tau": 5.0,
    }
    assert from_metadata(off) == (Sampling(), None)


def test_the_warning_is_said(tmp_path: Path) -> None:
    write_gguf(file := tmp_path / "m.gguf", Renamed({"general.sampling.top_p": 7.0}))  # type: ignore[arg-type]
    model = bitgen.Model.load(file)
    assert model.sampling == Sampling() and "general.sampling.top_p" in str(model.warning)
    assert "general.sampling.top_p" in api.info(file)["sampling_warning"]


def test_sampling_is_of_the_call_or_of_one_object() -> None:
    with pytest.raises(ArgumentError, match="give seed or sampling, not both"):
        NEUTRAL.given(Sampling(), {"seed": 1})
    with pytest.raises(TypeError, match="there is no heat; the parameters of sampling are temperature, top_k"):
        NEUTRAL.given(None, {"heat": 1})


# ---- conversion ----------------------------------------------------------------------------------------------


def keys_of(folder: Path, config: Any) -> tuple[dict[str, Any], str | None]:
    (folder / "generation_config.json").write_text(json.dumps(config))
    return sampling_keys(folder)


def test_a_conversion_keeps_them(tmp_path: Path) -> None:
    folder = hf_models.save(Tiny("BitNetForCausalLM", "autobitlinear"), tmp_path / "hf")
    config = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05}
    (folder / "generation_config.json").write_text(json.dumps(config))
    api.convert(folder, tmp_path / "m.gguf")
    found, warning = from_metadata(read_gguf(tmp_path / "m.gguf").metadata)
    assert warning is None and (found.top_k, found.min_p) == (20, 0)
    assert np.allclose((found.temperature, found.top_p, found.repeat_penalty), (0.6, 0.95, 1.05))
    api.convert(tmp_path / "m.gguf", tmp_path / "again.gguf")
    assert from_metadata(read_gguf(tmp_path / "again.gguf").metadata)[0] == found


def test_what_generation_config_means(tmp_path: Path) -> None:
    assert sampling_keys(tmp_path) == ({}, None)
    assert keys_of(tmp_path, {"do_sample": False, "temperature": 0.6}) == ({"general.sampling.temp": 0.0}, None)
    assert keys_of(tmp_path, {"do_sample": True, "top_k": 50}) == ({"general.sampling.top_k": 50}, None)
    assert keys_of(tmp_path, {"temperature": None, "eos_token_id": 5}) == ({}, None)
    for wrong in ("warm", True, [0.6], 10**400, float("nan"), float("inf"), {}):
        keys, warning = keys_of(tmp_path, {"temperature": wrong, "top_k": 7})
        assert keys == {"general.sampling.top_k": 7}
        assert warning is not None and "temperature is" in warning and "left out" in warning
    assert "top_k is 2.5" in str(keys_of(tmp_path, {"top_k": 2.5})[1])


def test_synth_has_none(tmp_path: Path) -> None:
    assert not [key for key in synth.SynthCheckpoint(read_gguf(shipped_path()).shape).metadata if "sampling" in key]
