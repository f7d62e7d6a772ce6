"""Readers of Hugging Face folders on files that nobody meant: each is read, or refused by a BitgenError in one line.

A few seconds; BITGEN_FUZZ_MINUTES=60 goes on for an hour.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the checkpoint is made with PyTorch")

import hf_models
from fuzzing import fuzz

from bitgen.convert import HfCheckpoint
from bitgen.convert.auto_tokenizer import NAMED
from bitgen.convert.families import FAMILIES
from bitgen.convert.hf_config import UNSUPPORTED
from bitgen.convert.hf_tokenizer import metadata_from_hf
from bitgen.convert.safetensors import INDEX, SINGLE, open_directory
from bitgen.errors import BitgenError

TESTS = 6
"""They share the minutes."""


def read_or_refused(read: Callable[[], Any], folder: Path) -> None:
    """Whatever is not read is a BitgenError of one short line; any other error fails the test."""
    try:
        read()
    except BitgenError as error:
        message = str(error).replace(str(folder), "")
        assert message and "\n" not in message and len(message) < 700


# ---- what files are made of ----

NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 64, 128, 320, 1 << 31, 1 << 63, 10**400, 0.0, -0.5, 1e-300, 1e300]),
    st.integers(-5, 700),
    st.floats(),
)
TEXTS = st.one_of(
    st.sampled_from(
        ["", "a", "<|end_of_text|>", "<unk>", "▁", "BPE", "silu", "x" * 5000, "\x00", "\ud800", "linear", "dynamic"]
    ),
    st.text(max_size=6),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=6,
)
ADDED = st.fixed_dictionaries(
    {"content": st.one_of(TEXTS, SCALARS)},
    optional={flag: st.one_of(st.booleans(), SCALARS) for flag in ("lstrip", "normalized", "special", "id", "odd")},
)
TOKENS = st.one_of(VALUES, TEXTS, ADDED, st.lists(st.one_of(TEXTS, ADDED), max_size=3))
CONFIG_KEYS = sorted(
    {key for family in FAMILIES.values() for key in family.defaults}
    | set(UNSUPPORTED)
    | {"architectures", "model_type", "quantization_config", "rope_scaling", "rope_parameters", "layer_types"}
    | {"num_key_value_heads", "head_dim", "eos_token_id", "bos_token_id", "weight_bits", "tokenizer_class"}
    | {"text_config", "partial_rotary_factor"}
)
CONFIGS = st.dictionaries(
    st.sampled_from(CONFIG_KEYS),
    st.one_of(
        VALUES,
        st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("rope_type", "type", "rope_theta", "factor", "alpha"), VALUES)
        ),
        st.sampled_from(sorted(FAMILIES)).map(lambda name: [name]),
    ),
    max_size=5,
)
CLASSES = st.sampled_from(["LlamaTokenizer", "GemmaTokenizerFast", "Qwen2Tokenizer", "GPT2Tokenizer", "Foo"])
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(NAMED, TOKENS),
        "tokenizer_class": st.one_of(CLASSES, VALUES),
        "added_tokens_decoder": st.one_of(VALUES, st.dictionaries(st.integers(-2, 700).map(str), ADDED, max_size=3)),
        "extra_special_tokens": TOKENS,
        "additional_special_tokens": TOKENS,
        "chat_template": st.one_of(VALUES, st.just([{"name": "default", "template": "x"}])),
        "add_prefix_space": VALUES,
        "legacy": VALUES,
        "model_max_length": VALUES,
    },
)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "tokenizer_config.json": SETTINGS,
        "special_tokens_map.json": SETTINGS,
        "added_tokens.json": st.one_of(VALUES, st.dictionaries(TEXTS, NUMBERS, max_size=3)),
        "generation_config.json": st.fixed_dictionaries({}, optional={"eos_token_id": VALUES}),
        "1_Pooling/config.json": st.dictionaries(
            st.sampled_from(["pooling_mode_mean_tokens", "pooling_mode_cls_token", "pooling_mode_odd"]), VALUES
        ),
    },
)


def edited(values: Any, data: st.DataObject) -> Any:
    """JSON values with one to three places replaced, removed or repeated."""
    values = copy.deepcopy(values)
    for _ in range(data.draw(st.integers(1, 3))):
        place = values
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys[:12] + keys[-12:]))
            inner = place[key]
            if isinstance(inner, dict | list) and inner and data.draw(st.booleans()):
                place = inner
                continue
            if data.draw(st.integers(0, 3)):
                place[key] = data.draw(VALUES)
            elif isinstance(place, dict):
                del place[key]
            else:
                place.append(inner)
            break
    return values


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """Bytes with some replaced, and perhaps the end cut off or something put in."""
    raw = bytearray(content)
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    at = data.draw(st.integers(0, len(raw)))
    how = data.draw(st.sampled_from(["", "cut", "insert"]))
    return bytes(raw[:at] if how == "cut" else raw[:at] + data.draw(st.binary(max_size=9)) + raw[at:] if how else raw)


# ---- the readers ----


class Folder:
    """A sound model directory of which an example changes some files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sound = {str(file.relative_to(path)): file.read_bytes() for file in path.iterdir()}
        self._changed: set[str] = set()

    def json(self, name: str) -> Any:
        return json.loads(self.sound[name])

    def change(self, files: dict[str, Any]) -> Path:
        """The directory with these files, bytes or JSON values, in the place of the sound ones."""
        for name in self._changed:
            (self.path / name).unlink()
            if name in self.sound:
                (self.path / name).write_bytes(self.sound[name])
        for name, content in files.items():
            (self.path / name).parent.mkdir(exist_ok=True)
            (self.path / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        self._changed = set(files)
        return self.path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(hf_models.save(hf_models.BITNET, tmp_path_factory.mktemp("fuzz") / "model"))


def test_keys_of_config(folder: Folder) -> None:
    def attempt(changes: dict[str, Any]) -> None:
        path = folder.change({"config.json": folder.json("config.json") | changes})
        read_or_refused(lambda: HfCheckpoint(path), path)

    fuzz(attempt, CONFIGS, 160, 1 / TESTS)


def test_files_beside_the_tokenizer(folder: Folder) -> None:
    def attempt(files: dict[str, Any]) -> None:
        path = folder.change(files)
        read_or_refused(lambda: HfCheckpoint(path).metadata, path)

    fuzz(attempt, FILES, 50, 1 / TESTS)


def test_edited_tokenizers(folder: Folder) -> None:
    def attempt(data: st.DataObject) -> None:
        path = folder.change({"tokenizer.json": edited(folder.json("tokenizer.json"), data)})
        read_or_refused(lambda: metadata_from_hf(path), path)

    fuzz(attempt, st.data(), 50, 1 / TESTS)


def test_damaged_json(folder: Folder) -> None:
    def attempt(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json"]))
        path = folder.change({name: damaged(folder.sound[name], data)})
        read_or_refused(lambda: HfCheckpoint(path).metadata, path)

    fuzz(attempt, st.data(), 50, 1 / TESTS)


def test_headers_of_safetensors(folder: Folder) -> None:
    """Edited as JSON, or damaged as bytes; and what is read of a file that opens."""
    sound = folder.sound[SINGLE]
    end = 8 + int.from_bytes(sound[:8], "little")

    def attempt(data: st.DataObject) -> None:
        raw = data.draw(st.booleans())
        header = damaged(sound[:end], data) if raw else json.dumps(edited(json.loads(sound[8:end]), data)).encode()
        content = (header if raw else len(header).to_bytes(8, "little") + header) + sound[end:]
        path = folder.change({SINGLE: content})
        read_or_refused(lambda: [tensor.read() for tensor in open_directory(path).values()], path)

    fuzz(attempt, st.data(), 200, 1 / TESTS)


def test_indexes(folder: Folder) -> None:
    def attempt(values: Any) -> None:
        path = folder.change({INDEX: values})
        (path / SINGLE).unlink()
        try:
            read_or_refused(lambda: open_directory(path), path)
        finally:
            (path / SINGLE).write_bytes(folder.sound[SINGLE])

    weights = st.fixed_dictionaries({"weight_map": st.dictionaries(TEXTS, TEXTS, max_size=4)})
    fuzz(attempt, st.one_of(VALUES, weights), 200, 1 / TESTS)
