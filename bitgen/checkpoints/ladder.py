"""presets/ladder.yaml -> ModelShape: sizes from 125M to 100B that no model need have, to see how speed follows size.

A rung is named "ladder-7B". `presets.load` knows rungs, and `presets.names`, which users look for models in, does not.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import yaml

from bitgen import data
from bitgen.checkpoints.architectures import shape_from
from bitgen.checkpoints.tensors import tensor_shapes
from bitgen.errors import FormatError, UnsupportedError, quoted
from bitgen.spec import ModelShape

PREFIX = "ladder-"


def sizes() -> list[str]:
    """The sizes, "125M" to "100B", smallest first."""
    return list(_table()["rungs"])


def load(name: str) -> ModelShape:
    """The shape of a rung, by its size or its name, in upper or lower case; UnsupportedError lists the sizes."""
    spelt = name.strip().lower().removeprefix(PREFIX)
    size = next((each for each in sizes() if each.lower() == spelt), None)
    if size is None:
        raise UnsupportedError(f"no size {quoted(name)} is on the ladder; known: {', '.join(sizes())}")
    hidden, intermediate, layers, heads = _table()["rungs"][size]
    widths = {"hidden": hidden, "intermediate": intermediate, "layers": layers, "heads": heads, "kv_heads": heads}
    where = str(data.folder("presets") / "ladder.yaml")
    return shape_from({**_table()["shape"], **widths, "head_dim": hidden // heads, "name": PREFIX + size}, where)


def is_rung(name: str) -> bool:
    """Whether a preset's name is that of a rung."""
    return name.strip().lower().startswith(PREFIX)


def parameters(shape: ModelShape) -> int:
    """Weights of all tensors of a model."""
    return sum(prod(dims) for dims in tensor_shapes(shape).values())


@cache
def _table() -> dict[str, Any]:
    path = data.folder("presets") / "ladder.yaml"
    try:
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FormatError(f"{path}: cannot be read: {error}") from None
    return values
