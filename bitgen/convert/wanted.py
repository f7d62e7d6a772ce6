"""What a name on the Hub asks for: which files of its repository, and how many bytes of them are not here yet."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bitgen import data
from bitgen.convert import choice, hub, hub_cache
from bitgen.convert.choice import Candidate, Found
from bitgen.convert.hub import Listing, RemoteFile
from bitgen.convert.names import HubName
from bitgen.errors import BitgenError
from bitgen.spec import Listener


@dataclass(frozen=True)
class Wanted:
    """What a download would bring for a name."""

    name: HubName
    listing: Listing
    candidate: Candidate | None  # None: a checkpoint, which is converted then
    note: str = ""  # what is to be known about the choice

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        return self.listing.checkpoint if self.candidate is None else self.candidate.parts

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        """Bytes that are not here yet."""
        return hub.missing(self.listing, self.files)

    @property
    def what(self) -> str:
        """The choice in words."""
        file = "a checkpoint, to be converted" if self.candidate is None else self.candidate.name
        return f"{replace(self.name, pick=None)}: {file}"


def wanted(name: HubName, checkpoint_first: bool = False, progress: Listener = lambda *_: None) -> Wanted:
    """What to download for a name, as the Hub has it now; BitgenError as of hub.listing and choice.choose.

    Without a pick: a GGUF file whose numbers are all exact, else the checkpoint, else a GGUF file whose embedding or
    head is rounded. checkpoint_first: the checkpoint wherever there is one.
    """
    progress("asking the Hub what there is", 0, 0)
    of = hub.listing(name)
    if checkpoint_first and of.checkpoint and not name.pick:
        return Wanted(name, of, None)
    among = choice.candidates(of.files)
    best = choice.choose(name, among, choice.there(of, progress)) if among or name.pick else None
    if of.checkpoint and not name.pick and (best is None or best.rank > 0):
        return Wanted(name, of, None)
    if best is None:
        raise choice.refusal(name, among)
    return Wanted(name, of, best.candidate, "" if best.exact else "its embedding or head is rounded")


def fetch(what: Wanted, progress: Listener = lambda *_: None) -> Path:
    """Download the GGUF file that is wanted, all of its parts; the first one's path. BitgenError as of hub.fetch."""
    assert what.candidate is not None
    folder = hub.fetch(what.listing, what.candidate.parts, progress)
    _remember(what, what.candidate)
    return folder / what.candidate.name


def cached(name: HubName) -> Found | None:
    """The GGUF file of the name's snapshot in the cache that the name means; None where it is not here.

    What a name means depends on all files of the repository, here or not: so it is remembered with each download. In a
    snapshot that another program brought, what is there is all.
    """
    folder = hub_cache.snapshot(name)
    among = candidates(folder) if folder else []
    if folder is None or not among:
        return None
    memory, here = remembered(name.repo, folder.name), {each.name: each for each in among}
    try:
        meant = [memory.meant[name.pick or ""]] if memory and (name.pick or "") in memory.meant else []
        meant = meant or [each.name for each in choice.named(name, memory.candidates if memory else among)]
    except choice.NotThereError:
        return None
    if len(meant) == 1:
        return Found(here[meant[0]], "") if meant[0] in here else None
    return None if memory else choice.choose(name, among, choice.here(folder))


def candidates(folder: Path) -> list[Candidate]:
    """The GGUF models in a folder."""
    files = (path for path in sorted(folder.rglob("*.gguf")) if path.is_file())
    return choice.candidates(RemoteFile(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)


# ---- what names meant ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """The GGUF files of a repository at a commit, and which of them a tag meant there ("": none)."""

    files: tuple[RemoteFile, ...]
    meant: dict[str, str]

    @property
    def candidates(self) -> list[Candidate]:
        return choice.candidates(self.files)


def remembered(repo: str, commit: str) -> Memory | None:
    """What is remembered of a repository at a commit."""
    try:
        said = json.loads(_place(repo, commit).read_text(encoding="utf-8"))
        files = tuple(RemoteFile(str(name), int(size)) for name, size in said["files"])
        return Memory(files, {str(tag): str(file) for tag, file in said["meant"].items()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _remember(what: Wanted, file: Candidate) -> None:
    """Keep what a name meant; a cache that cannot be written is not an error."""
    of = what.listing
    before = remembered(of.name.repo, of.commit)
    files = [(each.name, each.size) for each in of.files if each.name.endswith(".gguf")]
    meant = {**(before.meant if before else {}), of.name.pick or "": file.name}
    with suppress(BitgenError), data.replacing(_place(of.name.repo, of.commit), parents=True) as part:
        part.write_text(json.dumps({"files": files, "meant": meant}), encoding="utf-8")


def _place(repo: str, commit: str) -> Path:
    return data.cached("hub") / f"{repo.replace('/', '--')}--{commit}.json"
