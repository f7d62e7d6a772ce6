"""generation_config.json of a Hugging Face model: how its authors choose tokens, as GGUF's general.sampling.*."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitgen.convert.json_files import read_object
from bitgen.errors import quoted

WHOLE = ("top_k",)
KEYS = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
        "repetition_penalty": "penalty_repeat"}  # fmt: skip
"""Key of generation_config.json -> what follows general.sampling. in a GGUF."""
MOST = 2**31
"""Numbers of this size are none of these keys'; beyond it some cannot be written."""


def sampling_keys(directory: Path) -> tuple[dict[str, Any], str | None]:
    """The key-values, and a sentence about what is left out; else None. `do_sample: false` is a temperature of 0.

    Whether a number makes sense is looked at where it is used. FormatError: the file cannot be read.
    """
    path = directory / "generation_config.json"
    given = read_object(path) or {}
    if given.get("do_sample") is False:
        given = {**given, "temperature": 0.0}
    found, wrong = {}, []
    for key, name in KEYS.items():
        value = given.get(key)
        kinds = int if key in WHOLE else (int, float)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kinds) or not abs(value) < MOST:
            wrong.append(f"{key} is {quoted(value)}")
        else:
            found[f"general.sampling.{name}"] = value if key in WHOLE else float(value)
    return found, f"{path}: {', '.join(wrong)}, which is left out" if wrong else None
