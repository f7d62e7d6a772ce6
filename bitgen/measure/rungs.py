"""What `bitgen bench --ladder` reports, as types, and its file of results: a line of JSON for each case of a rung."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from bitgen import data, notebook
from bitgen.compile.pack import Head
from bitgen.engine.opened import Cache
from bitgen.errors import BitgenError, quoted, size
from bitgen.measure.report import Kind

READING = (5.0, 7.0)
"""Tokens per second at which people read, as bitnet.cpp's report has it."""


@dataclass(frozen=True)
class RungRate:
    """One case on one rung, and all that says whether it is the one that would be measured now."""

    rung: str
    parameters: int
    kernels: str  # a digest of those of its plan, and of bitgen's version
    bits: float  # of a ternary weight as packed
    cpu: str
    isa: str
    head: Head
    cache: Cache
    kind: Kind
    tokens: int
    threads: int
    tok_s: float  # median of the runs
    tok_s_min: float
    tok_s_max: float
    bytes_per_token: float
    read_bytes_s: float  # the machine's bandwidth with those threads, measured in the same run
    joules_per_token: float | None  # None where there are no counters

    @property
    def size(self) -> str:
        """Of its rung, like "7B"."""
        return self.rung.rpartition("-")[2]

    @property
    def bandwidth_share(self) -> float:
        """Of what could be read, what was."""
        return self.bytes_per_token * self.tok_s / self.read_bytes_s

    def is_of(self, wanted: Mapping[str, Any]) -> bool:
        """Whether it has these fields."""
        return all(getattr(self, name) == value for name, value in wanted.items())


@dataclass(frozen=True)
class Misfit:
    """A rung that was left out."""

    rung: str
    of: Literal["memory", "disk"]
    needed_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        """A sentence with both numbers."""
        needs, free = size(self.needed_bytes), size(self.free_bytes)
        return f"{self.rung} does not fit: it needs {needs} of {self.of}, and {free} are free"


@dataclass(frozen=True)
class LadderReport:
    """All rungs that were asked for: what was measured, now or before, and what does not fit."""

    file: Path  # of the results
    rates: tuple[RungRate, ...]
    misfits: tuple[Misfit, ...]
    no_energy: str | None  # why there are no joules

    def to_json(self) -> dict[str, Any]:
        """What `bitgen bench --ladder --json` prints."""
        return {
            "file": str(self.file),
            "reading_tok_s": READING,
            "results": [{**asdict(rate), "bandwidth_share": rate.bandwidth_share} for rate in self.rates],
            "misfits": [asdict(misfit) for misfit in self.misfits],
            "no_energy": self.no_energy,
        }

    def _repr_html_(self) -> str:
        """For notebooks: a table of the rates, and one of what does not fit."""
        found = self.to_json()
        return notebook.table("the ladder", found["results"]) + notebook.table("does not fit", found["misfits"])


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "float | None": (float, int, type(None)),
}
"""A field's type -> what JSON may have there. Types that are not listed are texts."""


def read(path: Path) -> list[RungRate]:
    """The results in a file, none where there is no file; BitgenError names the first line that is none."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BitgenError(f"{path}: cannot be read: {error}") from None
    return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def append(path: Path, rates: Iterable[RungRate]) -> None:
    """Add results to a file, which is replaced by one that has them too."""
    with data.replacing(path, parents=True) as part:
        part.write_text("".join(json.dumps(asdict(rate)) + "\n" for rate in (*read(path), *rates)), encoding="utf-8")


def _parsed(line: str, where: str) -> RungRate:
    try:
        values = json.loads(line)
        kinds = {field.name: _TYPES.get(str(field.type), (str,)) for field in fields(RungRate)}
        if values.keys() != kinds.keys() or not all(isinstance(values[name], kinds[name]) for name in kinds):
            raise ValueError
        return RungRate(**values)
    except (ValueError, AttributeError):
        raise BitgenError(f"{where}: {quoted(line)} is no result of the ladder; name another file") from None
