"""Commands on model files: convert, synth, info."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bitgen import api
from bitgen.cli.console import progress_bar, say, say_json, warn
from bitgen.cli.facts import lines
from bitgen.cli.options import READING, Count, given, json_option, quiet_option, reading_options, refuse, type_option


@click.command()
@click.argument("source")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
              help="The GGUF file to write.")  # fmt: skip
@type_option
@reading_options
@quiet_option
def convert(source: str, output: Path, type_: Any, **reading: Any) -> None:
    """Convert a checkpoint to GGUF.

    SOURCE is a Hugging Face folder, a GGUF file, or what is to be downloaded: the name of a preset that is on the Hub,
    or hf:owner/name[@revision][:TAG], of which the checkpoint is taken unless there is none or TAG names a GGUF file.
    An interrupted download or conversion goes on where it was when it is called again.
    """
    refuse(
        (bool(given(*READING)) and not (Path(source).is_file() or source.endswith(".gguf")),
         f"{', '.join(given(*READING))}: what a GGUF file does not say; a checkpoint says it"),
    )  # fmt: skip
    checkpoint = api.open_source(source, **reading)  # a download draws bars of its own
    warn(api.warning(checkpoint))
    try:
        with progress_bar() as listen:
            listen("checking the tokenizer and the type of each tensor", 0, 0)
            api.convert(checkpoint, output, type=type_, progress=listen)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here", err=True)
        raise
    say(output)


@click.command()
@click.argument("preset")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
              help="The GGUF file to write.")  # fmt: skip
@click.option("--seed", type=Count(0, 2**64 - 1), default=0, show_default=True,
              help="Same seed, same weights.")  # fmt: skip
@type_option
@quiet_option
def synth(preset: str, output: Path, seed: int, type_: Any) -> None:
    """Write a model of a preset's exact shape with random weights, for tuning and benchmarks."""
    with progress_bar() as listen:
        api.synth(preset, output, seed=seed, type=type_, progress=listen)
    say(output)


@click.command()
@click.argument("file")
@json_option
@quiet_option
def info(file: str, as_json: bool) -> None:
    """Describe a model file: architecture, shape, tensors, and what it would run with.

    FILE is a GGUF file, or the name of a model that is here.
    """
    with progress_bar() as listen:
        facts = api.info(file, progress=listen)
    if as_json:
        say_json(facts)
        return
    warn(facts.get("warning"))
    for line in lines(facts):
        say(line)
