"""Why a plan decides as it does: what was measured, or estimated, of the kernels that were tried.

`to_json` and `from_json` are the form in which plan files hold it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Effort = Literal["quick", "thorough"]
"""How many candidates are tried."""


@dataclass(frozen=True)
class Decode:
    """Seconds of one call of the decode kernel (gemv), on weights that stream from memory."""

    seconds: float
    default_seconds: float  # of the static default's kernel
    seconds_by_threads: dict[str, float]  # thread count -> seconds
    gb_s: float  # packed weights read, 1e9 bytes per second
    bandwidth_share: float  # of the read bandwidth with the same threads
    tried: dict[str, float]  # symbol -> seconds


@dataclass(frozen=True)
class Prefill:
    """Seconds of one call of the prefill kernel (gemm) on `tokens` tokens."""

    tokens: int
    seconds: float
    default_seconds: float  # of the static default's kernel
    gop_s: float  # 1e9 integer operations per second, two for each weight and token
    peak_share: float  # of the dot product's peak with the same threads
    tried: dict[str, float]  # symbol -> seconds


@dataclass(frozen=True)
class Measured:
    """What the tuner measured of one matrix."""

    threads: int
    bandwidth_gb_s: float  # read bandwidth with these threads, 1e9 bytes per second
    gemv: Decode
    gemm: Prefill
    effort: Effort = "quick"
    load: float = 0.0  # processes that were busy before the tuning began
    disturbed: bool = False  # by other work on the machine


@dataclass(frozen=True)
class Cost:
    """Cycles of one kernel by the cost model."""

    cycles: float  # of a token
    default_cycles: float | None  # of the static default's kernel; None: it could not be estimated
    instructions_per_weight: float  # and token
    tried: dict[str, float]  # symbol -> cycles of a token


@dataclass(frozen=True)
class Estimated:
    """What the cost model estimated of one matrix."""

    effort: Effort
    bytes_per_cycle: float | None  # that memory gives one core; None: enough
    failed: dict[str, str]  # symbol -> why it could not be estimated
    gemv: Cost
    gemm: Cost


Evidence = Measured | Estimated


def to_json(evidence: Evidence | None) -> dict[str, Any]:
    """Evidence as plain data; {} where there is none."""
    return asdict(evidence) if evidence else {}


def from_json(raw: Mapping[str, Any]) -> Evidence | None:
    """The inverse of to_json; KeyError or TypeError where a field is missing or unknown."""
    if not raw:
        return None
    if "failed" in raw:
        return Estimated(**{**raw, "gemv": Cost(**raw["gemv"]), "gemm": Cost(**raw["gemm"])})
    return Measured(**{**raw, "gemv": Decode(**raw["gemv"]), "gemm": Prefill(**raw["gemm"])})
