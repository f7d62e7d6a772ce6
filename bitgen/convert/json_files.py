"""The small files of a checkpoint. Nobody has checked them: each is read whole, or refused in one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitgen.errors import FormatError, quoted

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(path: Path) -> str | None:
    """The text of a UTF-8 file, or None where there is no file. FormatError: it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            raise FormatError(f"{path} is not a file")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: byte {error.start} is not UTF-8") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read: {quoted(error)}") from None


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is no file. FormatError: it holds none, or no Unicode."""
    text = read_text(path)
    if text is None:
        return None
    return parse_object(text, f"{path}")


def model_config(directory: Path) -> dict[str, Any]:
    """config.json, and under its keys those of its text_config; empty where there is no file."""
    values = read_object(directory / "config.json") or {}
    text = values.get("text_config")
    return text | values if isinstance(text, dict) else values


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object that a text spells. where: begins each message."""
    try:
        values = json.loads(text)
        if isinstance(text, str) and _SURROGATE.search(text):
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise FormatError(f"{where}: holds half of a surrogate pair, which is no Unicode text") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: cannot be read as JSON: {quoted(error)}") from None
    if not isinstance(values, dict):
        raise FormatError(f"{where}: not a JSON object")
    return values


@contextmanager
def refusals(where: str) -> Iterator[None]:
    """What `tokenizers` raises of a file, its panics included, as a FormatError."""
    try:
        yield
    except BaseException as error:  # a panic of Rust code derives from nothing narrower
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise FormatError(f"{where}: cannot be read as a tokenizer: {quoted(error)}") from None
