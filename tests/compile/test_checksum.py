"""Damage of a packed model: some is noticed at every start, all of it when the whole is read."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from gguf_files import TINY

from bitgen.checkpoints import synth
from bitgen.compile import checksum, pack
from bitgen.errors import FormatError
from bitgen.headers import constants
from bitgen.kernels import plan

HEADER = constants("core/model.h", "bg_packed")["PACKED_HEADER"]
SIZE = 5 << 20
SAMPLED = (SIZE - checksum.SAMPLE - HEADER) // (checksum.SAMPLES - 1)  # from one sample to the next


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of 5 MiB, of which samples cover one."""
    body = os.urandom(SIZE - HEADER)
    digest = checksum.new()
    digest.update(body)
    with io.BytesIO(bytes(HEADER) + body) as f:
        checksum.finish(f, b"BITGENPK".ljust(HEADER, b"\0"), digest)
        return f.getvalue()


def seen(path: Path, raw: bytes) -> tuple[bool, bool]:
    """Whether a start and a whole reading take the file for sound."""
    path.write_bytes(raw)
    return checksum.is_sound(path), checksum.is_sound(path, whole=True)


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]


def test_a_file_as_written_is_sound(tmp_path: Path, whole: bytes) -> None:
    assert seen(tmp_path / "m", whole) == (True, True)


@pytest.mark.parametrize("at", [0, 9, 300, HEADER - 1, HEADER, HEADER + SAMPLED + 1, SIZE - checksum.SAMPLE, SIZE - 1])
def test_a_flip_in_the_header_or_a_sample_is_noticed_at_every_start(tmp_path: Path, whole: bytes, at: int) -> None:
    assert seen(tmp_path / "m", flipped(whole, at)) == (False, False)


@pytest.mark.parametrize("at", [HEADER + checksum.SAMPLE, HEADER + SAMPLED - 1, SIZE - checksum.SAMPLE - 9])
def test_a_flip_anywhere_is_noticed_in_the_whole(tmp_path: Path, whole: bytes, at: int) -> None:
    assert seen(tmp_path / "m", flipped(whole, at)) == (True, False)


@pytest.mark.parametrize("size", [0, 1, HEADER - 1, HEADER, SIZE // 2, SIZE - 64, SIZE - 1])
def test_a_file_cut_short_is_noticed(tmp_path: Path, whole: bytes, size: int) -> None:
    assert seen(tmp_path / "m", whole[:size]) == (False, False)
    zeros = whole[:size].ljust(SIZE, b"\0")  # its length was written, its bytes were not
    assert seen(tmp_path / "m", zeros)[1] is False and (size > SIZE - 100 or not seen(tmp_path / "m", zeros)[0])


def test_a_longer_file_is_noticed(tmp_path: Path, whole: bytes) -> None:
    assert seen(tmp_path / "m", whole + bytes(64)) == (False, False)


def test_a_packed_model_has_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "m.bgpk"
    pack.write(path, synth.SynthCheckpoint(TINY), plan.of_model(TINY, "scalar"), "certified")
    checksum.check(path)
    raw = path.read_bytes()
    for at in range(0, len(raw), 4999):
        path.write_bytes(flipped(raw, at))
        with pytest.raises(FormatError, match=f"{path} is damaged"):
            checksum.check(path)


def test_no_file_is_not_sound(tmp_path: Path) -> None:
    assert not checksum.is_sound(tmp_path / "m") and not checksum.is_sound(tmp_path)
