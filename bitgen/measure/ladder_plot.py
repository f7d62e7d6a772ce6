"""A picture of the ladder: tokens per second over the bytes that a token reads, beside what the memory would allow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bitgen.errors import BitgenError
from bitgen.measure.plot import GREY, LIMIT, OURS, THEIRS, new_figure, save
from bitgen.measure.rungs import READING, LadderReport, RungRate


def series(report: LadderReport) -> dict[int, list[RungRate]]:
    """Threads -> what was decoded with so many, the fewest bytes a token first."""
    decoded = [rate for rate in report.rates if rate.kind == "decode"]
    threads = sorted({rate.threads for rate in decoded})
    return {n: sorted((r for r in decoded if r.threads == n), key=lambda r: r.bytes_per_token) for n in threads}


def draw(report: LadderReport, path: Path) -> None:
    """Draw what was decoded to a PNG, SVG or PDF file, by its name; BitgenError where nothing was."""
    found = series(report)
    if not found:
        raise BitgenError("nothing was decoded, so there is nothing to plot; give --gen, or sizes that fit")
    figure = new_figure(path, 5.6)
    axis = figure.subplots()
    axis.axhspan(*READING, color="#f3ead9", linewidth=0)
    middle = (READING[0] * READING[1]) ** 0.5
    label = f"people read, {READING[0]:.0f} to {READING[1]:.0f}"
    axis.annotate(label, (0.01, middle), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=GREY)
    for colour, (threads, rates) in zip((OURS, *THEIRS) * len(found), found.items(), strict=False):
        _line(axis, threads, rates, colour)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.margins(0.08, 0.12)
    axis.set_xlabel("bytes that a token reads", fontsize=9)
    axis.set_ylabel("tokens per second, decode", fontsize=9)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1e9:g} GB" if x >= 1e9 else f"{x / 1e6:g} MB")
    axis.yaxis.set_major_formatter("{x:g}")
    for each in (axis.xaxis, axis.yaxis):
        each.set_minor_formatter("")
    axis.tick_params(labelsize=8, colors=GREY)
    axis.grid(color=LIMIT, linewidth=0.6)
    axis.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    first = report.rates[0]
    save(figure, f"The ladder, {first.isa}, {first.head} head · {first.cpu}", path)


def _line(axis: Any, threads: int, rates: Sequence[RungRate], colour: str) -> None:
    """Points of one number of threads, each with its size, and the line of the bandwidth, its median over the rungs."""
    bandwidth = median(rate.read_bytes_s for rate in rates)
    of = f"{threads} thread{'s' * (threads != 1)}"
    read = [rate.bytes_per_token for rate in rates]
    limit = f"{of}: the read bandwidth, {bandwidth / 1e9:.1f} GB/s"
    axis.plot(read, [bandwidth / each for each in read], color=colour, linewidth=1, linestyle="--", label=limit)
    axis.plot(read, [rate.tok_s for rate in rates], "o", color=colour, markersize=5, label=f"{of}: measured")
    for rate in rates:
        at = (rate.bytes_per_token, rate.tok_s)
        axis.annotate(rate.size, at, xytext=(0, -12), textcoords="offset points", ha="center", fontsize=8, color=colour)
