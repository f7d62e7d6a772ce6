"""Results for the terminal: what `bitgen bench` found beyond its main table, and log probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from bitgen.engine.tokenizer import Tokenizer
from bitgen.score import TokenChoice
from bitgen.verify import Receipt

BAR = 20
"""Characters of a bar that stands for all of the time."""


def case_name(row: Mapping[str, Any]) -> str:
    """ "decode 64", "decode 64 x 4", "prefill 128 at 3500"."""
    batch = f" x {row['batch']}" if row["batch"] > 1 else ""
    context = f" at {row['context']}" if row["context"] else ""
    return f"{row['kind']} {row['tokens']}{batch}{context}"


def extras(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    """A table for every optional part of a report, and a sentence for what could not be measured."""
    for entry in report.get("profile", ()):
        yield _profile(entry)
    if "peers" in report:
        yield _peers(report["peers"], report["model"]["activation"])
    if "energy" in report:
        yield from _energy(report["energy"])


def _table(title: str, *columns: str, right: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _profile(entry: Mapping[str, Any]) -> Table:
    title = f"where the time of {case_name(entry)} on {entry['threads']} thread(s) goes"
    numbers = ("share", "ms/token", "calls", "GB/s", "of bandwidth", "GOP/s", "of peak ops")
    table = _table(title, "step", *numbers, "", right=numbers)
    for step in entry["steps"]:
        table.add_row(
            step["step"].replace("_", " "),
            f"{step['share']:.1%}",
            f"{step['ms_per_token']:.3f}",
            f"{step['calls']:.0f}",
            _number(step["gb_s"], "{:.1f}"),
            _number(step["bandwidth_share"], "{:.0%}"),
            _number(step["gop_s"], "{:.0f}"),
            _number(step["ops_share"], "{:.0%}"),
            "█" * round(step["share"] * BAR),
        )
    return table


def _peers(rows: list[dict[str, Any]], activation: str) -> Table:
    numbers = ("threads", "tok/s", "min - max", "bitgen tok/s", "bitgen is")
    table = _table("beside other engines, in alternation", "test", *numbers, "engine", right=numbers)
    for row in rows:
        other = "" if row["activation"] == activation else f", {row['activation']} for {activation}"
        wrong = row["error"]
        table.add_row(
            case_name(row),
            str(row["threads"]),
            _number(row["tok_s"], "{:.1f}"),
            "" if wrong else f"{row['tok_s_min']:.1f} - {row['tok_s_max']:.1f}",
            _number(row["bitgen_tok_s"], "{:.1f}"),
            _number(row["ratio"], "{:.2f} x"),
            f"{row['about']}{other}" + (f": {wrong}" if wrong else ""),
        )
    return table


def _energy(energy: Mapping[str, Any]) -> Iterator[RenderableType]:
    if energy["reason"]:
        yield f"no energy: {energy['reason']}"
        return
    numbers = ("threads", "J/token", "W")
    table = _table(f"energy of {', '.join(energy['zones'])}", "test", *numbers, right=numbers)
    for row in energy["results"]:
        table.add_row(case_name(row), str(row["threads"]), f"{row['joules_per_token']:.3f}", f"{row['watts']:.1f}")
    yield table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def logprobs(tokenizer: Tokenizer, choices: Iterable[TokenChoice]) -> Iterator[str]:
    """A line for each generated token: its text and log probability, then the likeliest ones."""
    for choice in choices:
        likeliest = "  ".join(f"{tokenizer.decode([id])!r} {p:.3f}" for id, p in choice.likeliest)
        yield f"{tokenizer.decode([choice.token])!r:>16} {choice.logprob:8.3f}  |  {likeliest}".rstrip(" |")


def receipt(found: Receipt) -> Table:
    """A row for each group of checks that held, and one for every check that did not."""
    table = Table(
        title=f"{found.model['name']}, {found.model['sha256'][:16]}, on {', '.join(found.levels['plans'])}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        caption=f"{'pass' if found.ok else 'FAIL'}: {len(found.checks)} checks",
        caption_justify="left",
    )
    for column in ("", "checks", "verdict", "seconds", "what was found"):
        table.add_column(column, justify="right" if column in ("checks", "seconds") else "left", overflow="fold")
    for group in dict.fromkeys(check.group for check in found.checks):
        checks = [check for check in found.checks if check.group == group]
        bad = [check for check in checks if not check.ok]
        seconds = f"{sum(check.seconds for check in checks):.1f}"
        details = "; ".join(dict.fromkeys(check.detail for check in checks if check.ok))
        table.add_row(group, str(len(checks)), "FAIL" if bad else "pass", seconds, details)
        for check in bad:
            table.add_row("", "", "FAIL", "", f"{check.subject}: {check.detail}")
    return table
