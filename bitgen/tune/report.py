"""What tuning a model's matrices gave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitgen import notebook
from bitgen.kernels import plan
from bitgen.kernels.evidence import Cost, Decode, Measured, Prefill, to_json
from bitgen.kernels.plan import Plan
from bitgen.spec import ModelShape


def _figures(evidence: Decode | Prefill | Cost | None) -> dict[str, object]:
    """What was measured or estimated of a kernel and of the static default's."""
    if evidence is None:
        return {}
    if isinstance(evidence, Cost):
        return {"cycles_per_token": evidence.cycles, "default": evidence.default_cycles}
    share = evidence.bandwidth_share if isinstance(evidence, Decode) else evidence.peak_share
    return {"microseconds": evidence.seconds * 1e6, "default": evidence.default_seconds * 1e6, "share_of_limit": share}


@dataclass(frozen=True)
class TuneReport:
    """The plan that was made for a model's matrices, with its evidence, and where it was written."""

    model: ModelShape
    plan: Plan
    path: Path
    build: str  # the command that builds with this plan; "" where builds use it unasked
    threads: int | None = None  # that were measured with; None: estimated
    forgotten: tuple[str, ...] = ()  # matrices whose earlier decisions were dropped first

    @property
    def isa(self) -> str:
        """The instruction-set level of all its kernels."""
        return self.plan.isa

    @property
    def cpu(self) -> str:
        """The CPU that it is for."""
        return self.plan.cpu

    def _repr_html_(self) -> str:
        """For notebooks: a row for each matrix and phase, with its kernel and what speaks for it."""
        by = f"{self.threads} threads" if self.threads else self.plan.basis
        title = f"{self.model.name} on {self.isa}, {by}; {self.cpu}; plan: {self.path}"
        return notebook.table(title, self._records())

    def _records(self) -> Iterator[dict[str, object]]:
        for role, gemm in self.model.all_matrices.items():
            decision = self.plan.decisions[gemm]
            kernels = decision.plan.specs(gemm, self.isa)
            found = decision.evidence
            parts = (found.gemv, found.gemm) if found else (None, None)
            for phase, spec, evidence in zip(("decode", "prefill"), kernels, parts, strict=True):
                yield {"matrix": role, "shape": str(gemm), "phase": phase, "kernel": spec.symbol, **_figures(evidence)}

    @property
    def disturbed(self) -> list[str]:
        """The matrices that were measured while the machine had other work."""
        evidence = {role: self.plan.decisions[gemm].evidence for role, gemm in self.model.all_matrices.items()}
        return [role for role, found in evidence.items() if isinstance(found, Measured) and found.disturbed]

    def to_json(self) -> dict[str, Any]:
        """What `bitgen tune --json` prints: of each matrix its kernels, and why they were chosen."""
        return {
            "model": self.model.name,
            "isa": self.isa,
            "cpu": plan.cpu_title(self.cpu),
            "cpu_key": self.cpu,
            "basis": self.plan.basis,
            "compiler": self.plan.compiler,
            "threads": self.threads,
            "plan_file": str(self.path),
            "build_command": self.build or None,
            "forgotten": list(self.forgotten),
            "disturbed": self.disturbed,
            "matrices": [self._matrix(role) for role in self.model.all_matrices],
        }

    def _matrix(self, role: str) -> dict[str, Any]:
        gemm = self.model.all_matrices[role]
        decision = self.plan.decisions[gemm]
        decode, prefill = decision.plan.specs(gemm, self.isa)
        return {
            "matrix": role,
            **asdict(gemm),
            "decode_symbol": decode.symbol,
            "prefill_symbol": prefill.symbol,
            "evidence": to_json(decision.evidence),
        }
