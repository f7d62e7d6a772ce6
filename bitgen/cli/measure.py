"""Commands that measure a model and prove it right: bench, verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from bitgen import api, data
from bitgen.cli import tables
from bitgen.cli.console import OUT, progress_bar, say
from bitgen.cli.options import COUNT, Numbers, cache_option, head_option, isa_option, model_option, reading_options
from bitgen.errors import BitgenError
from bitgen.measure.peers import PEERS
from bitgen.targets import default_threads


@click.command()
@model_option
@click.option("-t", "--threads", type=Numbers(1, 1024), default=str(default_threads()), show_default=True,
              help="Thread counts, like 1,2.")  # fmt: skip
@click.option("--prompt", type=Numbers(0), default="128", show_default=True, help="Prefill lengths, like 128,512.")
@click.option("--gen", type=COUNT, default=64, show_default=True, help="Tokens to decode.")
@click.option("--context", type=Numbers(0), default="0", show_default=True,
              help="Tokens in the cache before, like 0,3500.")  # fmt: skip
@click.option("--batch", type=Numbers(0, 1024), default="1", show_default=True,
              help="Sequences to decode together, like 1,4,16.")  # fmt: skip
@isa_option
@head_option
@cache_option
@click.option("--profile", is_flag=True, help="Show where the time of a token goes, step by step.")
@click.option(
    "--vs",
    multiple=True,
    type=click.Choice(list(PEERS)),
    help="Run this engine on the same shape in alternation; repeatable. Needs its package from PyPI.",
)
@click.option("--energy", is_flag=True, help="Joules per token, where RAPL counters can be read.")
@click.option("--plot", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
              help="Draw the results (.png, .svg, .pdf).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def bench(model: str | None, threads: list[int], prompt: list[int], gen: int, context: list[int], batch: list[int],
          isa: str | None, head: Any, cache: Any, profile: bool, vs: tuple[str, ...], energy: bool,
          plot: Path | None, as_json: bool) -> None:  # fmt: skip
    """Measure prefill and decode, beside the machine's own limits measured in the same run."""
    with progress_bar() as listen:
        report = api.bench(
            model, threads=threads, prompt=prompt, gen=gen, contexts=context, batches=batch, cache=cache, isa=isa,
            head=head, profile=profile, vs=vs, energy=energy, plot=plot, progress=listen,
        )  # fmt: skip
    if as_json:
        say(json.dumps(report.to_json(), indent=1))
        return
    OUT.print(tables.rates(report))
    for line in tables.limits(report):
        say(line)
    for extra in tables.extras(report):
        OUT.print(extra)
    if plot:
        say(f"plot: {plot}")


@click.command()
@model_option
@click.option("--against", metavar="hf:DIR", help="Also compare with transformers in float32 on this checkpoint.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the receipt, as JSON.")
@reading_options
def verify(model: str | None, against: str | None, output: Path | None, **reading: Any) -> None:
    """Prove on this machine that kernels, logits and choices are right, at every level that its CPU executes."""
    if output and not output.parent.is_dir():
        raise BitgenError(f"there is no folder {output.parent} for the receipt")
    api.check_output(output, model)
    with progress_bar() as listen:
        receipt = api.verify(model, against=against, progress=listen, **reading)
    OUT.print(tables.receipt(receipt))
    if output:
        with data.replacing(output) as part:
            part.write_text(json.dumps(receipt.to_json(), indent=1) + "\n")
        say(output)
    if not receipt.ok:
        raise BitgenError("verification failed: please report it with the receipt (-o receipt.json)")
