"""From a model's name to the GGUF file on this machine: found, or downloaded and converted on demand.

A model that is here is found without a network. A checkpoint, of the Hub or in a folder, is converted once into the
folder `converted` of bitgen's cache, and again when it is another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bitgen import data, store
from bitgen.convert import hub, hub_cache
from bitgen.convert.hf import HfCheckpoint
from bitgen.convert.names import HubName, meaning
from bitgen.convert.source import convert
from bitgen.convert.wanted import Wanted, cached, fetch, wanted
from bitgen.data import WAITING, shipped_path
from bitgen.errors import BitgenError, brief
from bitgen.spec import Listener

CONVERTED = "converted"
"""The cache's folder of what was converted from a checkpoint."""
ORIGIN = "origin.json"


def located(name: str | Path | None, download: bool = False, progress: Listener = lambda *_: None) -> Path:
    """The GGUF file of a model (None: the one that ships), as names.meaning understands its name.

    download: whether to fetch it from the Hub where it is not here. BitgenError: it is not here, or cannot be had.
    progress: told of a conversion.
    """
    found = find(name, progress)
    if found is not None:
        return found
    if not download:
        raise absent(name)
    return pull(wanted_of(name, progress), progress)


def absent(name: object) -> BitgenError:
    """That a model on the Hub is not here yet."""
    return BitgenError(f"{name} is not on this machine yet: `bitgen pull {name}` downloads it")


def find(name: str | Path | None, progress: Listener = lambda *_: None) -> Path | None:
    """The GGUF file of a model, where it is here; None: it is on the Hub. No network is asked.

    A checkpoint's folder is converted first. BitgenError as of names.meaning and choice.choose.
    """
    found = shipped_path() if name is None else meaning(name)
    if isinstance(found, HubName):
        return _cached(found)
    return _of_folder(found, progress) if found.is_dir() else found


def _cached(name: HubName) -> Path | None:
    """The file that a name on the Hub stands for, in the cache of downloads or among what was converted."""
    folder, best = hub_cache.snapshot(name), cached(name)
    made = None if name.pick else _converted(name, folder)
    if folder is None or best is None or (best.rank > 0 and made):
        return made
    return folder / best.candidate.name


def wanted_of(name: str | Path | None, progress: Listener = lambda *_: None) -> Wanted:
    """What to download for a name, as the Hub has it now; BitgenError also where the name is none on the Hub."""
    meant = shipped_path() if name is None else meaning(name)
    if not isinstance(meant, HubName):
        raise BitgenError(f"{meant} is on this machine: there is nothing to download")
    return wanted(meant, progress=progress)


def pull(what: Wanted, progress: Listener = lambda *_: None) -> Path:
    """Download what is wanted, convert it if it is a checkpoint, and return the GGUF file."""
    if what.candidate is not None:
        return fetch(what, progress)
    name, folder = what.name, hub.download(what.name, what.listing, progress)
    origin = {"repo": name.repo, "revision": name.revision or "main", "commit": folder.name}
    key = f"{name.repo.replace('/', '--')}--{folder.name}"
    return _made(lambda: HfCheckpoint(folder, name=name.short), key, name.short, origin, progress)


# ---- what was converted ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A file that was converted into the cache, and from what."""

    path: Path
    origin: dict[str, Any]  # repo, revision and commit, or folder

    @property
    def name(self) -> str:
        """What to call it by."""
        if "folder" in self.origin:
            return str(self.origin["folder"])
        revision = self.origin["revision"]
        return str(HubName(self.origin["repo"], None if revision == "main" else revision))


def records() -> Iterator[tuple[Path, dict[str, Any]]]:
    """The cache's folders of what was converted, or was begun to be, and from what."""
    for record in sorted(data.cached(CONVERTED).glob(f"*/{ORIGIN}")):
        with suppress(OSError, ValueError, AttributeError):
            origin = json.loads(record.read_text(encoding="utf-8"))
            if {"repo", "revision", "commit"} <= origin.keys() or "folder" in origin:
                yield record.parent, origin


def converted() -> Iterator[Made]:
    """The files that were converted into the cache."""
    for folder, origin in records():
        for path in sorted(folder.glob("[!.]*.gguf")):
            yield Made(path, origin)


def _converted(name: HubName, snapshot: Path | None) -> Path | None:
    """What was converted from a revision. snapshot: its folder in the cache of downloads, if that is there."""
    revision, commit = name.revision or "main", snapshot and snapshot.name
    found = [
        made.path
        for made in converted()
        if made.origin.get("repo") == name.repo
        and (
            made.origin["commit"] == commit if commit else revision in (made.origin["revision"], made.origin["commit"])
        )
    ]
    return max(found, key=lambda path: path.stat().st_mtime) if found else None


def _of_folder(folder: Path, progress: Listener) -> Path:
    """A checkpoint in a folder as a GGUF file, converted unless that was done already."""
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if ggufs and not any(folder.glob("*.safetensors")):
        raise BitgenError(f"{folder}: a folder without safetensors; name a file in it: {brief(', '.join(ggufs))}")
    name, origin = folder.resolve().name, {"folder": str(folder.resolve())}
    return _made(lambda: HfCheckpoint(folder), key_of(folder), name, origin, progress)


def key_of(folder: Path) -> str:
    """The cache's folder of what is converted from a folder as it is now."""
    files = [path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".jinja")]
    stats = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in sorted(files)]
    digest = hashlib.sha256(repr((str(folder.resolve()), stats)).encode()).hexdigest()[:16]
    return f"+{store.slug(folder.resolve().name)}-{digest}"


def _made(
    checkpoint: Callable[[], HfCheckpoint], key: str, name: str, origin: dict[str, Any], progress: Listener
) -> Path:
    """A checkpoint as a GGUF file in the cache. key: of its folder there, a file name."""
    folder = data.cached(CONVERTED) / key
    path = folder / f"{store.slug(name)}.gguf"

    def make() -> None:
        source = checkpoint()
        with data.replacing(folder / ORIGIN, parents=True) as part:
            part.write_text(json.dumps(origin))
        convert(source, path, None, lambda done, total: progress("converting", done, total))

    data.once(path, path.is_file, make, partial(progress, WAITING, 0, 0))
    return path
