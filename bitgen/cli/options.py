"""Options that several commands share, and what checks them."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import click
from click.core import ParameterSource

from bitgen import Sampling
from bitgen.cli.console import QUIET, warn
from bitgen.cli.streams import utf8
from bitgen.errors import BitgenError
from bitgen.gguf.blocks import I2S_LAYOUTS
from bitgen.gguf.writer import FILE_TYPES
from bitgen.targets import default_threads

MOST = 2**31 - 1
TEXT_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)
"""A file that read_text reads."""


class Count(click.IntRange):
    """An integer of at least `least`, whose help does not mention the most that C holds."""

    name = "n"

    def __init__(self, least: int = 0, most: int = MOST) -> None:
        super().__init__(least, most)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "N"

    def _describe_range(self) -> str:
        return f"{self.min} or more" if self.max == MOST else f"{self.min} to {self.max}"


COUNT = Count()
THREADS = Count(1, 1024)


class Text(click.ParamType):  # type: ignore[type-arg]
    """A UTF-8 text, where `empty` the empty one too."""

    name = "text"

    def __init__(self, empty: bool = True) -> None:
        self.empty = empty

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return utf8(value, param.get_error_hint(ctx) if param and ctx else "the text")


class Renamed(click.Option):
    """An option whose former names still work and are shown no more: all but the first."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        names, self.opts = self.opts, self.opts[:1]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = names


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """A comma-separated list of integers, none below `least` or above `most`."""

    name = "n,..."

    def __init__(self, least: int, most: int = MOST) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        try:
            values = [int(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list like 128,512", param, ctx)
        for number in values:
            if not self._least <= number <= self._most:
                self.fail(f"{number} is not in the range {self._least} to {self._most}", param, ctx)
            if values.count(number) > 1:
                self.fail(f"{number} is there twice", param, ctx)
        return values


def finite(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """A number that is one, if it is given."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number")
    return value


def refuse(*rules: tuple[bool, str]) -> None:
    """UsageError with the sentence of the first rule that is broken: options that contradict each other."""
    for broken, sentence in rules:
        if broken:
            raise click.UsageError(sentence)


def given(*names: str) -> list[str]:
    """Those of some parameters that the running command was given, as they are spelt on the command line."""
    context = click.get_current_context()
    said = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    return [param.opts[-1] for param in context.command.params if param.name in said]


def warn_crowded(threads: Iterable[int]) -> None:
    """Warn where threads are more than the CPUs of this process: they wait for each other at every step."""
    cpus = default_threads()
    if most := [count for count in threads if count > cpus]:
        warn(
            f"{max(most)} threads on {cpus} CPU{'s' * (cpus != 1)}, which is what this process may use: "
            f"threads without one hold up the others; -t {cpus} is faster"
        )


def _uncrowded(_: click.Context, __: click.Parameter, value: int | None) -> int | None:
    warn_crowded([] if value is None else [value])
    return value


def check_given(ctx: click.Context, args: list[str]) -> None:
    """UsageError where the arguments of a command give an option twice, or something empty that is no such `Text`."""
    values, _, given = ctx.command.make_parser(ctx).parse_args(list(args))
    for param in given:
        value = values.get(str(param.name))
        may_be_empty = isinstance(param.type, Text) and param.type.empty
        if "" in (value if isinstance(value, (list, tuple)) else [value]) and not may_be_empty:
            raise click.BadParameter("it is empty", ctx, param)
        if isinstance(param, click.Option) and not param.multiple and given.count(param) > 1:
            raise click.BadParameter("it is given more than once", ctx, param)


threads_option = click.option(
    "-t",
    "--threads",
    type=THREADS,
    callback=_uncrowded,
    help="Threads to compute with. [default: the number that tuning found best, else all CPUs of this process]",
)


def _quietly(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.meta[QUIET] = value


quiet_option = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    envvar="BITGEN_QUIET",
    expose_value=False,
    callback=_quietly,
    help="Show no progress; also BITGEN_QUIET=1. Warnings and errors are shown.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
isa_option = click.option(
    "--isa", metavar="LEVEL", help="Instruction-set level, like avx2 or neon. [default: the best that the CPU executes]"
)
head_option = click.option(
    "--head",
    type=click.Choice(["certified", "f16", "int8"]),
    default="certified",
    show_default=True,
    help="How the output matrix is kept. certified: with int8 codes beside it, which find the few rows that matter, so "
    "that a token is chosen exactly at 3/8 of the bytes; f16: alone, and all of it is read for each token; int8: the "
    "codes alone, so that logits are rounded. A ternary head (Bonsai) is such a code itself. certified: as it is, with "
    "the embedding, at an eighth of the bytes; f16: widened; not int8.",
)
cache_option = click.option(
    "--cache",
    type=click.Choice(["f16", "int8"]),
    default="f16",
    show_default=True,
    help="How keys and values are kept: as 16-bit floats, or as int8 in half the bytes.",
)
type_option = click.option(
    "--type",
    "type_",
    type=click.Choice(list(FILE_TYPES)),
    default=None,
    help="How the ternary weights are written. i2_s: for bitnet.cpp, 2 bits a weight; tq1_0, tq2_0: for llama.cpp, 1.7 "
    "and 2.1 bits; t5: for bitgen alone, 1.6 bits. Models with a scale for every 64 or 128 weights: q2_0, for "
    "llama.cpp; for every 128: pq2_0, ptq1_0, for PrismML's llama.cpp, 1.75 bits; for every 256: tq1_0, tq2_0. "
    "Models without a weight 0: q1_0, for llama.cpp, 1.1 bits. "
    "[default: q1_0 for these, q2_0 or tq2_0 for models with such scales, i2_s for all others]",
)

READING = ("activation", "tl_tiles", "i2s_layout")
"""Parameters of what a GGUF file does not say of itself."""
_READING = (
    click.option(
        "--activation",
        type=click.Choice(["relu2", "silu"]),
        help="The activation of the feed-forward layers. [default: the one that the file's architecture implies]",
    ),
    click.option(
        "--tl-tiles",
        default="",
        metavar="MxK=BM/BK/bm,...",
        help="How bitnet.cpp's converter tiled the TL1 and TL2 tensors of each shape M x K, where it was not called "
        "with the numbers of its own scripts.",
    ),
    click.option(
        "--i2s-layout",
        type=click.Choice(I2S_LAYOUTS),
        default="x86",
        show_default=True,
        help="Which bitnet.cpp wrote the I2_S tensors, which the file does not say. x86: a build for x86, as for all "
        "published files; arm: a build for ARM since November 2025; rows4: a build without ACT_PARALLEL.",
    ),
)


def reading_options(command: Any) -> Any:
    """What a GGUF file does not say of itself, or says wrongly: keyword arguments of read_gguf."""
    for option in _READING:
        command = option(command)
    return command


def _sampled(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """The value of one field of Sampling, if it is given."""
    try:
        Sampling(**({} if value is None else {str(param.name): value}))
    except (BitgenError, ValueError, TypeError) as e:
        raise BitgenError(f"{param.opts[0]}: {e}") from None
    return value


SAMPLING = (
    ("--temp", "temperature", float, "Temperature; 0 is greedy."),
    ("--top-k", "top_k", int, "Keep the k likeliest tokens; 0: all."),
    ("--top-p", "top_p", float, "Keep the likeliest tokens of this total probability; 1: all."),
    ("--min-p", "min_p", float, "Drop tokens below this share of the likeliest one's probability."),
    ("--repeat-penalty", "repeat_penalty", float, "Over the last 64 tokens; 1: off."),
    ("--seed", "seed", int, "Same seed, same text."),
)
"""Option, field of Sampling, type, help."""


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of Sampling: the command gets those that are given, by field, as `sampling`; and always a seed."""

    @functools.wraps(command)
    def sampled(*args: Any, **more: Any) -> None:
        given = {field: more.pop(field) for _, field, *_ in SAMPLING}
        given = {field: value for field, value in given.items() if value is not None}
        command(*args, sampling={"seed": int.from_bytes(os.urandom(4), "little"), **given}, **more)

    for option, field, type, text in reversed(SAMPLING):
        default = "random" if field == "seed" else f"the model file's, else {getattr(Sampling(), field)}"
        words = f"{text} [default: {default}]"
        sampled = click.option(option, field, type=type, callback=_sampled, help=words)(sampled)
    return sampled
