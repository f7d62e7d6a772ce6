"""A picture of a benchmark: bars of tokens per second, each before what the machine would allow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitgen import data
from bitgen.errors import BitgenError
from bitgen.measure.report import BenchReport, Kind, PeerRow, Rate

SUFFIXES = (".png", ".svg", ".pdf")
OURS, THEIRS, LIMIT, GREY = "#1f6f8b", ("#c9803a", "#8a6fae", "#6b8f4e"), "#dfe9ed", "#66737a"
TITLES: dict[Kind, str] = {"prefill": "Prefill", "decode": "Decode"}
LIMITS: dict[Kind, str] = {"prefill": "the peak of integer operations", "decode": "the read bandwidth"}


@dataclass(frozen=True)
class Bar:
    """One horizontal bar."""

    at: float  # from the top, in bars
    label: str  # at its left
    rate: float  # tok/s
    limit: float | None  # what the machine would allow, tok/s; a peer's is not known
    text: str  # at its right end
    colour: str


def require(path: Path) -> None:
    """BitgenError where no picture can be drawn: no matplotlib, no such folder, or an unknown kind of file."""
    if path.suffix.lower() not in SUFFIXES:
        raise BitgenError(f"--plot {path}: the name must end in one of {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise BitgenError(f"--plot {path}: there is no folder {path.parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BitgenError("--plot needs matplotlib: pip install 'bitgen[plot]'  (or: pip install matplotlib)") from None


def bars(report: BenchReport, kind: Kind) -> list[Bar]:
    """The bars of one panel, in the order of the report; peers below the case they were compared in."""
    found: list[Bar] = []
    peers = report.peers or ()
    colours = {name: THEIRS[i % len(THEIRS)] for i, name in enumerate(dict.fromkeys(row.peer for row in peers))}
    at = 0.0
    for rate in (rate for rate in report.results if rate.case.kind == kind):
        found.append(_ours(at, rate))
        for row in (row for row in peers if row.case == rate.case):
            at += 1
            found.append(_theirs(at, row, colours[row.peer]))
        at += 1.4
    return found


def _ours(at: float, rate: Rate) -> Bar:
    case = rate.case
    share = rate.ops_share if case.kind == "prefill" else rate.bandwidth_share
    label = f"{case.title.removeprefix(f'{case.kind} ')}, {case.threads} thread" + "s" * (case.threads > 1)
    return Bar(at, label, rate.tok_s, rate.tok_s / share, f"{_rate(rate.tok_s)} ({share:.0%})", OURS)


def _theirs(at: float, row: PeerRow, colour: str) -> Bar:
    if row.race is None:
        return Bar(at, row.peer, 0, None, str(row.error).split(":")[0], colour)
    text = f"{_rate(row.race.tok_s)} (bitgen: {row.race.ratio:.1f} x)"
    return Bar(at, row.peer, row.race.tok_s, None, text, colour)


def _rate(tok_s: float) -> str:
    return f"{tok_s:,.0f}" if tok_s >= 100 else f"{tok_s:.1f}"


def draw(report: BenchReport, path: Path) -> None:
    """Draw a report of `bench` to a PNG, SVG or PDF file, by its name; a panel each for prefill and decode."""
    panels = {kind: found for kind in TITLES if (found := bars(report, kind))}
    if not panels:
        raise BitgenError("nothing was measured, so there is nothing to plot; give --prompt or --gen")
    heights = [found[-1].at + 2.4 for found in panels.values()]
    figure = new_figure(path, 0.8 + 0.34 * sum(heights))
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axis, (kind, found) in zip(axes[:, 0], panels.items(), strict=True):
        _panel(axis, kind, found)
    title = f"{report.model.name}, {report.model.isa}, {report.model.head} head · {report.host.cpu}"
    save(figure, title, path)


def new_figure(path: Path, height: float) -> Any:
    """A matplotlib figure nine inches wide, once `require` is content with the file that it is for."""
    require(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, title: str, path: Path) -> None:
    """Write a figure under a title to a PNG, SVG or PDF file, by its name."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)
    with data.replacing(path) as part:
        figure.savefig(part, dpi=150, facecolor="white", format=path.suffix.lower().removeprefix("."))


def _panel(axis: Any, kind: Kind, found: list[Bar]) -> None:
    for bar in found:
        if bar.limit:
            axis.barh(bar.at, bar.limit, height=0.8, color=LIMIT)
            axis.plot([bar.limit] * 2, [bar.at - 0.4, bar.at + 0.4], color=GREY, linewidth=1.6, solid_capstyle="butt")
        axis.barh(bar.at, bar.rate, height=0.8, color=bar.colour)
        end = max(bar.rate, bar.limit or 0)
        axis.annotate(bar.text, (end, bar.at), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
    axis.set_yticks([bar.at for bar in found], [bar.label for bar in found], fontsize=9)
    for bar, label in zip(found, axis.get_yticklabels(), strict=True):
        label.set_color("black" if bar.limit else GREY)
    axis.set_ylim(found[-1].at + 0.6, -0.6)
    axis.set_xlim(0, max(max(bar.rate, bar.limit or 0) for bar in found) * 1.2)
    axis.set_title(
        f"{TITLES[kind]}, tokens per second (pale: what {LIMITS[kind]} would allow)", loc="left", fontsize=10
    )
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8, colors=GREY)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)
