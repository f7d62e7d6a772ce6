"""How a file appears: whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bitgen import data
from bitgen.errors import BitgenError, FormatError


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("before")
    with data.replacing(path) as part:
        part.write_text("after")
        assert part.parent.parent == tmp_path and path.read_text() == "before"
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, BitgenError])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "plan.json"
    path.write_text("before")
    with pytest.raises(error), data.replacing(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with data.replacing(path) as first:
        first.write_text("first")
        with data.replacing(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("folder", "advice"), [("cache/plans", "set BITGEN_CACHE to a folder with room"), ("out", "choose another folder")]
)
def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, advice: str) -> None:
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / folder / "plan.json"
    path.parent.mkdir(parents=True)
    said = f"cannot write {path}: No space left on device; free some space or {advice}$"
    with pytest.raises(BitgenError, match=said), data.replacing(path) as part:
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(path.parent.iterdir()) == []


def test_a_file_for_a_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "plan.json"
    with pytest.raises(BitgenError, match=f"cannot write {path}: Not a directory"), data.replacing(path) as part:
        part.write_text("text")


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    real = tmp_path / "disk" / "real.json"
    real.write_text("before")
    (tmp_path / "plan.json").symlink_to(real)
    with data.replacing(tmp_path / "plan.json") as part:
        part.write_text("after")
        assert part.parent.parent == real.parent
    assert (tmp_path / "plan.json").is_symlink() and real.read_text() == "after"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_only_files_are_replaced_and_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "out")
    with pytest.raises(BitgenError, match="is not a regular file; choose another"), data.replacing(tmp_path / "out"):
        pass
    with pytest.raises(FormatError, match="out: is not a regular file"):
        data.regular(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("link", [Path.hardlink_to, Path.symlink_to, lambda path, file: None])
def test_an_input_is_not_replaced_by_any_name(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    source = tmp_path / "model.gguf"
    source.write_text("weights")
    link(tmp_path / "out", source)
    out = tmp_path / "out" if (tmp_path / "out").exists() else tmp_path / "." / "model.gguf"
    with pytest.raises(BitgenError, match=r"it is the input .*model\.gguf"):
        data.target(out, [tmp_path / "absent", source])
    assert data.target(tmp_path / "other", [source]) == tmp_path / "other"


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(BitgenError, match="cannot be read"):
        data.regular(Path(name))
    with pytest.raises(BitgenError, match="cannot write"):
        data.target(Path(name))


# ---- the cache ------------------------------------------------------------------------------------------------


def test_a_user_without_a_home_names_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless(*_: object) -> str:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(data.platformdirs, "user_cache_dir", homeless)
    monkeypatch.delenv("BITGEN_CACHE")
    with pytest.raises(BitgenError, match="set BITGEN_CACHE to a folder"):
        data.cached("packed")
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path))
    assert data.cached("packed") == tmp_path / "packed"


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
@pytest.mark.parametrize("place", ["cache", "cache/packed"])
def test_a_cache_that_others_may_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path / "cache"))
    data.cached("packed")
    (tmp_path / place).chmod(0o777)
    with pytest.raises(BitgenError, match=f"other users may write to {tmp_path / place}, .*BITGEN_CACHE"):
        data.cached("packed")


def test_what_is_sound_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "made"

    def make() -> None:
        path.write_text("")

    for made in (True, False):
        assert data.once(path, path.exists, make, lambda: pytest.fail("nobody else is here")) is made


def test_a_name_of_any_length_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    with data.replacing(path) as part:
        part.write_text("text")
    assert path.read_text() == "text"


def test_scratch_folders_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.tempfile, "gettempdir", lambda: str(tmp_path))
    with data.scratch() as folder:
        (folder / "file").write_text("")
    assert list(tmp_path.iterdir()) == []
