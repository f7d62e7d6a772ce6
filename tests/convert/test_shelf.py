"""The models of this machine: what is listed, and what removing one takes with it, and what not."""

from __future__ import annotations

import json
import mmap
import os
import sys
from pathlib import Path

import pytest
from hub_files import q4, split, write
from hub_server import COMMIT, Hub

from bitgen import api, data, uses
from bitgen.convert import hub_cache, local, shelf
from bitgen.errors import BitgenError

NAME = "hf:owner/tiny"


def pull(name: str = NAME) -> Path:
    return local.pull(local.wanted_of(name))


def packed(of: Path, size: int = 1000) -> Path:
    """A file that stands for what was packed from a model."""
    path = data.cached("packed") / f"{of.stem}-avx2-{of.parent.name[:8]}.bgpk"
    path.write_bytes(bytes(size))
    uses.note(path, [of], data.cached("build") / "m-linux")
    return path


def names() -> list[str]:
    return [each.name for each in shelf.shelf().models]


def test_nothing_is_here_but_what_ships(hub: Hub) -> None:
    found = shelf.shelf()
    (model,) = found.models
    assert (model.name, model.kind, model.type, model.used, model.chats) == ("stories", "ships", "I2_S", None, False)
    assert model.bytes == model.path.stat().st_size and shelf.chatting() == []
    presets = {each.name: each for each in found.presets}
    assert presets["stories"].here and not presets["2B4T"].here
    assert presets["2B4T"].hub == "microsoft/bitnet-b1.58-2B-4T" and 1.1e9 < presets["2B4T"].bytes < 1.3e9
    assert not hub.asked


def test_what_was_pulled_is_listed_with_what_was_packed_from_it(hub: Hub) -> None:
    write(hub, "m-I2_S.gguf")
    path = pull()
    here = shelf.shelf().models[1]
    assert (here.name, here.kind, here.path, here.bytes) == (NAME, "downloaded", path, path.stat().st_size)
    assert here.packed_bytes == 0 and here.used == pytest.approx(path.stat().st_mtime)
    os.utime(packed(path).with_suffix(".json"), (2e9, 2e9))
    here = shelf.shelf().models[1]
    assert (here.packed_bytes, here.used) == (1000, 2e9)
    said = json.loads(json.dumps(shelf.shelf().to_json()))
    assert said["models"][1]["used_unix_s"] == 2e9 and said["models"][1]["path"] == str(path)
    assert said["cache"]["packed"]["entries"] == 1
    assert local.find(here.name) == path


def test_each_name_in_the_list_finds_its_model(hub: Hub) -> None:
    write(hub, "a-I2_S.gguf")
    split(hub.folder / "b-I2_S.gguf", 2)
    q4(hub, "c-Q4_0.gguf")
    pull(f"{NAME}:a-I2_S.gguf"), pull(f"{NAME}:b-I2_S")
    hub.commit = "d" * 40
    pull(f"{NAME}:a-I2_S.gguf")
    models = shelf.shelf().models[1:]
    assert [each.name for each in models] == [
        f"{NAME}@{COMMIT}:a-I2_S.gguf", f"{NAME}@{COMMIT}:b-I2_S-00001-of-00002.gguf",
        f"{NAME}:a-I2_S.gguf",
    ]  # fmt: skip
    assert [local.find(each.name) for each in models] == [each.path for each in models]
    assert models[1].bytes == sum(path.stat().st_size for path in hub.folder.glob("b-*"))


def test_a_preset_is_here_when_its_repository_is(hub: Hub) -> None:
    hub.repo = "microsoft/bitnet-b1.58-2B-4T"
    write(hub, "m-I2_S.gguf")
    pull("2B4T")
    assert {each.name for each in shelf.shelf().presets if each.here} == {"stories", "2B4T"}


def test_what_is_no_model_is_not_listed(hub: Hub) -> None:
    write(hub, "m-I2_S.gguf")
    pull().parent.joinpath("x.gguf").write_bytes(b"GGUF, and then nothing")
    assert names() == ["stories", NAME]


# ---- removing -----------------------------------------------------------------------------------------------


def test_a_model_goes_with_what_was_packed_from_it_and_no_other(hub: Hub, tmp_path: Path) -> None:
    write(hub, "m-I2_S.gguf")
    first = pull()
    hub.repo, hub.commit = "owner/tiny2", "d" * 40
    second = pull("hf:owner/tiny2")
    gone, stays = packed(first), packed(second)
    removal = api.removal(NAME)
    assert removal.bytes == first.stat().st_size + 1000 and first.exists() and gone.exists()
    removal.execute()
    assert not first.exists() and not gone.exists() and not gone.with_suffix(".json").exists()
    assert second.exists() and stays.exists() and names() == ["stories", "hf:owner/tiny2"]
    assert not (hub_cache.cache() / "models--owner--tiny").exists()


def test_all_revisions_go_or_the_one_that_is_named(hub: Hub) -> None:
    write(hub, "m-I2_S.gguf")
    old = pull()
    hub.commit = "d" * 40
    write(hub, "m-I2_S.gguf", seed=2)
    new = pull()
    assert set(api.removal(NAME).revisions) == {COMMIT, hub.commit}
    api.removal(f"{NAME}@{COMMIT}").execute()
    assert new.exists() and not old.exists()
    api.removal(f"{NAME}@main").execute()
    assert not new.exists()


def test_what_an_interrupted_download_left_goes(hub: Hub) -> None:
    blobs = hub_cache.cache() / "models--owner--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{'a' * 64}.incomplete").write_bytes(b"half")
    assert shelf.shelf().interrupted == {NAME: 4}
    removal = api.removal(NAME)
    assert removal.bytes == 4
    removal.execute()
    assert not list(blobs.iterdir()) and not shelf.shelf().interrupted


def test_what_is_not_bitgens_to_remove(hub: Hub, tmp_path: Path) -> None:
    path = write(hub, "m-I2_S.gguf")
    refused = {
        str(path): "is a file of yours",
        str(data.shipped_path()): "is a file of yours",
        "stories": "ships with bitgen",
        NAME: "is not on this machine",
        "nothing": "no such file or folder",
    }
    for name, why in refused.items():
        with pytest.raises(BitgenError, match=why):
            api.removal(name)
    assert path.exists()


def test_one_of_several_files_of_a_revision_does_not_go_alone(hub: Hub) -> None:
    write(hub, "m-I2_S.gguf"), write(hub, "m-TQ1_0.gguf", "tq1_0")
    pull(f"{NAME}:I2_S"), pull(f"{NAME}:TQ1_0")
    with pytest.raises(BitgenError, match=r"`bitgen rm hf:owner/tiny` removes m-I2_S.gguf, m-TQ1_0.gguf"):
        api.removal(f"{NAME}:I2_S")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what is mapped")
def test_a_model_that_runs_stays(hub: Hub) -> None:
    write(hub, "m-I2_S.gguf")
    path = packed(pull())
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ),
        pytest.raises(BitgenError, match=f"is in use: a process has {path.name} mapped"),
    ):
        api.removal(NAME)
    api.removal(NAME).execute()
    assert not path.exists()


# ---- checkpoints --------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(hub: Hub) -> Path:
    """The official layout, packed safetensors, as the repository."""
    pytest.importorskip("torch", reason="the checkpoints are made with PyTorch")
    import hf_models

    return hf_models.save(hf_models.BITNET, hub.folder)


def test_a_checkpoint_is_converted_once_listed_and_removed(hub: Hub, checkpoint: Path) -> None:
    what = local.wanted_of(NAME)
    assert what.candidate is None and "to be converted" in what.what
    seen: list[str] = []
    path = local.pull(what, lambda stage, *_: seen.append(stage))
    assert "converting" in seen and path.is_relative_to(data.cache_root())
    hub.broken = 503
    assert local.located(NAME) == local.located(f"{NAME}@{COMMIT}") == path and names() == ["stories", NAME]
    here = shelf.shelf().models[1]
    assert here.kind == "converted" and here.chats and shelf.chatting() == [NAME]
    assert here.bytes > path.stat().st_size + (checkpoint / "model.safetensors").stat().st_size
    downloaded = hub_cache.snapshots("owner/tiny") / COMMIT / "model.safetensors"
    assert downloaded.exists()
    api.removal(NAME).execute()
    assert not downloaded.exists() and not path.exists() and local.find(NAME) is None and names() == ["stories"]


def test_a_converted_model_outlives_its_download(hub: Hub, checkpoint: Path) -> None:
    path = pull()
    import shutil

    shutil.rmtree(hub_cache.cache())
    assert local.find(NAME) == local.find(f"{NAME}@{COMMIT}") == path and local.find(f"{NAME}@v2") is None
    api.removal(NAME).execute()
    assert not path.exists()


def test_a_checkpoint_of_another_revision_is_another(hub: Hub, checkpoint: Path) -> None:
    first = pull()
    hub.commit = "d" * 40
    second = pull()
    assert first != second and local.find(NAME) == second and local.find(f"{NAME}@{COMMIT}") == first


def test_a_conversion_that_was_interrupted_goes_on(hub: Hub, checkpoint: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "converting" and done * 2 > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local.pull(local.wanted_of(NAME), stop)
    assert local.find(NAME) is None and names() == ["stories"]
    (folder,) = (data.cached(local.CONVERTED)).iterdir()
    assert api.removal(NAME).paths == (folder,) and not list(shelf.stale())
    before = folder.stat()
    os.utime(folder, (1e9, 1e9))
    assert list(shelf.stale()) == [(folder, "a conversion that was interrupted")]
    os.utime(folder, (before.st_atime, before.st_mtime))
    assert pull().is_file() and len(names()) == 2


def test_a_folder_is_converted_once_and_anew_when_it_changes(hub: Hub, checkpoint: Path) -> None:
    import hf_models

    first = local.find(str(checkpoint))
    assert first == local.find(str(checkpoint)) and first is not None and names()[1] == str(checkpoint.resolve())
    before = first.read_bytes()
    hf_models.edit_config(checkpoint, rms_norm_eps=1e-6)
    second = local.find(str(checkpoint))
    assert second and second != first and second.read_bytes() != before
    assert [path for path, why in shelf.stale()] == [first.parent]
    api.removal(str(checkpoint)).execute()
    assert not first.exists() and not second.exists() and (checkpoint / "config.json").exists()
