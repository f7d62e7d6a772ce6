"""How files are kept: names, private folders, locks, and work folders that outlive their owners."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgen import store
from bitgen.errors import BitgenError

ROOT_ON_LINUX = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="giving a file to another user takes root"
)


# ---- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["stories", "BitNet-b1.58-2B-4T", "Bitnet B1.58 (2B)", "größe", "模型", "модель", "हिन्दी", "a_b+c", "falcon"],
)
def test_an_ordinary_name_stays(name: str) -> None:
    assert store.slug(name) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("acme/tiny-1b", "acme-tiny-1b"),
        ("../../escaped", "escaped"),
        ("/etc/passwd", "etc-passwd"),
        ("C:\\tiny", "C--tiny"),
        ("a\0b", "a-b"),
        ("a\x1b[31mb\n", "a--31mb"),
        ("", "unnamed"),
        ("...", "unnamed"),
        ("-rf", "rf"),
        ("--output=x", "output-x"),
        (" tiny. ", "tiny"),
        ("con", "con_"),
        ("NUL.txt", "NUL_.txt"),
        ("com¹", "com¹_"),
        ("\udcff\ud800x", "x"),
        ("a\u202eb", "a-b"),
        ("$(id);`id`*?[a]", "(id)--id----a"),
    ],
)
def test_a_name_that_is_none_becomes_one(name: str, safe: str) -> None:
    assert store.slug(name) == safe


def test_long_names_are_cut_and_stay_apart() -> None:
    for letter in ("n", "模", "😀a"):
        one, other = store.slug(letter * 300), store.slug(letter * 301)
        assert one != other and max(len(one.encode()), len(other.encode())) <= store.NAME_BYTES


@given(st.text(st.characters(codec=None), max_size=400))
def test_no_name_is_a_path(name: str) -> None:
    safe = store.slug(name)
    assert Path(safe).name == safe and 0 < len(safe.encode()) <= store.NAME_BYTES
    assert not set(safe) & set("/\\:*?\"<>|$`'&;\0") and safe.isprintable()
    assert safe[0] not in " .-" and safe[-1] not in " ."
    assert store.slug(safe) == safe


# ---- folders --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(BitgenError, match=f"other users may write to {tmp_path}, .*set BITGEN_CACHE to a folder"):
        store.make_private(tmp_path)


@ROOT_ON_LINUX
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, -1)
    with pytest.raises(BitgenError, match="BITGEN_CACHE"):
        store.make_private(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
def test_a_new_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store.make_private(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BitgenError, match=f"cannot use {tmp_path}/file/cache: Not a directory; set BITGEN_CACHE"):
        store.make_private(tmp_path / "file" / "cache")


# ---- locks ----------------------------------------------------------------------------------------------------


def work_alone(lock: Path, threads: int) -> tuple[int, int]:
    """The most threads that were in the context at once, and how many were told to wait."""
    inside, most, told = 0, 0, 0
    counting = threading.Lock()

    def tell() -> None:
        nonlocal told
        told += 1

    def work() -> None:
        nonlocal inside, most
        with store.alone(lock, tell):
            with counting:
                inside += 1
                most = max(most, inside)
            time.sleep(0.05)
            with counting:
                inside -= 1

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return most, told


def test_one_thread_at_a_time(tmp_path: Path) -> None:
    most, told = work_alone(tmp_path / "lock", 4)
    assert most == 1 and told >= 1 and list(tmp_path.iterdir()) == []


def test_without_locks_all_go_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object, **__: object) -> bool:
        raise OSError("no locks available")

    monkeypatch.setattr(store, "lock_descriptor", unavailable)
    assert work_alone(tmp_path / "lock", 3)[1] == 0


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    code = "with store.alone(folder / 'lock', lambda: None):\n    print(1, flush=True)\n    time.sleep(600)"
    holder = start(code, tmp_path)
    assert store.locked(tmp_path / "lock") is None
    kill(holder)
    with store.alone(tmp_path / "lock", lambda: pytest.fail("nobody holds it")):
        pass


# ---- work folders ---------------------------------------------------------------------------------------------


def start(code: str, folder: Path, *before: str) -> subprocess.Popen[str]:
    """A process that runs this code and has printed a line."""
    text = f"import sys, time\nfrom pathlib import Path\nfrom bitgen import store\nfolder = Path(sys.argv[1])\n{code}"
    running = subprocess.Popen([*before, sys.executable, "-c", text, str(folder)], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline()
    return running


def kill(running: subprocess.Popen[str]) -> None:
    running.kill()
    running.communicate()


WRITER = """
with store.work_folder(folder) as work:
    (work / "model").mkdir()
    (work / "model" / "part").write_bytes(bytes(1000))
    print(1, flush=True)
    time.sleep(600)
"""


def sweep(folder: Path) -> list[Path]:
    store.sweep(folder)
    return list(folder.iterdir())


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    writer = start(WRITER, tmp_path)
    left = sweep(tmp_path)
    assert len(left) == 1, "its owner is alive"
    kill(writer)
    assert list(tmp_path.iterdir()) == left
    with store.work_folder(tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [mine]
    assert list(tmp_path.iterdir()) == []


def unshared() -> list[str]:
    """The command that gives a process a PID namespace of its own, as a container does."""
    command = ["unshare", "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to make PID namespaces here, or no unshare that can (util-linux)")
    return command


def test_the_living_of_another_container_stay(tmp_path: Path) -> None:
    writer = start(WRITER, tmp_path, *unshared())
    assert len(sweep(tmp_path)) == 1
    kill(writer)
    deadline = time.monotonic() + 60
    while sweep(tmp_path) and time.monotonic() < deadline:  # its process ends a moment after unshare's
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


def foreign(folder: Path) -> Path:
    """A work folder whose owner lived on another machine, or before a restart."""
    work = folder / ".bitgen-0123456789abcdef"
    work.mkdir(mode=0o700)
    (work / "owner").write_text("another kernel")
    (work / "part").write_text("half")
    return work


def grow_old(work: Path) -> None:
    then = time.time() - store.ABANDONED_S - 60
    for path in (*work.iterdir(), work):
        os.utime(path, (then, then))


def no_owner(work: Path) -> None:
    (work / "owner").unlink()


@pytest.mark.parametrize("change", [lambda work: None, no_owner])
def test_what_no_lock_can_tell_goes_by_age(tmp_path: Path, change: Callable[[Path], None]) -> None:
    work = foreign(tmp_path)
    change(work)
    assert sweep(tmp_path) == [work]
    grow_old(work)
    assert sweep(tmp_path) == []


def test_the_living_stay_however_old_they_are(tmp_path: Path) -> None:
    """A large model on a slow disk, or a process that was stopped."""
    with store.work_folder(tmp_path) as work:
        grow_old(work)
        assert sweep(tmp_path) == [work]


def test_without_locks_the_living_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object, **__: object) -> bool:
        raise OSError("no locks available")

    monkeypatch.setattr(store, "lock_descriptor", unavailable)
    with store.work_folder(tmp_path) as work:
        assert sweep(tmp_path) == [work]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "kernel", full)
    with pytest.raises(OSError, match="No space"), store.work_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_only_work_folders_are_swept(tmp_path: Path) -> None:
    for name in (".bitgen-0123", ".bitgen-0123456789abcdef.txt", ".model.gguf.part", "model"):
        (tmp_path / name).mkdir()
        grow_old(tmp_path / name)
    (tmp_path / ".bitgen-0123456789abcdee").symlink_to(tmp_path / "model")
    assert len(sweep(tmp_path)) == 5


def test_a_sweeper_may_come_at_any_moment(tmp_path: Path) -> None:
    """Also between the making of a work folder and its lock: nothing that is owned is ever lost."""
    stop = threading.Event()

    def sweep_on() -> None:
        while not stop.is_set():
            store.sweep(tmp_path)

    sweepers = [threading.Thread(target=sweep_on) for _ in range(2)]
    for thread in sweepers:
        thread.start()
    try:
        for _ in range(200):
            with store.work_folder(tmp_path) as work:
                (work / "part").write_text("whole")
                store.sweep(tmp_path)
                assert (work / "part").read_text() == "whole"
    finally:
        stop.set()
        for thread in sweepers:
            thread.join()


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    old = tmp_path / "build"
    old.mkdir()
    (old / "damaged").write_text("")
    with store.work_folder(tmp_path) as work:
        (work / "new").mkdir()
        (work / "new" / "sound").write_text("")
        store.publish(work / "new", old)
    assert [path.name for path in tmp_path.rglob("*")] == ["build", "sound"]


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of a folder and the folder itself; then the folder that has the new name."""
    done: list[str] = []
    flush = os.fsync

    def noted(descriptor: int) -> None:
        flush(descriptor)
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    if not Path("/proc/self/fd").exists():
        pytest.skip("/proc is Linux's")
    monkeypatch.setattr(os, "fsync", noted)
    part, path = tmp_path / "part", tmp_path / "build"
    (part / "core").mkdir(parents=True)
    (part / "core" / "a.c").write_text("int a;")
    store.publish(part, path)
    assert set(done[:-1]) == {"part", "core", "a.c"} and done[-1] == tmp_path.name
