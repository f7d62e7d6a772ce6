"""Options that several commands share, and what checks them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import click

from bitgen import Sampling
from bitgen.gguf.blocks import I2S_LAYOUTS
from bitgen.gguf.writer import FILE_TYPES


def numbers(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    """A comma-separated list of non-negative integers."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list like 128,512") from None
    if any(v < 0 for v in values):
        raise click.BadParameter("negative numbers make no sense here")
    return values


model_option = click.option(
    "-m", "--model", "model", metavar="FILE", help="A GGUF file. [default: the model that ships]"
)
threads_option = click.option(
    "-t", "--threads", type=click.IntRange(1, 1024), help="[default: the tuned count, else all CPUs]"
)
isa_option = click.option("--isa", help="Instruction-set level. [default: the best this CPU executes]")
head_option = click.option(
    "--head",
    type=click.Choice(["certified", "f16", "int8"]),
    default="certified",
    show_default=True,
    help="The LM head: exact at 3/8 of the bytes for greedy and top-k choices; exact; or rounded to int8.",
)
cache_option = click.option(
    "--cache",
    type=click.Choice(["f16", "int8"]),
    default="f16",
    show_default=True,
    help="Keys and values: halves, or half the bytes.",
)
type_option = click.option(
    "--type",
    "type_",
    type=click.Choice(list(FILE_TYPES)),
    default=None,
    help="i2_s, the default, for bitnet.cpp; tq1_0 or tq2_0 for llama.cpp, 1.7 or 2.1 bits a weight; t5, bitgen's own, "
    "1.6 bits; q2_0 (llama.cpp), for models with a scale for every 64 or 128 weights, whose default it is.",
)

READING = (
    click.option(
        "--activation",
        type=click.Choice(["relu2", "silu"]),
        help="Override the FFN activation that the file implies.",
    ),
    click.option(
        "--tl-tiles",
        default="",
        metavar="MxK=BM/BK/bm,...",
        help="Tiles of TL1 and TL2 tensors, where bitnet.cpp's scripts do not decide them.",
    ),
    click.option(
        "--i2s-layout",
        type=click.Choice(I2S_LAYOUTS),
        default="x86",
        show_default=True,
        help="The I2_S that bitnet.cpp wrote on x86; on ARM since November 2025; or without its ACT_PARALLEL.",
    ),
)


def reading_options(command: Any) -> Any:
    """What a GGUF file does not say of itself, or says wrongly: keyword arguments of read_gguf."""
    for option in READING:
        command = option(command)
    return command


SAMPLING = (
    click.option("--temp", type=float, default=0.7, show_default=True, help="Temperature; 0 is greedy."),
    click.option("--top-k", type=int, default=40, show_default=True, help="Keep the k likeliest tokens; 0: all."),
    click.option("--top-p", type=float, default=0.9, show_default=True,
                 help="Keep the likeliest tokens of this total probability; 1: all."),
    click.option("--min-p", type=float, default=0.0, show_default=True,
                 help="Drop tokens below this share of the likeliest one's probability."),
    click.option("--repeat-penalty", type=float, default=1.1, show_default=True,
                 help="Over the last 64 tokens; 1: off."),
    click.option("--seed", type=int, help="Same seed, same text. [default: random]"),
)  # fmt: skip


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of Sampling, which the command gets as `sampling`."""

    @functools.wraps(command)
    def sampled(*args: Any, temp: float, top_k: int, top_p: float, min_p: float, repeat_penalty: float,
                seed: int | None, **more: Any) -> None:  # fmt: skip
        chosen = int.from_bytes(os.urandom(4), "little") if seed is None else seed
        sampling = Sampling(temp, top_k, top_p, min_p, repeat_penalty, seed=chosen)
        command(*args, sampling=sampling, **more)

    for option in reversed(SAMPLING):
        sampled = option(sampled)
    return sampled
