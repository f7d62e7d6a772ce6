"""Compiles and renders one chat template; run as a program, in a process of its own that can be ended.

A template is a Jinja2 program that comes with a model. jinja2's sandbox keeps it from the machine but limits neither
its time nor its memory, and `2 ** 2 ** 40` is computed as soon as it is compiled. So the process limits both for
itself. It is started by this file's path and imports nothing of ours: it is ready as soon as jinja2 is.

    python -I render_worker.py FOLDER...     folders to import jinja2 from, besides the interpreter's own

Requests and replies are lines of JSON; see `Renderer.answer`. The first line it writes, {}, says that it is ready.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

if __name__ == "__main__":
    sys.path.extend(sys.argv[1:])

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2.0
"""CPU time to compile, and for each conversation; where the system cannot limit it, the caller's patience does."""
MEMORY = 1 << 29
"""Bytes of address space of the process, where the system can limit them."""
CHARACTERS = 1 << 22
"""The longest conversation."""


class GenerationBlock(Extension):
    """{% generation %}...{% endgeneration %}: what a model learns to say is marked so. It is text as any other."""

    tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's statements in a scope of their own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Refusal(jinja2.TemplateError):
    """What a template says of a conversation that it does not take."""


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja2 with the settings, filters and functions that templates find in transformers' apply_chat_template."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    env.filters["tojson"] = _tojson
    env.globals |= {"raise_exception": _refuse, "strftime_now": lambda f: datetime.datetime.now().strftime(f)}
    return env


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON for a model, not for HTML: nothing is escaped that need not be."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise Refusal(message)


class Renderer:
    """One template."""

    def __init__(self) -> None:
        self._template: jinja2.Template | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Compile {"source": text}, then render with {"context": variables}.

        Returns {"text": ...}, or {"fault": why not, "syntax": whether it is no Jinja2 at all}.
        """
        try:
            if self._template is None:
                self._template = environment().from_string(request["source"])
                return {"text": ""}
            return {"text": _bounded(self._template.generate(request["context"]))}
        except MemoryError:
            fault: BaseException = MemoryError(f"it takes more than {MEMORY >> 20} MiB of memory")
        except RecursionError:
            fault = RecursionError("it is nested too deeply")
        except Exception as error:  # a template can raise whatever Python can
            fault = error
        said = isinstance(fault, (jinja2.TemplateError, MemoryError, RecursionError)) and str(fault)
        reason = said or f"{type(fault).__name__}: {fault}"
        return {"fault": reason[:1000], "syntax": isinstance(fault, jinja2.TemplateSyntaxError)}


def _bounded(pieces: Iterable[str]) -> str:
    """The pieces as one text, if it is no longer than CHARACTERS."""
    texts, left = [], CHARACTERS
    for piece in pieces:
        texts.append(piece)
        left -= len(piece)
        if left < 0:
            raise Refusal(f"it makes a text of more than {CHARACTERS:,} characters")
    return "".join(texts)


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    """The system ends the process when it has used SECONDS of CPU time."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows, and systems that count otherwise
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, most))


def main() -> None:
    """Answer requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal is for the program that started this one
    _limit_memory()
    renderer = Renderer()
    print("{}", flush=True)
    for line in sys.stdin:
        with _limited_time():
            reply = json.dumps(renderer.answer(json.loads(line)))
        print(reply, flush=True)


if __name__ == "__main__":
    main()
