"""Bytes that a certified head would read if its screen had two tiers, the first with fewer than eight bits.

    python benchmarks/head_bits.py

The first tier reads a few bits of every weight and bounds each logit as runtime/core/certified_head.c does. A row stays
a candidate if its upper bound reaches the threshold, the k-th greatest lower bound by all eight bits; the second tier
reads the other bits of candidates, and the rows that still are candidates are read in float16. Printed are candidates
and bytes, beside those of one tier of eight bits. These counts are a lower limit: the hidden state is not quantised,
and the threshold is known from the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bitgen import Model
from bitgen.engine.sampling import NEUTRAL
from bitgen.engine.session import states_batch
from bitgen.gguf.reader import read_gguf

Floats = npt.NDArray[np.float32]
SAMPLES = 24
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # fractions of the greatest weight at which the grid may end


@dataclass(frozen=True)
class Grid:
    """A quantisation of rows: codes of `bits`, with a scale for every `block` columns (0: one for each row)."""

    bits: int
    block: int = 0
    best: bool = False  # the grid's end is the best of CLIPS for each scale, not the greatest weight

    def __str__(self) -> str:
        columns = f"{self.block} columns" if self.block else "a row"
        return f"{self.bits} bits, a scale for {columns}{', best end' if self.best else ''}"

    def row_bytes(self, hidden: int) -> float:
        """Bytes of a row's codes and scales, without the two floats of its bound, which every grid has."""
        return self.bits * hidden / 8 + (2 * hidden / self.block if self.block else 4)

    def dequantised(self, rows: Floats) -> Floats:
        """The rows as dequantised from codes and scales, float32 [rows, hidden]."""
        parts = rows.reshape(len(rows), -1, self.block or rows.shape[1])
        top = np.maximum(np.abs(parts).max(-1, keepdims=True), np.float32(1e-30))
        steps = 2**self.bits - 1  # codes are centred: an even number of values, none of them 0
        found, least = np.zeros_like(parts), np.full(top.shape, np.inf, np.float32)
        for clip in CLIPS if self.best else CLIPS[:1]:
            step = top * np.float32(2 * clip / steps)
            codes = np.clip(np.floor(parts / step), -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)
            tried = (codes + np.float32(0.5)) * step
            error = np.square(parts - tried).sum(-1, keepdims=True)
            found = np.where(error < least, tried, found)
            least = np.minimum(least, error)
        return found.reshape(rows.shape)


GRIDS = tuple(Grid(bits, block, best) for bits in (6, 5, 4) for block in (0, 128, 64) for best in (False, True))
EIGHT = Grid(8)


def pieces(rows: int) -> Iterator[slice]:
    """Slices of 8192 rows, the last one shorter."""
    return (slice(at, min(at + 8192, rows)) for at in range(0, rows, 8192))


def bounds(grid: Grid, head: Floats, states: Floats) -> tuple[Floats, Floats]:
    """Lower and upper bounds of all logits, each float32 [samples, vocab]."""
    low, high = (np.empty((len(states), len(head)), np.float32) for _ in range(2))
    norms = np.linalg.norm(states, axis=1)[:, None]
    gamma = np.float32((head.shape[1] / 16 + 32) * 2.0**-23)
    for at in pieces(len(head)):
        near = grid.dequantised(head[at])
        residual = np.linalg.norm(head[at] - near, axis=1)
        residual += gamma * (np.linalg.norm(head[at], axis=1) + np.linalg.norm(near, axis=1))
        middle = states @ near.T
        low[:, at], high[:, at] = middle - norms * residual, middle + norms * residual
    return low, high


def study(name: str, head: Floats, states: Floats) -> None:
    """Print a table: candidates and bytes of each first tier, for the top 1 and the top 40 logits."""
    vocab, hidden = head.shape
    low8, high8 = bounds(EIGHT, head, states)
    thresholds = {k: np.partition(low8, vocab - k, axis=1)[:, vocab - k, None] for k in (1, 40)}
    last = {k: float((high8 >= thresholds[k]).sum(1).mean()) for k in thresholds}
    today = {k: vocab * (hidden + 12) + last[k] * 2 * hidden for k in thresholds}
    print(f"\n{name}: {vocab} x {hidden}, means over {len(states)} states\n")
    print(
        "| first tier | rows to the second, top 1 | bytes | rows to the second, top 40 | bytes |\n|---|---|---|---|---|"
    )
    cells = [f"{today[k] / 1e6:.1f} MB, {last[k]:.0f} rows in f16" for k in thresholds]
    print(f"| all 8 bits | | {' | | '.join(cells)} |")
    for grid in GRIDS:
        _, high = bounds(grid, head, states)
        cells = []
        for k in thresholds:
            left = float((high >= thresholds[k]).sum(1).mean())
            read = vocab * (grid.row_bytes(hidden) + 8) + left * (8 - grid.bits) * hidden / 8 + last[k] * 2 * hidden
            cells.append(f"{left:.0f} ({left / vocab:.1%}) | {read / today[k] - 1:+.1%}")
        print(f"| {grid} | {' | '.join(cells)} |", flush=True)


def gaussian() -> tuple[Floats, Floats]:
    """Gaussian head and states of 2B4T's shape."""
    rng = np.random.default_rng(0)
    head = rng.standard_normal((128256, 2560), np.float32).astype(np.float16).astype(np.float32)
    return head, rng.standard_normal((SAMPLES, 2560), np.float32)


def uniform() -> tuple[Floats, Floats]:
    """The same shape with uniform rows, as `bitgen synth` makes them."""
    rng = np.random.default_rng(0)
    head = (rng.random((128256, 2560), np.float32) * 2 - 1).astype(np.float16).astype(np.float32)
    return head, rng.standard_normal((SAMPLES, 2560), np.float32)


def stories() -> tuple[Floats, Floats]:
    """The shipped model's head, and its final states along a text that it generated."""
    model = Model.load()
    run = model.generate("Once upon a time", 200, sampling=replace(NEUTRAL, temperature=0.8, seed=3), stop=False)
    list(run)
    with model.session() as session:
        states = states_batch([session], [run.history], every=True)
    checkpoint = read_gguf(model.path)
    name = "token_embd.weight" if model.shape.tied else "output.weight"
    return np.asarray(checkpoint.dense(name)).astype(np.float16).astype(np.float32), states


if __name__ == "__main__":
    study("The shipped model", *stories())
    study("Uniform rows, Gaussian states", *uniform())
    study("Gaussian rows and states", *gaussian())
