"""A file in the making belongs to one process. What an interruption leaves of it: test_convert.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitgen.errors import BitgenError
from bitgen.gguf.part_file import PartFile


def test_another_process_is_waited_for_until_it_is_killed(tmp_path: Path) -> None:
    """The lock goes with the process, and what was complete stays."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from bitgen.gguf.part_file import PartFile\n"
        "with PartFile(Path(sys.argv[1]), 'this from that') as part:\n"
        "    part.append('a', [b'first'])\n"
        "    print('written', flush=True)\n"
        "    time.sleep(600)\n"
    )
    path = tmp_path / "m.gguf"
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "written\n"
        with pytest.raises(BitgenError, match=r"\.m\.gguf\.part is being written by another process; wait"):
            PartFile(path, "this from that").__enter__()
    finally:
        writer.kill()
        writer.communicate()
    with PartFile(path, "this from that") as part:
        assert part.done == {"a"}
        part.append("b", [b", second"])
    assert path.read_bytes() == b"first, second" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", [".m.gguf.part", ".m.gguf.part.log"])
@pytest.mark.parametrize("plant", ["link", "dangling link", "second name", "pipe", "folder"])
def test_what_was_put_in_the_way_is_not_written_to(tmp_path: Path, name: str, plant: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    if plant == "pipe":
        os.mkfifo(tmp_path / name)
    elif plant == "folder":
        (tmp_path / name).mkdir()
    elif plant == "second name":
        (tmp_path / name).hardlink_to(victim)
    else:
        (tmp_path / name).symlink_to(victim if plant == "link" else tmp_path / "new")
    with pytest.raises((BitgenError, IsADirectoryError)), PartFile(tmp_path / "m.gguf", "this from that") as part:
        part.append("a", [b"first"])
    assert victim.read_text() == "precious"
    assert not (tmp_path / "new").exists() and not (tmp_path / "m.gguf").exists()


def test_a_link_at_the_target_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "m.gguf").symlink_to(tmp_path / "disk" / "real.gguf")
    for text in (b"first", b"second"):
        with PartFile(tmp_path / "m.gguf", "this from that") as part:
            part.append("a", [text])
        assert (tmp_path / "m.gguf").is_symlink() and (tmp_path / "disk" / "real.gguf").read_bytes() == text
    assert len(list(tmp_path.rglob("*"))) == 3
