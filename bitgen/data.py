"""Where files are that are not Python, those that ship and those in the cache, and how a new one appears (store.py)."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import platformdirs

from bitgen import store
from bitgen.errors import BitgenError, FormatError

Folder = Literal["templates", "presets", "runtime", "models"]

_PACKAGE = Path(__file__).resolve().parent

SHIPPED = "stories"
"""The model that ships with bitgen."""
WAITING = "waiting for another process"
"""The stage that listeners are told of while another thread or process makes what is needed."""


def folder(name: Folder) -> Path:
    """The data folder `name`; BitgenError if the installation lacks it.

    In a wheel it is `bitgen/_data/<name>`. In a checkout `models` is inside the package and the rest is at
    the root of the repository, which is told from some other parent folder by its pyproject.toml.
    """
    places = [_PACKAGE / "_data" / name, _PACKAGE / name]
    if (_PACKAGE.parent / "pyproject.toml").is_file():
        places.append(_PACKAGE.parent / name)
    for place in places:
        if place.is_dir():
            return place
    looked = ", ".join(str(p) for p in places)
    raise BitgenError(f"the data folder {name!r} is missing (looked for {looked}); reinstall bitgen")


OFFLINE = ("BITGEN_OFFLINE", "HF_HUB_OFFLINE")
"""Variables that ask for no network."""


def offline() -> str | None:
    """The variable that asks for no network, if one does."""
    off = ("", "0", "no", "off", "false")
    return next((name for name in OFFLINE if os.environ.get(name, "").lower() not in off), None)


def shipped_path() -> Path:
    """The GGUF that ships with bitgen."""
    return folder("models") / f"{SHIPPED}.gguf"


def cache_root() -> Path:
    """Where builds, packed models and plans are cached; BITGEN_CACHE overrides."""
    try:
        return Path(os.environ.get("BITGEN_CACHE") or platformdirs.user_cache_dir("bitgen"))
    except RuntimeError:
        raise BitgenError("this user has no home folder to keep a cache in: set BITGEN_CACHE to a folder") from None


def cached(kind: str) -> Path:
    """A folder of the cache, like "packed"; BitgenError where others may write: what is in there is trusted."""
    root = cache_root()
    store.make_private(root)
    store.make_private(root / kind)
    return root / kind


def regular(path: Path) -> Path:
    """`path`, where a file is that can be mapped and read twice.

    FormatError: nothing is there, or a folder, a pipe or a device, which would be waited for.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with U+0000
        raise FormatError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(mode):
        raise FormatError(f"{path}: is not a regular file")
    return path


def target(path: Path, inputs: Iterable[Path] = ()) -> Path:
    """The file that an output named `path` makes or replaces: where that is a link, what it points to.

    inputs: files that are read, by any name, and must outlive the output.
    BitgenError: a folder, a pipe or a device is there, or one of the inputs.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _followed(path)
    except (OSError, ValueError) as error:
        raise BitgenError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise BitgenError(f"cannot write {path}: it is there and is not a regular file; choose another name")
    for file in inputs:
        if file.exists() and os.path.samestat(found, file.stat()):
            raise BitgenError(f"cannot write {path}: it is the input {file}; choose another name")
    return _followed(path)


def _followed(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def replacing(path: Path, *, parents: bool = False) -> Iterator[Path]:
    """A path in a work folder beside `path`; what is written there takes its place if the context ends without error.

    A link at `path` stays, and what it points to is replaced (`target`). The temporary name cannot be foreseen.
    Readers see the old file or the whole new one, also after a power cut. Any error or interrupt removes the temporary
    file and leaves `path` as it was, and what a killed process left is removed by the next writer; an OSError becomes a
    BitgenError that says what to do. parents: make the folder that `path` is in.
    """
    place = target(path)
    try:
        if parents:
            place.parent.mkdir(parents=True, exist_ok=True)
        with store.work_folder(place.parent) as work:
            yield work / "part"
            store.publish(work / "part", place)
    except OSError as error:
        is_cached = path.is_relative_to(cache_root())
        advice = "set BITGEN_CACHE to a folder with room" if is_cached else "choose another folder"
        raise BitgenError(f"cannot write {path}: {error.strerror}; free some space or {advice}") from error


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder among the system's temporary files, removed in the end, or after a kill by the next run."""
    with store.work_folder(Path(tempfile.gettempdir())) as work:
        yield work


def once(path: Path, is_sound: Callable[[], bool], make: Callable[[], object], waiting: Callable[[], object]) -> bool:
    """See to it that what is kept at `path` is sound, and return whether it was made now.

    One thread of one process makes it, and the others wait: `waiting` is called when that begins.
    """
    if is_sound():
        return False
    with store.alone(lock_of(path), waiting):
        if is_sound():
            return False
        make()
    return True


def lock_of(path: Path) -> Path:
    """The lock that is held by whoever makes what is kept at `path`."""
    return cached("locks") / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
