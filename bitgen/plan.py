"""The tuned plan: which layout and tiles each matrix shape gets on an ISA, with the evidence for it.

A plan belongs to a CPU model and an ISA and maps matrix shapes to decisions, so models that share a shape
share its tuning. Look-up order for a shape: the plan of this host, the plan that ships for the ISA or else for
the nearest level below it, the static default of `space`. A decision that has become illegal, or that was made
with other templates, is passed over and replanned; it is never an error.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from bitgen import data, space, targets
from bitgen.compile import cache_root
from bitgen.errors import BitgenError
from bitgen.spec import GemmShape, Layout, MatrixPlan, ModelShape, Tile

VERSION = 1


@dataclass(frozen=True)
class Decision:
    """A plan for one matrix and why: candidates tried, seconds, share of the machine's limit."""

    plan: MatrixPlan
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass
class Plan:
    """Decisions by matrix shape for one CPU model and ISA."""

    isa: str
    cpu: str
    stamp: str = ""  # hash of the templates the decisions were measured with
    compiler: str = ""
    basis: str = ""  # where the times come from, in words
    decisions: dict[GemmShape, Decision] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data, matrices keyed "MxK" or "MxK_sGROUP"."""
        head = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "decisions"}
        matrices = {
            str(shape): {**dataclasses.asdict(d.plan), "evidence": d.evidence}
            for shape, d in sorted(self.decisions.items(), key=lambda item: astuple(item[0]))
        }
        return {"version": VERSION, **head, "matrices": matrices}

    @classmethod
    def from_json(cls, raw: dict[str, Any], where: Path) -> Plan:
        """The inverse of to_json; BitgenError names the file when it is not a plan."""
        try:
            if raw["version"] != VERSION:
                raise ValueError(f"plan version {raw['version']}, this bitgen reads {VERSION}")
            head = {f.name: raw[f.name] for f in dataclasses.fields(cls) if f.name not in ("decisions", "basis")}
            decisions = {}
            for key, entry in raw["matrices"].items():
                matrix = MatrixPlan(Layout(**entry["layout"]), Tile(**entry["gemv"]), Tile(**entry["gemm"]))
                decisions[GemmShape.parse(key)] = Decision(matrix, entry["evidence"])
            return cls(**head, basis=raw.get("basis", ""), decisions=decisions)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise BitgenError(f"{where} is not a bitgen plan ({e}); delete it and tune again") from e


def cpu_name(cpuinfo: str | None = None) -> str:
    """The CPU's own name, which keys its plans: this host's, or that of the machine with this /proc/cpuinfo."""
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text()
        except OSError:  # not Linux
            return platform.processor() or "unknown CPU"
    fields = dict(re.findall(r"^(model name|cpu family|model|CPU implementer|CPU part)\s*:\s*(.+)$", cpuinfo, re.M))
    return " ".join(fields[k] for k in sorted(fields)) or "unknown CPU"


@functools.cache
def template_stamp() -> str:
    """Hash of all template text: measurements of other templates' kernels say nothing about these."""
    digest = hashlib.sha256()
    for file in sorted(data.folder("templates").rglob("*.j2")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def path_of(cpu: str, isa: str) -> Path:
    """Where the plan for an ISA on a CPU is kept."""
    slug = re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-")
    return cache_root() / "plans" / f"{slug}-{isa}.json"


def host_path(isa: str) -> Path:
    """Where this host's plan for an ISA is kept."""
    return path_of(cpu_name(), isa)


def load(path: Path) -> Plan | None:
    """The plan in a file; None when there is none."""
    try:
        return Plan.from_json(json.loads(path.read_text()), path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise BitgenError(f"{path} cannot be read as a plan ({e}); delete it and tune again") from e


def save(plan: Plan, path: Path) -> None:
    """Write a plan by atomic rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(plan.to_json(), indent=1) + "\n")
    partial.replace(path)


@dataclass(frozen=True)
class Lookup:
    """What a model runs with: a MatrixPlan per role, and where each came from."""

    isa: str
    matrices: dict[str, MatrixPlan]
    sources: dict[str, str]  # role -> "given, ..." | "tuned on this host" | "shipped" | "default"
    threads: int | None  # the count that decodes fastest, where this host has measured it

    @property
    def layout_key(self) -> str:
        """The key that a packed model and a library must agree on."""
        return ";".join(f"{role}={plan.layout}" for role, plan in self.matrices.items())


def best_threads(decisions: Sequence[Decision]) -> int | None:
    """The thread count with the least measured decode time over some matrices; None without measurements."""
    times = [d.evidence.get("gemv", {}).get("seconds_by_threads", {}) for d in decisions]
    counts = set.intersection(*map(set, times)) if times else set()
    return int(min(counts, key=lambda n: sum(t[n] for t in times))) if counts else None


def for_build(file: Path, shape: ModelShape, isas: Sequence[str]) -> Plan:
    """The plan in a file that a user names for a build; BitgenError when it would decide nothing there."""
    plan = load(file)
    if plan is None:
        raise BitgenError(f"there is no plan at {file}; bitgen tune -o {file} makes one")
    if plan.isa not in isas:
        raise BitgenError(f"{file} is a plan for {plan.isa}, which is not built here; only {', '.join(isas)}")
    if plan.stamp != template_stamp():
        raise BitgenError(f"{file} was measured with the kernels of another bitgen; tune again")
    if not plan.decisions.keys() & set(shape.matrices.values()):
        raise BitgenError(f"{file} decides no matrix of {shape.name}; tune for this model")
    return plan


def lookup(shape: ModelShape, isa: str, given: Sequence[Plan] = ()) -> Lookup:
    """The best known plan of every matrix of a model on an ISA; given plans come first."""
    host = load(host_path(isa))
    folder = data.folder("presets") / "plans"
    shipped = next((found for level in targets.fallbacks(isa) if (found := load(folder / f"{level}.json"))), None)
    tables = [(plan, f"given, {plan.basis}") for plan in given if plan.isa == isa]
    if host is not None and host.stamp == template_stamp():
        tables.append((host, "tuned on this host"))
    if shipped is not None:
        tables.append((shipped, "shipped"))
    matrices, sources = {}, {}
    for role, gemm in shape.matrices.items():
        matrices[role], sources[role] = space.default_plan(gemm, isa), "default"
        for plan, source in tables:
            decision = plan.decisions.get(gemm)
            if decision and not any(space.legal(spec) for spec in decision.plan.specs(gemm, isa)):
                matrices[role], sources[role] = decision.plan, source
                break
    tuned = [host.decisions[g] for r, g in shape.matrices.items() if host and sources[r] == "tuned on this host"]
    return Lookup(isa, matrices, sources, best_threads(tuned))
