"""What `bitgen verify` leaves: its verdicts, and on which files, plans and machine they were reached."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bitgen import data, store, targets
from bitgen.compile.clang import Artefact
from bitgen.compile.compiler import find_compiler
from bitgen.gguf.reader import GgufCheckpoint
from bitgen.kernels import plan
from bitgen.kernels.plan import ModelPlan
from bitgen.spec import Listener


@dataclass(frozen=True)
class Check:
    """One verdict: what was compared, on what, and how it went."""

    group: str
    subject: str
    ok: bool
    detail: str
    seconds: float = 0.0


@dataclass
class Receipt:
    """What was verified, of which files, on which machine."""

    machine: Mapping[str, Any]
    model: Mapping[str, Any]
    levels: Mapping[str, Any]
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything held, and something was tried."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The receipt as plain data, the verdict first."""
        return {"verdict": "pass" if self.ok else "FAIL", **asdict(self)}


def machine() -> dict[str, Any]:
    return {
        "bitgen": importlib.metadata.version("bitgen"),
        "cpu": plan.cpu_title(plan.cpu_name()),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": find_compiler(targets.platform_of()).version,
        "templates": _templates(),
    }


def _templates() -> str:
    """Hash of all template text."""
    digest = hashlib.sha256()
    for file in sorted(data.folder("templates").rglob("*.j2")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def model(checkpoint: GgufCheckpoint, listener: Listener) -> dict[str, Any]:
    """What a receipt says of the model. The hash is of its file, or of the parts' bytes one after the other."""
    digest, done = hashlib.sha256(), 0
    size = sum(path.stat().st_size for path in checkpoint.files)
    for path in checkpoint.files:
        with path.open("rb") as f:
            while block := f.read(1 << 22):
                listener("hashing the file", done, size)
                digest.update(block)
                done += len(block)
    return {
        "name": checkpoint.shape.name,
        "file": checkpoint.path.name,
        "bytes": size,
        "sha256": digest.hexdigest(),
    }


def levels(plans: Sequence[ModelPlan], artefact: Artefact) -> dict[str, Any]:
    layouts = {at.isa: {role: asdict(p) for role, p in at.matrices.items()} for at in plans}
    return {
        "plans": layouts,
        "plans_sha256": hashlib.sha256(json.dumps(layouts, sort_keys=True).encode()).hexdigest(),
        "library_sha256": store.sha256(artefact.path),
    }
