"""What is no error in a file, and yet would give garbage, as its weights show; and what of it is not used."""

from __future__ import annotations

import numpy as np

from bitgen.gguf import i2s_layout
from bitgen.gguf.reader import GgufCheckpoint

MOST_ZEROS = 2 / 3
"""Share of weights that are 0, about 0.3 to 0.5 in models trained to be ternary. Of ordinary weights that are rounded
to the greatest of their block, 0.77 to 0.85 become 0."""


def warning(checkpoint: GgufCheckpoint) -> str | None:
    """What looks wrong, and what to do; None where nothing does. Errors are those of reading a matrix."""
    return i2s_layout.warning(checkpoint) or _rounded(checkpoint) or _left_out(checkpoint)


def _left_out(checkpoint: GgufCheckpoint) -> str | None:
    """Layers that are not used, so that nobody waits for their speed."""
    if not checkpoint.left_out:
        return None
    return f"{checkpoint.path}: its layer that predicts further tokens is left out; the text is the same without it"


def _rounded(checkpoint: GgufCheckpoint) -> str | None:
    """Tools round any model to three values. Scales of groups are needed for it, and few weights are not 0 then."""
    shape = checkpoint.shape
    if not shape.group:
        return None
    name = f"blk.{shape.layers // 2}.ffn_gate.weight"
    codes, _ = checkpoint.ternary(name)
    zeros = 1 - np.count_nonzero(codes) / codes.size
    if zeros < MOST_ZEROS:
        return None
    return (
        f"{checkpoint.path}: {zeros:.0%} of the weights of {name} are 0, as if a model had been rounded to three "
        "values that was not trained to have them; its text would be garbage: take a ternary model, or more bits"
    )
