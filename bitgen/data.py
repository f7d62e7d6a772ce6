"""Where the files that are not Python live: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bitgen.errors import BitgenError

Folder = Literal["templates", "presets", "runtime", "models"]

_PACKAGE = Path(__file__).resolve().parent


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
