"""Where files are that are not Python, those that ship and those in the cache, and how a new one appears."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import platformdirs

from bitgen.errors import BitgenError

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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; the file written there takes its place when the context ends without an error.

    Readers see the old file or the whole new one, also after a power cut. Any error or interrupt removes the temporary
    file and leaves `path` as it was; an OSError becomes a BitgenError that says what to do.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        publish(part, path)
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
