"""Scales of matrices: one, or one for every group of a row; and floats as ternary codes and such scales.

Scales are float32 [R, G] here, one for each of G equal runs of columns in each of R equal runs of rows. Scales of runs
that hold no weight but 0 do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from bitgen.checkpoints.checkpoint import Codes, Floats, Scales, row_pieces
from bitgen.errors import UnsupportedError

GROUPS = (256, 128, 64)
"""Columns that share a scale in files."""

RUN = 16
"""Columns in which floats must have one magnitude; every group is so many or a multiple."""


def has_several(codes: Codes, scales: Scales) -> bool:
    """Whether a matrix has more than one scale."""
    used = _used(codes, scales)
    return bool((used != used[:1]).any())


def one_scale(codes: Codes, scales: Scales) -> float:
    """The scale of a matrix, 0 where it holds nothing but 0; UnsupportedError where it has several."""
    used = _used(codes, scales)
    if (used != used[:1]).any():
        raise UnsupportedError(
            f"it has {_every(codes, scales)}, from {used.min():g} to {used.max():g}; "
            "only matrices with one scale can be used here"
        )
    return float(used[0]) if used.size else 0.0


def group_scales(codes: Codes, scales: Scales, group: int) -> Scales:
    """Scales [R, G] -> [M, K/group]; UnsupportedError where weights of one group have several."""
    found = _grouped(codes, scales, group)
    if found is None:
        raise UnsupportedError(f"it has {_every(codes, scales)}, and they differ within groups of {group}")
    return found


def coarsest_group(codes: Codes, scales: Scales, widths: Iterable[int]) -> int:
    """The most columns, of GROUPS, that share a scale in every row and divide all widths; UnsupportedError: none do."""
    widths = tuple(widths)
    whole = [group for group in GROUPS if all(k % group == 0 for k in widths)]
    for group in whole:
        if _grouped(codes, scales, group) is not None:
            return group
    sizes = (n for n in (*GROUPS, 32, RUN) if codes.shape[1] % n == 0)
    found = next((n for n in sizes if _grouped(codes, scales, n) is not None), RUN)
    allowed = ", ".join(map(str, whole)) or "whole matrices: none of 64, 128 and 256 divides all rows of the model"
    raise UnsupportedError(f"it has a scale for every {found} weights of a row; supported are scales of {allowed}")


def float_runs(shape: tuple[int, ...], read: Callable[[slice], Floats]) -> tuple[Codes, Scales]:
    """Floats [M, K] that are -s, 0 and +s in every RUN columns of a row -> codes int8 [M, K], scales [M, K/RUN].

    `read` gives rows of the matrix. UnsupportedError names two magnitudes within a run.
    """
    m, k = shape
    if k % RUN:
        raise UnsupportedError(f"its rows of {k} weights are not whole groups of {RUN}")
    codes, scales = np.empty((m, k), np.int8), np.empty((m, k // RUN), np.float32)
    for rows in row_pieces(shape):
        values = read(rows).astype(np.float32)
        sizes = np.abs(values).reshape(len(values), -1, RUN)
        scales[rows] = top = sizes.max(axis=2)
        wrong = (sizes != 0) & (sizes != top[:, :, None])
        if wrong.any():
            row, run, column = np.argwhere(wrong)[0]
            pair = f"±{sizes[row, run, column]:g} and ±{top[row, run]:g} in {RUN} columns"
            raise UnsupportedError(f"its row {rows.start + row} holds {pair}: the weights are not ternary")
        codes[rows] = np.sign(values)
    return codes, scales


def floats_in_groups(values: Floats, group: int) -> tuple[Codes, Scales] | None:
    """Floats [n, K] that are -s, 0 and +s in every group of columns -> codes int8 [n, K], scales float32 [n, K/group].

    None where they are not, or some s is no float16 number.
    """
    values = values.astype(np.float32)
    sizes = np.abs(values).reshape(len(values), -1, group)
    scales: Scales = sizes.max(axis=2)
    with np.errstate(over="ignore"):
        exact = np.array_equal(scales.astype(np.float16), scales)
    if not exact or ((sizes != 0) & (sizes != scales[:, :, None])).any():
        return None
    return np.sign(values).astype(np.int8), scales


def _used(codes: Codes, scales: Scales) -> Scales:
    """The scales of runs that hold a weight other than 0."""
    runs = codes.reshape(scales.shape[0], codes.shape[0] // scales.shape[0], scales.shape[1], -1)
    used: Scales = scales[runs.any(axis=(1, 3))]
    return used


def _grouped(codes: Codes, scales: Scales, group: int) -> Scales | None:
    """Scales [R, G] -> [M, K/group]; None where weights of one group have several."""
    m, groups, run = len(codes), codes.shape[1] // group, codes.shape[1] // scales.shape[1]
    scales = scales.repeat(m // len(scales), axis=0)
    if groups % scales.shape[1] == 0:
        return scales.repeat(groups // scales.shape[1], axis=1)
    if scales.shape[1] % groups:
        return None
    used = np.where(codes.reshape(m, -1, run).any(axis=2), scales, np.float32(np.nan)).reshape(m, groups, -1)
    greatest = np.fmax.reduce(used, axis=2)  # NaN where the group holds no weight but 0
    return None if (used < greatest[:, :, None]).any() else np.nan_to_num(greatest)


def _every(codes: Codes, scales: Scales) -> str:
    run = codes.shape[1] // scales.shape[1]
    return "a scale for every row" if scales.shape[1] == 1 else f"a scale for every {run} weights of a row"
