"""AMX and AVX-VNNI beyond what test_kernels.py asks of every level: squares of tiles, what the compiler emits, and
the C spelling of the instructions where neither this CPU nor an emulator has them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import emulate_avx512
import kernel_lab
import numpy as np
import numpy.typing as npt
import places
import pytest
from kernel_lab import Job, Run

from bitgen import targets
from bitgen.checkpoints.reference import gemm_int
from bitgen.compile import clang
from bitgen.compile.clang import BuildOptions, Unit
from bitgen.kernels import render, space
from bitgen.spec import GemmShape, KernelSpec, Layout, Tile

EXTREMES = (127, -127, -128)
TOKENS = (1, 2, 16, 17, 31, 33, 65, 128, 530)  # a square has at most 32, in two halves above 16, a pass 512
SHAPES = [  # format, m, k, bm, columns of a cache block: squares of 32 rows, 320 rows at once, blocks of 256 columns
    ("i2_s", 2, 256, 2, 0), ("i2_s", 31, 250, 2, 0), ("i2_s", 32, 512, 4, 256), ("i2_s", 34, 1100, 2, 1024),
    ("i2_s", 66, 700, 2, 512), ("i2_s", 90, 300, 8, 256), ("i2_s", 330, 520, 4, 256),
    ("t5", 1, 256, 5, 0), ("t5", 33, 250, 5, 0), ("t5", 80, 512, 5, 256), ("t5", 330, 1100, 5, 512),
]  # fmt: skip


def spec(format: str, m: int, k: int, bm: int, kc: int) -> KernelSpec:
    return KernelSpec("gemm", GemmShape(m, k), "amx", Layout(format, bm, 256), Tile(kc=kc))


def jobs(lowest: int, counts: tuple[int, ...]) -> list[Job]:
    """Activations lowest..127, weights max(lowest, -1)..1, random and at the ends, panels in one to three calls."""
    made = []
    for seed, case in enumerate(SHAPES):
        rng = np.random.default_rng(seed)
        _, m, k, _, _ = case
        codes = rng.integers(max(lowest, -1), 2, (m, k), np.int8)
        codes[0], codes[-1] = max(lowest, -1), 1
        q = rng.integers(lowest, 128, (counts[-1], k), np.int8)
        for row, value in enumerate(v for v in EXTREMES if v >= lowest):
            q[row] = value
        made.append(Job(spec(*case), codes, tuple(Run(q[-n:][::-1], 1 + i % 3) for i, n in enumerate(counts))))
    return made


def wrong(jobs: list[Job], answers: list[list[npt.NDArray[np.int32]]]) -> list[str]:
    found = []
    for job, answer in zip(jobs, answers, strict=True):
        m = job.spec.shape.m
        for each, y in zip(job.runs, answer, strict=True):
            if not np.array_equal(y[:, :m], gemm_int(job.codes, each.q)) or y[:, m:].any():
                found.append(f"{job.spec.symbol} n={len(each.q)} splits={each.splits}")
    return found


def test_squares_of_tiles_give_the_integers_of_the_oracle() -> None:
    work = jobs(-128, TOKENS)
    try:
        answers = kernel_lab.run("amx", work)
    except kernel_lab.Unavailable as e:
        pytest.skip(str(e))
    assert not wrong(work, answers)


def test_the_machine_code_runs_on_an_emulated_cpu() -> None:
    """The very instructions, with bytes that are not negative: Bochs takes signed bytes for unsigned ones."""
    if not emulate_avx512.has_tiles():
        pytest.skip(f"no Bochs with AMX: version 3 has it ({emulate_avx512.available() or 'this one is older'})")
    work = jobs(0, TOKENS)
    specs = [job.spec for job in work]
    command = [sys.executable, emulate_avx512.__file__, str(kernel_lab.program("amx", tuple(specs)))]
    assert not wrong(work, kernel_lab.answers(command, "amx", work, specs))


def assembly(isa: str, op: str, layout: Layout) -> str:
    shape = GemmShape(64, 1024)
    tile = space.candidate_tiles(op, shape, isa, layout)[0]  # type: ignore[arg-type]
    made = KernelSpec(op, shape, isa, layout, tile)  # type: ignore[arg-type]
    return clang.assembly(isa, f"{made.symbol}.c", render.render_kernel(made))


@pytest.mark.parametrize("layout", [Layout("i2_s", 4, 256), Layout("t5", 5, 256)], ids=str)
def test_the_compiler_emits_tiles(layout: Layout) -> None:
    text = assembly("amx", "gemm", layout)
    for instruction in ("ldtilecfg", "tilezero", "tileloadd", "tdpbssd", "tilestored", "tilerelease"):
        assert re.search(rf"\b{instruction}\b", text), instruction
    text = assembly("amx", "gemv", layout)
    assert "vpdpbusd" in text and not re.search(r"\btdpb|\btile", text)


@pytest.mark.parametrize("op", ["gemv", "gemm"])
def test_the_compiler_emits_nothing_of_avx512_for_avxvnni(op: str) -> None:
    text = assembly("avxvnni", op, Layout("i2_s", 4, 128))
    found = re.findall(r"^.*\bvpdpbusd\b.*$", text, re.M)
    assert found and all("{vex}" in line for line in found)
    assert not re.search(r"%zmm|%k[0-7]\b|%ymm(1[6-9]|[23]\d)\b", text)


IN_C = r"""
#include <unistd.h>
int main(int argc, char **argv) {
  struct { int m, n, k; unsigned char a[1024], b[1024]; int sum[256]; } in;
  tile_config shapes = {.palette = 1};
  while (fread(&in, sizeof in, 1, stdin) == 1) {
    const uint16_t bytes[3] = {(uint16_t)(4 * in.n), (uint16_t)(4 * in.k), (uint16_t)(4 * in.n)};
    const uint8_t lines[3] = {(uint8_t)in.m, (uint8_t)in.m, (uint8_t)in.k};
    memcpy(shapes.line_bytes, bytes, sizeof bytes);
    memcpy(shapes.lines, lines, sizeof lines);
    _tile_loadconfig(&shapes);
    _tile_loadd(0, in.sum, 64);
    _tile_loadd(1, in.a, 64);
    _tile_loadd(2, in.b, 64);
    _tile_dpbssd(0, 1, 2);
    _tile_stored(0, in.sum, 64);
    fwrite(in.sum, sizeof in.sum, 1, stdout);
  }
  const char fault = argc == 2 ? *argv[1] : 0;
  if (fault == 'r') _tile_release(), _tile_zero(0);
  if (fault == 'u') _tile_zero(3);
  if (fault == 's') _tile_dpbssd(0, 2, 1);
  if (fault == 't') _tile_dpbssd(0, 1, 1);
  if (fault == 'l') shapes.lines[0] = 17, _tile_loadconfig(&shapes);
  if (fault == 'o') shapes.lines[3] = 1, _tile_loadconfig(&shapes);
  return 0;
}
"""


def in_c() -> Path:
    header = (places.LABS / "instructions.h").read_text()
    sources = {"instructions.h": header, "main.c": IN_C}
    units = [Unit("main.c", "main.o", (*targets.target("avx2").flags, "-include", "instructions.h"))]
    return clang.build("instructions", sources, units, {}, BuildOptions(targets.platform_of("x86_64"), "main.c")).path


def tiles(m: int, n: int, k: int) -> tuple[bytes, npt.NDArray[np.int32]]:
    """One product of tiles of random bytes: what the program reads, and the sums int32 [16, 16] it must answer."""
    rng = np.random.default_rng([m, n, k])
    a, b = rng.integers(0, 256, (16, 64), np.uint8), rng.integers(0, 256, (16, 64), np.uint8)
    sums = rng.integers(-(1 << 31), 1 << 31, (16, 16), np.int64).astype(np.int32)
    columns = b.view(np.int8)[:k, : 4 * n].reshape(k, n, 4).transpose(0, 2, 1).reshape(4 * k, n).astype(np.int64)
    want = sums.astype(np.int64)
    want[:m, :n] += a.view(np.int8)[:m, : 4 * k].astype(np.int64) @ columns
    return np.array([m, n, k], np.int32).tobytes() + a.tobytes() + b.tobytes() + sums.tobytes(), want.astype(np.int32)


needs_avx2 = pytest.mark.skipif(targets.host_arch() != "x86_64", reason="its types are x86's")


@needs_avx2
def test_tiles_in_c_do_what_the_manual_says() -> None:
    cases = [tiles(*size) for size in ((16, 16, 16), (1, 1, 1), (5, 7, 16), (16, 3, 2), (9, 16, 4))]
    out = subprocess.run([in_c()], input=b"".join(data for data, _ in cases), capture_output=True, check=True).stdout
    assert np.array_equal(np.frombuffer(out, np.int32).reshape(-1, 16, 16), [want for _, want in cases])


@needs_avx2
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("r", "tiles are not configured"), ("u", "this tile is not configured"), ("s", "do not fit"),
        ("t", "used twice"), ("l", "too large"), ("o", "one side only"),
    ],
)  # fmt: skip
def test_tiles_in_c_fault_where_the_cpu_would(fault: str, message: str) -> None:
    done = subprocess.run([in_c(), fault], input=tiles(5, 7, 16)[0], capture_output=True)
    assert done.returncode and message in done.stderr.decode()
