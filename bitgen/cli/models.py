"""Commands on model files: convert, synth, info."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from bitgen import api
from bitgen.cli.console import progress_bar, say, warn
from bitgen.cli.options import reading_options, type_option


@click.command()
@click.argument("source")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@type_option
@reading_options
def convert(source: str, output: Path, type_: Any, **reading: Any) -> None:
    """Convert a checkpoint to GGUF.

    SOURCE is a Hugging Face folder, hf:owner/name (or hf:owner/name@revision) to be downloaded, the name of a preset
    that is on the Hub, or a GGUF file. An interrupted conversion goes on where it was when it is called again.
    """
    checkpoint = api.open_source(source, **reading)  # a download draws bars of its own
    warn(api.warning(checkpoint))
    try:
        with progress_bar() as listen:
            api.convert(checkpoint, output, type=type_, progress=lambda d, t: listen("converting", d, t))
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here", err=True)
        raise
    say(output)


@click.command()
@click.argument("preset")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True)
@type_option
def synth(preset: str, output: Path, seed: int, type_: Any) -> None:
    """Write a model of a preset's exact shape with random weights, for tuning and benchmarks."""
    with progress_bar() as listen:
        api.synth(preset, output, seed=seed, type=type_, progress=lambda d, t: listen("writing", d, t))
    say(output)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True)
def info(file: Path, as_json: bool) -> None:
    """Describe a model file: architecture, shape, tensors, and what it would run with."""
    facts = api.info(file)
    if as_json:
        say(json.dumps(facts, indent=1))
        return
    warn(facts.pop("warning", None))
    width = max(map(len, facts))
    for key, value in facts.items():
        counts = ", ".join(f"{n} {name}" for name, n in value.items()) if isinstance(value, dict) else value
        say(f"{key:<{width}}  {counts}".replace("\n", "\\n"))
