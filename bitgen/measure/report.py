"""What `bitgen bench` reports, as types: a row for each case, and its parts as `--json` prints them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from html import escape
from typing import Any, Literal

from bitgen import notebook
from bitgen.compile.pack import Head
from bitgen.engine.opened import Cache
from bitgen.spec import Activation

Kind = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Case:
    """What is measured: `tokens` in one prompt, or one by one in each of `batch` sequences."""

    kind: Kind
    tokens: int
    threads: int
    batch: int = 1  # sequences decoded together
    context: int = 0  # tokens in the cache before the run

    @property
    def title(self) -> str:
        """ "decode 64", "decode 64 x 4", "prefill 128 at 3500"."""
        batch = f" x {self.batch}" if self.batch > 1 else ""
        context = f" at {self.context}" if self.context else ""
        return f"{self.kind} {self.tokens}{batch}{context}"


@dataclass(frozen=True)
class Limits:
    """What the machine can do with a number of threads."""

    bytes_s: float
    ops_s: float


@dataclass(frozen=True)
class Subject:
    """The model that is measured, and how it is run."""

    name: str
    file: str
    head: Head
    cache: Cache
    isa: str
    activation: Activation


@dataclass(frozen=True)
class Machine:
    """The host, and its limits for each number of threads."""

    cpu: str
    system: str
    compiler: str
    load_before: float  # the load average before anything was measured
    limits: Mapping[int, Limits]

    def to_json(self) -> dict[str, Any]:
        """The limits in GB/s and GOP/s."""
        return {
            "cpu": self.cpu,
            "system": self.system,
            "compiler": self.compiler,
            "load_before": self.load_before,
            "read_gb_s": {threads: limits.bytes_s / 1e9 for threads, limits in self.limits.items()},
            "peak_gop_s": {threads: limits.ops_s / 1e9 for threads, limits in self.limits.items()},
        }


@dataclass(frozen=True)
class Rate:
    """Tokens per second (median, least and most of the runs), and shares of what the machine was measured to do.

    bytes_per_token: weights, head and KV cache read per token; gb_s: that times the rate.
    bandwidth_share: gb_s over the read bandwidth of the same threads; ops_share: integer operations (two per
    ternary weight and token) over the peak of the ISA's dot product.
    """

    case: Case
    tok_s: float
    tok_s_min: float
    tok_s_max: float
    bytes_per_token: float
    gb_s: float
    bandwidth_share: float
    ops_share: float


@dataclass(frozen=True)
class Step:
    """One step of the forward pass. Rates are None for what streams no weights or does no integer products."""

    step: str  # a name of `enum bg_step`, or "outside"
    share: float  # of the wall time
    ms_per_token: float
    calls: float  # in a run
    gb_s: float | None
    gop_s: float | None
    bandwidth_share: float | None
    ops_share: float | None


@dataclass(frozen=True)
class Profile:
    """Where the time of a case goes, the longest step first."""

    case: Case
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Race:
    """Medians over the rounds in which bitgen and a peer took turns, in tok/s; ratio: bitgen's rate over the peer's."""

    tok_s: float
    tok_s_min: float
    tok_s_max: float
    bitgen_tok_s: float
    ratio: float


@dataclass(frozen=True)
class PeerRow:
    """A case run by another engine and by bitgen in turn; without a race where the two cannot be compared."""

    peer: str
    about: str  # what ran, in words
    activation: Activation  # what the peer's FFN computes
    case: Case
    race: Race | None
    agreement: float | None  # correlation of the peer's logits with bitgen's
    error: str | None  # why there is no race

    def to_json(self) -> dict[str, Any]:
        """One flat row, with the numbers of the race, or None in their place."""
        numbers = asdict(self.race) if self.race else dict.fromkeys(field.name for field in fields(Race))
        return {
            "peer": self.peer,
            "about": self.about,
            "activation": self.activation,
            **asdict(self.case),
            **numbers,
            "agreement": self.agreement,
            "error": self.error,
        }


@dataclass(frozen=True)
class EnergyRow:
    """Medians over the runs of a case."""

    case: Case
    joules_per_token: float
    watts: float


@dataclass(frozen=True)
class Energy:
    """Energy of every case, or the reason why there is none."""

    zones: tuple[str, ...]  # the counters that were added up
    reason: str | None
    results: tuple[EnergyRow, ...]

    def to_json(self) -> dict[str, Any]:
        """The rows flat."""
        return {"zones": self.zones, "reason": self.reason, "results": [_flat(row) for row in self.results]}


@dataclass(frozen=True)
class BenchReport:
    """Everything that one `bitgen bench` measured. The last three parts are None where nobody asked for them."""

    model: Subject
    host: Machine
    results: tuple[Rate, ...]
    profile: tuple[Profile, ...] | None = None
    peers: tuple[PeerRow, ...] | None = None
    energy: Energy | None = None

    @property
    def cases(self) -> list[Case]:
        """What was measured, in order."""
        return [rate.case for rate in self.results]

    def to_json(self) -> dict[str, Any]:
        """What `bitgen bench --json` prints."""
        report: dict[str, Any] = {
            "model": asdict(self.model),
            "host": self.host.to_json(),
            "results": [_flat(rate) for rate in self.results],
        }
        if self.profile is not None:
            report["profile"] = [_flat(profile) for profile in self.profile]
        if self.peers is not None:
            report["peers"] = [row.to_json() for row in self.peers]
        if self.energy is not None:
            report["energy"] = self.energy.to_json()
        return report

    def _repr_html_(self) -> str:
        """For notebooks: a table of the rates, and one for each further part."""
        model = self.model
        title = f"{model.name} on {model.isa}, {model.head} head, {model.cache} cache; {self.host.cpu}"
        parts = [notebook.table(title, map(_flat, self.results))]
        for found in self.profile or ():
            of = f"where the time of {found.case.title} on {found.case.threads} threads goes"
            parts.append(notebook.table(of, map(asdict, found.steps)))
        parts.append(notebook.table("beside other engines", (row.to_json() for row in self.peers or ())))
        if self.energy is not None:
            of = f"energy of {', '.join(self.energy.zones)}" if self.energy.reason is None else self.energy.reason
            parts.append(notebook.table(of, map(_flat, self.energy.results)) or f"<p>{escape(of)}</p>")
        return "".join(parts)


def _flat(row: Rate | Profile | EnergyRow) -> dict[str, Any]:
    """A row as JSON: the fields of its case, then its own."""
    values = asdict(row)
    return {**values.pop("case"), **values}
