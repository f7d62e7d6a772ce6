"""Commands that measure a model and prove it right: bench, verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from bitgen import api, data
from bitgen.checkpoints import ladder as rungs
from bitgen.cli import tables
from bitgen.cli.console import OUT, progress_bar, say, say_json
from bitgen.cli.located import model_option
from bitgen.cli.options import (
    COUNT,
    Numbers,
    cache_option,
    given,
    head_option,
    isa_option,
    json_option,
    quiet_option,
    reading_options,
    refuse,
    warn_crowded,
)
from bitgen.errors import BitgenError
from bitgen.measure.peers import PEERS
from bitgen.targets import default_threads

NOT_OF_RUNGS = ("model", "context", "batch", "profile", "vs", "energy")
"""Options of bench that are not for --ladder, which counts energy where it can."""


def _uncrowded(_: click.Context, __: click.Parameter, value: list[int]) -> list[int]:
    warn_crowded(value)
    return value


@click.command()
@model_option
@click.option("-t", "--threads", type=Numbers(1, 1024), default=str(default_threads()), callback=_uncrowded,
              help="Numbers of threads to measure with, like 1,2. [default: all CPUs of this process]")  # fmt: skip
@click.option("--prompt", type=Numbers(0), default="128", show_default=True,
              help="Tokens of a prompt to read in one go (prefill), like 128,512; 0: measure no prefill.")  # fmt: skip
@click.option(
    "--gen",
    type=COUNT,
    default=64,
    show_default=True,
    help="Tokens to generate one by one (decode); 0: measure no decoding.",
)
@click.option("--context", type=Numbers(0), default="0", show_default=True,
              help="Tokens that the KV cache holds before, like 0,3500.")  # fmt: skip
@click.option("--batch", type=Numbers(1, 1024), default="1", show_default=True,
              help="Texts to decode together, like 1,4,16.")  # fmt: skip
@isa_option
@head_option
@cache_option
@click.option("--profile", is_flag=True, help="Also show where the time of a token goes, step by step.")
@click.option(
    "--vs",
    multiple=True,
    type=click.Choice(list(PEERS)),
    help="Also time this engine on the same shape, in turn with bitgen; repeatable. Needs its package from PyPI.",
)
@click.option(
    "--energy", is_flag=True, help="Also joules per token, where the processor's counters (RAPL) can be read."
)
@click.option("--ladder", is_flag=True,
              help="Measure models of 125M to 100B random weights instead, one by one, each removed afterwards. "
              "What was measured before is not measured again.")  # fmt: skip
@click.option("--sizes", metavar="SIZE,...", help=f"With --ladder: only these of {', '.join(rungs.sizes())}.")
@click.option("-o", "--output", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
              help="With --ladder: the file of results, which they are added to. [default: in the cache]")  # fmt: skip
@click.option("--plot", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
              help="Draw the results to this file (.png, .svg, .pdf).")  # fmt: skip
@json_option
@quiet_option
def bench(model: str | None, threads: list[int], prompt: list[int], gen: int, context: list[int], batch: list[int],
          isa: str | None, head: Any, cache: Any, profile: bool, vs: tuple[str, ...], energy: bool,
          ladder: bool, sizes: str | None, output: Path | None, plot: Path | None, as_json: bool) -> None:  # fmt: skip
    """Measure prefill and decode, beside the machine's own limits measured in the same run."""
    others, own = given(*NOT_OF_RUNGS), given("sizes", "output")
    refuse(
        (ladder and bool(others), f"--ladder measures models and cases of its own: leave out {', '.join(others)}"),
        (not ladder and bool(own), f"{', '.join(own)}: only with --ladder"),
    )  # fmt: skip
    if ladder:
        prompt = prompt if given("prompt") else []
        _climb(
            sizes,
            plot,
            as_json,
            threads=threads,
            prompt=prompt,
            gen=gen,
            isa=isa,
            head=head,
            cache=cache,
            output=output,
        )
        return
    plain = 1 in batch and 0 in context
    refuse(
        (not any(prompt) and not gen, "--prompt 0 and --gen 0 leave nothing to measure"),
        (not gen and bool(given("batch")), "--batch is about decoding, which --gen 0 leaves out"),
        (bool(vs) and not (0 in context and (any(prompt) or (gen and plain))),
         "--vs compares cases with one text and an empty cache (--batch 1, --context 0): leave one of them in"),
    )  # fmt: skip
    with progress_bar() as listen:
        report = api.bench(
            model, threads=threads, prompt=prompt, gen=gen, contexts=context, batches=batch, cache=cache, isa=isa,
            head=head, profile=profile, vs=vs, energy=energy, plot=plot, progress=listen,
        )  # fmt: skip
    if as_json:
        say_json(report.to_json())
        return
    OUT.print(tables.rates(report))
    for line in tables.limits(report):
        say(line)
    for extra in tables.extras(report):
        OUT.print(extra)
    if plot:
        say(f"plot: {plot}")


def _climb(sizes: str | None, plot: Path | None, as_json: bool, **how: Any) -> None:
    """bench --ladder."""
    refuse((not any(how["prompt"]) and not how["gen"], "--gen 0 without --prompt leaves nothing to measure"))
    try:
        with progress_bar() as listen:
            report = api.ladder(sizes.split(",") if sizes else (), plot=plot, progress=listen, **how)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here", err=True)
        raise
    if as_json:
        say_json(report.to_json())
        return
    OUT.print(tables.ladder(report))
    for misfit in report.misfits:
        say(misfit)
    if report.no_energy:
        say(f"no energy: {report.no_energy}")
    say(f"results: {report.file}; a rung in there is not measured again")
    if plot:
        say(f"plot: {plot}")


@click.command()
@model_option
@click.option("--against", metavar="hf:DIR",
              help="Also compare with transformers in float32, on this checkpoint: a folder or owner/name")  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the receipt, as JSON, to this file."
)
@json_option
@reading_options
@quiet_option
def verify(model: str | None, against: str | None, output: Path | None, as_json: bool, **reading: Any) -> None:
    """Prove on this machine that kernels, logits and choices are right, at every level that its CPU executes."""
    if output and not output.parent.is_dir():
        raise BitgenError(f"there is no folder {output.parent} for the receipt")
    api.check_output(output, model)
    with progress_bar() as listen:
        receipt = api.verify(model, against=against, progress=listen, **reading)
    if as_json:
        say_json(receipt.to_json())
    else:
        OUT.print(tables.receipt(receipt))
    if output:
        with data.replacing(output) as part:
            part.write_text(json.dumps(receipt.to_json(), indent=1) + "\n")
        say(output, err=as_json)
    if not receipt.ok:
        raise BitgenError("verification failed: please report it with the receipt (-o receipt.json)")
