"""How tokens are chosen: the parameters, and the one set of defaults for Python, the command line and programs.

What a call gives counts. Where it says nothing, the model's file does (GGUF's general.sampling.*: `from_metadata`),
and where that says nothing either, the defaults of `Sampling`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bitgen.engine import arguments
from bitgen.errors import ArgumentError, ArgumentTypeError, brief, quoted

KEYS: dict[str, str] = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "repeat_last",
}
"""What follows general.sampling. in a GGUF -> field of Sampling."""
OTHERS = ("mirostat", "xtc_probability")
"""Ways to choose that are not computed here, and off where the value is 0."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    A temperature of 0 is greedy: the likeliest token after the repetition penalty, which `repeat_penalty=1` turns off.
    The same seed draws the same text on every machine; in Python it is 0 unless given, on the command line random.
    """

    temperature: float = 0.7  # 0: greedy
    top_k: int = 40  # 0: off
    top_p: float = 0.9  # 1: off
    min_p: float = 0.0  # 0: off
    repeat_penalty: float = 1.1  # 1: off
    repeat_last: int = 64  # tokens that are penalised
    seed: int = 0

    def __post_init__(self) -> None:
        arguments.check_fields(self, *self.__dataclass_fields__)

    def __str__(self) -> str:
        """Without the seed: "temperature 0.7, top_k 40, ..."."""
        names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")
        return ", ".join(f"{name} {getattr(self, name):g}" for name in names) + f" over {self.repeat_last} tokens"

    def given(self, sampling: Sampling | None, options: Mapping[str, Any]) -> Sampling:
        """The parameters that a call gives: as `sampling`, or one by one, and then where it says nothing these."""
        known = self.__dataclass_fields__
        if unknown := [name for name in options if name not in known]:
            raise ArgumentTypeError(
                f"there is no {', '.join(unknown)}; the parameters of sampling are {', '.join(known)}"
            )
        if sampling is None:
            return replace(self, **options)
        if options:
            raise ArgumentError(f"give {', '.join(options)} or sampling, not both")
        chosen: Sampling = arguments.instance("sampling", sampling, Sampling, "a Sampling")
        return chosen


NEUTRAL = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
"""Every step off: tokens are drawn as likely as the model says."""


def from_metadata(metadata: Mapping[str, Any]) -> tuple[Sampling, str | None]:
    """The defaults that a GGUF's key-values ask for, and a sentence about the keys that are passed over because
    their value is none; else None."""
    fields: dict[str, Any] = {}
    wrong = []
    for key, field in KEYS.items():
        name = f"general.sampling.{key}"
        if name in metadata:
            try:
                fields[field] = arguments.checked(field, metadata[name])
            except ArgumentError as error:
                wrong.append(f"{name}: {error}")
    for key in OTHERS:
        value = metadata.get(f"general.sampling.{key}", 0)
        if isinstance(value, list | np.ndarray) or value != 0:
            wrong.append(f"general.sampling.{key} is {quoted(value)}, which is not computed here")
    found = brief("; ".join(wrong))
    return Sampling(**fields), f"sampling defaults of the file are passed over ({found})" if wrong else None
