"""The group of all commands, and what becomes of errors."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from bitgen import __version__
from bitgen.cli.build import build, gen, tune
from bitgen.cli.console import say
from bitgen.cli.measure import bench, verify
from bitgen.cli.models import convert, info, synth
from bitgen.cli.run import chat, embed, perplexity, run
from bitgen.data import cache_root
from bitgen.errors import BitgenError

COMMANDS = [run, embed, chat, verify, perplexity, tune, build, synth, convert, bench, gen, info]


@contextmanager
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


class Group(click.Group):
    """Turns BitgenErrors and a lack of memory into one message and exit code 1, an interrupt into 130, SIGTERM into
    143, a closed pipe into silence."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with terminating():
                return super().invoke(ctx)
        except BitgenError as e:
            say(f"bitgen: {e}", err=True)
            ctx.exit(1)
        except (MemoryError, RuntimeError) as e:
            # A thread without room for its stack is a RuntimeError, and so are click's own exits.
            if isinstance(e, RuntimeError) and "can't start new thread" not in str(e):
                raise
            say("bitgen: not enough memory; choose a smaller model or a shorter context, or free some", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            say("", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the exit flush must not complain
            ctx.exit(0)
        except OSError as e:  # a full disk, a missing permission
            where = e.filename or f"writing a file (the cache is {cache_root()}; BITGEN_CACHE names another)"
            say(f"bitgen: {where}: {e.strerror}", err=True)
            ctx.exit(1)


@click.group(cls=Group, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bitgen")
def main() -> None:
    """Run ternary (BitNet b1.58) language models on CPUs, with kernels generated and tuned for this one."""
