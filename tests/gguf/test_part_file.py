"""A file in the making belongs to one process. What an interruption leaves of it: test_convert.py."""

from __future__ import annotations

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
