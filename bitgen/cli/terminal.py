"""The conversation at a terminal: lines in, answers out as they come."""

from __future__ import annotations

import contextlib
import sys

from bitgen.cli.console import say, stream
from bitgen.cli.streams import utf8
from bitgen.engine.chat import Chat
from bitgen.engine.sampling import Sampling
from bitgen.errors import BitgenError

PROMPT, MORE, QUOTES = ">>> ", "... ", '"""'
HELP = """/system TEXT  tell the model something from now on, and begin anew
/clear        begin anew
/bye          leave (or Ctrl-D)
\"""           begin a message of several lines, and end it
Ctrl-C        stop an answer, or empty the line"""


def run(chat: Chat, max_tokens: int, sampling: Sampling) -> bool:
    """Take messages until the input ends. Prompts appear where the input is a terminal; text goes to stdout.

    Returns whether every message had an answer; at a terminal, where their author has read why not, they all count.
    """
    if sys.stdin is None:
        raise BitgenError("standard input is closed: there are no messages to answer")
    terminal, answered = sys.stdin.isatty(), True
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()
    if terminal:
        say(f"{chat.model.about}; /help for help", err=True)
    while True:
        try:
            message = _read(terminal)
        except EOFError:
            return answered or terminal
        except KeyboardInterrupt:
            say("\n(Ctrl-D or /bye ends)", err=True)
            continue
        except OSError as e:
            raise BitgenError(f"standard input cannot be read ({e.strerror or e})") from None
        if message == "/bye":
            return answered or terminal
        try:
            if message:
                _react(chat, utf8(message, "the message"), max_tokens, sampling)
        except BitgenError as e:
            say(f"bitgen: {e}", err=True)
            answered = False


def _read(terminal: bool) -> str:
    """One message, stripped; EOFError at the end of the input."""
    text = input(PROMPT if terminal else "").strip()
    if not text.startswith(QUOTES):
        return text
    lines = [text.removeprefix(QUOTES)]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(input(MORE if terminal else ""))
    return "\n".join(lines).rstrip().removesuffix(QUOTES).strip()


def _react(chat: Chat, message: str, max_tokens: int, sampling: Sampling) -> None:
    command, _, rest = message.partition(" ")
    if command == "/help":
        say(HELP, err=True)
    elif command == "/clear":
        chat.clear()
    elif command == "/system":
        chat.system = rest.strip() or None
        chat.clear()
    elif command.startswith("/") and command[1:].isalpha():
        say(f"{command} is no command; /help lists them", err=True)
    else:
        _answer(chat, message, max_tokens, sampling)


def _answer(chat: Chat, message: str, max_tokens: int, sampling: Sampling) -> None:
    dropped, answer = chat.dropped, chat.say(message, max_tokens, sampling)
    try:
        for piece in answer:
            stream(piece)
        say()
    except KeyboardInterrupt:
        answer.close()
        say(" (stopped)")
    if chat.dropped > dropped:
        say("(the context is full: the oldest turns are forgotten)", err=True)
    if chat.answer:
        say(str(chat.answer.timing), err=True)
