"""Models by name: found where they are, downloaded and resumed, and a sentence for all that can go wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from gguf_files import TINY
from hub_files import q4, split, write
from hub_server import COMMIT, TOKEN, Hub

from bitgen import data
from bitgen.convert import hub as downloads
from bitgen.convert import hub_cache, local
from bitgen.convert.wanted import Wanted
from bitgen.errors import BitgenError
from bitgen.gguf.reader import read_gguf

NAME = "hf:owner/tiny"


def pull(name: str = NAME) -> Path:
    return local.pull(local.wanted_of(name))


def test_a_model_is_pulled_once_and_found_without_a_network(hub: Hub) -> None:
    path = write(hub, "m-I2_S.gguf")
    assert local.find(NAME) is None
    with pytest.raises(BitgenError, match=r"hf:owner/tiny is not on this machine yet: `bitgen pull hf:owner/tiny`"):
        local.located(NAME)
    assert not hub.asked
    found = local.located(NAME, download=True)
    assert found.read_bytes() == path.read_bytes() and COMMIT in found.parts
    asked = len(hub.asked)
    hub.broken = 503
    for name in (NAME, "huggingface.co/owner/tiny", f"{NAME}@main", f"{NAME}@{COMMIT}", f"{NAME}:i2_s"):
        assert local.located(name) == found
    assert local.find(f"{NAME}:TQ1_0") is None and local.find("hf:owner/tiny2") is None
    assert len(hub.asked) == asked


def test_a_name_means_offline_what_it_meant_online(hub: Hub) -> None:
    """Not what happens to be here: a tag of another model's file that is not here is not this one's."""
    write(hub, "m-I-Small-I2_S.gguf")
    found = pull(f"{NAME}:m-I-Small-I2_S.gguf")
    assert local.find(NAME) == local.find(f"{NAME}:small") == local.find(f"{NAME}:m-I-Small-I2_S.gguf") == found
    hub.commit = "d" * 40
    write(hub, "m-Small-I2_S.gguf", seed=2)
    found = pull(f"{NAME}:m-I-Small-I2_S.gguf")
    assert local.find(f"{NAME}:m-I-Small-I2_S.gguf") == local.find(f"{NAME}:i-small") == found
    for unclear in (NAME, f"{NAME}:small", f"{NAME}:I2_S"):
        assert local.find(unclear) is None
        with pytest.raises(BitgenError, match="could mean"):
            pull(unclear)
    assert local.find(f"{NAME}:m-Small-I2_S.gguf") is None


def test_what_another_program_brought_is_found(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download

    write(hub, "m-I2_S.gguf")
    q4(hub, "m-Q4_K_M.gguf")
    there = hf_hub_download("owner/tiny", "m-I2_S.gguf")
    hf_hub_download("owner/tiny", "m-Q4_K_M.gguf")
    assert local.find(NAME) == Path(there)


def test_pulling_again_fetches_nothing(hub: Hub) -> None:
    write(hub, "m-I2_S.gguf")
    assert pull() == pull()
    whole = [r for r in hub.ranges("m-I2_S.gguf") if r is None]
    assert len(whole) == 1 and local.wanted_of(NAME).missing == 0


def test_a_new_revision_is_pulled_and_the_old_one_stays(hub: Hub) -> None:
    write(hub, "m-I2_S.gguf")
    old = pull()
    hub.commit = "d" * 40
    write(hub, "m-I2_S.gguf", seed=2)
    assert local.located(NAME) == old
    new = pull()
    assert new != old and local.located(NAME) == new and local.located(f"{NAME}@{COMMIT}") == old


def test_a_split_model_comes_with_all_parts(hub: Hub) -> None:
    split(hub.folder / "m.gguf", 3)
    found = pull()
    assert len(read_gguf(found).files) == 3
    (found.parent / "m-00003-of-00003.gguf").unlink()
    assert local.find(NAME) is None
    assert pull() == found and len(read_gguf(found).files) == 3


def test_finding_writes_nothing(hub: Hub) -> None:
    """A cache of downloads may be read only."""
    write(hub, "m-I2_S.gguf")
    found = pull()
    before = {path: path.lstat().st_mtime_ns for path in hub_cache.cache().rglob("*")}
    assert local.find(NAME) == local.find(f"{NAME}:I2_S") == found
    assert {path: path.lstat().st_mtime_ns for path in hub_cache.cache().rglob("*")} == before


# ---- interrupted --------------------------------------------------------------------------------------------

PATCHED = """
import sys
from huggingface_hub import constants
from bitgen.convert import hub
hub.LARGE, constants.DOWNLOAD_CHUNK_SIZE = 1, 1000
if sys.argv[1] == "without locks":
    import contextlib
    hub.store.alone = lambda lock, waiting: contextlib.nullcontext()
    sys.argv.pop(1)
from bitgen.cli import main
main(sys.argv[1:])
"""
"""The command line with pieces that are small enough for a test."""


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(downloads, "LARGE", 1)


def process(hub: Hub, tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    environment = hub.environment(tmp_path / "home", BITGEN_CACHE=str(tmp_path / "cache"))
    command = [sys.executable, "-c", PATCHED, *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.usefixtures("small_pieces")
def test_a_dropped_connection_is_resumed(hub: Hub) -> None:
    path = write(hub, "m-I2_S.gguf")
    what = local.wanted_of(NAME)
    hub.cut["m-I2_S.gguf"] = 10_500
    assert local.pull(what).read_bytes() == path.read_bytes()
    assert hub.ranges("m-I2_S.gguf")[-2:] == [None, "bytes=10000-"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_is_resumed(hub: Hub, tmp_path: Path, number: int) -> None:
    path = write(hub, "m-I2_S.gguf")
    hub.held["m-I2_S.gguf"] = 10_000
    first = process(hub, tmp_path, "pull", NAME)
    assert hub.reached.wait(60)
    until = time.monotonic() + 60
    while sum(part.stat().st_size for part in hub_cache.interrupted("owner/tiny")) < 8000:
        assert time.monotonic() < until
        time.sleep(0.01)
    first.send_signal(number)
    said = first.communicate(timeout=60)[1]
    hub.released.set()
    assert number == signal.SIGKILL or "the same command goes on from here" in said
    (part,) = hub_cache.interrupted("owner/tiny")
    assert 8000 <= part.stat().st_size <= 10_000
    assert local.find(NAME) is None
    begun = part.stat().st_size
    assert local.wanted_of(NAME).missing == path.stat().st_size - begun
    second = process(hub, tmp_path, "pull", NAME)
    out, said = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert Path(out.strip()).read_bytes() == path.read_bytes() and hub.ranges("m-I2_S.gguf")[-1] == f"bytes={begun}-"
    assert not hub_cache.interrupted("owner/tiny")


@pytest.mark.usefixtures("small_pieces")
def test_of_a_checkpoint_in_shards_only_the_rest_is_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """And before that it is not taken for a model."""
    pytest.importorskip("torch", reason="the checkpoints are made with PyTorch")
    import hf_models

    hf_models.save(hf_models.BITNET, hub.folder, shards=3)
    shards = sorted(path.name for path in hub.folder.glob("*.safetensors"))
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "sha256_of", Mock(side_effect=[hash_of(hub, shards[0]), KeyboardInterrupt]))
        with pytest.raises(KeyboardInterrupt):
            pull()
    assert local.find(NAME) is None
    sizes = [(hub.folder / name).stat().st_size for name in shards]
    assert local.wanted_of(NAME).missing < sum(sizes[2:]) + 100_000
    assert pull().is_file()
    assert [hub.ranges(name) for name in shards] == [[None], [None], [None]]


def hash_of(hub: Hub, name: str) -> str:
    return hashlib.sha256((hub.folder / name).read_bytes()).hexdigest()


@pytest.mark.usefixtures("small_pieces")
def test_what_came_damaged_is_fetched_again(hub: Hub) -> None:
    path = write(hub, "m-I2_S.gguf")
    what = local.wanted_of(NAME)
    hub.damaged.add("m-I2_S.gguf")
    with pytest.raises(
        BitgenError, match=r"m-I2_S.gguf came damaged and was removed; the same command fetches it again"
    ):
        local.pull(what)
    assert local.find(NAME) is None and not hub_cache.interrupted("owner/tiny")
    assert local.pull(what).read_bytes() == path.read_bytes()


def left(what: Wanted, pid: int = 2**22 + 1) -> Path:
    """Where a process, one that cannot be running, would leave a part of what is wanted."""
    blob = hub_cache.blob("owner/tiny", str(what.files[0].sha256))
    blob.parent.mkdir(parents=True, exist_ok=True)
    return blob.with_name(f"{blob.name}.{hub_cache.machine()}-{pid}.incomplete")


@pytest.mark.usefixtures("small_pieces")
def test_a_part_that_another_process_writes_is_left_alone(hub: Hub) -> None:
    path = write(hub, "m-I2_S.gguf")
    what = local.wanted_of(NAME)
    theirs, old = left(what, pid=os.getppid()), left(what).with_name(f"{what.files[0].sha256}.0a0a0a0a-1.incomplete")
    for part in (theirs, old):
        part.write_bytes(path.read_bytes()[:3000])
    os.utime(old, (1e9, 1e9))  # of another machine, and no longer growing
    assert local.pull(what).read_bytes() == path.read_bytes()
    assert theirs.read_bytes() == path.read_bytes()[:3000] and not old.exists()
    assert hub.ranges("m-I2_S.gguf")[-1] == "bytes=3000-"


@pytest.mark.usefixtures("small_pieces")
def test_a_part_of_another_file_does_not_survive(hub: Hub) -> None:
    """What lies there longer than the file, or with other bytes."""
    path = write(hub, "m-I2_S.gguf")
    what = local.wanted_of(NAME)
    part = left(what)
    part.write_bytes(b"x" * 5000)
    with pytest.raises(BitgenError, match="came damaged"):
        local.pull(what)
    part.write_bytes(b"x" * (path.stat().st_size + 1))
    assert local.pull(what).read_bytes() == path.read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
@pytest.mark.usefixtures("small_pieces")
def test_a_link_in_the_place_of_a_part_is_refused(hub: Hub, tmp_path: Path) -> None:
    write(hub, "m-I2_S.gguf")
    what = local.wanted_of(NAME)
    part = left(what)
    (tmp_path / "precious").write_text("precious")
    part.symlink_to(tmp_path / "precious")
    with pytest.raises(BitgenError, match="is a link or no regular file"):
        local.pull(what)
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.usefixtures("small_pieces")
def test_two_that_pull_at_once_fetch_once(hub: Hub, tmp_path: Path) -> None:
    path = write(hub, "m-I2_S.gguf")
    what = local.wanted_of(NAME)
    heads = len(hub.ranges("m-I2_S.gguf"))
    hub.held["m-I2_S.gguf"] = 10_000
    found: list[Path] = []
    waits = threading.Event()

    def progress(stage: str, done: int, total: int) -> None:
        if stage == data.WAITING:
            waits.set()

    threads = [threading.Thread(target=lambda: found.append(local.pull(what, progress))) for _ in range(2)]
    threads[0].start()
    assert hub.reached.wait(60)
    threads[1].start()
    assert waits.wait(60)
    hub.released.set()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2 and found[0] == found[1] and found[0].read_bytes() == path.read_bytes()
    assert len(hub.ranges("m-I2_S.gguf")) == heads + 1


def test_two_processes_that_pull_at_once(hub: Hub, tmp_path: Path) -> None:
    path = write(hub, "m-I2_S.gguf")
    both = [process(hub, tmp_path, "pull", NAME) for _ in range(2)]
    outs = [each.communicate(timeout=120) for each in both]
    assert [each.returncode for each in both] == [0, 0], outs
    assert {Path(out.strip()).read_bytes() for out, _ in outs} == {path.read_bytes()}
    assert hub.ranges("m-I2_S.gguf").count(None) == 1


@pytest.mark.skipif(os.name == "nt", reason="its locks always tell")
def test_two_processes_whose_locks_tell_nothing(hub: Hub, tmp_path: Path) -> None:
    """As on some network file systems: both fetch, and what one has finished the other does not write to."""
    path = write(hub, "m-I2_S.gguf")
    hub.held["m-I2_S.gguf"] = 10_000
    both = [process(hub, tmp_path, "without locks", "pull", NAME) for _ in range(2)]
    until = time.monotonic() + 120
    while all(each.poll() is None for each in both) and time.monotonic() < until:
        time.sleep(0.05)
    hub.released.set()  # the slower one goes on when the other has finished
    outs = [each.communicate(timeout=120) for each in both]
    assert [each.returncode for each in both] == [0, 0], outs
    for out, _ in outs:
        assert Path(out.strip()).read_bytes() == path.read_bytes()
    assert not hub_cache.interrupted("owner/tiny")


# ---- refused ------------------------------------------------------------------------------------------------


def private(hub: Hub) -> None:
    hub.private = True


def gated(hub: Hub) -> None:
    hub.gated = True


def broken(hub: Hub) -> None:
    hub.broken = 500


def moved(hub: Hub) -> None:
    hub.repo = "owner/other"


def changed(hub: Hub) -> None:
    """Another file than the listed one is sent."""
    hub.listed["m-I2_S.gguf"] = (hub.folder / "m-I2_S.gguf").stat().st_size + 1


WRONG: dict[Callable[[Hub], None], str] = {
    private: "there is no such model, or it is private: `hf auth login` or set HF_TOKEN",
    gated: "access is granted on its web page",
    broken: "the Hub answered 500; try again later",
    moved: "there is no such model",
    changed: "not as large as the Hub lists it",
}


@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
def test_refusals_say_why(hub: Hub, make: Callable[[Hub], None]) -> None:
    write(hub, "m-I2_S.gguf")
    make(hub)
    with pytest.raises(BitgenError) as refused:
        pull()
    assert WRONG[make] in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_a_token_opens_what_is_gated_and_does_not_go_elsewhere(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    write(hub, "m-I2_S.gguf")
    hub.gated = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert pull().is_file()
    assert hub.ranges("m-I2_S.gguf") and not hub.tokens_elsewhere


def test_other_refusals(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    write(hub, "m-I2_S.gguf")
    with pytest.raises(BitgenError, match="it has no revision 'v9'"):
        pull(f"{NAME}@v9")
    with pytest.raises(BitgenError, match="is on this machine: there is nothing to download"):
        pull("stories")
    with monkeypatch.context() as patch:
        patch.setenv("BITGEN_OFFLINE", "1")
        with pytest.raises(BitgenError, match="BITGEN_OFFLINE is set"):
            pull()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BitgenError, match="HF_HUB_OFFLINE is set"):
        pull()


def test_nobody_answers(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BitgenError, match=r"the Hub cannot be reached.*check the network"):
        pull()


def test_a_disk_without_room_is_said_before_anything_comes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    write(hub, "m-I2_S.gguf")
    what = local.wanted_of(NAME)
    usage = shutil.disk_usage(hub.folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    asked = len(hub.asked)
    with pytest.raises(BitgenError, match=r"the disk is full \(\d+ bytes are needed, 1000 are free\).*HF_HOME"):
        local.pull(what)
    assert len(hub.asked) == asked


@pytest.mark.usefixtures("small_pieces")
def test_a_disk_that_becomes_full_keeps_what_came(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    write(hub, "m-I2_S.gguf")
    what = local.wanted_of(NAME)

    def full(url: str, file: object, **_: object) -> None:
        file.write(b"x" * 500)  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(BitgenError, match=r"the disk is full; free some space or set HF_HOME"):
        local.pull(what)
    assert len(hub_cache.interrupted("owner/tiny")) == 1


def test_types_that_bitgen_does_not_run_are_not_downloaded(hub: Hub) -> None:
    q4(hub, "m-Q4_K_M.gguf")
    with pytest.raises(BitgenError, match="has GGUF files of Q4_K_M"):
        local.located(NAME, download=True)
    assert not hub.ranges("m-Q4_K_M.gguf")


def test_a_folder_of_gguf_files_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.gguf").touch()
    with pytest.raises(BitgenError, match=r"a folder without safetensors; name a file in it: a.gguf"):
        local.find(str(tmp_path))


def test_a_shape_is_that_of_the_model_that_is_here(hub: Hub) -> None:
    from bitgen import api

    write(hub, "m-I2_S.gguf")
    with pytest.raises(BitgenError, match="bitgen pull"):
        api.shape_of(NAME)
    pull()
    assert api.shape_of(NAME) == TINY and api.info(NAME)["layers"] == TINY.layers
