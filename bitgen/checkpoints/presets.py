"""presets/models/*.yaml -> ModelShape: known models, for tuning and synthesis without a file."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from bitgen import data
from bitgen.checkpoints import ladder
from bitgen.checkpoints.architectures import FLAGS, FLOATS, INTEGERS, OPTIONAL, TEXTS, shape_from
from bitgen.errors import FormatError, UnsupportedError, quoted
from bitgen.spec import ModelShape

FIELDS = ("hf", *TEXTS, *INTEGERS, *FLOATS, *FLAGS)
"""Keys of every preset: `hf`, the model's id on Hugging Face or null, and the shape's. Those of OPTIONAL may follow."""


def names() -> list[str]:
    """The preset names, in alphabetical order."""
    return list(_table())


def load(name: str) -> ModelShape:
    """The shape of a preset, by its name or its Hugging Face id, in upper or lower case; or of a rung (ladder.py)."""
    if ladder.is_rung(name):
        return ladder.load(name)
    return read(_folder() / f"{_named(name)}.yaml")


def hub_id(name: str) -> str | None:
    """The id of a preset on the Hugging Face Hub, "owner/name"; None where it is not there."""
    if ladder.is_rung(name):
        ladder.load(name)
        return None
    return _table()[_named(name)]


def _named(name: str) -> str:
    """The preset with this name or id; UnsupportedError suggests near ones."""
    table = _table()
    keys = {key.lower(): preset for preset, hf in table.items() for key in (preset, *_spellings(hf))}
    found = keys.get(name.strip().lower())
    if found is not None:
        return found
    near = difflib.get_close_matches(name.strip().lower(), keys, n=3, cutoff=0.5)
    meant = ", ".join(dict.fromkeys(keys[key] for key in near))
    hint = f"did you mean {meant}?" if meant else f"known: {', '.join(table)}"
    raise UnsupportedError(f"no preset named {quoted(name)}; {hint}")


def read(path: Path) -> ModelShape:
    """One preset file, with every field checked; FormatError names the file and the key."""
    values = _values(path)
    return shape_from(values, str(path))


def _folder() -> Path:
    return data.folder("presets") / "models"


def _spellings(hf: str | None) -> tuple[str, ...]:
    """A Hugging Face id with and without its owner."""
    return () if hf is None else (hf, hf.rpartition("/")[2])


@cache
def _table() -> dict[str, str | None]:
    """Preset name -> Hugging Face id."""
    paths = sorted(_folder().glob("*.yaml"), key=lambda p: p.stem.lower())
    if not paths:
        raise FormatError(f"{_folder()} holds no presets; reinstall bitgen")
    return {path.stem: _values(path)["hf"] for path in paths}


def _values(path: Path) -> dict[str, Any]:
    """The mapping in a preset file: all keys of FIELDS, perhaps some of OPTIONAL, and no others."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FormatError(f"{path}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise FormatError(f"{path}: not a mapping of fields")
    for field in FIELDS:
        if field not in values:
            raise FormatError(f"{path}: {field} is missing")
    for field in values:
        if field not in FIELDS + OPTIONAL:
            near = difflib.get_close_matches(str(field), FIELDS + OPTIONAL, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise FormatError(f"{path}: unknown key {field!r}{hint}")
    if values["name"] != path.stem:
        raise FormatError(f"{path}: name is {values['name']!r}; it must equal the file's name, {path.stem!r}")
    if not isinstance(values["hf"], str | None):
        raise FormatError(f"{path}: hf is {values['hf']!r}; expected a Hugging Face id or null")
    return values
