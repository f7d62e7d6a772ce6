"""The errors a user can meet. Every message says what was wrong, where, and what to do next."""

from __future__ import annotations


class BitgenError(Exception):
    """Base of every error bitgen raises on purpose; the CLI prints it without a traceback."""


class FormatError(BitgenError):
    """A file is not what it claims to be: truncated, corrupt, or of an unknown kind."""


class UnsupportedError(BitgenError):
    """A well-formed request for something bitgen does not do (an unknown architecture, an illegal tile)."""


class CompileError(BitgenError):
    """The C compiler is missing or failed; carries where the source and the log were kept."""


class EngineError(BitgenError):
    """A model, a session or a batch cannot do what a call asks; where the runtime refused it, carries its text."""


class ArgumentError(EngineError, ValueError):
    """An argument that a call does not take; names it, its value and what is allowed."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of a type that a call does not take."""


class RemoteError(BitgenError):
    """A device cannot be reached, cannot run our program, or left while it was at work."""


LONGEST = 200
"""Characters of what somebody else wrote that a message repeats at most."""


def brief(text: str, room: int = LONGEST) -> str:
    """What a file, a template or a device says, for a message: printable, on one line, without its middle if long."""
    ends = text if len(text) <= 4 * room else text[: 2 * room] + text[-2 * room :]
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(ends.split()))
    half = room // 2
    return line if len(line) <= room else f"{line[: room - half - 1]}…{line[-half:]}"


def quoted(value: object) -> str:
    """A value of a file for a message, as Python spells it: a text in quotes. Of an error its text."""
    return brief(str(value) if isinstance(value, BaseException) else repr(value))


def size(nbytes: float) -> str:
    """Bytes for people: 0.7 GB."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= power * (0.1 if unit == "GB" else 1):
            return f"{nbytes / power:.1f} {unit}"
    return f"{nbytes:.0f} bytes"
