"""The loop of a chat: messages in, answers out as they come; at a terminal with editing, history and Markdown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

from bitgen.cli.console import OUT, say
from bitgen.cli.streams import utf8
from bitgen.cli.talk import MORE, PROMPT, QUOTES, Talk, candidates, is_open
from bitgen.engine.chat import Chat
from bitgen.engine.sampling import Sampling
from bitgen.errors import BitgenError


def run(chat: Chat, max_tokens: int, sampling: Sampling, *, plain: bool = False, history: bool = True) -> bool:
    """Take messages until the input ends. Text goes to stdout.

    Where stdin and stdout are a terminal, lines are edited, kept in the history if `history`, and answers drawn as
    Markdown unless `plain`. Returns whether every message had an answer; at a terminal, where their author has read why
    not, they all count.
    """
    if sys.stdin is None:
        raise BitgenError("standard input is closed: there are no messages to answer")
    typed, talk = sys.stdin.isatty(), Talk(chat, max_tokens, sampling)
    read: Callable[[str], str] = lambda _: _read(typed)  # noqa: E731
    if typed:
        say(f"{chat.model.about}; /help for help", err=True)
    if typed and sys.stdout.isatty():
        # not before they are needed: to import them takes a tenth of a second
        from bitgen.cli.markdown import Answer
        from bitgen.cli.prompt import Line

        editor = Line(history, candidates)
        read, talk.resting, talk.on_line = editor.read, editor.resting, True
        if not plain and os.environ.get("TERM") != "dumb":
            talk.draw = partial(Answer, OUT)
    answered = True
    while True:
        try:
            line = read(talk.draft)
        except EOFError:
            return answered or typed
        except KeyboardInterrupt:
            talk.leave_line()
            continue
        except OSError as e:
            raise BitgenError(f"standard input cannot be read ({e.strerror or e})") from None
        try:
            if not talk.take(utf8(line, "the message")):
                return answered or typed
        except BitgenError as e:
            say(f"bitgen: {e}", err=True)
            answered = False
        except KeyboardInterrupt:  # one more, while the first one was heard
            say(err=True)


def _read(typed: bool) -> str:
    """A message from an input that nobody edits, of several lines between QUOTES."""
    text = _line(PROMPT if typed else "")
    while is_open(text):
        try:
            text += "\n" + _line(MORE if typed else "")
        except EOFError:
            say(f"bitgen: the input ended before the {QUOTES} that closes a message: it is sent as it is", err=True)
            return text
    return text


def _line(prompt: str) -> str:
    say(prompt, err=True, nl=False)
    return input()
