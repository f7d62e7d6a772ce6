"""How files are kept on a disk that others use too: under names that are only names, in private folders, made by one
process at a time, and whole.

What is written is made in a work folder beside its place, `.bitgen-<token>`, and appears by one rename. As long as the
maker lives it holds a lock on the file `owner` in there. Locks go with their process, whatever ends it, and are seen
across containers: so the next one who writes to that place can tell what was left behind from what is being made.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import lock_descriptor

from bitgen.errors import BitgenError

NAME_BYTES = 96
"""Of a name in UTF-8: with what is added to it, it stays below the 255 that file systems take."""
ABANDONED_S = 24 * 3600
"""Seconds after which a work folder that nobody touched is taken for abandoned where no lock can tell."""
POLL_S = 0.1

_RESERVED = re.compile(r"^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?=\.|$)", re.I)  # names of devices on Windows
_WORK, _OWNER = re.compile(r"\.bitgen-[0-9a-f]{16}"), "owner"


def slug(text: str) -> str:
    """A file name, never a path, that reads like any text: an ordinary name stays as it is.

    Letters, marks and digits of all scripts stay, and between them spaces and `._+-()`. A long name is cut, and then
    ends in a hash of the whole.
    """
    text = unicodedata.normalize("NFC", text)
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" or c in " ._+-()" else "-" for c in text)
    name = _RESERVED.sub(r"\1_", kept.strip(" .-")) or "unnamed"
    if len(raw := name.encode()) <= NAME_BYTES:
        return name
    return f"{raw[: NAME_BYTES - 9].decode(errors='ignore')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


# ---- who may write --------------------------------------------------------------------------------------------


def is_private(path: Path) -> bool:
    """Whether this user (or root) owns a file or folder, and no other may write to it.

    Not asked on Windows, where a user's folders are closed to others by default.
    """
    if os.name == "nt":
        return True
    found = path.stat()
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def make_private(folder: Path) -> None:
    """Make a folder that only this user can use, unless it is there; BitgenError where another could write to it.

    A folder that is not there and cannot be made is left for its writers to complain of.
    """
    advice = "set BITGEN_CACHE to a folder of your own, which need not exist yet"
    with suppress(OSError):
        folder.mkdir(0o700, parents=True, exist_ok=True)
    try:
        if not is_private(folder):
            raise BitgenError(f"other users may write to {folder}, so what is in it cannot be trusted: {advice}")
    except FileNotFoundError:
        return
    except OSError as e:
        raise BitgenError(f"cannot use {folder}: {e.strerror}; {advice}") from e


# ---- locks ----------------------------------------------------------------------------------------------------


_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def own_file(path: Path) -> int:
    """A descriptor of a file under a name that can be foreseen, created if need be, for reading and writing.

    BitgenError: what is there is a link or a pipe, or has another name too, and may be anyone's file.
    """
    planted = path.is_symlink()
    if not planted:
        descriptor = os.open(path, _FLAGS, 0o666)
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
            return descriptor
        os.close(descriptor)
    raise BitgenError(f"{path} is a link or no regular file, and would be written to; remove it")


def locked(path: Path) -> BinaryIO | None:
    """The file, created if need be, open for reading and writing and locked until it is closed.

    The lock is on the open file, so that it goes with the process. None: another thread or process holds it. OSError
    where it cannot be opened, or the file system has no locks.
    """
    while True:
        file = os.fdopen(own_file(path), "r+b")
        try:
            if not lock_descriptor(file.fileno(), blocking=False):
                file.close()
                return None
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # its holder removed it between the two calls


@contextmanager
def alone(lock: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """A context that one thread of one process is in at a time; `waiting` is called by those who have to wait.

    Without locks (some network file systems) all go in, and do the same work.
    """
    file: BinaryIO | None = None
    with suppress(OSError):
        file = locked(lock)
        if file is None:
            waiting()
        while file is None:
            time.sleep(POLL_S)
            file = locked(lock)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                lock.unlink()  # while it is held: who has opened it already will see that it is another's
            file.close()


# ---- work folders ---------------------------------------------------------------------------------------------


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """An empty folder in `parent`, the caller's own until the context ends; abandoned ones are removed first."""
    sweep(parent)
    folder, owner = _owned(parent)
    try:
        yield folder
    finally:
        owner.close()
        _remove(folder)


def _owned(parent: Path) -> tuple[Path, BinaryIO]:
    """A new work folder, and its owner's file, locked where the file system can."""
    while True:
        folder = parent / f".bitgen-{secrets.token_hex(8)}"
        folder.mkdir(0o700)
        try:
            owner = locked(folder / _OWNER)
        except FileNotFoundError:  # another process swept the empty folder
            continue
        except OSError:
            owner = (folder / _OWNER).open("w+b")
        if owner is not None:
            try:
                owner.write(kernel())
                owner.flush()
            except BaseException:  # a full disk
                with suppress(OSError):
                    owner.close()
                _remove(folder)
                raise
            return folder, owner
        _remove(folder)  # another process is looking whether it is abandoned


def sweep(parent: Path) -> None:
    """Remove the work folders in a folder whose owners are gone, and no other."""
    for work in _work_folders(parent):
        with suppress(OSError):
            work.rmdir()  # its owner had no time to say so
        with suppress(OSError):
            if is_private(work) and _is_abandoned(work):
                _remove(work)


def abandoned(parent: Path) -> Iterator[Path]:
    """The work folders that a sweep would remove, but for empty ones."""
    for work in _work_folders(parent):
        with suppress(OSError):
            if any(work.iterdir()) and is_private(work) and _is_abandoned(work):
                yield work


def _work_folders(parent: Path) -> list[Path]:
    try:
        found = [each for each in os.scandir(parent) if _WORK.fullmatch(each.name)]
        return [Path(each.path) for each in found if each.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _is_abandoned(work: Path) -> bool:
    """Whether the owner of a work folder is gone: its lock is free, or nothing has changed for a day.

    A lock counts only where it was taken on this machine: not every network file system shows those of others.
    """
    with suppress(OSError):
        owner = locked(work / _OWNER) if (work / _OWNER).exists() else None
        if owner is None and (work / _OWNER).exists():
            return False
        if owner is not None:
            with owner:
                if owner.read() == kernel():
                    return True
    return time.time() - max(path.lstat().st_mtime for path in (work, *work.rglob("*"))) > ABANDONED_S


def _remove(work: Path) -> None:
    """Remove a work folder, its owner's file last: what a compiler still writes there is left for the next sweep."""
    with suppress(OSError):
        for path in work.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _OWNER:
                path.unlink(missing_ok=True)
        if all(path.name == _OWNER for path in work.iterdir()):
            (work / _OWNER).unlink(missing_ok=True)
            work.rmdir()


@functools.cache
def kernel() -> bytes:
    """The running kernel, which all containers of a machine share, and whose locks end with it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:  # not Linux
        return platform.node().encode()


def sha256(path: Path) -> str:
    """The hash of a file, in hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- publishing -----------------------------------------------------------------------------------------------


def publish(part: Path, path: Path) -> None:
    """Rename a finished file or folder to `path`, once its bytes are on the disk. A folder that is there goes first."""
    for each in (part, *part.rglob("*")) if part.is_dir() else (part,):
        _flush(each)
    try:
        part.replace(path)
    except OSError:
        if not (part.is_dir() and path.is_dir()):
            raise
        path.rename(part.with_name(f"{part.name}.replaced"))
        part.replace(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Wait until a file's bytes are on the disk, or a folder's names, where the system can."""
    if path.is_dir():
        with suppress(OSError):  # Windows opens no folder, and some file systems flush none
            _fsync(path, os.O_RDONLY)
    else:
        _fsync(path, os.O_RDWR)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
