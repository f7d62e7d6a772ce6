"""Where files are that are not Python, those that ship and those in the cache, and how a new one appears."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import platformdirs

from bitgen.errors import BitgenError, FormatError

Folder = Literal["templates", "presets", "runtime", "models"]

_PACKAGE = Path(__file__).resolve().parent

SHIPPED = "stories"
"""The model that ships with bitgen."""


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


def shipped_path() -> Path:
    """The GGUF that ships with bitgen."""
    return folder("models") / f"{SHIPPED}.gguf"


def cache_root() -> Path:
    """Where builds, packed models and plans are cached; BITGEN_CACHE overrides."""
    return Path(os.environ.get("BITGEN_CACHE") or platformdirs.user_cache_dir("bitgen"))


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
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; the file written there takes its place when the context ends without an error.

    A link at `path` stays, and what it points to is replaced (`target`). The temporary name cannot be foreseen.
    Readers see the old file or the whole new one, also after a power cut. Any error or interrupt removes the temporary
    file and leaves `path` as it was; an OSError becomes a BitgenError that says what to do.
    """
    place = target(path)
    part = place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        publish(part, place)
    except OSError as error:
        cached = path.is_relative_to(cache_root())
        advice = "set BITGEN_CACHE to a folder with room" if cached else "choose another folder"
        raise BitgenError(f"cannot write {path}: {error.strerror}; free some space or {advice}") from error
    finally:
        with suppress(OSError):
            part.unlink()


def publish(part: Path, path: Path) -> None:
    """Rename a finished file to `path`, once its bytes are on the disk."""
    with part.open("r+b") as file:
        os.fsync(file.fileno())
    part.replace(path)
