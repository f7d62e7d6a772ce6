"""What in the cache is used, by which model, and when it was last.

File systems do not keep the time of reading (noatime), so the time of change stands for it: of a build's folder, of a
compiled object, and of the note beside a packed model, which says what it was packed from and for which library. Such a
note is NAME.json beside NAME.bgpk. The files of models are left alone: their times of change are their identity.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bitgen import data
from bitgen.errors import BitgenError


@dataclass(frozen=True)
class Note:
    """What a packed model is of: its files, and the build that runs it."""

    packed: Path
    sources: tuple[Path, ...]
    stats: tuple[str, ...]  # of the sources, when it was packed
    build: Path

    @property
    def is_current(self) -> bool:
        """Whether the files are there, and as they were."""
        return _stats(self.sources) == self.stats

    @property
    def used(self) -> float:
        """When the model was last opened, in seconds since 1970."""
        return note_of(self.packed).stat().st_mtime


def touch(path: Path) -> None:
    """Say that a file or folder of the cache is used now, where the cache can be written."""
    with suppress(OSError):
        os.utime(path)


def note_of(packed: Path) -> Path:
    """Where the note of a packed model is."""
    return packed.with_suffix(".json")


def note(packed: Path, sources: Sequence[Path], build: Path) -> None:
    """Note that a packed model is used now. A cache that cannot be written is not an error."""
    files = tuple(Path(os.path.abspath(source)) for source in sources)  # noqa: PTH100  links stay: they are the names
    text = json.dumps({"sources": [*map(str, files)], "stats": _stats(files), "build": build.name})
    path = note_of(packed)
    with suppress(OSError):
        if path.read_text(encoding="utf-8") == text:
            return touch(path)
    with suppress(BitgenError), data.replacing(path, parents=True) as part:
        part.write_text(text, encoding="utf-8")
    return None


@contextmanager
def noted(packed: Path, sources: Sequence[Path], build: Path) -> Iterator[None]:
    """Note that a packed model is used, also while it is being made here: nobody then takes its build away.

    Where it is not made in the end, nothing stays.
    """
    note(packed, sources, build)
    try:
        yield
    except BaseException:
        if not packed.exists():
            note_of(packed).unlink(missing_ok=True)
        raise
    note(packed, sources, build)  # another process that gave up may have removed it


def notes() -> Iterator[Note]:
    """The notes of the cache, also of packed models that are being made."""
    packed, build = data.cached("packed"), data.cached("build")
    for path in sorted(packed.glob("*.json")):
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            said = json.loads(path.read_text(encoding="utf-8"))
            sources, stats = (tuple(map(str, said[key])) for key in ("sources", "stats"))
            folder = build / Path(said["build"]).name
            yield Note(path.with_suffix(".bgpk"), tuple(map(Path, sources)), stats, folder)


def mapped() -> set[Path]:
    """Files that a process of this user has mapped now, where the system tells (Linux)."""
    found: set[Path] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # of another user, or gone
            for line in maps.read_text(errors="replace").splitlines():
                *_, path = line.split(maxsplit=5)  # address, rights, offset, device, inode, path
                if path.startswith("/"):
                    found.add(Path(path))
    return found


def _stats(files: Sequence[Path]) -> tuple[str, ...]:
    """Sizes and times of change of files; of those that are gone "gone"."""
    found = []
    for file in files:
        try:
            stat = file.stat()
            found.append(f"{stat.st_size} {stat.st_mtime_ns}")
        except OSError:
            found.append("gone")
    return tuple(found)
