"""A model's name on the command line as a file that is here: found, or downloaded once the user agrees."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from bitgen import api
from bitgen.cli.console import is_live, is_quiet, printable, progress_bar, say
from bitgen.errors import BitgenError, size
from bitgen.spec import Listener

MODEL_HELP = "A GGUF file, a preset like 2B4T, or hf:owner/repo[:TAG]. [default: the model that ships]"


def is_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return bool(sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty())


def agreed(question: str) -> bool:
    """Ask, on stderr. KeyboardInterrupt where the answer is Ctrl-C or the end of the input."""
    try:
        return click.confirm(printable(question), default=True, err=True)
    except click.Abort:
        raise KeyboardInterrupt from None


@contextmanager
def late_bar() -> Iterator[Listener]:
    """A listener whose bar appears when there is something to show. At a terminal downloads draw bars of their own."""
    with ExitStack() as stack:
        bars: list[Listener] = []

        def listen(stage: str, done: int, total: int) -> None:
            if stage == api.DOWNLOADING and is_live():
                return
            if not bars:
                bars.append(stack.enter_context(progress_bar()))
            bars[0](stage, done, total)

        yield listen


def pulled(name: str, ask: bool) -> Path:
    """Download a model, or what is missing of it. ask: whether the user agrees first."""
    with progress_bar() as listen:
        what = api.wanted(name, progress=listen)
    missing, note = what.missing, f" ({what.note})" if what.note else ""
    if ask and missing and not agreed(f"{what.what}{note}: {size(missing)}, download?"):
        raise BitgenError(f"{name} was not downloaded")
    if not ask and not is_quiet():
        say(f"{what.what}{note}: {size(missing) + ' to download' if missing else 'all of it is here'}", err=True)
    with late_bar() as listen:
        try:
            if is_quiet():
                api.hide_bars()
            return api.pull(what, progress=listen)
        except KeyboardInterrupt:
            say("interrupted; the same command goes on from here", err=True)
            raise


def located(name: str | None, yes: bool) -> str | None:
    """The path of a model's file (None: the one that ships), downloaded if need be: where the user agrees, or has."""
    if name is None:
        return None
    with late_bar() as listen:
        found = api.find(name, progress=listen)
    if found is None and not yes and not is_terminal():
        raise api.absent(name)
    return str(found or pulled(name, ask=not yes))


def model_option(command: Callable[..., None]) -> Callable[..., None]:
    """-m/--model and --yes: the command gets the path of the model's file as `model`, None for the one that ships."""

    @functools.wraps(command)
    def with_file(*args: Any, model: str | None, yes: bool, **more: Any) -> None:
        command(*args, model=located(model, yes), **more)

    option = click.option("-m", "--model", "model", metavar="MODEL", help=MODEL_HELP)
    return option(click.option("-y", "--yes", is_flag=True, help="Download the model without asking.")(with_file))


def chat_model_option(command: Callable[..., None]) -> Callable[..., None]:
    """`model_option` for a command that needs a model with a chat template, which the one that ships has not."""

    @functools.wraps(command)
    def with_template(*args: Any, model: str | None, chat_template: str | None, **more: Any) -> None:
        if model is None and chat_template is None:
            here = api.chatting()
            named = f"here are {', '.join(here)}" if here else "none is here yet"
            raise BitgenError(
                f"the model that ships tells stories and cannot chat; name one that can with -m: {named}; "
                "`bitgen chat -m 2B4T` downloads BitNet b1.58 2B4T"
            )
        command(*args, model=model, chat_template=chat_template, **more)

    return model_option(with_template)
