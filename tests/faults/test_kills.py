"""Commands killed at random moments: nothing is left behind for good, and the next run is right.

    BITGEN_KILLS=20 BITGEN_SEED=1 pytest -n 0 -m slow -s tests/faults/test_kills.py

kills each of the six commands 20 times (5 if not told), by SIGKILL, SIGTERM and SIGINT in turn, alone or with its
children, at a random moment of its first seconds. SIGTERM and SIGINT leave nothing and end with 143 and 130. What
SIGKILL leaves is gone after the next run, but for what a conversion resumes from.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from gguf_files import TINY

from bitgen import data
from bitgen.checkpoints import synth
from bitgen.compile import clang
from bitgen.gguf.writer import write_gguf
from bitgen.kernels import plan

KILLS, SEED = int(os.environ.get("BITGEN_KILLS", "5")), int(os.environ.get("BITGEN_SEED", "1"))
LARGE = replace(TINY, vocab=1 << 15, hidden=1024, intermediate=2048, heads=16, kv_heads=4, layers=4)
"""Some 100 MB packed: time enough to be killed in."""
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")]


@dataclass(frozen=True)
class Place:
    """A folder with a cache of its own, in which a command runs."""

    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        command, environment = [sys.executable, "-m", "bitgen", *words], {**os.environ, "BITGEN_CACHE": str(self.cache)}
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str) -> bytes:
        running = self.start(*words)
        out, err = running.communicate(timeout=1200)
        assert running.returncode == 0, err.decode()
        return out

    def litter(self) -> set[str]:
        found = (path for path in self.folder.rglob("*") if path.name.startswith(".") or path.suffix == ".failed")
        return {str(path.relative_to(self.folder)) for path in (*found, *self.cache.glob("locks/*"))}

    def forget(self, *kinds: str) -> None:
        """Remove what is finished, as if it had never been made; what is not stays."""
        for kind in kinds:
            for path in (self.folder / kind).glob("[!.]*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@dataclass(frozen=True)
class Case:
    """A command, the seconds in which it is killed, what is forgotten before, and what it must have made."""

    words: tuple[str, ...]
    seconds: float
    forgets: tuple[str, ...]
    made: Callable[[Place, bytes], object]
    resumes: bool = False


def text(place: Place, out: bytes) -> bytes:
    return out


def converted(place: Place, _: bytes) -> bytes:
    return (place.folder / "out" / "m.gguf").read_bytes()


def built(place: Place, _: bytes) -> list[tuple[str, object]]:
    found = [clang.opened(path.parent) for path in place.folder.glob("out/*/spec.json")]
    return [(each.folder.name, each.spec["sha256"]) for each in found if each]


def programs(place: Place, _: bytes) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (place.folder / "out").iterdir()}


def planned(place: Place, _: bytes) -> set[str]:
    (path,) = (place.cache / "plans").iterdir()
    found = plan.load(path)
    return set(map(str, found.decisions)) if found else set()


RUN = ("-p", "Once", "-n", "8", "--temp", "0", "--isa", "scalar")
CASES = {
    "first run": Case(("run", "-m", "tiny.gguf", *RUN), 8, ("cache/build", "cache/packed", "cache/objects"), text),
    "pack": Case(("run", "-m", "large.gguf", *RUN), 4, ("cache/packed",), text),
    "convert": Case(
        ("convert", "large.gguf", "-o", "out/m.gguf", "--type", "t5"), 4, ("out",), converted, resumes=True
    ),
    "tune": Case(("tune", "--model", "tiny.gguf", "--threads", "1", "--isa", "scalar"), 6, ("cache/plans",), planned),
    "build": Case(("build", "-m", "tiny.gguf", "--isa", "scalar", "-o", "out"), 5, ("out", "cache/objects"), built),
    "standalone": Case(("build", "--standalone", "-m", "tiny.gguf", "-o", "out"), 6, ("out", "cache/build"), programs),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_gguf(folder / "tiny.gguf", synth.SynthCheckpoint(TINY))
    write_gguf(folder / "large.gguf", synth.SynthCheckpoint(LARGE))
    return folder


@pytest.fixture
def place(tmp_path: Path, files: Path) -> Iterator[Place]:
    for path in files.iterdir():
        shutil.copy2(path, tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "cache").mkdir(mode=0o700)
    shutil.copytree(data.cached("objects"), tmp_path / "cache" / "objects")
    (tmp_path / "cache" / "objects").chmod(0o700)
    yield Place(tmp_path)
    shutil.rmtree(tmp_path)  # hundreds of megabytes


@pytest.mark.parametrize("name", CASES)
def test_kills_leave_nothing_and_the_next_run_is_right(place: Place, name: str) -> None:
    case, draw = CASES[name], random.Random(f"{SEED} {name}")
    right = case.made(place, place.run(*case.words))
    assert right and place.litter() == set()
    kills, ended, left, slowest = 0, 0, 0, 0.0
    while kills < KILLS and ended < 3 * KILLS:
        place.forget(*case.forgets)
        before = place.litter()
        number = list(CODES)[kills % 3]
        running = place.start(*case.words)
        time.sleep(draw.uniform(0.3, case.seconds))
        started = time.monotonic()
        (os.killpg if draw.random() < 0.5 else os.kill)(running.pid, number)
        _, err = running.communicate(timeout=120)
        if running.returncode == 0:
            ended += 1
            continue
        kills, slowest = kills + 1, max(slowest, time.monotonic() - started)
        new = place.litter() - before
        left += len(new)
        if number != signal.SIGKILL:
            early = b"KeyboardInterrupt" in err or running.returncode in (-signal.SIGTERM, -signal.SIGINT)
            assert running.returncode == CODES[number] or early, (number, running.returncode, err.decode())
            assert case.resumes or not new, (number, new)
    last = case.made(place, place.run(*case.words))
    assert last == right and place.litter() == set()
    print(
        f"\n{name}: {kills} kills, {ended} ended before; {left} files left, 0 after a good run; {slowest:.1f} s to end"
    )
