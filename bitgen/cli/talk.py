"""A conversation as its commands change it: what `bitgen chat` does with a line, typed or from a pipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitgen.cli import transcripts
from bitgen.cli.console import ERR, awaited, say, stream
from bitgen.cli.options import SAMPLING
from bitgen.engine.arguments import checked
from bitgen.engine.chat import Chat, Message
from bitgen.engine.generate import Generation
from bitgen.engine.sampling import Sampling
from bitgen.errors import BitgenError

if TYPE_CHECKING:
    from bitgen.cli.markdown import Answer

PROMPT, MORE, QUOTES = ">>> ", "... ", '"""'
ANOTHER_SEED = 1_000_003
"""Between the seeds of two answers to one message: the turns of a conversation count seeds by one."""
SETTINGS = {option.removeprefix("--"): (field, type) for option, field, type, *_ in SAMPLING}
"""What /set changes, named as the options are -> the field of Sampling and its type; and MAX_TOKENS."""
MAX_TOKENS = "max-tokens"
FIELDS = {field.replace("_", "-"): name for name, (field, _) in SETTINGS.items()}
"""Fields of Sampling, which /set takes for the options too."""
KEYS = '''Enter sends; Alt-Enter (or Esc, then Enter) begins another line; a paste is one message; Tab completes.
A message within """ and """ may have several lines, and is never a command.
Ctrl-C stops an answer, or empties the line; Ctrl-D leaves; up and down walk through what was typed.'''


def is_open(text: str) -> bool:
    """Whether a message began with QUOTES that have not been closed."""
    text = text.strip()
    return text.startswith(QUOTES) and (len(text) < 2 * len(QUOTES) or not text.endswith(QUOTES))


@dataclass
class Talk:
    """A conversation, and how its answers are made and shown."""

    chat: Chat
    max_tokens: int
    sampling: Sampling
    draw: Callable[[], Answer] | None = None  # draws an answer; None: it is printed as it comes
    resting: Callable[[], AbstractContextManager[None]] = nullcontext  # what an answer runs in
    on_line: bool = False  # whether a message can be edited on the line
    draft: str = ""  # what the next line begins with: a message that is edited
    _editing: bool = False
    _warned: bool = False

    def take(self, line: str) -> bool:
        """Do what a line says, and return whether the conversation goes on."""
        editing, self._editing, self.draft = self._editing, False, ""
        text = line.strip()
        if text.startswith(QUOTES):
            text = text.removeprefix(QUOTES).removesuffix(QUOTES).strip()
        elif text.startswith("/") and (text[1:2] == "?" or text.split()[0][1:].isalpha()):
            return self._command(*text.split(maxsplit=1))
        if text and editing:
            with self._last_turn_back():
                self._answer(text)
        elif text:
            self._answer(text)
        elif editing:
            say("(nothing was changed)", err=True)
        return True

    def leave_line(self) -> None:
        """A line was given up."""
        say("(the message stays as it was)" if self._editing else "(Ctrl-D or /bye leaves)", err=True)
        self._editing, self.draft = False, ""

    # ---- commands -------------------------------------------------------------------------------------------

    def _command(self, name: str, rest: str = "") -> bool:
        command = COMMANDS.get(name)
        if command is None:
            say(f"{name} is no command; /help lists them", err=True)
            return True
        if rest and not command.takes:
            raise BitgenError(f"{name} takes nothing after it")
        if not rest and command.takes and not command.takes.startswith("["):
            raise BitgenError(f"{name} needs a {command.takes}")
        command.run(self, rest)
        return command.goes_on

    def help(self, _: str) -> None:
        """This text."""
        names: dict[Command, list[str]] = {}
        for name, command in COMMANDS.items():
            names.setdefault(command, []).append(name)
        shown = [(f"{', '.join(each)} {command.takes}".strip(), command.help) for command, each in names.items()]
        width = max(len(usage) for usage, _ in shown)
        say("\n".join(f"{usage:<{width}}  {text}" for usage, text in shown) + f"\n\n{KEYS}", err=True)

    def set(self, rest: str) -> None:
        """Change one parameter of the answers to come, or show all."""
        if not rest:
            say("\n".join(f"{name:<14}  {value}" for name, value in self._settings()), err=True)
            return
        typed, _, value = rest.partition(" ")
        name = typed.replace("_", "-")
        name = FIELDS.get(name, name)
        if name not in (*SETTINGS, MAX_TOKENS):
            raise BitgenError(f"/set: there is no {typed!r}; there are {', '.join([*SETTINGS, MAX_TOKENS])}")
        field, type = SETTINGS.get(name, ("max_tokens", int))
        try:
            number: Any = type(value.strip())
        except ValueError:
            raise BitgenError(
                f"/set {name}: {value.strip()!r} is no number; an example: /set {name} {type(1)}"
            ) from None
        if name == MAX_TOKENS:
            self.max_tokens = max(checked(field, number), 1)
        else:
            self.sampling = replace(self.sampling, **{field: number})
        say(f"({name} is {dict(self._settings())[name]} from now on)", err=True)

    def _settings(self) -> list[tuple[str, object]]:
        sampling = [(name, getattr(self.sampling, field)) for name, (field, _) in SETTINGS.items()]
        return [*sampling, (MAX_TOKENS, self.max_tokens)]

    def save(self, rest: str) -> None:
        """Write the conversation to a file, as JSON."""
        first: list[Message] = [{"role": "system", "content": self.chat.system}] if self.chat.system else []
        path = Path(rest).expanduser()
        transcripts.save(path, self.chat.model.shape.name, [*first, *self.chat.messages])
        forgotten = f"; {self.chat.dropped} older ones are forgotten, and not in it" if self.chat.dropped else ""
        say(f"({_turns(self.chat)} saved in {path}{forgotten})", err=True)

    def load(self, rest: str) -> None:
        """Go on with the conversation of a file that /save wrote, instead of this one."""
        path = Path(rest).expanduser()
        messages = transcripts.load(path)
        self.chat.clear()
        self.chat.system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
        self.chat.messages.extend(messages)
        system = ", with a system message" if self.chat.system else ""
        say(f"({_turns(self.chat)} from {path}{system}; the one before is forgotten)", err=True)

    def retry(self, _: str) -> None:
        """Another answer to your last message, drawn with another seed."""
        message = self._last_message()
        if self.sampling.temperature == 0:
            raise BitgenError("at temperature 0 every seed gives the same answer; /set temp 0.7, then /retry")
        before = self.sampling
        self.sampling = replace(before, seed=(before.seed + ANOTHER_SEED) % 2**64)
        say("(another answer, with another seed)", err=True)
        with self._last_turn_back():
            self._answer(message)

    def edit(self, _: str) -> None:
        """Change your last message, in $EDITOR or on the line, and have that answered instead."""
        message = self._last_message()
        if os.environ.get("VISUAL") or os.environ.get("EDITOR"):
            try:
                changed = click.edit(message, extension=".md")
            except (click.ClickException, UnicodeDecodeError) as e:
                raise BitgenError(
                    f"/edit: {e.format_message() if isinstance(e, click.ClickException) else e}"
                ) from None
            if not changed or changed.strip() in ("", message):
                say("(nothing was changed)", err=True)
                return
            say(f"(your last message is now:)\n{changed.strip()}", err=True)
            with self._last_turn_back():
                self._answer(changed.strip())
        elif self.on_line:
            self.draft, self._editing = message, True
        else:
            raise BitgenError("/edit: without a terminal it needs $EDITOR")

    def system(self, rest: str) -> None:
        """What the model is told from now on, in a new conversation; without a text, nothing."""
        self.chat.system = rest or None
        self.chat.clear()
        what = "the system message is new" if rest else "there is no system message any more"
        say(f"({what}; the conversation begins anew)", err=True)

    def clear(self, _: str) -> None:
        """Begin anew; the system message stays."""
        turns = _turns(self.chat)
        self.chat.clear()
        say(f"({turns} forgotten; the conversation begins anew)", err=True)

    def bye(self, _: str) -> None:
        """Leave."""

    # ---- answers --------------------------------------------------------------------------------------------

    def _last_message(self) -> str:
        if not self.chat.messages:
            raise BitgenError("there is no message yet")
        return self.chat.messages[-2]["content"]

    @contextmanager
    def _last_turn_back(self) -> Iterator[None]:
        """A context in which the last turn is not there; it comes back where no other took its place."""
        chat, whole = self.chat, list(self.chat.messages)
        del chat.messages[-2:]
        rest = list(chat.messages)
        try:
            yield
        finally:
            if chat.messages == rest:
                chat.messages[:] = whole

    def _answer(self, message: str) -> None:
        forgotten = self.chat.forgets(message, self.max_tokens)
        if forgotten:
            say(f"(the context is full: the oldest {_count(forgotten, 'turn')} will be forgotten)", err=True)
        before, answer = self.chat.answer, self.chat.say(message, self.max_tokens, self.sampling)
        stopped = False
        with self.resting():
            try:
                self._show(answer)
            except KeyboardInterrupt:
                answer.close()
                stopped = True
        if stopped:
            say("(stopped)" if self.draw else " (stopped)")
        if self.chat.answer is not None and self.chat.answer is not before:
            for line in self._report(self.chat.answer, stopped):
                say(line, err=True)

    def _show(self, answer: Iterable[str]) -> None:
        pieces = awaited("reading the message", answer)
        first = next(pieces, "")
        if self.draw:
            with self.draw() as shown:
                for piece in chain([first], pieces):
                    shown.push(piece)
        else:
            for piece in chain([first], pieces):
                stream(piece)
            say()

    def _report(self, answer: Generation, stopped: bool) -> Iterator[str]:
        """Why an answer ended, where it did not end by itself; what it took; whether room is short."""
        chat, timing, sampling = self.chat, answer.timing, answer.sampling
        assert sampling is not None  # it is the model's where the call gives none
        if timing.stopped == "length" and not stopped:
            yield f"(cut after {_count(timing.tokens, 'token')}; /set {MAX_TOKENS} N allows more)"
        elif timing.stopped == "context full" and not stopped:
            yield f"(cut: the context of {chat.capacity} tokens is full)"
        context = f"{chat.position} of {chat.capacity} tokens of context, seed {sampling.seed}"
        fits = not ERR.is_terminal or len(timing.rates) + len(context) + 3 <= ERR.width
        yield f"{timing.rates}{' | ' if fits else chr(10)}{context}"
        left = chat.room(self.max_tokens) - chat.position
        is_short = left < chat.capacity // 8 and len(chat.messages) > 2
        if is_short and not self._warned:
            yield f"(about {max(left, 0)} tokens until the oldest turn is forgotten; /clear begins anew)"
        self._warned = is_short


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _turns(chat: Chat) -> str:
    return _count(len(chat.messages) // 2, "turn")


@dataclass(frozen=True)
class Command:
    """What a command runs, and what it takes: "[...]" may be left out."""

    run: Callable[[Talk, str], None]
    takes: str = ""
    goes_on: bool = True

    @property
    def help(self) -> str:
        """One line."""
        return str(self.run.__doc__).partition("\n")[0]


_HELP, _BYE = Command(Talk.help), Command(Talk.bye, goes_on=False)
COMMANDS = {
    "/set": Command(Talk.set, "[PARAMETER VALUE]"),
    "/system": Command(Talk.system, "[TEXT]"),
    "/retry": Command(Talk.retry),
    "/edit": Command(Talk.edit),
    "/save": Command(Talk.save, "FILE"),
    "/load": Command(Talk.load, "FILE"),
    "/clear": Command(Talk.clear),
    "/help": _HELP,
    "/?": _HELP,
    "/bye": _BYE,
    "/exit": _BYE,
}


def candidates(words: list[str], last: str) -> list[str]:
    """What a command may go on with: commands, parameters of /set, files of /save and /load."""
    if not words:
        found: Iterable[str] = COMMANDS
    elif words == ["/set"]:
        found = [*SETTINGS, MAX_TOKENS]
    elif words in (["/save"], ["/load"]):
        folder = Path(last or ".").expanduser()
        folder = folder if last.endswith(os.sep) or not last else folder.parent
        found = _entries(folder, last[: last.rfind(os.sep) + 1])
    else:
        found = []
    return sorted(each for each in found if each.startswith(last))


def _entries(folder: Path, typed: str) -> list[str]:
    try:
        return [f"{typed}{e.name}{os.sep if e.is_dir() else ''}" for e in os.scandir(folder) if e.name.isprintable()]
    except OSError:
        return []
