"""The AVX-512 machine code, executed: on a CPU that has it and, emulated, on all others."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import emulate_avx512
import numpy as np
import numpy.typing as npt
import pytest

import bitgen
from bitgen import targets
from bitgen.checkpoints import synth
from bitgen.checkpoints.reference import gemm_int
from bitgen.compile import clang, library, pack
from bitgen.compile.clang import BuildOptions, Unit
from bitgen.engine.opened import Cache
from bitgen.gguf.reader import read_gguf
from bitgen.gguf.writer import write_gguf
from bitgen.kernels import plan, space
from bitgen.kernels.formats import FORMATS
from bitgen.spec import GemmShape, KernelSpec, ModelShape

PLATFORM = targets.platform_of("x86_64")
ISA = "avx512vnni"
LEVELS = ("avx512vbmi", ISA)
EXTREMES = (127, -127, -128)
TOKENS = [1, 17, 200, 199, 5, 4, 100, 64, 2, 3, 77, 78, 79, 80, 81, 82, 83]

pytestmark = pytest.mark.skipif(emulate_avx512.available() is not None, reason=str(emulate_avx512.available()))


def program(name: str, source: str) -> Path:
    """A C file compiled with the flags of the ISA."""
    units = [Unit("main.c", "main.o", targets.target(ISA).flags)]
    return clang.build(name, {"main.c": source}, units, {}, BuildOptions(PLATFORM, "main.c")).path


DOT_PRODUCTS = """\
#include <cpuid.h>
#include <immintrin.h>
#include <stdio.h>
int main(void) {
  unsigned a, b, c, d;
  struct { unsigned char u[64]; signed char s[64]; int sum[16]; } in;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(c & bit_AVX512VNNI))
    return 1;
  while (fread(&in, sizeof in, 1, stdin) == 1) {
    const __m512i u = _mm512_loadu_si512(in.u), s = _mm512_loadu_si512(in.s), sum = _mm512_loadu_si512(in.sum);
    _mm512_storeu_si512(in.sum, _mm512_dpbusd_epi32(sum, u, s));
    fwrite(in.sum, sizeof in.sum, 1, stdout);
  }
  return 0;
}
"""


def test_vpdpbusd_adds_four_products_to_each_lane() -> None:
    rng = np.random.default_rng(0)
    u = rng.integers(0, 256, (100, 64), np.uint8)
    s = rng.integers(-128, 128, (100, 64), np.int8)
    u[0], s[0], s[1] = 255, -128, 127
    start = rng.integers(-(1 << 20), 1 << 20, (100, 16), np.int32)
    stdin = b"".join(u[i].tobytes() + s[i].tobytes() + start[i].tobytes() for i in range(100))
    out = emulate_avx512.run(program("dot-products", DOT_PRODUCTS), stdin=stdin)
    want = start + (u.astype(np.int32) * s).reshape(100, 16, 4).sum(-1)
    assert np.array_equal(np.frombuffer(out, np.int32).reshape(100, 16), want)


TROUBLE = """\
#include <stdio.h>
#include <sys/mman.h>
int main(int argc, char **argv) {
  volatile char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect((char *)page + 4096, 4096, PROT_NONE);
  page[4095] = 1;
  if (argv[1][0] == 'p')
    page[4096] = 1;
  while (argv[1][0] == 'l')
    ;
  fprintf(stderr, "did not like it");
  return argc;
}
"""


@pytest.mark.parametrize(
    ("what", "message"),
    [("protected", "crashed"), ("loop", "still running"), ("status", "ended with 2: did not like it")],
)
def test_a_program_that_fails_is_an_error(what: str, message: str) -> None:
    with pytest.raises(emulate_avx512.EmulationError, match=message):
        emulate_avx512.run(program("trouble", TROUBLE), [what], seconds=5 if what == "loop" else 60)


def specs(level: str) -> Iterable[KernelSpec]:
    """Every layout of a level with its first and its last tile, on shapes that leave remainders in M and K."""
    for format, isa in space.TEMPLATES:
        for layout in space.candidate_layouts(GemmShape(8, 2048), level, thorough=True) if isa == level else []:
            if layout.format == format:
                shape = GemmShape(2 * layout.bm + 1, 2 * layout.bk + 40)
                for op in ("gemv", "gemm"):
                    tiles = space.candidate_tiles(op, shape, level, layout, thorough=True)
                    yield from (KernelSpec(op, shape, level, layout, tile) for tile in (tiles[0], tiles[-1]))


@pytest.mark.parametrize("level", LEVELS)
def test_kernels_give_the_integers_of_the_oracle(level: str) -> None:
    kernels = list(dict.fromkeys(specs(level)))
    runner = library.for_kernels(level, kernels, BuildOptions(PLATFORM, "runner.c")).path
    rng = np.random.default_rng(1)
    calls, wants = b"", []
    for index, spec in enumerate(kernels):
        shape, format = spec.shape, FORMATS[spec.layout.format]
        codes = rng.integers(-1, 2, (shape.m, shape.k), np.int8)
        codes[0], codes[-1] = 1, -1
        random = rng.integers(-128, 128, (17, shape.k), np.int8)
        worst = np.repeat(np.array(EXTREMES, np.int8)[:, None], shape.k, axis=1)
        for q in (*random[:2, None], *worst[:, None]) if spec.op == "gemv" else (random, random[:5], worst):
            calls += struct.pack("<2i", index, len(q)) + format.pack(codes, spec.layout).tobytes() + q.tobytes()
            y = np.zeros((len(q), format.geometry(shape, spec.layout).m_pad), np.int32)
            y[:, : shape.m] = gemm_int(codes, q)
            wants.append(y)
    out = np.frombuffer(emulate_avx512.run(runner, ["kernels", level], stdin=calls), np.int32)
    assert len(kernels) >= 4 and out.size == sum(y.size for y in wants)
    assert np.array_equal(out, np.concatenate([y.ravel() for y in wants]))


BITNET = ModelShape(
    name="bitnet", architecture="bitnet-b1.58", activation="relu2", sub_norms=True, tied=True,
    hidden=256, intermediate=384, layers=2, heads=4, kv_heads=2, head_dim=64,
    vocab=300, context=64, rope_theta=10000.0, norm_eps=1e-5,
)  # fmt: skip
LLAMA = ModelShape(
    name="llama", architecture="llama", activation="silu", sub_norms=False, tied=False,
    hidden=192, intermediate=328, layers=2, heads=6, kv_heads=3, head_dim=32,
    vocab=301, context=64, rope_theta=500000.0, norm_eps=1e-6, rope_interleaved=True,
)  # fmt: skip


class Runner:
    """A model in a static program with two ISA levels: the emulated one and AVX2."""

    def __init__(self, model: bitgen.Model) -> None:
        self.source, self.head = model.path, model.head
        self.checkpoint = read_gguf(self.source)
        self.lookups = {isa: plan.of_model(self.checkpoint.shape, isa) for isa in (ISA, "avx2")}
        options = BuildOptions(PLATFORM, "runner.c")
        self.program = library.for_model(self.checkpoint.shape, list(self.lookups.values()), options).path

    def logits(self, isa: str, chunk: int, cache: Cache = "f16") -> npt.NDArray[np.float32]:
        """On the emulated CPU, for TOKENS, `chunk` of them to a call."""
        path = pack.path_for(self.checkpoint.files, self.lookups[isa], self.head, "emulated")
        if not path.exists():
            pack.write(path, self.checkpoint, self.lookups[isa], self.head)
        args = ["logits", "model", "--isa", isa, "--chunk", str(chunk), "--cache", cache]
        out = emulate_avx512.run(self.program, args, {"model": path.read_bytes()}, " ".join(map(str, TOKENS)).encode())
        return np.frombuffer(out, np.float32).reshape(len(TOKENS), -1)


@pytest.mark.parametrize("chunk", [len(TOKENS), 5, 1])
@pytest.mark.parametrize("head", ["f16", "int8"])
@pytest.mark.parametrize("shape", [BITNET, LLAMA], ids=["bitnet", "llama"])
def test_logits_are_the_bits_of_this_cpu(tmp_path: Path, shape: ModelShape, head: pack.Head, chunk: int) -> None:
    """A seed for which no key or value lies midway between two halves: Bochs 2.7 rounds those up, not to even."""
    write_gguf(tmp_path / "model.gguf", synth.SynthCheckpoint(shape, 0))
    model = bitgen.Model.load(tmp_path / "model.gguf", head=head)
    assert np.array_equal(Runner(model).logits(ISA, chunk), model.logits(TOKENS))


@pytest.mark.parametrize("chunk", [len(TOKENS), 1])
def test_int8_cache_has_the_bits_of_this_cpu(tmp_path: Path, chunk: int) -> None:
    write_gguf(tmp_path / "model.gguf", synth.SynthCheckpoint(BITNET, 0))
    model = bitgen.Model.load(tmp_path / "model.gguf")
    assert np.array_equal(Runner(model).logits(ISA, chunk, "int8"), model.logits(TOKENS, cache="int8"))


def test_shipped_model_has_the_logits_of_avx2() -> None:
    """The same bits as AVX2's on the same CPU; on this one, where ties among keys and values round to even, close."""
    model = bitgen.Model.load()
    runner = Runner(model)
    logits = runner.logits(ISA, len(TOKENS))
    assert np.array_equal(logits, runner.logits("avx2", len(TOKENS)))
    assert np.abs(logits - model.logits(TOKENS)).max() < 1e-4
