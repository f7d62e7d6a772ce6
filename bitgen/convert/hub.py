"""The Hugging Face Hub, by `huggingface_hub`: what a repository has, parts of files, downloads into its cache.

What comes lies in the cache of that library (HF_HOME) and is found there by every other program that uses it. Its own
downloads begin anew after a kill. So a large file comes by `_fetch_large` first, under the name that the library gives
to its content, and the library finds it there.

Everything honours HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and the token of `hf auth login` or HF_TOKEN. What a server says
of itself is untrusted: a file's name becomes a path only where `_is_plain` says so, a commit and a hash only where they
are hexadecimal digits.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bitgen import data, store
from bitgen.convert.hub_cache import begun, blob, cache, folder_of, is_orphan, own_part, parts_of, sha256_of, snapshots
from bitgen.convert.hub_errors import UnreachableError as UnreachableError
from bitgen.convert.hub_errors import refusals
from bitgen.convert.names import HubName
from bitgen.data import WAITING
from bitgen.errors import BitgenError, FormatError, brief
from bitgen.spec import Listener

FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "adapter_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "1_Pooling/config.json",
]
"""Files that a conversion reads. Nothing else in a repository is fetched for it."""
IGNORED = ["*/*.safetensors"]
LARGE = 10_000_000
"""Bytes from which on a file is worth being resumed."""
DOWNLOADING = "downloading"
"""The stage that listeners are told of."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository."""

    name: str  # with its folders, "/" between them
    size: int  # bytes
    sha256: str | None = None  # of large files, as the repository says


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit."""

    name: HubName
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def checkpoint(self) -> tuple[RemoteFile, ...]:
        """The files that a conversion reads; none where there is no checkpoint."""
        found = tuple(
            file
            for file in self.files
            if any(fnmatch.fnmatchcase(file.name, pattern) for pattern in FILES)
            and not any(fnmatch.fnmatchcase(file.name, pattern) for pattern in IGNORED)
        )
        named = {file.name for file in found}
        weights = any(name.endswith(".safetensors") for name in named)
        return found if weights and "config.json" in named else ()


def listing(name: HubName) -> Listing:
    """The files of a repository, but those with names that are no plain paths; BitgenError as of `refusals`."""
    from huggingface_hub import HfApi

    with refusals(name):
        if asked := data.offline():
            raise UnreachableError(f"{asked} is set; unset it to download")
        info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
        commit = str(info.sha)
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise FormatError(f"the Hub gives {brief(commit)} as its commit, which is none")
        files = (
            RemoteFile(each.rfilename, int(each.size or 0), _sha256(each.lfs))
            for each in info.siblings or ()
            if _is_plain(each.rfilename)
        )
        return Listing(name, commit, tuple(sorted(files, key=lambda file: file.name)))


def read(of: Listing, file: RemoteFile, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file, without the rest. BitgenError also where the file is not as large as listed."""
    from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(of.name.repo, file.name, revision=of.commit)
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with (
        refusals(of.name),
        get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as answer,
    ):
        if answer.is_error:
            answer.read()
        hf_raise_for_status(answer)
        raw = bytearray()
        skipped = start if answer.status_code == 200 else 0  # a server that knows no ranges sends all
        for piece in answer.iter_bytes(_CHUNK):
            raw += piece
            if len(raw) >= skipped + stop - start:
                break
        total = re.fullmatch(r"bytes \d+-\d+/(\d+)", answer.headers.get("Content-Range") or "")
        if (total and int(total[1]) != file.size) or len(raw) < skipped + stop - start:
            raise FormatError(f"{file.name} is not as large as the Hub lists it ({file.size} bytes)")
        return bytes(raw[skipped : skipped + stop - start])


# ---- downloads ------------------------------------------------------------------------------------------------


def missing(of: Listing, files: Iterable[RemoteFile]) -> int:
    """Bytes of those files that a download would bring."""
    folder = snapshots(of.name.repo) / of.commit
    absent = [file for file in files if not (folder / file.name).is_file()]
    return sum(file.size - begun(of.name.repo, file.sha256, file.size) for file in absent)


def fetch(of: Listing, files: Iterable[RemoteFile], progress: Listener = lambda *_: None) -> Path:
    """Bring files of a listing into the cache, and return the folder of its snapshot.

    What is there already is not fetched; what was interrupted goes on where it was. The library draws a bar for each
    file where stderr is a terminal. progress: told of bytes, as "downloading", and of waiting for another process that
    fetches the same. BitgenError as of `refusals`.
    """
    from huggingface_hub import hf_hub_download

    folder = snapshots(of.name.repo) / of.commit
    with refusals(of.name):
        _require_room(of, files)
        _fetch_all_large(of, files, progress)
        for file in files:
            path = Path(hf_hub_download(of.name.repo, file.name, revision=of.name.revision))
            if path != folder / file.name:
                raise BitgenError("the repository was changed meanwhile; the same command goes on with what it has now")
    return folder


def download(name: HubName, of: Listing | None, progress: Listener = lambda *_: None) -> Path:
    """The folder of a snapshot with all that a conversion reads; what the cache lacks is fetched, as by `fetch`.

    of: what the repository has; None: the Hub is not to be asked, and it is what the cache has, if that is all of it.
    """
    from huggingface_hub import snapshot_download

    with refusals(name):
        if of is not None:
            _require_room(of, of.checkpoint)
            _fetch_all_large(of, of.checkpoint, progress)
        return Path(
            snapshot_download(
                name.repo, revision=name.revision, allow_patterns=FILES, ignore_patterns=IGNORED,
                local_files_only=of is None, tqdm_class=_no_bar(),
            )
        )  # fmt: skip


def _fetch_all_large(of: Listing, files: Iterable[RemoteFile], progress: Listener) -> None:
    for file in files:
        if file.sha256 and file.size >= LARGE and not (snapshots(of.name.repo) / of.commit / file.name).is_file():
            _fetch_large(of, file, file.sha256, progress)


def _fetch_large(of: Listing, file: RemoteFile, sha256: str, progress: Listener) -> None:
    """Bring a large file into the library's cache, by its hash, and go on where an interrupted download was."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    place = blob(of.name.repo, sha256)
    lock = cache() / ".locks" / folder_of(of.name.repo).name / f"{sha256}.lock"  # the library's own for this file
    for folder in (place.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with store.alone(lock, partial(progress, WAITING, 0, 0)):
        if place.exists():
            return
        url = hf_hub_url(of.name.repo, file.name, revision=of.commit)
        found = get_hf_file_metadata(url)
        if found.etag != sha256 or found.size != file.size:
            raise FormatError(f"{file.name} is not the file that the Hub lists ({file.size} bytes)")
        part = own_part(place)
        with os.fdopen(store.own_file(part), "r+b") as out:
            here = out.seek(0, os.SEEK_END)
            if here > file.size:
                here = out.truncate(0)
            out.seek(here)
            headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
            http_get(
                url, out, resume_size=here, headers=headers, expected_size=file.size, displayed_filename=file.name,
                tqdm_class=_bar(progress),
            )  # fmt: skip
        if sha256_of(part, partial(progress, "checking the download")) != sha256:
            part.unlink()
            raise BitgenError(f"{file.name} came damaged and was removed; the same command fetches it again")
        store.publish(part, place)
        for left in filter(is_orphan, parts_of(place)):
            left.unlink(missing_ok=True)


def hide_bars() -> None:
    """Let the library draw no bars from now on."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()


def _bar(progress: Listener) -> type[Any]:
    """The library's bar, which also tells a listener."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            self.here, self.whole = int(options.get("initial") or 0), int(options.get("total") or 0)
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            self.here += int(n or 0)
            progress(DOWNLOADING, self.here, self.whole)
            return bool(super().update(n))

    return Bar


def _no_bar() -> type[Any]:
    """A bar that is not drawn: of small files the library's are still there when a model's text comes."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class NoBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

    return NoBar


def _require_room(of: Listing, files: Iterable[RemoteFile]) -> None:
    """BitgenError where a disk has no room for what is missing."""
    folder = cache()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    needed, free = missing(of, files), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed} bytes are needed, {free} are free")


def _sha256(lfs: Any) -> str | None:
    found = lfs and re.fullmatch(r"[0-9a-f]{64}", str(lfs.get("sha256")))
    return found[0] if found else None


def _is_plain(name: str) -> bool:
    """Whether a file's name is a relative path of ordinary names, printable and the same on every system."""
    parts = name.split("/")
    return name.isprintable() and len(name) < 256 and not any(
        part in ("", ".", "..") or part[-1] in " ." or set(part) & set('\\:*?"<>|') for part in parts
    )  # fmt: skip
