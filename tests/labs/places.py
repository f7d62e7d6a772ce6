"""Where the tests' own files are."""

from __future__ import annotations

from pathlib import Path

LABS = Path(__file__).resolve().parent
TESTS = LABS.parent
REPO = TESTS.parent
DATA, GOLDEN = TESTS / "data", TESTS / "golden"
