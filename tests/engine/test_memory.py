"""Loading takes little memory beside the packed file, which is mapped: proved under limits and by counting."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import large_models
import numpy as np
import pytest
from gguf_files import TINY, changed, floats

from bitgen.checkpoints import checkpoint as checkpoints
from bitgen.checkpoints import presets, synth
from bitgen.compile import library, pack
from bitgen.convert import HfCheckpoint
from bitgen.gguf import types
from bitgen.gguf.reader import read_gguf
from bitgen.gguf.writer import write_gguf
from bitgen.kernels import plan
from bitgen.kernels.formats import FORMATS
from bitgen.spec import Layout

MIB = 1 << 20
WIDE = replace(TINY, name="wide", vocab=1 << 15, hidden=1024, intermediate=1024, heads=16, kv_heads=4, layers=1)
"""An embedding of 64 MiB over matrices of 1 MiB."""

RUN = """
import json, re, resource, sys
from pathlib import Path
import bitgen.cli

def memory():
    text = Path("/proc/self/status").read_text()
    return {key: int(value) << 10 for key, value in re.findall(r"(VmData|RssAnon|VmHWM):\\s+(\\d+)", text)}

path, room = sys.argv[1], int(sys.argv[2])
limit = memory()["VmData"] + room
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
model = bitgen.Model.load(path, threads=2)
text = "".join(model.generate("Once upon a time", 16, temperature=0))
json.dump({"text": text, "packed": model.packed.stat().st_size, **memory()}, sys.stdout)
"""


def run_with_room(model: Path, room: int) -> subprocess.CompletedProcess[str]:
    """Pack, load and run a model in a process that gets so many bytes more than it has after its imports.

    RLIMIT_DATA counts the memory that no file backs, which is what a small machine runs out of.
    """
    shape = read_gguf(model).shape
    library.for_model(shape, [plan.of_model(shape, library.host_isa())])  # the compiler is not limited
    model.touch()  # no packed form of it is cached
    command = [sys.executable, "-c", RUN, str(model), str(room)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA and /proc are Linux's")
def test_a_model_loads_and_runs_in_less_room_than_its_head(tmp_path: Path) -> None:
    """The head has 64 MiB; of the room, 16 MiB are buffers for 128 choices. With less the limit is noticed."""
    write_gguf(tmp_path / "m.gguf", synth.SynthCheckpoint(WIDE))
    done = run_with_room(tmp_path / "m.gguf", 60 * MIB)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["packed"] > 96 * MIB
    assert run_with_room(tmp_path / "m.gguf", 16 * MIB).returncode != 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA and /proc are Linux's")
def test_2b4t_runs_in_its_packed_size(tmp_path: Path) -> None:
    """1.2 GB are packed, loaded and run in 144 MiB beside the maps; resident at most: packed file and cache, + 15%."""
    write_gguf(tmp_path / "m.gguf", synth.SynthCheckpoint(presets.load("2B4T")))
    done = run_with_room(tmp_path / "m.gguf", 144 * MIB)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["VmHWM"] < 1.15 * found["packed"] and found["RssAnon"] < 0.15 * found["packed"]


CONVERT = """
import re, sys
from pathlib import Path
from bitgen.cli import main

main(["convert", sys.argv[1], "-o", sys.argv[2]], standalone_mode=False)
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_8b_converts_in_less_than_two_gibibytes(tmp_path: Path) -> None:
    """16 GB of master weights; their embedding alone is 1 GiB as stored, and 2 as floats."""
    source, out = large_models.save("Llama3-8B-1.58", tmp_path / "model"), tmp_path / "m.gguf"
    command = [sys.executable, "-c", CONVERT, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 2 << 30
    written, original = read_gguf(out), HfCheckpoint(source)
    for name in ("blk.0.attn_q.weight", "blk.31.ffn_down.weight"):
        (codes, scale), (want, want_scale) = written.ternary(name), original.ternary(name)
        assert np.array_equal(codes, want) and scale == np.float32(want_scale) and codes.any()


@pytest.mark.parametrize("type", [types.F16, types.F32, types.BF16, types.Q6_K])
@pytest.mark.parametrize("head", ["certified", "int8", "f16"])
def test_packing_holds_pieces(tmp_path: Path, type: int, head: Any) -> None:
    """Whatever the embedding's type is, which has 2^22 values here, that is 8 MiB at the least."""
    shape = replace(WIDE, vocab=1 << 14, hidden=256, heads=4, kv_heads=4, intermediate=256)

    def store_as(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        size, _, data = tensors["token_embd.weight"]
        values = np.frombuffer(data, "<f2").reshape(size)
        tensors["token_embd.weight"] = floats(values, type) if type != types.Q6_K else six_bits(size)

    checkpoint = read_gguf(changed(tmp_path / "m.gguf", store_as, shape=shape))
    found = plan.of_model(shape, "scalar")
    checkpoint.dense("token_embd.weight", slice(1))  # imports what dequantises, whose code is not counted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "AT_ONCE", 1 << 16)
        tracemalloc.start()
        pack.write(tmp_path / "m.bgpk", checkpoint, found, head)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 6 * MIB
    pack.write(tmp_path / "whole.bgpk", checkpoint, found, head)
    assert (tmp_path / "m.bgpk").read_bytes() == (tmp_path / "whole.bgpk").read_bytes()


def six_bits(size: tuple[int, int]) -> tuple[tuple[int, ...], int, bytes]:
    """A Q6_K tensor of arbitrary bits under a scale of 1/256."""
    blocks = np.random.default_rng(0).integers(0, 256, (size[0] * size[1] // 256, 210), np.uint8)
    blocks[:, 208:] = np.frombuffer(np.float16(1 / 256).tobytes(), np.uint8)
    return size, types.Q6_K, blocks.tobytes()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("panels", [1, 3, 7])
def test_a_matrix_packed_part_by_part_is_the_matrix_packed(name: str, panels: int) -> None:
    """Panels begin in one part and end in another, or span all three."""
    form = FORMATS[name]
    usual = {"tl2": 96, "i2_g": 16, "t5_g": 16, "i1_g": 32}.get(name, 128)
    layout = Layout(name, panels * form.bm_multiple, usual)
    group = layout.bk if form.grouped else 0
    shape = replace(TINY, head_dim=34, group=group, binary=form.binary)  # q: 136 rows, k and v: 68
    checkpoint = synth.SynthCheckpoint(shape, 3)
    scales = np.zeros(3, np.float32)
    got = b"".join(piece.tobytes() for piece in pack._fused(checkpoint, 0, "qkv", layout, scales))
    parts = [checkpoint.ternary(f"blk.0.{part}.weight") for part in ("attn_q", "attn_k", "attn_v")]
    assert scales.tolist() == [1.0 if form.grouped else scale for _, scale in parts]
    of_rows = np.concatenate([scale for _, scale in parts]) if form.grouped else None
    want = form.pack(np.concatenate([codes for codes, _ in parts]), layout, of_rows).tobytes()
    assert got.ljust(len(want), b"\0") == want


def test_rows_of_random_models_are_those_of_the_whole() -> None:
    """Read in order, backwards, and where a row does not begin a draw of four values."""
    checkpoint = synth.SynthCheckpoint(replace(TINY, hidden=30, head_dim=6, heads=5, kv_heads=5), 3)
    whole = checkpoint.dense("token_embd.weight")
    for rows in (slice(0, 7), slice(7, 8), slice(8, 300), slice(3, 9), slice(299, 300), slice(5, 5)):
        assert np.array_equal(checkpoint.dense("token_embd.weight", rows), whole[rows])
    norm = checkpoint.dense("output_norm.weight")
    assert np.array_equal(checkpoint.dense("output_norm.weight", slice(3, 11)), norm[3:11])
