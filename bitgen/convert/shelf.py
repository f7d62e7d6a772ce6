"""The models of this machine: those in the Hugging Face cache and those converted; what removing one takes with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bitgen import data, prune, store, uses
from bitgen.checkpoints import presets
from bitgen.convert import choice, hub_cache, local, wanted
from bitgen.convert.choice import Candidate
from bitgen.convert.names import HubName, meaning, on_hub
from bitgen.data import SHIPPED, shipped_path
from bitgen.errors import BitgenError
from bitgen.gguf.reader import read_gguf
from bitgen.gguf.writer import default_type, tensor_table
from bitgen.text.chat_templates import carried

Kind = Literal["ships", "downloaded", "converted"]


@dataclass(frozen=True)
class Here:
    """A model on this machine."""

    name: str  # what to call it by
    kind: Kind
    path: Path
    type: str  # of its ternary matrices
    bytes: int  # of its files
    packed_bytes: int  # of what bitgen packed from it
    used: float | None  # when it was last opened, or else came here, in seconds since 1970
    chats: bool  # whether it carries a chat template

    def to_json(self) -> dict[str, Any]:
        fields = {key: value for key, value in vars(self).items() if key != "used"}
        return {**fields, "path": str(self.path), "used_unix_s": self.used}


@dataclass(frozen=True)
class Preset:
    """A model that is known by name."""

    name: str
    hub: str | None  # its repository
    here: bool
    bytes: int  # of its GGUF file; what is downloaded may be larger


@dataclass(frozen=True)
class Shelf:
    """What `bitgen list` shows."""

    models: tuple[Here, ...]
    interrupted: dict[str, int]  # name -> bytes that an interrupted download left
    presets: tuple[Preset, ...]
    cache: dict[str, tuple[int, int]]  # folder of bitgen's cache -> entries, bytes

    def to_json(self) -> dict[str, Any]:
        """Sizes in bytes, times in seconds since 1970."""
        return {
            "models": [each.to_json() for each in self.models],
            "interrupted": [{"name": name, "bytes": nbytes} for name, nbytes in self.interrupted.items()],
            "presets": [vars(each) for each in self.presets],
            "cache": {kind: {"entries": n, "bytes": size} for kind, (n, size) in self.cache.items()},
        }


def shelf() -> Shelf:
    """The models that are here, the presets, and the sizes of bitgen's cache. Nothing is downloaded or converted."""
    models = tuple(_models())
    repos = {named.repo for each in models if (named := on_hub(each.name))}
    return Shelf(models, _interrupted(), tuple(_presets(repos)), _cache())


def names() -> list[str]:
    """Names of what may be models here; none is opened, so that it takes a moment only."""
    return [name for name, *_ in _found()]


def chatting() -> list[str]:
    """Names of the models that are here and carry a chat template."""
    return [each.name for each in _models() if each.chats]


def _models() -> Iterator[Here]:
    uses_of = list(uses.notes())
    for name, kind, path, files in _found():
        with suppress(BitgenError, OSError):
            checkpoint = read_gguf(path)
            notes = [note for note in uses_of if path in note.sources and note.packed.exists()]
            used = max((note.used for note in notes), default=path.stat().st_mtime if kind != "ships" else None)
            packed = sum(note.packed.stat().st_size for note in notes)
            type = choice.types(checkpoint.container)
            chats = "default" in carried(checkpoint.metadata)
            yield Here(name, kind, path, type, sum(map(_size, files)), packed, used, chats)


def _found() -> Iterator[tuple[str, Kind, Path, tuple[Path, ...]]]:
    """Name, kind, file and all files of what may be a model here."""
    yield SHIPPED, "ships", shipped_path(), (shipped_path(),)
    for repo, folder, refs in _snapshots():
        revision = None if "main" in refs else min(refs, default=folder.name)
        among = [each for each in wanted.candidates(folder) if not choice.is_beside(each)]
        for each in among:
            name = HubName(repo, revision, _pick(repo, folder.name, each, among))
            yield str(name), "downloaded", folder / each.name, tuple(folder / part.name for part in each.parts)
    for made in local.converted():
        of = made.origin
        came = (hub_cache.snapshots(str(of["repo"])) / str(of["commit"])).rglob("*") if "repo" in of else ()
        yield made.name, "converted", made.path, (made.path, *(path for path in came if path.is_file()))


def _pick(repo: str, commit: str, file: Candidate, among: list[Candidate]) -> str | None:
    """What a name has to say to mean a file of a snapshot; None: nothing."""
    memory = wanted.remembered(repo, commit)
    others = among if memory is None else [each for each in memory.candidates if not choice.is_beside(each)]
    alone = len(others) == 1 or (memory is not None and memory.meant.get("") == file.name)
    return None if alone else file.name


def _snapshots() -> Iterator[tuple[str, Path, frozenset[str]]]:
    """Repository, folder and branches of each model revision in the Hugging Face cache."""
    for repo in _scanned():
        if repo.repo_type == "model":
            for revision in sorted(repo.revisions, key=lambda each: str(each.commit_hash)):
                yield repo.repo_id, Path(revision.snapshot_path), revision.refs


def _scanned() -> list[Any]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return sorted(scan_cache_dir(hub_cache.cache()).repos, key=lambda repo: str(repo.repo_id))
    except CacheNotFound:
        return []


def _interrupted() -> dict[str, int]:
    found: dict[str, int] = {}
    for folder in sorted(hub_cache.cache().glob("models--*--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        left = sum(map(_size, hub_cache.interrupted(repo)))
        found |= {str(HubName(repo)): left} if left else {}
    return found


def _presets(repos: set[str]) -> Iterator[Preset]:
    for name in presets.names():
        id, shape = presets.hub_id(name), presets.load(name)
        entries = tensor_table(shape, default_type(shape))
        yield Preset(name, id, name == SHIPPED or id in repos, sum(entry.nbytes for entry in entries))


def _cache() -> dict[str, tuple[int, int]]:
    """Folder of bitgen's cache -> entries, bytes. A note is none by itself."""
    kinds = ("packed", local.CONVERTED, "build", "plans", "objects", "headers", "peers", "ladder")
    folders = {kind: data.cached(kind) for kind in kinds}
    counts = {
        kind: len(list(folder.glob("[!.]*.bgpk" if kind == "packed" else "[!.]*"))) for kind, folder in folders.items()
    }
    return {kind: (counts[kind], prune.measured(folder)) for kind, folder in folders.items()}


def _size(path: Path) -> int:
    return path.stat().st_size


# ---- removing -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removal:
    """What removing a model takes with it: from the Hugging Face cache, and from bitgen's own."""

    name: str
    revisions: tuple[str, ...]  # commits in the Hugging Face cache
    paths: tuple[Path, ...]  # in bitgen's cache, and parts of downloads that were interrupted
    models: tuple[Path, ...]  # GGUF files that go

    @cached_property
    def bytes(self) -> int:
        """That become free."""
        strategy = self._strategy()
        return (strategy.expected_freed_size if strategy else 0) + sum(map(prune.measured, self.paths))

    def execute(self) -> None:
        """Remove it all."""
        for path in self.paths:
            prune.remove(path)
        strategy = self._strategy()
        if strategy:
            strategy.execute()

    def _strategy(self) -> Any:
        from huggingface_hub import scan_cache_dir

        return scan_cache_dir(hub_cache.cache()).delete_revisions(*self.revisions) if self.revisions else None


def removal(name: str) -> Removal:
    """What removing a model by its name takes with it; BitgenError: it is not bitgen's to remove, not here, or in use.

    Without a revision all of the repository's go. Nothing is removed yet.
    """
    meant = meaning(name)
    if meant == shipped_path() and name.lower() == SHIPPED:
        raise BitgenError(f"{name} is the model that ships with bitgen: it stays as long as bitgen does")
    if isinstance(meant, HubName):
        found = _of_hub(meant)
    elif meant.is_dir():
        found = _removal(name, {}, lambda origin: origin.get("folder") == str(meant.resolve()))
    else:
        raise BitgenError(f"{meant} is a file of yours, and no name of a model that bitgen brought: remove it yourself")
    found = _with_packed(found)
    if not found.revisions and not found.paths:
        raise BitgenError(f"{name} is not on this machine: `bitgen list` shows what is")
    mapped = uses.mapped()
    running = next((path for path in found.paths if any(path == each or path in each.parents for each in mapped)), None)
    if running:
        raise BitgenError(f"{name} is in use: a process has {running.name} mapped; end it first")
    return found


def _of_hub(name: HubName) -> Removal:
    """All revisions of a repository, or one, with what was converted from them."""
    commits = {folder.name: folder for repo, folder, refs in _snapshots()
               if repo == name.repo and name.revision in (None, folder.name, *refs)}  # fmt: skip
    _require_whole(name, [each for folder in commits.values() for each in wanted.candidates(folder)])
    found = _removal(
        str(name), commits, lambda origin: origin.get("repo") == name.repo
        and name.revision in (None, origin.get("revision"), origin.get("commit"))
    )  # fmt: skip
    left = () if name.revision else tuple(hub_cache.interrupted(name.repo))
    return replace(found, paths=(*left, *found.paths))


def _removal(name: str, commits: dict[str, Path], is_of: Callable[[dict[str, Any]], bool]) -> Removal:
    """Snapshots, by commit, and the folders of what was converted from what `is_of` says."""
    folders = tuple(folder for folder, origin in local.records() if is_of(origin))
    ggufs = [folder / each.name for folder in commits.values() for each in wanted.candidates(folder)]
    made = [path for folder in folders for path in folder.glob("[!.]*.gguf")]
    return Removal(name, tuple(commits), folders, (*ggufs, *made))


def _require_whole(name: HubName, among: list[Candidate]) -> None:
    """BitgenError where a name picks one of several models of a revision, which goes only as a whole."""
    if name.pick and len(among) > 1:
        others = ", ".join(each.name for each in among)
        raise BitgenError(f"the cache is emptied by revision: `bitgen rm {replace(name, pick=None)}` removes {others}")


def _with_packed(found: Removal) -> Removal:
    """A removal, and what was packed from its files."""
    models = {Path(os.path.abspath(path)) for path in found.models}  # noqa: PTH100  links stay: they are the names
    packed = [note.packed for note in uses.notes() if models.intersection(note.sources) and note.packed.exists()]
    return replace(found, paths=(*found.paths, *packed))


def stale() -> Iterator[tuple[Path, str]]:
    """Folders of the cache's conversions that may go, and why: their source is gone or was changed, or they were
    interrupted and nobody has gone on for a day."""
    for path, origin in local.records():
        folder = origin.get("folder")
        if folder is not None and path.name != local.key_of(Path(str(folder))):
            yield path, f"{store.slug(Path(str(folder)).name)} is gone, or was changed"
        elif not any(path.glob("[!.]*.gguf")) and time.time() - path.stat().st_mtime > store.ABANDONED_S:
            yield path, "a conversion that was interrupted"
