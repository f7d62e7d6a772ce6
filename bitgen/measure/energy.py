"""Joules per token, from the counters that the processor keeps (RAPL) as Linux shows them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitgen.engine.model import Model
from bitgen.engine.opened import Cache
from bitgen.errors import UnsupportedError
from bitgen.measure import bench
from bitgen.measure.report import BenchReport, Case, Energy, EnergyRow
from bitgen.spec import Listener

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Zone:
    """One counter: microjoules since some time, from 0 again after `range_uj`."""

    name: str  # "package-0", "dram"
    path: Path
    range_uj: int

    def read(self) -> int:
        """Microjoules now."""
        return int((self.path / "energy_uj").read_text())

    def joules(self, before: int, after: int) -> float:
        """Joules between two readings in microjoules, which are less than one round of the counter apart."""
        return (after - before + (self.range_uj if after < before else 0)) / 1e6


def zones(root: Path = POWERCAP) -> list[Zone]:
    """The processor packages and the memory beside each; their energies add up.

    Zones within a package ("core", "uncore") are part of it, "psys" contains it: neither is counted again.
    UnsupportedError: there are none, or this user must not read them.
    """
    found = []
    for path in sorted(root.glob("intel-rapl:*")):  # AMD's processors appear under this name too
        try:
            name = (path / "name").read_text().strip()
            if not name.startswith(("package", "dram")):
                continue
            zone = Zone(name, path, int((path / "max_energy_range_uj").read_text()))
            zone.read()
        except PermissionError as e:
            raise UnsupportedError(
                f"{e.filename} can only be read by root here: run as root, or "
                f"sudo chmod a+r {root}/intel-rapl:*/energy_uj (until the next boot)"
            ) from None
        except (OSError, ValueError) as e:
            raise UnsupportedError(f"{path} does not work as an energy counter: {e}") from None
        found.append(zone)
    if not any(zone.name.startswith("package") for zone in found):
        raise UnsupportedError(
            f"no RAPL counters: {root}/intel-rapl:* holds no package (a virtual machine, another kind of "
            "processor, or a kernel without the module intel_rapl_common)"
        )
    return found


def energy(model: Model, report: BenchReport, listener: Listener = lambda *_: None, root: Path = POWERCAP) -> Energy:
    """Joules per token and watts of every case of a report of `bench`, medians over runs of their own.

    They count all that the packages and their memory used, by any process.
    """
    try:
        counters = zones(root)
    except UnsupportedError as e:
        return Energy((), str(e), ())
    rows = []
    for case, _ in bench.staged(report.cases, listener, "energy of "):
        rows.append(_row(model, counters, case, report.model.cache))
    return Energy(tuple(zone.name for zone in counters), None, tuple(rows))


def _row(model: Model, counters: Sequence[Zone], case: Case, cache: Cache) -> EnergyRow:
    joules, watts = [], []
    with bench.runs(model, case, cache) as (_, timed):
        next(timed)  # this one warms up
        before = [zone.read() for zone in counters]
        for seconds in timed:
            after = [zone.read() for zone in counters]
            used = sum(zone.joules(*pair) for zone, *pair in zip(counters, before, after, strict=True))
            joules.append(used / (case.tokens * case.batch))
            watts.append(used / seconds)
            before = after
    return EnergyRow(case, statistics.median(joules), statistics.median(watts))
