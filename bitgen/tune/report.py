"""What tuning a model's matrices gave."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitgen.kernels import plan
from bitgen.kernels.evidence import Measured, to_json
from bitgen.kernels.plan import Plan
from bitgen.spec import ModelShape


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

    @property
    def disturbed(self) -> list[str]:
        """The matrices that were measured while the machine had other work."""
        evidence = {role: self.plan.decisions[gemm].evidence for role, gemm in self.model.matrices.items()}
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
            "matrices": [self._matrix(role) for role in self.model.matrices],
        }

    def _matrix(self, role: str) -> dict[str, Any]:
        gemm = self.model.matrices[role]
        decision = self.plan.decisions[gemm]
        decode, prefill = decision.plan.specs(gemm, self.isa)
        return {
            "matrix": role,
            **asdict(gemm),
            "decode_symbol": decode.symbol,
            "prefill_symbol": prefill.symbol,
            "evidence": to_json(decision.evidence),
        }
