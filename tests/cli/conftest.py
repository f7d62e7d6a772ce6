"""Shared by the tests of the command line: a model that talks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bitgen.data import shipped_path
from bitgen.gguf.reader import read_gguf
from bitgen.gguf.writer import write_gguf
from bitgen.text.chat_templates import NAMED


class _Renamed:
    """A checkpoint with other key-values."""

    def __init__(self, inner: Any, more: Mapping[str, Any]) -> None:
        self._inner, self.metadata = inner, {**inner.metadata, **more}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with a chat template: it answers nonsense, in the right frame."""
    path = tmp_path_factory.mktemp("talker") / "talker.gguf"
    write_gguf(path, _Renamed(read_gguf(shipped_path()), {"tokenizer.chat_template": NAMED["bitnet"]}))
    return path
