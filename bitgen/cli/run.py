"""Commands that run a model: run, embed, chat, perplexity."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bitgen import Model, api
from bitgen.cli import terminal
from bitgen.cli.console import progress_bar, say, warn
from bitgen.cli.continuing import Run
from bitgen.cli.located import chat_model_option, model_option
from bitgen.cli.options import (
    COUNT,
    READING,
    TEXT_FILE,
    Count,
    Renamed,
    Text,
    cache_option,
    given,
    head_option,
    isa_option,
    json_option,
    quiet_option,
    reading_options,
    refuse,
    sampling_options,
    threads_option,
)
from bitgen.cli.streams import STDIN, read_text
from bitgen.engine.arguments import MOST_PLACES
from bitgen.engine.chat import template_of
from bitgen.engine.embed import POOLINGS
from bitgen.engine.prompt_lookup import LOOKUP
from bitgen.text.chat_templates import NAMED

Given = Mapping[str, Any]
"""Fields of Sampling that are given."""

template_option = click.option(
    "--chat-template",
    metavar="NAME|FILE",
    help=f"{', '.join(NAMED)}, one that the model's file names, or a Jinja file. [default: the model's own]",
)


def _load(model: str | None, **options: Any) -> Model:
    """Open a model, and warn where its file may be read wrongly."""
    with progress_bar() as listen:
        loaded = api.load(model, progress=listen, **options)
    warn(loaded.warning)
    return loaded


def _without_conflicts(command: Callable[..., None]) -> Callable[..., None]:
    """`run`, which refuses what cannot be done together before anything is downloaded."""

    @functools.wraps(command)
    def refusing(**options: Any) -> None:
        _check_run(options)
        command(**options)

    return refusing


def _check_run(options: Mapping[str, Any]) -> None:
    sources = [name for name in ("prompt", "file", "batch") if options[name] is not None]
    alone = given("prompt_lookup", "prompt_cache", "logprobs", "as_json")
    refuse(
        (len(sources) != 1, f"give one of --prompt, --file and --batch{', not several' if sources else ''}"),
        (sources == ["batch"] and bool(alone), f"--batch goes without {', '.join(alone)}; each of its results is JSON"),
        (sources != ["batch"] and bool(given("parallel")), "--parallel goes with --batch"),
        (
            bool(options["stop"]) and options["ignore_eos"],
            "give --stop or --ignore-eos: with --stop the model's stop tokens count too",
        ),
    )


@click.command()
@_without_conflicts
@click.option("-p", "--prompt", type=Text(), help="Text to continue; - reads it from standard input.")
@click.option("-f", "--file", type=TEXT_FILE, help="Continue the text of this file; -: of standard input.")
@click.option("--batch", type=TEXT_FILE, metavar="FILE",
              help='Continue many: each line is like {"prompt": "...", "id": "a", "max_tokens": 9, "temperature": 0}, '
              "and gives a line of JSON.")  # fmt: skip
@click.option("--parallel", type=Count(1, MOST_PLACES), default=8, show_default=True,
              help="Texts of --batch at once.")  # fmt: skip
@click.option("--system", type=Text(), metavar="TEXT",
              help="Take the prompt for a user's message, and tell the model this before it.")  # fmt: skip
@template_option
@model_option
@click.option("-n", "--max-tokens", type=COUNT, default=256, show_default=True, help="Most tokens to add.")
@click.option("--stop", type=Text(empty=False), multiple=True, metavar="TEXT", help="End before this text; repeatable.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model's stop tokens.")
@click.option("--context", type=Count(1), help="Most tokens of prompt and text. [default: the model's]")
@threads_option
@sampling_options
@click.option(
    "--prompt-lookup",
    type=COUNT,
    is_flag=False,
    flag_value=LOOKUP,
    default=0,
    metavar="[N]",
    help="Guess up to N tokens at once, those that came next where the last few stood before, and keep those guesses "
    f"that come true: the same text, sooner where it repeats itself or the prompt. Without N: {LOOKUP}.",
)
@click.option("--prompt-cache", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Take from this file what was computed of the prompt's beginning before, and keep there what is "
              "computed now: the same text, sooner.")  # fmt: skip
@click.option("--logprobs", type=COUNT, metavar="K",
              help="After the text, each token's log probability and the K likeliest, on stderr.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, envvar="BITGEN_QUIET", help="Show no timing and no progress.")
@json_option
@isa_option
@head_option
@cache_option
@reading_options
def run(model: str | None, threads: int | None, isa: str | None, head: Any, **options: Any) -> None:
    """Continue a prompt. Text goes to stdout as it comes, timing to stderr.

    Give one of --prompt, --file and --batch.
    """
    reading = {name: options[name] for name in READING}
    kept, system, chosen = options["prompt_cache"], options["system"], options["chat_template"]
    prompt = options["prompt"]
    if options["batch"] is None:
        prompt = read_text(options["file"] or STDIN) if prompt in (None, STDIN) else prompt
    api.check_output(kept, model)
    loaded = _load(model, threads=threads, isa=isa, head=head, **reading)
    asked = Run(
        loaded, loaded.sampling.given(None, options["sampling"]), options["max_tokens"],
        list(options["stop"]) or not options["ignore_eos"], options["context"], options["cache"], system,
        None if system is None and chosen is None else template_of(loaded, chosen, {}),
    )  # fmt: skip
    if options["batch"] is None:
        asked.one(prompt, options["prompt_lookup"], options["logprobs"], kept, options["as_json"])
    elif not asked.many(options["batch"], options["parallel"]):
        click.get_current_context().exit(1)


@click.command()
@click.argument("texts", type=Text(), nargs=-1)
@model_option
@click.option("-f", "--file", type=TEXT_FILE, help="Take the lines of this file as texts; -: of standard input.")
@click.option(
    "--pooling",
    type=click.Choice(list(POOLINGS)),
    help="How the states of a text's tokens become one vector: their mean, the first one, "
    "or the last one. [default: what the file says, else last]",
)
@click.option(
    "--npy",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the vectors to this NumPy file, not to standard output.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one object with the texts and the model's name.")
@threads_option
@isa_option
@quiet_option
def embed(texts: tuple[str, ...], model: str | None, file: str | None, pooling: str | None, npy: Path | None,
          as_json: bool, threads: int | None, isa: str | None) -> None:  # fmt: skip
    """Turn texts into vectors of length one: a line of numbers each. Without texts the lines of stdin are taken."""
    if texts and file:
        raise click.UsageError("give texts or --file, not both")
    if npy and as_json:
        raise click.UsageError("--npy and --json are two forms of one result: give one of them")
    api.check_output(npy, model, *([Path(file)] if file and file != STDIN else []))
    lines = list(texts) or read_text(file or STDIN).removesuffix("\n").split("\n")
    with progress_bar() as listen:
        found = api.embed(model, lines, pooling=pooling, threads=threads, isa=isa, progress=listen)
    if npy:
        found.save(npy)
        say(npy)
    elif as_json:
        say(json.dumps(found.to_json()))
    else:
        for row in found.rows():
            say(json.dumps(row))


@click.command()
@chat_model_option
@click.option("--system", type=Text(), metavar="TEXT", help="What the model is told before the conversation.")
@click.option("-n", "--max-tokens", type=Count(1), default=1024, show_default=True,
              help="Most tokens of an answer.")  # fmt: skip
@template_option
@click.option("--context", type=Count(16), help="Tokens to remember. [default: the model's]")
@click.option("--plain", is_flag=True, help="Show answers as the model writes them, not as Markdown.")
@click.option("--no-history", is_flag=True, help="Keep no history of what is typed; or set BITGEN_NO_HISTORY.")
@sampling_options
@threads_option
@isa_option
@cache_option
@reading_options
@quiet_option
def chat(model: str | None, system: str | None, max_tokens: int, chat_template: str | None, context: int | None,
         plain: bool, no_history: bool, sampling: Given, threads: int | None, isa: str | None, cache: Any,
         **reading: Any) -> None:  # fmt: skip
    """Talk with a model.

    At a terminal Enter sends, Alt-Enter begins another line, Ctrl-C stops an answer, Ctrl-D leaves; /help has the rest.
    Otherwise every line of standard input is a message.
    """
    loaded = _load(model, threads=threads, isa=isa, **reading)
    conversation = api.chat(loaded, system=system, template=chat_template, context=context, cache=cache)
    history = not no_history and not os.environ.get("BITGEN_NO_HISTORY")
    if not terminal.run(conversation, max_tokens, loaded.sampling.given(None, sampling), plain=plain, history=history):
        click.get_current_context().exit(1)


@click.command()
@model_option
@click.option("-f", "--file", type=TEXT_FILE, required=True, help="A text; -: standard input.")
@click.option("--context", "--ctx", "ctx", cls=Renamed, type=COUNT, default=512, show_default=True,
              help="Tokens of a window.")  # fmt: skip
@click.option("--stride", type=COUNT, default=0, show_default=True,
              help="Tokens from the start of one window to that of the next; each then scores the tokens that the one "
              "before it had not. 0: windows do not overlap, and each scores its second half.")  # fmt: skip
@threads_option
@isa_option
@cache_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@reading_options
@quiet_option
def perplexity(model: str | None, file: str, ctx: int, stride: int, threads: int | None, isa: str | None, cache: Any,
               as_json: bool, **reading: Any) -> None:  # fmt: skip
    """How well a model predicts a text, with the standard error: comparable with llama-perplexity."""
    text = read_text(file)
    loaded = _load(model, threads=threads, isa=isa, **reading)
    with progress_bar() as listen:
        found = api.perplexity(loaded, text, ctx=ctx, stride=stride, cache=cache, progress=listen)
    say(json.dumps(asdict(found)) if as_json else found)
    say(loaded.about, err=True)
