"""The tuned plan: which layout and tiles each matrix shape gets on an ISA, with the evidence for it.

A plan belongs to a CPU model and an ISA and maps matrix shapes to decisions, so models that share a shape
share its tuning. Look-up order for a shape: the plan of this host, the plan that ships for the ISA or else for
the nearest level below it, the static default of `space`.

Each decision carries a stamp of the kernels it was made for, as FFTW's wisdom does, and is stale when today's templates
render others. A stale or illegal decision of this host, and every decision of a plan file of an earlier version, is
passed over and replanned; it is never an error. A stale decision that ships still serves, and its source says so: the
choice among older kernels beats none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from bitgen import data, store, targets
from bitgen.errors import BitgenError
from bitgen.kernels import render, space
from bitgen.kernels.evidence import Evidence, Measured, from_json, to_json
from bitgen.spec import GemmShape, Layout, MatrixPlan, ModelShape, Tile

VERSION = 2


@dataclass(frozen=True)
class Decision:
    """A plan for one matrix and why: candidates tried, seconds, share of the machine's limit."""

    plan: MatrixPlan
    evidence: Evidence | None = None
    stamp: str = ""  # of the kernels that the evidence is about; "": not known

    @classmethod
    def of(cls, plan: MatrixPlan, shape: GemmShape, isa: str, evidence: Evidence) -> Decision:
        """A decision about a matrix with the kernels of today's templates."""
        return cls(plan, evidence, stamp(plan, shape, isa))

    def is_legal(self, shape: GemmShape, isa: str) -> bool:
        """Whether both kernels of a matrix can be generated."""
        return not any(space.legal(spec) for spec in self.plan.specs(shape, isa))

    def is_current(self, shape: GemmShape, isa: str) -> bool:
        """Whether today's templates render the kernels that were measured."""
        return self.stamp != "" and self.is_legal(shape, isa) and self.stamp == stamp(self.plan, shape, isa)


def stamp(plan: MatrixPlan, shape: GemmShape, isa: str) -> str:
    """Hash of the C of a matrix's two kernels: edits of comments and of other kernels keep it."""
    code = "\n".join(render.kernel_code(spec) for spec in plan.specs(shape, isa))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


@dataclass
class Plan:
    """Decisions by matrix shape for one CPU model and ISA."""

    isa: str
    cpu: str
    compiler: str = ""
    basis: str = ""  # where the times come from, in words
    decisions: dict[GemmShape, Decision] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data, matrices keyed "MxK" or "MxK_sGROUP"."""
        head = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "decisions"}
        matrices = {
            str(shape): {"stamp": d.stamp, **dataclasses.asdict(d.plan), "evidence": to_json(d.evidence)}
            for shape, d in sorted(self.decisions.items(), key=lambda item: astuple(item[0]))
        }
        return {"version": VERSION, **head, "matrices": matrices}

    @classmethod
    def from_json(cls, raw: dict[str, Any], where: Path) -> Plan:
        """The inverse of to_json; BitgenError names the file when it is not a plan.

        Of an earlier version it keeps no decision: it is not known which kernels those were about.
        """
        try:
            if raw["version"] > VERSION:
                raise ValueError(f"plan version {raw['version']}, this bitgen reads {VERSION}")
            plan = cls(raw["isa"], raw["cpu"], raw["compiler"], raw.get("basis", ""))
            for key, entry in raw["matrices"].items() if raw["version"] == VERSION else ():
                layout, gemv, gemm = (
                    _typed(kind, entry[name]) for kind, name in ((Layout, "layout"), (Tile, "gemv"), (Tile, "gemm"))
                )
                evidence = from_json(entry["evidence"])
                plan.decisions[GemmShape.parse(key)] = Decision(
                    MatrixPlan(layout, gemv, gemm), evidence, entry["stamp"]
                )
            return plan
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise BitgenError(f"{where} is not a bitgen plan ({e}); delete it and tune again") from e


def _typed(kind: type[Any], raw: dict[str, Any]) -> Any:
    """A dataclass of numbers and names from plain data; ValueError where a value is of another type, or negative."""
    made = kind(**raw)
    for item in dataclasses.fields(kind):
        value = getattr(made, item.name)
        if type(value).__name__ != item.type or (isinstance(value, int) and value < 0):
            raise ValueError(f"{item.name} is {value!r}")
    return made


def cpu_name(cpuinfo: str | None = None) -> str:
    """The CPU's own name, which keys its plans: this host's, or that of the machine with this /proc/cpuinfo."""
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text()
        except OSError:  # not Linux
            return platform.processor() or "unknown CPU"
    fields = dict(re.findall(r"^(model name|cpu family|model|CPU implementer|CPU part)\s*:\s*(.+)$", cpuinfo, re.M))
    return " ".join(fields[k] for k in sorted(fields)) or "unknown CPU"


def cpu_title(name: str) -> str:
    """The CPU of a `cpu_name` as its maker markets it: without the numbers that tell models apart; an ARM core by name.

    "25 17 AMD EPYC 9B14" is "AMD EPYC 9B14", "0x41 0xd0c" is "Neoverse-N1".
    """
    implementer, _, rest = name.partition(" ")
    part, _, sold_as = rest.partition(" ")
    if core := targets.CORES.get((implementer, part)):
        return core
    return sold_as if sold_as and implementer.isdecimal() and part.isdecimal() else name


def path_of(cpu: str, isa: str) -> Path:
    """Where the plan for an ISA on a CPU is kept."""
    name = store.slug(re.sub(r"[^a-z0-9]+", "-", cpu.lower()))
    return data.cached("plans") / f"{name}-{isa}.json"


def host_path(isa: str) -> Path:
    """Where this host's plan for an ISA is kept."""
    return path_of(cpu_name(), isa)


def load(path: Path) -> Plan | None:
    """The plan in a file; None when there is none."""
    if not path.exists():
        return None
    try:
        return Plan.from_json(json.loads(data.regular(path).read_text(encoding="utf-8")), path)
    except (OSError, ValueError, RecursionError) as e:
        raise BitgenError(f"{path} cannot be read as a plan ({e}); delete it and tune again") from e


def save(plan: Plan, path: Path) -> None:
    """Write a plan by atomic rename."""
    with data.replacing(path, parents=True) as part:
        part.write_text(json.dumps(plan.to_json(), indent=1) + "\n", encoding="utf-8")


def forget(path: Path, shapes: Iterable[GemmShape]) -> set[GemmShape]:
    """Drop what the plan in a file has decided for some matrices; those for which it had."""
    plan = load(path)
    known = plan.decisions.keys() & set(shapes) if plan else set()
    if plan and known:
        plan.decisions = {shape: decision for shape, decision in plan.decisions.items() if shape not in known}
        save(plan, path)
    return known


@dataclass(frozen=True)
class ModelPlan:
    """What a model runs with: a MatrixPlan per role, and where each came from."""

    isa: str
    matrices: dict[str, MatrixPlan]
    sources: dict[str, str]  # role -> "given, ..." | "tuned on this host" | "shipped..." | "default"
    threads: int | None  # the count that decodes fastest, where this host has measured it

    @property
    def layout_key(self) -> str:
        """The key that a packed model and a library must agree on."""
        return ";".join(f"{role}={plan.layout}" for role, plan in self.matrices.items())


def best_threads(decisions: Sequence[Decision]) -> int | None:
    """The thread count with the least measured decode time over some matrices; None without measurements."""
    times = [d.evidence.gemv.seconds_by_threads if isinstance(d.evidence, Measured) else {} for d in decisions]
    counts = set.intersection(*map(set, times)) if times else set()
    return int(min(counts, key=lambda n: sum(t[n] for t in times))) if counts else None


def for_build(file: Path, shape: ModelShape, isas: Sequence[str]) -> Plan:
    """The plan in a file that a user names for a build; BitgenError when it would decide nothing there."""
    plan = load(file)
    if plan is None:
        raise BitgenError(f"there is no plan at {file}; bitgen tune -o {file} makes one")
    if plan.isa not in isas:
        raise BitgenError(f"{file} is a plan for {plan.isa}, which is not built here; only {', '.join(isas)}")
    known = plan.decisions.keys() & set(shape.all_matrices.values())
    if plan.decisions and not known:
        raise BitgenError(f"{file} decides no matrix of {shape.name}; tune for this model")
    if not known or not all(plan.decisions[gemm].is_current(gemm, plan.isa) for gemm in known):
        raise BitgenError(f"{file} was measured with the kernels of another bitgen; tune again")
    return plan


def of_model(shape: ModelShape, isa: str, given: Sequence[Plan] = ()) -> ModelPlan:
    """The best known plan of every matrix of a model on an ISA; given plans come first."""
    host = load(host_path(isa))
    folder = data.folder("presets") / "plans"
    shipped = next((found for level in targets.fallbacks(isa) if (found := load(folder / f"{level}.json"))), None)
    tables = [(plan, f"given, {plan.basis}") for plan in given if plan.isa == isa]
    tables += [(plan, source) for plan, source in ((host, "tuned on this host"), (shipped, "shipped")) if plan]
    decided = {role: _decided(gemm, isa, tables, shipped) for role, gemm in shape.all_matrices.items()}
    matrices = {role: matrix for role, (matrix, _) in decided.items()}
    sources = {role: source for role, (_, source) in decided.items()}
    tuned = [host.decisions[g] for r, g in shape.all_matrices.items() if host and sources[r] == "tuned on this host"]
    return ModelPlan(isa, matrices, sources, best_threads(tuned))


def _decided(
    gemm: GemmShape, isa: str, tables: Sequence[tuple[Plan, str]], shipped: Plan | None
) -> tuple[MatrixPlan, str]:
    """The plan of one matrix, and its source: the first current decision, else a stale one that ships, else none."""
    for plan, source in tables:
        decision = plan.decisions.get(gemm)
        if decision and decision.is_current(gemm, isa):
            return decision.plan, source
    decision = shipped.decisions.get(gemm) if shipped else None
    if decision and decision.is_legal(gemm, isa):
        return decision.plan, "shipped, chosen among other kernels"
    return space.default_plan(gemm, isa), "default"
