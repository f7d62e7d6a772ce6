"""`bitgen doctor`: what there is on this machine to run on, what is missing, and what to do about it.

Each check runs in a thread of its own and has a time limit: one that fails or hangs is a line of the report and keeps
no other from being made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bitgen.errors import BitgenError
from bitgen.measure import install_checks, machine_checks
from bitgen.measure.findings import Finding, Models, State
from bitgen.spec import Listener


@dataclass(frozen=True)
class Check:
    """One row of the examination."""

    name: str
    find: Callable[[Models], Iterator[Finding]]
    vital: bool = False  # bitgen does not run where it fails
    limit_s: float = 20.0


CHECKS = (
    Check("version", machine_checks.versions),
    Check("cpu", machine_checks.cpu),
    Check("threads", machine_checks.threads),
    Check("model", machine_checks.model, vital=True),
    Check("memory", machine_checks.memory),
    Check("cache", install_checks.cache, vital=True, limit_s=60),
    Check("hub_cache", install_checks.hub_cache, limit_s=60),
    Check("compiler", install_checks.compilers, vital=True, limit_s=300),
    Check("level", machine_checks.levels, vital=True, limit_s=300),  # the first time the probes are compiled
    Check("plan", install_checks.plans, vital=True, limit_s=60),
    Check("hub", install_checks.hub),
    Check("extra", install_checks.extras),
    Check("port", install_checks.port),
)


@dataclass(frozen=True)
class Report:
    """What was found, in the order of CHECKS."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing stops bitgen from running."""
        return not any(finding.state == "problem" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As plain data: `ok`, and the findings with their values."""
        return {"ok": self.ok, "findings": [asdict(finding) for finding in self.findings]}


def examine(models: Models, progress: Listener = lambda *_: None) -> Report:
    """Make every check, for these models. Nothing is raised, and no check takes longer than its limit."""
    found: list[Finding] = []
    for done, check in enumerate(CHECKS):
        progress(f"looking at: {check.name.replace('_', ' ')}", done, len(CHECKS))
        found += _isolated(check, models)
    return Report(tuple(found))


def _isolated(check: Check, models: Models) -> list[Finding]:
    """The findings of one check, and a line for what ended it early."""
    found: list[Finding] = []
    ended = threading.Event()

    def work() -> None:
        try:
            for finding in check.find(models):
                found.append(finding)  # those before an error stay
        except BaseException as error:
            found.append(_failed(check, error))
        ended.set()

    threading.Thread(target=work, daemon=True).start()
    if not ended.wait(check.limit_s):
        late = f"no answer within {check.limit_s:g} seconds"
        return [
            *found,
            Finding(check.name, _state(check), late, "look at what hangs there: a disk, a network, a program"),
        ]
    return found


def _failed(check: Check, error: BaseException) -> Finding:
    """An error on purpose says what to do; another is a fault of the check."""
    if isinstance(error, BitgenError):
        return Finding(check.name, _state(check), str(error))
    fact = f"this check failed: {type(error).__name__}: {error}"
    return Finding(check.name, "warning", fact, "please report it with this line")


def _state(check: Check) -> State:
    return "problem" if check.vital else "warning"
