"""Which file of a repository is taken, from heads that a server sends in pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import gguf_files
import pytest
from gguf_files import SHAPES, TINY, contents, store
from hub_files import q4, rounded, split, write
from hub_server import Hub

from bitgen.convert import choice
from bitgen.convert.names import HubName
from bitgen.convert.wanted import wanted
from bitgen.errors import BitgenError, UnsupportedError
from bitgen.gguf import groups

NAME = HubName("owner/tiny")


def taken(pick: str | None = None) -> str:
    what = wanted(replace(NAME, pick=pick))
    return what.candidate.name if what.candidate else "checkpoint"


def test_the_smallest_that_bitgen_runs_and_that_rounds_nothing(hub: Hub) -> None:
    for type in ("i2_s", "tq2_0", "tq1_0"):
        write(hub, f"tiny-{type.upper()}.gguf", type)
    q4(hub, "tiny-Q4_K_M.gguf")
    rounded(hub, "tiny-TQ1_0-q8.gguf", "tq1_0")
    for beside in ("mmproj-tiny-F16.gguf", "imatrix.gguf", "tiny.mtp.gguf", "lora-tiny.gguf"):
        (hub.folder / beside).write_bytes(b"GGUF")
    assert taken() == "tiny-TQ1_0.gguf"
    assert hub.fetched() == {f"tiny-{type}.gguf" for type in ("I2_S", "TQ2_0", "TQ1_0", "TQ1_0-q8")}
    assert hub.tokens_elsewhere == 0


def test_files_of_one_model_with_scales_of_groups(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names of published ones. Of a head no weights are read: they are a hole."""
    shape = replace(SHAPES["qwen3"], vocab=3000, hidden=512, layers=3, tied=True)
    for name, type, group in (
        ("Q2_0", "q2_0", 128), ("Q2_0_g64", "q2_0", 64), ("PQ2_0", "pq2_0", 128), ("PTQ1_0", "ptq1_0", 128),
    ):  # fmt: skip
        write(hub, f"tiny-{name}.gguf", type, replace(shape, group=group))
    assert taken() == "tiny-PTQ1_0.gguf"
    assert (taken("Q2_0_g64"), taken("PQ2_0")) == ("tiny-Q2_0_g64.gguf", "tiny-PQ2_0.gguf")
    monkeypatch.setattr(choice, "HEADS", (1 << 18,))
    monkeypatch.setattr(groups, "blocks_differ", None)
    assert taken() == "tiny-PTQ1_0.gguf"


def test_a_file_of_another_type_by_its_content_is_not_taken(hub: Hub) -> None:
    q4(hub, "tiny.gguf")
    write(hub, "tiny-i2_s.gguf")
    assert taken() == "tiny-i2_s.gguf"


def test_what_rounds_is_taken_where_there_is_no_other_and_said(hub: Hub) -> None:
    rounded(hub, "tiny-TQ2_0.gguf")
    what = wanted(NAME)
    assert what.candidate and what.candidate.name == "tiny-TQ2_0.gguf" and "rounded" in what.note
    (hub.folder / "config.json").write_text("{}")
    (hub.folder / "model.safetensors").write_bytes(b"x")
    assert taken() == "checkpoint"
    write(hub, "tiny-I2_S.gguf")
    assert taken() == "tiny-I2_S.gguf"


@pytest.mark.parametrize("pick", ["tq2_0", "TQ2_0", "m-TQ2_0.gguf", "x/m-TQ2_0.gguf"])
def test_a_tag_is_a_type_or_a_file(hub: Hub, pick: str) -> None:
    for type in ("i2_s", "tq2_0"):
        write(hub, f"x/m-{type.upper()}.gguf", type)
    write(hub, "x/m-TQ2_0-other.gguf", "i2_s")
    if "gguf" in pick:
        assert taken(pick) == "x/m-TQ2_0.gguf"
    else:  # before "-" too
        with pytest.raises(BitgenError, match=r"could mean .*TQ2_0-other.gguf.*name the one that you want, like hf:"):
            taken(pick)


@pytest.mark.parametrize("pick", ["TQ", "2_0x", "../m-TQ2_0.gguf", "/etc/passwd", "m-TQ2_0.gguf/"])
def test_a_tag_that_is_none_is_said(hub: Hub, pick: str) -> None:
    write(hub, "m-TQ2_0.gguf", "tq2_0")
    with pytest.raises(
        BitgenError, match=r"no GGUF file of that name or type; it has m-TQ2_0.gguf \(0.\d GB|[\d.]+ [kM]B"
    ):
        taken(pick)


def test_a_tag_of_a_file_that_bitgen_does_not_run(hub: Hub) -> None:
    q4(hub, "m-Q4_0.gguf")
    with pytest.raises(UnsupportedError, match=r"m-Q4_0.gguf: tensor blk.0.attn_q.weight is of type Q4_0"):
        taken("Q4_0")


def test_other_types_only(hub: Hub) -> None:
    q4(hub, "m-Q4_K_M.gguf")
    q4(hub, "m-Q8_0.gguf")
    with pytest.raises(UnsupportedError, match=r"has GGUF files of Q4_K_M, Q8_0, and no checkpoint.*I2_S.*TQ2_0"):
        taken()
    assert not hub.fetched()


def test_neither_gguf_nor_checkpoint(hub: Hub) -> None:
    (hub.folder / "README.md").write_text("a card")
    (hub.folder / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(UnsupportedError, match="neither a GGUF file nor a checkpoint in safetensors"):
        taken()


def other_name(hub: Hub) -> None:
    write(hub, "base-I2_S.gguf", seed=1)
    write(hub, "chat-I2_S.gguf", seed=2)


def other_shape(hub: Hub) -> None:
    write(hub, "m-I2_S.gguf")
    write(hub, "m-TQ1_0.gguf", "tq1_0", replace(TINY, layers=1))


def other_folder(hub: Hub) -> None:
    write(hub, "a/m-I2_S.gguf")
    write(hub, "b/m-I2_S.gguf", seed=2)


@pytest.mark.parametrize("make", [other_name, other_shape, other_folder])
def test_several_models_are_listed(hub: Hub, make: Callable[[Hub], None]) -> None:
    make(hub)
    with pytest.raises(BitgenError, match=r"could mean .*\.gguf \(.* [kM]?B\), .*\.gguf.*name the one that you want"):
        taken()


def test_folders_of_types_are_one_model(hub: Hub) -> None:
    write(hub, "I2_S/m-I2_S.gguf")
    write(hub, "TQ1_0/m-TQ1_0.gguf", "tq1_0")
    assert taken() == "TQ1_0/m-TQ1_0.gguf"


def test_a_split_model_is_one(hub: Hub) -> None:
    split(hub.folder / "m.gguf", 3)
    what = wanted(NAME)
    assert [file.name for file in what.files] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert what.missing == sum(path.stat().st_size for path in hub.folder.iterdir())
    assert taken("m-00002-of-00003.gguf") == "m-00001-of-00003.gguf"
    (hub.folder / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(UnsupportedError, match="neither a GGUF file nor"):
        taken()


def test_a_long_head_is_read_in_pieces(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "HEADS", (100, 1000, 100_000))
    path = write(hub, "m-I2_S.gguf")
    assert taken() == "m-I2_S.gguf"
    assert hub.ranges(path.name) == ["bytes=0-99", "bytes=100-999", "bytes=1000-99999"]
    monkeypatch.setattr(choice, "HEADS", (100, 1000))
    with pytest.raises(UnsupportedError, match=r"its first 1\.0 kB are not all of its head"):
        taken("I2_S")


def test_a_server_without_ranges(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "HEADS", (100, 100_000))
    hub.no_ranges = True
    write(hub, "m-I2_S.gguf")
    assert taken() == "m-I2_S.gguf"


def beyond_the_file(hub: Hub) -> None:
    metadata, tensors = contents()
    _, _, data = tensors[gguf_files.Q]
    path = store(hub.folder / "m.gguf", metadata, tensors)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - len(data))


def endless(hub: Hub) -> None:
    """A key whose length is greater than any file."""
    raw = b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") * 2 + (1 << 40).to_bytes(8, "little")
    (hub.folder / "m.gguf").write_bytes(raw.ljust(5000, b"x"))


def not_gguf(hub: Hub) -> None:
    (hub.folder / "m.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)


@pytest.mark.parametrize("make", [beyond_the_file, endless, not_gguf])
def test_a_head_that_lies_is_no_model(hub: Hub, make: Callable[[Hub], None]) -> None:
    make(hub)
    with pytest.raises(BitgenError, match=r"m\.gguf"):
        taken("m.gguf")
    with pytest.raises(UnsupportedError, match=r"has GGUF files of m\.gguf"):
        taken()


@pytest.mark.parametrize(("size", "ranges"), [(10, True), (10**12, True), (10**12, False)])
def test_a_size_that_is_not_the_listed_one(hub: Hub, size: int, ranges: bool) -> None:
    write(hub, "m-I2_S.gguf")
    hub.listed["m-I2_S.gguf"], hub.no_ranges = size, not ranges
    with pytest.raises(BitgenError, match=rf"m-I2_S.gguf is not as large as the Hub lists it \({size} bytes\)"):
        taken()


HOSTILE = ("../x.gguf", "/etc/x.gguf", "a/../../x.gguf", "a\\..\\x.gguf", "C:x.gguf", "\x1b[2Jx.gguf", "a//x.gguf", ".")


def test_hostile_names_are_not_there(hub: Hub) -> None:
    write(hub, "m-I2_S.gguf")
    hub.listed |= dict.fromkeys((*HOSTILE, "m-00001-of-99999.gguf"), 100)
    assert taken() == "m-I2_S.gguf"
    for name in HOSTILE[:-1]:
        if name.isprintable():
            with pytest.raises(BitgenError, match="no GGUF file of that name"):
                taken(name)
