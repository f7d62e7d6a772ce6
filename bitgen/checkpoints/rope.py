"""Frequencies of rotary positions, and how models stretch them for contexts longer than those they began with.

Pair i of a head's n rotary elements turns by theta^(-2i/n) radians a position (Su et al. 2021, RoFormer). The
arithmetic is decimal, which has the same digits on every host, and its results are rounded to float32 once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Context, Decimal, localcontext
from math import ceil, floor, log
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from bitgen.errors import FormatError, quoted
from bitgen.spec import ModelShape, RopeScaling, Stretch

TWO_PI = Decimal("6.28318530717958647692528676655900576839434")
DIGITS = 40
KINDS = get_args(Stretch)
RANGES: dict[str, tuple[float, float]] = {
    "factor": (1, 1e6),
    "original_context": (0, 1 << 24),
    "beta_fast": (1e-3, 1e6),
    "beta_slow": (1e-3, 1e6),
    "magnitude": (1e-2, 1e2),
}
"""Field of RopeScaling -> its least and greatest value."""
LEAST_DIVISOR, MOST_DIVISOR = 0.5, 1e9
MOST_POSITIONS = 1 << 23
"""Of models with a divisor below 1: no angle is above MAX_ANGLE of runtime/core/rope.h."""
NARROWEST = Decimal("0.001")
"""Pairs over which YaRN's ramp runs at the least, so that nothing is divided by 0."""


def frequencies(shape: ModelShape, windowed: bool = False) -> npt.NDArray[np.float32]:
    """Radians a position, float32 [rotary / 2]: of layers with a window, which never stretch them, or of the others."""
    theta, scaling = (shape.window_theta, None) if windowed else (shape.rope_theta, shape.rope_scaling)
    with localcontext(Context(prec=DIGITS)):
        plain = _plain(theta, shape.rotary)
        stretched = plain if scaling is None else _stretched(plain, scaling, theta, shape.rotary)
        return np.array([float(each) for each in stretched], np.float32)


def scaling_of(values: Mapping[str, Any], where: str) -> RopeScaling | None:
    """The checked `rope_scaling` of a model's fields: a RopeScaling, or a mapping of its fields as presets have it.

    FormatError: a field is unknown, missing or out of its range, or does not fit the model's other fields.
    """
    given = values.get("rope_scaling")
    if given is None:
        return None
    fields = dict(vars(given) if isinstance(given, RopeScaling) else given if isinstance(given, Mapping) else {})
    if fields.get("kind") not in KINDS or not fields.keys() <= RopeScaling.__dataclass_fields__.keys():
        raise FormatError(
            f"{where}: rope_scaling is {quoted(given)}; expected a kind of {', '.join(KINDS)} and its fields"
        )
    for name, (least, most) in RANGES.items():
        usual = yarn_magnitude(fields["factor"]) if name == "magnitude" and fields["kind"] == "yarn" else None
        value = fields.setdefault(name, usual or getattr(RopeScaling, name))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= value <= most:
            raise FormatError(f"{where}: rope_scaling's {name} is {quoted(value)}; expected {least:g} to {most:g}")
    pairs, table = (values.get("rope_dims") or values["head_dim"]) // 2, fields.get("divisors", ())
    if fields["kind"] == "table" and not _is_table(table, pairs):
        allowed = f"{pairs} numbers from {LEAST_DIVISOR} to {MOST_DIVISOR:g}"
        raise FormatError(f"{where}: the divisors of RoPE's frequencies must be {allowed}, one for each pair")
    if fields["kind"] == "yarn" and not (fields["original_context"] and values["rope_theta"] > 1):
        raise FormatError(f"{where}: YaRN needs an original context, and a rope_theta above 1")
    if fields["kind"] == "table" and min(table) < 1 and values["context"] > MOST_POSITIONS:
        raise FormatError(f"{where}: RoPE turns by more than a radian a position, over {values['context']} positions")
    return RopeScaling(**{**fields, "divisors": tuple(table)})


def _is_table(given: Any, pairs: int) -> bool:
    if not isinstance(given, list | tuple) or len(given) != pairs:
        return False
    return all(isinstance(each, int | float) and LEAST_DIVISOR <= each <= MOST_DIVISOR for each in given)


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """What YaRN multiplies cos and sin by: 1 + 0.1 scale ln(factor) (Peng et al. 2023, equation 22)."""
    return 1 + 0.1 * scale * log(factor) if factor > 1 else 1.0


def llama3_divisors(theta: float, rotary: int, factor: float, low: float, high: float, original: int) -> list[float]:
    """The divisors of Llama 3.1's frequencies: 1 where a turn takes fewer than original / high positions, `factor`
    where it takes more than original / low, between them the inverse of a mean weighted by turns."""
    with localcontext(Context(prec=DIGITS)):
        slowest, fastest, most = Decimal(low), Decimal(high), Decimal(factor)
        turns = [Decimal(original) * each / TWO_PI for each in _plain(theta, rotary)]
        smooth = (min(max((n - slowest) / (fastest - slowest), Decimal(0)), Decimal(1)) for n in turns)
        return [float(1 / ((1 - share) / most + share)) for share in smooth]


def yarn_divisors(
    theta: float, rotary: int, factor: float, fast: float, slow: float, original: int, whole: bool
) -> list[float]:
    """The divisors of YaRN's frequencies: 1 for pairs that turn more than `fast` times in `original` positions,
    `factor` for those that turn less than `slow` times, a ramp between them, which begins and ends at `whole` pairs.
    """
    with localcontext(Context(prec=DIGITS)):

        def pair(turns: float) -> Decimal:
            """The pair, as a number with a fraction, that turns so often."""
            return rotary * (original / (Decimal(turns) * TWO_PI)).ln() / (2 * _exact(theta).ln())

        low, high = pair(fast), pair(slow)
        if whole:
            low, high = Decimal(floor(low)), Decimal(ceil(high))
        low, high = max(low, Decimal(0)), min(high, Decimal(rotary - 1))
        width = high - low or NARROWEST
        ramp = (min(max((i - low) / width, Decimal(0)), Decimal(1)) for i in range(rotary // 2))
        return [float(1 / (share / Decimal(factor) + 1 - share)) for share in ramp]


def divisors(scaling: RopeScaling, theta: float, rotary: int) -> Sequence[float]:
    """What the frequency of each pair is divided by, [rotary / 2]."""
    if scaling.kind == "linear":
        return [scaling.factor] * (rotary // 2)
    if scaling.kind == "table":
        return scaling.divisors
    of_yarn = (scaling.factor, scaling.beta_fast, scaling.beta_slow, scaling.original_context)
    return yarn_divisors(theta, rotary, *of_yarn, whole=True)


def _plain(theta: float, rotary: int) -> list[Decimal]:
    """theta^(-2i / rotary) for each pair."""
    return [_exact(theta) ** (Decimal(-2 * i) / rotary) for i in range(rotary // 2)]


def _stretched(plain: list[Decimal], scaling: RopeScaling, theta: float, rotary: int) -> list[Decimal]:
    return [each / Decimal(by) for each, by in zip(plain, divisors(scaling, theta, rotary), strict=True)]


def _exact(theta: float) -> Decimal:
    """The float32 that a file keeps."""
    return Decimal(float(np.float32(theta)))
