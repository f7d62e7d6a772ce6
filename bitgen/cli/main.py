"""The group of all commands, and what becomes of errors."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from bitgen import __version__
from bitgen.cli import mappings, streams
from bitgen.cli.build import build, gen, tune
from bitgen.cli.completion import complete_values, completion
from bitgen.cli.console import STDOUT, naming, say
from bitgen.cli.doctor import doctor
from bitgen.cli.local import cache, list_, pull, rm
from bitgen.cli.measure import bench, verify
from bitgen.cli.models import convert, info, synth
from bitgen.cli.options import check_given
from bitgen.cli.run import chat, embed, perplexity, run
from bitgen.cli.tokens import tokenize
from bitgen.data import cache_root
from bitgen.errors import BitgenError

COMMANDS = [
    run, embed, chat, tokenize, verify, perplexity, tune, build, synth, convert, bench, gen, info, doctor,
    pull, list_, rm, cache, completion,
]  # fmt: skip


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """SIGTERM ends a command as an interrupt does, so that temporary files are removed, with exit code 143."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # a thread sets no handlers, and what a caller has set stays
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Errors as one sentence: code 2 for an option that makes no sense, 1 for what else fails, 130 for an interrupt.
    When the reader of a pipe has gone, a command ends without a word."""
    try:
        yield
    except click.UsageError as e:
        if e.ctx is None or "\n" in e.message:  # the help, where nothing is given
            raise
        _end(f"{' '.join(e.format_message().split())} ({e.ctx.command_path} --help)", 2)
    except BitgenError as e:
        _end(str(e), 1)
    except (MemoryError, RuntimeError) as e:
        # A thread without room for its stack is a RuntimeError, and so are click's own exits.
        if isinstance(e, RuntimeError) and "can't start new thread" not in str(e):
            raise
        _end("not enough memory; choose a smaller model or a shorter context, or free some", 1)
    except KeyboardInterrupt:
        say("", err=True)
        sys.exit(130)
    except BrokenPipeError:
        streams.discard(sys.stdout, sys.stderr)
        sys.exit(0)
    except OSError as e:  # a full disk, a missing permission
        _end(f"{_place(e)}: {e.strerror or e}", 1)


def _end(text: str, code: int) -> NoReturn:
    """Print why, if anybody can read it, and exit."""
    try:
        say(f"bitgen: {text}", err=True)
    except OSError:
        streams.discard(sys.stderr)
    sys.exit(code)


def _place(error: OSError) -> str:
    """What could not be read or written."""
    try:
        sys.stdout.flush()
    except OSError:  # or Python's exit would try it once more
        streams.discard(sys.stdout)
        return str(error.filename or STDOUT)
    return str(
        error.filename or f"writing the output or a file (the cache is {cache_root()}; BITGEN_CACHE names another)"
    )


class Group(click.Group):
    """All commands, whose errors are sentences; an option is given once, and is not empty."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        streams.prepare()
        with sentences(), naming(STDOUT):  # the help
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with sentences(), terminating():
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if command and not ctx.resilient_parsing:
            check_given(click.Context(command, ctx, name), rest)
        return name, command, rest


@click.group(cls=Group, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bitgen")
def main() -> None:
    """Run ternary (BitNet b1.58) language models on CPUs, with kernels generated and tuned for this one."""
    mappings.guard()


complete_values(COMMANDS)
