"""Shared by the tests of conversion: a tiny model's directory."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    import hf_models  # which needs PyTorch: the tests that do not have it are skipped before

    return hf_models.save(hf_models.BITNET, tmp_path / "model")
