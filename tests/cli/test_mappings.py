"""A file that is cut short or removed while it is mapped, from the command line and from Python."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bitgen

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="this system lets nobody cut a mapped file")

CUT = "import mmap, os; m = mmap.mmap(os.open('big', os.O_RDONLY), 0, access=mmap.ACCESS_READ); os.truncate('big', 9)\n"


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "big").write_bytes(bytes(1 << 20))
    return subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=60)


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    done = run(f"from bitgen.cli import mappings; mappings.guard()\n{CUT}m[99999]", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"bitgen: {str(tmp_path / 'big')!r} was cut short") and done.stderr.count("\n") == 1


def test_a_library_leaves_its_host_alone(tmp_path: Path) -> None:
    done = run(f"import bitgen, bitgen.cli\n{CUT}m[99999]", tmp_path)
    assert (done.returncode, done.stderr) == (-signal.SIGBUS, "")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with the libraries of the tests' own, but with packed models that a test may destroy."""
    packed = bitgen.Model.load().packed
    own = tmp_path / "cache"
    (own / "packed").mkdir(parents=True)
    (own / "build").symlink_to(Path(os.environ["BITGEN_CACHE"]) / "build")
    shutil.copy(packed, own / "packed")
    monkeypatch.setenv("BITGEN_CACHE", str(own))
    return own / "packed" / packed.name


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("removed", [True, False])
def test_weights_under_a_chat(cache: Path, removed: bool, threads: str) -> None:
    """Removed they serve on; cut, whichever thread reads them, the program ends with a sentence."""
    command = [sys.executable, "-m", "bitgen", "chat", "-n", "4", "-t", threads, "--chat-template", "chatml"]
    chat = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert chat.stdin and chat.stdout
    chat.stdin.write("Hello\n")
    chat.stdin.flush()
    answer = os.read(chat.stdout.fileno(), 1)  # the weights are mapped
    assert answer
    if removed:
        cache.unlink()
    else:
        os.truncate(cache, 4096)
    out, error = chat.communicate("And then?\n", timeout=60)
    if removed:
        assert chat.returncode == 0, error
    else:
        assert chat.returncode == 1 and f"{str(cache)!r} was cut short" in error, (out, error)
