"""Conversations in files: JSON with the messages in the form that chat APIs have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitgen import data
from bitgen.convert.json_files import parse_object
from bitgen.engine.chat import Message
from bitgen.errors import BitgenError, FormatError, quoted

MOST_BYTES = 1 << 26
KEYS = ("model", "messages")


def save(path: Path, model: str, messages: Sequence[Message]) -> None:
    """Write a conversation, whose first message may be the system's. A file that holds something else stays."""
    if path.exists():
        try:
            load(path)
        except FormatError:
            raise BitgenError(f"{path} is there and holds no conversation; choose another name") from None
    text = json.dumps({"model": model, "messages": [dict(m) for m in messages]}, ensure_ascii=False, indent=1)
    with data.replacing(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def load(path: Path) -> list[Message]:
    """The messages in a file: perhaps the system's, then the user's and the assistant's in turn, each with a text.

    FormatError: it holds anything else.
    """
    with data.regular(path).open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise FormatError(f"{path}: is larger than {MOST_BYTES >> 20} MiB")
    try:
        found = parse_object(content.decode(), f"{path}")
    except UnicodeDecodeError as e:
        raise FormatError(f"{path}: is not UTF-8 text (byte {e.start})") from None
    unknown = [key for key in found if key not in KEYS]
    if unknown:
        raise FormatError(f"{path}: has the key {quoted(unknown[0])}; a conversation has {' and '.join(KEYS)}")
    if not isinstance(found.get("messages"), list):
        raise FormatError(f"{path}: has no list of messages")
    messages = [_message(path, number, value) for number, value in enumerate(found["messages"], 1)]
    _check_roles(path, [message["role"] for message in messages])
    return messages


def _message(path: Path, number: int, value: Any) -> Message:
    if not isinstance(value, dict) or set(value) != {"role", "content"}:
        raise FormatError(f"{path}: message {number} is {quoted(value)}, must have a role and a content, no more")
    for key, text in value.items():
        if not isinstance(text, str):
            raise FormatError(f"{path}: the {key} of message {number} is {quoted(text)}, must be a text")
    return {"role": value["role"], "content": value["content"]}


def _check_roles(path: Path, roles: Sequence[str]) -> None:
    turns = roles[1:] if roles[:1] == ["system"] else roles
    skipped = len(roles) - len(turns)
    for i, role in enumerate(turns):
        expected = ("user", "assistant")[i % 2]
        if role != expected:
            raise FormatError(f"{path}: message {i + skipped + 1} is of {quoted(role)}, must be of the {expected}")
    if len(turns) % 2:
        raise FormatError(f"{path}: the last message has no answer; leave it out, and type it")
