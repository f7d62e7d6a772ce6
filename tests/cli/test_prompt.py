"""The history of what was typed: private, bounded, and never a reason to fail."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from bitgen import data
from bitgen.cli import prompt
from bitgen.cli.talk import candidates, is_open


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def strings(kept: bool = True) -> list[str]:
    return list(prompt.history(kept).load_history_strings())


def test_messages_come_back_the_latest_first(cache: Path) -> None:
    for text in ("one", "two\nlines\r", "\udcff\u2028\x1b", ""):
        prompt.history(True).append_string(text)
    assert strings() == ["", "\udcff\u2028\x1b", "two\nlines\r", "one"]
    file = cache / "history" / "chat.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_nothing_is_written_where_none_is_wanted(cache: Path) -> None:
    history = prompt.history(False)
    history.append_string("secret")
    assert history.get_strings() == ["secret"] and strings(kept=False) == [] and not cache.exists()


def test_it_is_bounded_and_survives_damage(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "KEPT_MESSAGES", 3)
    history = prompt.history(True)
    for text in "abcde":
        history.append_string(text)
    file = cache / "history" / "chat.jsonl"
    assert strings() == ["e", "d", "c"] and file.read_bytes() == b'"c"\n"d"\n"e"\n'
    file.write_bytes(b'"a"\n[1]\n\xff\xfe\n' + b"[" * 9999 + b'\n"b"\n"cut')
    assert strings() == ["b"] and file.read_bytes() == b'"b"\n'
    monkeypatch.setattr(prompt, "KEPT_BYTES", 10)
    file.write_bytes(b'"1234"\n' * 9)
    assert strings() == ["1234"] and file.stat().st_size == 7


def test_a_link_is_not_written_to(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = cache.parent / "other"
    other.write_text("mine")
    data.cached("history").joinpath("chat.jsonl").symlink_to(other)
    prompt.history(True).append_string("x")
    assert other.read_text() == "mine" and "the history of this chat is not kept" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.mkdir(0o500)
    assert strings() == [] and "the history of this chat is not kept" in capsys.readouterr().err


def test_a_disk_that_is_full_later(cache: Path) -> None:
    history = prompt.history(True)
    (cache / "history" / "chat.jsonl").unlink()
    (cache / "history" / "chat.jsonl").mkdir()
    history.append_string("x")
    assert history.get_strings() == ["x"]


def test_messages_within_quotes() -> None:
    assert all(map(is_open, ('"""', ' """two', '"""""', '"""a""" b')))
    assert not any(map(is_open, ("", "a", '""', '"""a"""', '""""""', '"""a\nb"""\n', 'a """')))


def test_what_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.json").touch()
    (tmp_path / "evil\x1b[2J").touch()
    (tmp_path / "folder").mkdir()
    assert candidates([], "/s") == ["/save", "/set", "/system"]
    assert candidates(["/set"], "top") == ["top-k", "top-p"]
    assert candidates(["/load"], "") == ["folder" + os.sep, "notes.json"]
    assert candidates(["/save"], str(tmp_path / "no")) == [str(tmp_path / "notes.json")]
    assert candidates(["/load"], "nowhere/") == candidates(["/clear"], "") == []
