"""One cache for threads, processes and containers that load at once, are killed, or find it damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
from gguf_files import TINY

import bitgen
from bitgen import data
from bitgen.compile import checksum
from bitgen.errors import BitgenError
from bitgen.kernels import plan

LOAD = """
import sys, threading
import numpy as np
import bitgen

found, told = [], set()

def load():
    try:
        model = bitgen.Model.load(sys.argv[1], isa="scalar", threads=1, progress=lambda stage, *_: told.add(stage))
        found.append(model.logits([1, 2, 3]).tobytes().hex())
    except BaseException as e:
        found.append(f"{type(e).__name__}: {e}")

running = [threading.Thread(target=load) for _ in range(int(sys.argv[2]))]
[thread.start() for thread in running]
[thread.join() for thread in running]
print("\\n".join(found))
print(*sorted(told), sep=", ", file=sys.stderr)
"""

SLOW = """
import sys, time
from bitgen.compile import pack
write = pack._write_section

def slowly(*of):
    write(*of)
    print("a section", flush=True)
    time.sleep(0.2)

pack._write_section = slowly
"""

RUN = "from bitgen.cli import main; main(['run', '-m', sys.argv[1], '-p', 'a', '-n', '2', '--isa', 'scalar'])"


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, but for the compiled objects, which are those of the other tests."""
    objects, cache = data.cached("objects"), tmp_path / "cache"
    cache.mkdir(mode=0o700)
    (cache / "objects").symlink_to(objects)
    monkeypatch.setenv("BITGEN_CACHE", str(cache))
    return cache


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return gguf_files.store(tmp_path / "m.gguf", *gguf_files.contents())


def python(code: str, *arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def litter(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.name.startswith(".") or path.parent.name == "locks"]


def right(model: Path) -> str:
    return bitgen.Model.load(model, isa="scalar", threads=1).logits([1, 2, 3]).tobytes().hex()


def test_threads_load_at_once(cold: Path, model: Path) -> None:
    loading = python(LOAD, model, 4)
    out, told = loading.communicate(timeout=600)
    assert out.split() == [right(model)] * 4 and data.WAITING in told
    assert len(list((cold / "packed").glob("*.bgpk"))) == 1 and litter(cold) == []


def test_containers_load_at_once(cold: Path, model: Path) -> None:
    """Each process has the number 1."""
    before = ("unshare", "--pid", "--fork", "--mount-proc")
    try:
        subprocess.run([*before, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to make PID namespaces here, or no unshare that can (util-linux)")
    loading = [python(LOAD, model, 1, before=before) for _ in range(3)]
    outs = [each.communicate(timeout=600)[0].strip() for each in loading]
    assert outs == [right(model)] * 3
    assert len(list((cold / "packed").glob("*.bgpk"))) == 1 and litter(cold) == []


def packing(model: Path) -> subprocess.Popen[str]:
    """A run that is in the midst of packing."""
    running = python(SLOW + RUN, model)
    assert running.stdout is not None
    assert running.stdout.readline() == "a section\n" == running.stdout.readline(), running.communicate()[1]
    return running


def test_what_a_kill_leaves_is_swept_and_the_next_run_is_right(cold: Path, model: Path) -> None:
    running = packing(model)
    (left,) = (path for path in litter(cold) if path.parent.name == "packed")
    running.kill()
    running.communicate()
    assert [path for path in (cold / "packed").iterdir() if path.suffix != ".json"] == [left]  # and a note
    logits = right(model)
    (packed,) = (cold / "packed").glob("*.bgpk")
    assert packed.suffix == ".bgpk" and litter(cold) == []
    packed.unlink()
    assert right(model) == logits


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_leaves_nothing(cold: Path, model: Path, number: str, code: int) -> None:
    running = packing(model)
    running.send_signal(getattr(signal, number))
    assert "Traceback" not in running.communicate(timeout=60)[1] and running.returncode == code
    assert list((cold / "packed").iterdir()) == [] == litter(cold)


def test_a_library_user_keeps_the_signals(cold: Path, model: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    right(model)
    assert signal.getsignal(signal.SIGTERM) is before


# ---- damage ---------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[checksum.SAMPLE] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other(path: Path) -> None:
    path.write_bytes(b"x" * 999)


@pytest.mark.parametrize("damage", [flip, cut, empty, other])
def test_a_damaged_packed_model_is_made_anew(cold: Path, model: Path, damage: Callable[[Path], Any]) -> None:
    wanted = right(model)
    (packed,) = (cold / "packed").glob("*.bgpk")
    raw = packed.read_bytes()
    damage(packed)
    assert right(model) == wanted and packed.read_bytes() == raw


def test_damage_between_the_samples_that_the_runtime_refuses(
    cold: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksum, "SAMPLE", 64)
    wanted = right(model)
    (packed,) = (cold / "packed").glob("*.bgpk")
    raw = packed.read_bytes()
    at = 512 + 2 * TINY.vocab * TINY.hidden + 400  # behind header and embedding: in the output norm
    packed.write_bytes(raw[:at] + np.float32(np.nan).tobytes() + raw[at + 4 :])
    assert checksum.is_sound(packed), "a sample lies there"
    assert right(model) == wanted and packed.read_bytes() == raw


BAD_PLANS = ["", "[" * 100_000, '{"a":' * 100_000, "[]", "null", "\udcff", "\0", '{"version": "2"}']


@pytest.mark.parametrize("text", BAD_PLANS, ids=range(len(BAD_PLANS)))
def test_a_damaged_plan_is_said(cold: Path, model: Path, text: str) -> None:
    path = plan.host_path("scalar")
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BitgenError, match=f"^{path} .*; delete it and tune again$"):
        right(model)


LAYOUT = {"format": "i2_s", "bm": 4, "bk": 128}


@pytest.mark.parametrize(
    "entry",
    [{"layout": {**LAYOUT, key: value}} for key, value in (("bm", "4"), ("bm", -4), ("bk", 1.5), ("format", ["i2_s"]))]
    + [{"gemm": {"nr": value}} for value in ("4", None, [4], True, -1)]
    + [{"layout": 3}, {"gemv": [1]}, {"gemv": {"unknown": 1}}],
)
def test_values_of_a_plan_are_looked_at(tmp_path: Path, entry: dict[str, Any]) -> None:
    matrix = {"layout": LAYOUT, "gemv": {}, "gemm": {}, "evidence": {}, "stamp": "", **entry}
    raw = {"version": plan.VERSION, "isa": "avx2", "cpu": "c", "compiler": "c", "matrices": {"256x256": matrix}}
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    with pytest.raises(BitgenError, match=r"plan\.json is not a bitgen plan \(.*\); delete it"):
        plan.load(tmp_path / "plan.json")


# ---- names ----------------------------------------------------------------------------------------------------


NAMES = ["acme/tiny-1b", "../../escaped", "/tmp/x/tiny", "a\0b", "n" * 300, "模" * 200, "..", "-o"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_file_stays_a_name(tmp_path: Path, cold: Path, name: str) -> None:
    def rename(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        metadata["general.name"] = name

    loaded = bitgen.Model.load(gguf_files.changed(tmp_path / "m.gguf", rename), isa="scalar", threads=1)
    assert loaded.shape.name == name and loaded.artefact.folder.parent == cold / "build"
    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf", "cache"}


def test_a_long_file_name_is_packed(tmp_path: Path, cold: Path) -> None:
    path = gguf_files.store(tmp_path / f"{'n' * 240}.gguf", *gguf_files.contents())
    assert right(path)
