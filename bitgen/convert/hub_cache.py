"""The cache of `huggingface_hub`, where what comes from the Hub is kept, and the parts of downloads in it.

A repository's folder has `blobs`, files by the hash of their content, `refs`, the commit of each branch, and
`snapshots`, a folder of links to blobs for each commit. What an interrupted download left is beside the blob that it
would have become.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bitgen import store
from bitgen.convert.names import HubName

PART = ".incomplete"
"""The end of the name of what an interrupted download left, as the library has it."""
STALLED_S = 600.0
_CHUNK = 1 << 20


def cache() -> Path:
    """The folder of the library's cache."""
    from huggingface_hub import constants

    return Path(os.path.abspath(constants.HF_HUB_CACHE))  # noqa: PTH100  links stay


def snapshots(repo: str) -> Path:
    """The folder of a repository's snapshots, by their commits."""
    return folder_of(repo) / "snapshots"


def snapshot(name: HubName) -> Path | None:
    """The folder of the snapshot that a name stands for, as the cache knows it; None: there is none."""
    revision = name.revision or "main"
    ref = folder_of(name.repo) / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    folder = snapshots(name.repo) / commit
    return folder if re.fullmatch(r"[0-9a-f]{40}", commit) and folder.is_dir() else None


def interrupted(repo: str) -> list[Path]:
    """Parts of files that interrupted downloads left."""
    return sorted((folder_of(repo) / "blobs").glob(f"*{PART}"))


def folder_of(repo: str) -> Path:
    return cache() / f"models--{repo.replace('/', '--')}"


def blob(repo: str, sha256: str) -> Path:
    return folder_of(repo) / "blobs" / sha256


def begun(repo: str, sha256: str | None, size: int) -> int:
    """Bytes of a file that an interrupted download left."""
    if sha256 is None:
        return 0
    if blob(repo, sha256).exists():
        return size
    return min(max((part.lstat().st_size for part in parts_of(blob(repo, sha256))), default=0), size)


def sha256_of(path: Path, progress: Callable[[int, int], object] = lambda *_: None) -> str:
    """The hash of a file, in hex digits. progress: told of bytes done, and of bytes in all."""
    digest, whole = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            progress(file.tell(), whole)
    return digest.hexdigest()


# ---- parts of downloads -------------------------------------------------------------------------------------


def own_part(place: Path) -> Path:
    """Where this process writes a file that is to be at `place`: what a process that ended has left of it, if any.

    Each process has a name of its own. Where a file system has no locks, or locks that everybody gets, two that fetch
    one file do it twice, and neither writes to what the other has finished.
    """
    own = place.with_name(f"{place.name}.{machine()}-{os.getpid()}{PART}")
    left = [part for part in parts_of(place) if part != own and is_orphan(part)]
    with suppress(OSError):  # another process may take it first
        if left and not own.exists():
            max(left, key=lambda part: part.lstat().st_size).replace(own)
    return own


def parts_of(place: Path) -> list[Path]:
    return sorted(place.parent.glob(f"{place.name}.*{PART}"))


def is_orphan(part: Path) -> bool:
    """Whether nobody writes to a part any more: its process has ended, or it has not grown for ten minutes."""
    found = re.fullmatch(rf"[0-9a-f]+\.([0-9a-f]+)-(\d+){re.escape(PART)}", part.name)
    if found and found[1] == machine() and not _runs(int(found[2])):
        return True
    return time.time() - part.lstat().st_mtime > STALLED_S


def machine() -> str:
    return hashlib.sha256(store.kernel()).hexdigest()[:8]


def _runs(pid: int) -> bool:
    """Whether a process runs. Not asked on Windows, whose locks tell."""
    try:
        if os.name != "nt" and pid != os.getpid():
            os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return os.name != "nt"
