"""Emptying the cache of what nothing refers to any more, and of what was not used for long.

What stays: packed models of files that are there as they were, the builds that run them, the build that finds the CPU's
levels, plans of tuning, and whatever a process has mapped, holds a lock on, or used in the last minute.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bitgen import data, store, uses

REBUILT = ("objects", "headers", "peers")
"""Folders of the cache whose files have no owner: they go by age alone."""
LONG_UNUSED_DAYS = 30.0
JUST_NOW_S = 60.0
_DAY_S = 86400.0


@dataclass(frozen=True)
class Gone:
    """Something that was removed, or would be."""

    path: Path
    bytes: int
    why: str


@dataclass(frozen=True)
class Pruned:
    """What a call of `prune` removed, or would remove, and what it left although nothing refers to it."""

    removed: tuple[Gone, ...]
    in_use: tuple[Gone, ...]

    @property
    def freed(self) -> int:
        """Bytes."""
        return sum(each.bytes for each in self.removed)


def prune(older_than: float | None = None, dry_run: bool = False, stale: Iterable[tuple[Path, str]] = ()) -> Pruned:
    """Remove what nothing refers to, and with `older_than` what was not used for so many days, needed or not.

    stale: more that nothing refers to, with the reason. dry_run: remove nothing.
    """
    mapped, now = uses.mapped(), time.time()
    removed: list[Gone] = []
    in_use: list[Gone] = []
    found = dict([*stale, *_unneeded(older_than, now)])
    for path, why in found.items():
        with suppress(FileNotFoundError):
            gone = Gone(path, measured(path), why)
            busy = now - used(path) < JUST_NOW_S or any(file == path or path in file.parents for file in mapped)
            (in_use if busy or not _taken(path, dry_run) else removed).append(gone)
    return Pruned(tuple(removed), tuple(in_use))


def remove(path: Path) -> None:
    """Remove a file or a folder of the cache, and the note beside a packed model."""
    if path.name.startswith("."):
        store.sweep(path.parent)
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if path.suffix == ".bgpk":
        uses.note_of(path).unlink(missing_ok=True)


def measured(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.lstat().st_size for file in files)


def used(path: Path) -> float:
    """When something in the cache was last used, in seconds since 1970."""
    note = uses.note_of(path) if path.suffix == ".bgpk" else path
    return (note if note.exists() else path).stat().st_mtime


def _taken(path: Path, dry_run: bool) -> bool:
    """Remove a path unless another process is making it; whether that was so."""
    lock = data.lock_of(path)
    holder = store.locked(lock)
    if holder is None:
        return False
    with holder:
        if not dry_run:
            remove(path)
        lock.unlink(missing_ok=True)
    return True


def _unneeded(older_than: float | None, now: float) -> Iterator[tuple[Path, str]]:
    """Paths in the cache that may go, and why."""
    yield from _models_and_builds(older_than, now)
    days = LONG_UNUSED_DAYS if older_than is None else older_than
    for kind in REBUILT:
        for path in sorted(data.cached(kind).glob("[!.]*")):
            if _is_old(path, days, now):
                yield path, _unused(days)
    for kind in ("build", "packed", "ladder", *REBUILT):
        for work in store.abandoned(data.cached(kind)):
            yield work, "left by a process that ended"


def _models_and_builds(older_than: float | None, now: float) -> Iterator[tuple[Path, str]]:
    notes = {note.packed: note for note in uses.notes()}
    kept: set[Path] = set()
    for packed in sorted({*data.cached("packed").glob("*.bgpk"), *notes}):
        note = notes.get(packed)
        if note is None:
            yield packed, "nobody knows what it was packed from"
        elif not note.is_current:
            yield packed, f"{note.sources[0].name if note.sources else 'its model'} is gone, or was changed"
        elif not packed.exists() and _is_old(uses.note_of(packed), 1, now):
            yield uses.note_of(packed), "its packed model is gone"
        elif packed.exists() and _is_old(packed, older_than, now):
            yield packed, _unused(older_than)
        else:
            kept.add(note.build)
    builds = sorted((path for path in data.cached("build").glob("[!.]*") if path.is_dir()), key=used)
    kept.update([build for build in builds if build.name.startswith("probe-")][-1:])
    for build in builds:
        if build not in kept:
            yield build, "a build that failed" if build.suffix == ".failed" else "no packed model runs on it"
        elif _is_old(build, older_than, now):
            yield build, _unused(older_than)


def _is_old(path: Path, days: float | None, now: float) -> bool:
    return days is not None and now - used(path) > days * _DAY_S


def _unused(days: float | None) -> str:
    return f"not used for {days:g} days"
