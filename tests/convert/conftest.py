"""Shared by the tests of conversion: a tiny model's directory, and a hub of our own for this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    import hf_models  # which needs PyTorch: the tests that do not have it are skipped before

    return hf_models.save(hf_models.BITNET, tmp_path / "model")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty repository owner/tiny, whose server this process takes for the Hub; and caches of its own."""
    from huggingface_hub import constants

    (tmp_path / "there").mkdir()
    with Hub("owner/tiny", tmp_path / "there").serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
        monkeypatch.setenv("BITGEN_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub
