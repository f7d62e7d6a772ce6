"""What the checks of `bitgen doctor` find, and what they share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bitgen.compile import ziglang
from bitgen.compile.compiler import NoCompilerError
from bitgen.errors import BitgenError, brief
from bitgen.spec import ModelShape

State = Literal["ok", "warning", "problem"]

Models = Mapping[str, Callable[[], ModelShape]]
"""Name -> its shape, or the error why there is none."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. advice: what to do, where it is not well. values: the same facts for programs."""

    check: str
    state: State
    fact: str
    advice: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


def readable(models: Models) -> Iterator[tuple[str, ModelShape]]:
    """The models that have a shape; why another has none is said by `model`."""
    for name, shape_of in models.items():
        with contextlib.suppress(BitgenError):
            yield name, shape_of()


def unknown(check: str, error: BitgenError) -> Finding:
    """What cannot be told for a reason that has a line of its own: that is well where a compiler will come."""
    if isinstance(error, NoCompilerError) and not ziglang.why_not():
        return Finding(check, "ok", "not known before there is a compiler")
    return Finding(
        check,
        "warning",
        f"not known: {brief(str(error) or 'there is no compiler')}",
        "mend what the lines above say first",
    )
