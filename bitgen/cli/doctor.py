"""The command that looks at the machine and the installation: doctor."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from bitgen import api
from bitgen.cli.console import OUT, printable, progress_bar, say_json
from bitgen.cli.options import json_option, quiet_option
from bitgen.measure.doctor import Report

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@click.command()
@click.option(
    "-m",
    "--model",
    metavar="MODEL",
    help="A preset, a GGUF file or a model that is here, which is to run. [default: the one that ships, and 2B4T]",
)
@json_option
@quiet_option
def doctor(model: str | None, as_json: bool) -> None:
    """Look whether all is well here: CPU, memory, compiler, caches, plans, network. It says what to do where not.

    Ends with exit code 1 where a line says "problem": bitgen cannot run then.
    """
    with progress_bar() as listen:
        report = api.doctor(model, progress=listen)
    if as_json:
        say_json(report.to_json())
    else:
        OUT.print(_lines(report))
    if not report.ok:
        click.get_current_context().exit(1)


def _lines(report: Report) -> Table:
    """A row for each finding: its state, what was looked at, the fact and, below it, what to do."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for finding in report.findings:
        fact = "\n".join([finding.fact, *(["-> " + finding.advice] if finding.advice else [])])
        name = finding.check.replace("_", " ")
        table.add_row(Text(finding.state, STYLES[finding.state]), printable(name), printable(fact))
    return table
