"""Emptying the cache: what nothing needs goes, and what is needed, mapped, locked or just used stays."""

from __future__ import annotations

import mmap
import os
import sys
import time
from pathlib import Path

import pytest

from bitgen import data, prune, store, uses

LONG_AGO = 40 * 86400


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path / "cache"))


def aged(path: Path, seconds: float = 3600) -> Path:
    """A path that was last used so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def build(name: str, age: float = 3600) -> Path:
    folder = data.cached("build") / name
    folder.mkdir()
    (folder / "libbitgen.so").write_bytes(bytes(100))
    return aged(folder, age)


def packed(source: Path, run_by: Path, age: float = 3600) -> Path:
    path = data.cached("packed") / f"{source.stem}-avx2-0123.bgpk"
    path.write_bytes(bytes(1000))
    uses.note(path, [source], run_by)
    aged(uses.note_of(path), age)
    return aged(path, LONG_AGO)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"model")
    return path


def gone(**options: object) -> set[str]:
    """Names of what is removed."""
    return {each.path.name for each in prune.prune(**options).removed}  # type: ignore[arg-type]


def test_what_a_model_here_needs_stays(model: Path) -> None:
    runs, probe = build("m-linux-1"), build("probe-linux-2", age=1000)
    kept = packed(model, runs)
    build("m-linux-0"), build("probe-linux-1", age=2000), build("m-linux-2.failed")
    found = prune.prune(dry_run=True)
    assert {each.path.name: each.why for each in found.removed} == {
        "m-linux-0": "no packed model runs on it",
        "probe-linux-1": "no packed model runs on it",
        "m-linux-2.failed": "a build that failed",
    }
    assert found.freed == 3 * (100 + 4096) or found.freed >= 300
    assert (data.cached("build") / "m-linux-0").exists()
    assert gone() == {"m-linux-0", "probe-linux-1", "m-linux-2.failed"}
    assert runs.exists() and probe.exists() and kept.exists() and uses.note_of(kept).exists()
    assert gone() == set() and model.exists()


@pytest.mark.parametrize("how", ["removed", "changed", "unknown"])
def test_a_packed_model_without_its_model_goes_with_its_build(model: Path, how: str) -> None:
    runs = build("m-linux-1")
    path = packed(model, runs)
    if how == "removed":
        model.unlink()
    elif how == "changed":
        model.write_bytes(b"another")
    else:
        uses.note_of(path).unlink()
    assert gone() == {path.name, runs.name}
    assert not path.exists() and not uses.note_of(path).exists() and not runs.exists()


def test_what_was_not_used_for_long_goes_when_that_is_asked(model: Path) -> None:
    runs = build("m-linux-1", age=9 * 86400)
    path = packed(model, runs, age=9 * 86400)
    assert gone(older_than=10) == set()
    assert gone(older_than=8) == {path.name, runs.name}


def test_a_use_is_a_use(model: Path) -> None:
    """Opening a model again renews its note, and leaves the model as it is."""
    path, before = packed(model, build("m-linux-1"), age=LONG_AGO), model.stat()
    uses.note(path, [model], data.cached("build") / "m-linux-1")
    (note,) = uses.notes()
    assert note.is_current and time.time() - note.used < 60
    assert (model.stat().st_mtime_ns, model.stat().st_size) == (before.st_mtime_ns, before.st_size)


def test_objects_go_by_age(model: Path) -> None:
    for name, age in (("old.o", LONG_AGO), ("new.o", 3600)):
        (data.cached("objects") / name).write_bytes(b"o")
        aged(data.cached("objects") / name, age)
    assert gone() == {"old.o"} and gone(older_than=0.01) == {"new.o"}


def test_plans_stay() -> None:
    (data.cached("plans") / "cpu-avx2.json").write_text("{}")
    aged(data.cached("plans") / "cpu-avx2.json", LONG_AGO)
    assert gone(older_than=0) == set()


def test_what_was_used_just_now_stays() -> None:
    folder = build("m-linux-0", age=5)
    found = prune.prune(older_than=0)
    assert not found.removed and [each.path for each in found.in_use] == [folder]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what is mapped")
def test_what_is_mapped_stays() -> None:
    folder = build("m linux-0")
    with (folder / "libbitgen.so").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        assert gone() == set() and folder.exists()
    assert gone() == {folder.name}


def test_what_is_being_made_stays(model: Path) -> None:
    """Its lock is held. Its note is there before it, so that the build that it will run on stays."""
    runs = build("m-linux-1")
    path = packed(model, runs)
    path.unlink()
    assert gone() == set() and runs.exists()
    folder = build("m-linux-0")
    lock = store.locked(data.lock_of(folder))
    assert lock is not None
    with lock:
        assert gone() == set()
    assert gone() == {folder.name}


def test_a_note_without_its_packed_model_goes_after_a_day(model: Path) -> None:
    path = packed(model, build("m-linux-1"), age=2 * 86400)
    path.unlink()
    assert gone() == {uses.note_of(path).name, "m-linux-1"}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"sources": 1, "stats": [], "build": "x"}', '{"sources": ["a"]}', "\xff"]
)
def test_a_damaged_note_is_none(model: Path, text: str) -> None:
    path = packed(model, build("m-linux-1"))
    uses.note_of(path).write_text(text, encoding="latin-1")
    assert list(uses.notes()) == []
    aged(uses.note_of(path))
    assert path.name in gone()


def test_a_note_names_no_place_outside_of_the_cache(model: Path) -> None:
    """What it says is a build's name, never a path."""
    path = packed(model, Path("/somewhere/else"))
    text = uses.note_of(path).read_text().replace("else", "../../../etc")
    uses.note_of(path).write_text(text)
    (note,) = uses.notes()
    assert note.build.parent == data.cached("build")


def test_work_folders_of_processes_that_ended_go() -> None:
    work = data.cached("packed") / ".bitgen-0123456789abcdef"
    work.mkdir()
    (work / "part").write_bytes(b"half")
    aged(work / "part", 2 * 86400), aged(work, 2 * 86400)
    with store.work_folder(data.cached("build")) as mine:
        aged(mine)
        assert gone() == {work.name} and mine.exists()


def test_an_empty_cache_is_emptied() -> None:
    assert gone() == gone(older_than=0) == set()
