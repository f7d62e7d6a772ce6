"""What tuning a model's matrices gave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bitgen.kernels.evidence import Measured
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
