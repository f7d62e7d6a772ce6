"""What calls take: a row for each argument, by its name. A value is understood, or refused by name.

Whole numbers are Python's or NumPy's, neither floats nor bools; other numbers must have a value in float32, in which
the runtime computes. A list is what has a length and an order, but neither text nor bytes: "abc" is one text, not
three. Errors are ArgumentError; where the type is wrong, ArgumentTypeError.
"""

from __future__ import annotations

import math
import operator
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.errors import ArgumentError, ArgumentTypeError, brief

MOST_THREADS = 1024
"""Of a session: MAX_THREADS of runtime/core/pool.h."""
MOST_PLACES = 4096
"""Of a batch."""
FLOAT32_LEAST, FLOAT32_MOST = float(np.finfo(np.float32).smallest_subnormal), float(np.finfo(np.float32).max)
PENALTY_MOST = 1e30
"""Logits stay finite in float32 when this multiplies them, or divides as its inverse."""


def _whole(value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError
    return operator.index(value)


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError
    try:
        return float(value)
    except OverflowError:  # an integer beyond float64
        return math.inf


def _flag(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError
    return bool(value)


@dataclass(frozen=True)
class Rule:
    """The values that an argument may have."""

    words: str  # what is allowed; {most} stands for the bound
    least: float = -math.inf
    most: float = math.inf
    plain: Callable[[Any], Any] = _whole  # a value as Python's own type; TypeError where it is none

    def error(self, kind: type[ArgumentError], name: str, value: Any, most: float) -> ArgumentError:
        """That it does not allow a value."""
        return kind(f"{name} is {shown(value)}, must be {self.words.format(most=most)}")


_number, _switch = partial(Rule, plain=_real), partial(Rule, plain=_flag)

RULES: dict[str, Rule] = {
    "threads": Rule("a whole number from 1 to {most}, the threads of a session", 1, MOST_THREADS),
    "context": Rule("a whole number from 1 to {most}, the positions that the model was made for", 1),
    "position": Rule("a whole number from 0 to {most}: to rewind is to forget the tokens after it", 0),
    "gen": Rule("a whole number, 0 or more", 0),
    "max_tokens": Rule("a whole number, 0 or more", 0),
    "prompt_lookup": Rule("a whole number, 0 or more", 0),
    "logprobs": Rule("a whole number, 0 or more, or None", 0),
    "batch": Rule("a whole number from 1 to {most}, the texts at once", 1, MOST_PLACES),
    "size": Rule("a whole number from 1 to {most}, the texts of a batch at once", 1, MOST_PLACES),
    "prefill": Rule("a whole number, 1 or more", 1),
    "ctx": Rule("a whole number from 4 to {most}, the tokens of a window", 4),
    "stride": Rule("a whole number from 0 to {most}, fewer than the tokens of a window", 0),
    "count": Rule("a whole number from 0 to {most}, the tokens that are appended", 0, 2**31 - 1),
    "step": Rule("a whole number in [0, 2**64)", 0, 2**64 - 1),
    "every": _switch("True or False: whether to compute a row for every token"),
    "on": _switch("True or False"),
    "temperature": _number("a number, 0 or more, and finite in float32", 0, FLOAT32_MOST),
    "top_k": Rule("a whole number in [0, 2**31)", 0, 2**31 - 1),
    "top_p": _number("a number in (0, 1], and above 0 in float32", FLOAT32_LEAST, 1),
    "min_p": _number("a number in [0, 1]", 0, 1),
    "repeat_penalty": _number("a number above 0, from 1e-30 to 1e30", 1 / PENALTY_MOST, PENALTY_MOST),
    "repeat_last": Rule("a whole number in [0, 2**31)", 0, 2**31 - 1),
    "seed": Rule("a whole number in [0, 2**64)", 0, 2**64 - 1),
}


def shown(value: Any) -> str:
    """A value for a message, shortened."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        return brief(short.repr(value))
    except Exception:  # of the value's own __repr__, or of an integer that is too long to print
        return f"a value of type {type(value).__name__}"


def checked(name: str, value: Any, most: int | None = None) -> Any:
    """The value as Python's own type, where the rule of its name allows it. most: a bound that the rule leaves open."""
    rule = RULES[name]
    bound = rule.most if most is None else most
    try:
        plain = rule.plain(value)
    except TypeError:
        raise rule.error(ArgumentTypeError, name, value, bound) from None
    if not rule.least <= plain <= bound:
        raise rule.error(ArgumentError, name, value, bound)
    return plain


def check_fields(owner: Any, *names: str) -> None:
    """Make the fields of a dataclass, frozen or not, what `checked` says."""
    for name in names:
        object.__setattr__(owner, name, checked(name, getattr(owner, name)))


def one_of(name: str, value: Any, known: Iterable[str]) -> None:
    """Whether a value is a name among those that are known."""
    names = tuple(known)
    if not isinstance(value, str) or value not in names:
        kind = ArgumentError if isinstance(value, str) else ArgumentTypeError
        raise kind(f"{name} is {shown(value)}, must be one of {', '.join(names)}")


def instance(name: str, value: Any, kind: Any, what: str) -> Any:
    """A value that is of a type."""
    if not isinstance(value, kind):
        raise ArgumentTypeError(f"{name} is {shown(value)}, must be {what}")
    return value


def text(name: str, value: Any) -> str:
    """A text."""
    return str(instance(name, value, str, "a text"))


def path(name: str, value: Any) -> Path:
    """A path."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes) or not os.fspath(value):
        raise ArgumentTypeError(f"{name} is {shown(value)}, must be a path")
    return Path(value)


def is_list(value: Any) -> bool:
    """Whether a value has a length and an order, and is neither text nor bytes nor a mapping."""
    if isinstance(value, (list, tuple)):
        return True
    other = isinstance(value, (str, bytes, bytearray, memoryview, Mapping)) or getattr(value, "ndim", 1) == 0
    return not other and hasattr(type(value), "__len__") and hasattr(type(value), "__getitem__")


def items(name: str, value: Any, what: str) -> list[Any]:
    """The items of a list. what: they are, in words."""
    if not is_list(value):
        raise ArgumentTypeError(f"{name} is {shown(value)}, must be a list of {what}")
    return list(value)


def texts(name: str, value: Any) -> list[str]:
    """A list of texts."""
    return [text(f"{name}[{i}]", each) for i, each in enumerate(items(name, value, "texts"))]


def prompt(name: str, value: Any) -> Any:
    """A text, or a list, whose items are for `ids` to look at."""
    if not isinstance(value, str) and not is_list(value):
        raise ArgumentTypeError(f"{name} is {shown(value)}, must be a text or a list of token ids")
    return value


def counts(name: str, value: Any, least: int = 0, most: float = math.inf) -> list[int]:
    """A list of whole numbers."""
    words = f"must be a list of whole numbers, {least} or more" + (f", up to {most}" if most < math.inf else "")
    try:
        plain = [_whole(each) for each in (value if is_list(value) else [None])]
    except TypeError:
        raise ArgumentTypeError(f"{name} is {shown(value)}, {words}") from None
    if not all(least <= each <= most for each in plain):
        raise ArgumentError(f"{name} is {shown(value)}, {words}")
    return plain


def ids(name: str, value: Any, vocab: int) -> npt.NDArray[np.int32]:
    """Token ids below `vocab`, int32 [n], one or more."""
    if _are_ids(value, vocab) and value:
        return np.array(value, np.int32)
    found = whole_ids(name, value, vocab)
    if len(found) == 0 or found.min() < 0:
        wrong = np.flatnonzero(found < 0)
        how = f"number {wrong[0] + 1} is {shown(list(value)[wrong[0]])}" if len(wrong) else "there are none"
        raise ArgumentError(f"{name} must be a non-empty list of ids in [0, {vocab}); {how}")
    return found


def whole_ids(name: str, value: Any, vocab: int) -> npt.NDArray[np.int32]:
    """A list of whole numbers, int32 [n]; those that are no ids below `vocab` are -1, which the runtime refuses."""
    if _are_ids(value, vocab):
        return np.array(value, np.int32)
    words = f"{name} must be a non-empty list of ids in [0, {vocab})"
    if not is_list(value):
        raise ArgumentTypeError(f"{words}; it is {shown(value)}")
    array = _integers(value)
    if array is None:  # look at each
        plain = []
        for i, each in enumerate(value, 1):
            try:
                plain.append(min(max(_whole(each), -1), vocab))
            except TypeError:
                raise ArgumentTypeError(f"{words}; number {i} is {shown(each)}") from None
        array = np.array(plain, np.int64)
    return np.where((array >= 0) & (array < vocab), array, -1).astype(np.int32)


def _are_ids(value: Any, vocab: int) -> bool:
    """Whether a value is what it is as a rule, a list of Python's integers, and all are ids: the fast case."""
    if type(value) is not list or not {int}.issuperset(map(type, value)):
        return False
    return not value or 0 <= min(value) <= max(value) < vocab


def _integers(value: Any) -> npt.NDArray[Any] | None:
    """A list as NumPy reads it, [n]; None where it finds others than integers, or takes bools for such."""
    try:
        array = np.asarray(value)
    except ValueError:  # of lists that differ in length
        return None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        return None
    return array if array is value or {bool, np.bool_}.isdisjoint(map(type, value)) else None


def logits(name: str, value: Any, vocab: int) -> npt.NDArray[np.float32]:
    """Logits of a token, float32 [vocab], as C reads them. -inf is a token that cannot follow."""
    words = f"must be float32 [{vocab}], in C order"
    if not isinstance(value, np.ndarray):
        raise ArgumentTypeError(f"{name} is {shown(value)}, {words}")
    if value.dtype != np.float32:
        raise ArgumentTypeError(f"{name} is {value.dtype} {list(value.shape)}, {words}")
    if value.shape != (vocab,) or not value.flags.c_contiguous or not value.flags.aligned:
        strides = "" if value.flags.c_contiguous and value.flags.aligned else f" with strides of {value.strides} bytes"
        raise ArgumentError(f"{name} is float32 {list(value.shape)}{strides}, {words}")
    if not np.isfinite(value.max()):
        raise ArgumentError(f"{name} has NaN or infinity, or no token is possible; {name} {words}, finite or -inf")
    return value
