"""Other architectures, built here and executed under qemu-user: the same bits as this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import places
import pytest

import bitgen
from bitgen import api, targets
from bitgen.compile import clang, library, pack
from bitgen.compile.clang import Artefact, BuildOptions, Unit
from bitgen.engine.opened import Cache
from bitgen.gguf.reader import read_gguf
from bitgen.kernels import plan

pytestmark = pytest.mark.qemu
TOKENS = [1, 17, 300, 299, 5, 4, 1000]
QEMU = {"arm64": "qemu-aarch64-static", "riscv64": "qemu-riscv64-static", "x86_64": "qemu-x86_64-static"}
CASES = [  # architecture, qemu's CPU, the level that its probes must choose
    ("arm64", "max", "i8mm"),  # and SVE, which no level uses
    ("arm64", "cortex-a76", "dotprod"),
    ("arm64", "cortex-a53", "neon"),
    ("arm64", "a64fx", "neon"),  # with SVE, without dot products
    ("riscv64", "rv64", "scalar"),
    ("x86_64", "Nehalem", "scalar"),
]
ARCHES = list(dict.fromkeys(arch for arch, _, _ in CASES))


@pytest.fixture(scope="module")
def model() -> bitgen.Model:
    return bitgen.Model.load()


@pytest.fixture(scope="module", params=ARCHES)
def runner(request: pytest.FixtureRequest, model: bitgen.Model, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """The static test program of the shipped model with every level of an architecture."""
    if shutil.which(QEMU[request.param]) is None:
        pytest.skip(f"{QEMU[request.param]} is not installed (Debian: qemu-user-static)")
    return api.build(model.path, arch=request.param, root=tmp_path_factory.mktemp("build"), program=True)


def emulate(runner: Artefact, cpu: str, *args: str, stdin: str = "") -> bytes:
    command = [QEMU[str(runner.spec["arch"])], "-cpu", cpu, str(runner.path), *args]
    out = subprocess.run(command, input=stdin.encode(), capture_output=True, timeout=300)
    assert out.returncode == 0, out.stderr.decode()
    return out.stdout


def packed_for(model: bitgen.Model, isa: str, folder: Path) -> str:
    path = folder / f"{isa}.bgpk"
    pack.write(path, read_gguf(model.path), plan.of_model(model.shape, isa))
    return str(path)


def test_probes_choose_what_the_cpu_executes(runner: Artefact) -> None:
    for arch, cpu, best in CASES:
        if arch == runner.spec["arch"]:
            levels = [line.split("\t")[:2] for line in emulate(runner, cpu, "info").decode().splitlines()]
            assert [name for name, _ in levels] == [t.isa for t in targets.levels(targets.platform_of(arch))]
            assert next(name for name, runs in levels if runs == "runs") == best


@pytest.mark.parametrize("cache", ["f16", "int8"])
def test_every_level_gives_the_same_bits(runner: Artefact, model: bitgen.Model, tmp_path: Path, cache: Cache) -> None:
    expected = model.logits(TOKENS, cache=cache)
    cases = [(cpu, best) for arch, cpu, best in CASES if arch == runner.spec["arch"]]
    levels = {isa: cpu for cpu, best in cases for isa in targets.fallbacks(best)}
    levels |= {best: cpu for cpu, best in reversed(cases)}  # each on a CPU that has nothing better, if there is one
    for isa, cpu in levels.items():
        options = ("--isa", isa, "--chunk", "4", "--threads", "2", "--cache", cache)
        arguments = ("logits", packed_for(model, isa, tmp_path), *options)
        out = emulate(runner, cpu, *arguments, stdin=" ".join(map(str, TOKENS)))
        assert np.array_equal(np.frombuffer(out, np.float32).reshape(expected.shape), expected), (cpu, isa)


def test_greedy_text_is_the_same(runner: Artefact, model: bitgen.Model, tmp_path: Path) -> None:
    generation = model.generate("Once", 6, temperature=0, repeat_penalty=1, stop=False)
    list(generation)
    prompt = " ".join(map(str, model.tokenizer.encode("Once")))
    cpu, best = next((cpu, best) for arch, cpu, best in CASES if arch == runner.spec["arch"])
    out = emulate(runner, cpu, "generate", packed_for(model, best, tmp_path), "6", "--isa", best, stdin=prompt)
    assert list(map(int, out.split())) == generation.token_ids


@pytest.mark.parametrize("isa", ["i8mm", "dotprod", "neon", "scalar"])
def test_the_screen_of_a_certified_head_is_exact(isa: str) -> None:
    arch = "riscv64" if isa == "scalar" else "arm64"
    cpu = next(cpu for of, cpu, best in CASES if of == arch and best == isa)
    if shutil.which(QEMU[arch]) is None:
        pytest.skip(f"{QEMU[arch]} is not installed (Debian: qemu-user-static)")
    sources = library.runtime_files("kernel.h", "simd/head.c", "simd/ops.h", "simd/vec.h")
    sources["screen_lab.c"] = (places.LABS / "screen_lab.c").read_text()
    flags = (*targets.target(isa).flags, f"-DBG_ISA={isa}")
    units = [Unit(n, library.object_name(n), flags) for n in sources if n.endswith(".c")]
    options = BuildOptions(targets.platform_of(arch), "screen_lab.c")
    program = clang.build("screen-lab", sources, units, {}, options).path
    done = subprocess.run([QEMU[arch], "-cpu", cpu, str(program)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_another_architectures_packing_is_refused(runner: Artefact, model: bitgen.Model, tmp_path: Path) -> None:
    arch = runner.spec["arch"]
    cpu, best = next((cpu, best) for a, cpu, best in CASES if a == arch)
    other = "avx2" if best != "avx2" else "neon"
    found, own = plan.of_model(model.shape, other), plan.of_model(model.shape, best)
    if found.layout_key == own.layout_key:
        pytest.skip("both levels share their layouts")
    command = [QEMU[str(arch)], "-cpu", cpu, str(runner.path), "logits", packed_for(model, other, tmp_path)]
    out = subprocess.run(command, input=b"1", capture_output=True, timeout=120)
    assert out.returncode != 0 and b"packed for other kernels" in out.stderr


CALLER = r"""
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
int main(int argc, char **argv) {
  void *lib = dlopen(argv[1], RTLD_NOW);
  if (argc < 2 || !lib) return puts(dlerror()), 1;
  int32_t (*best)(void) = (int32_t (*)(void))dlsym(lib, "bg_isa_best");
  const char *(*name)(int32_t) = (const char *(*)(int32_t))dlsym(lib, "bg_isa_name");
  puts(name(best()));
  return 0;
}
"""


def test_the_arm64_shared_library_loads(model: bitgen.Model, tmp_path: Path) -> None:
    """The .so itself, opened by a program of the other architecture."""
    sysroot = Path("/usr/aarch64-linux-gnu")
    if shutil.which(QEMU["arm64"]) is None or not (sysroot / "lib" / "ld-linux-aarch64.so.1").exists():
        pytest.skip("needs qemu-aarch64-static and glibc for arm64 (Debian: qemu-user-static, libc6-arm64-cross)")
    artefact = api.build(model.path, arch="arm64", isa="neon", root=tmp_path)
    platform = targets.platform_of("arm64")
    compiler = clang.find_compiler(platform)
    (tmp_path / "caller.c").write_text(CALLER)
    command = [*compiler.command, *compiler.target_flags(platform), "caller.c", "-o", "caller", "-ldl"]
    subprocess.run(command, cwd=tmp_path, check=True)
    out = subprocess.run(
        [QEMU["arm64"], "-L", str(sysroot), "-cpu", "cortex-a53", str(tmp_path / "caller"), str(artefact.path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert out.stdout.strip() == "neon", out.stdout + out.stderr


def test_a_level_of_another_architecture_cannot_be_built(model: bitgen.Model) -> None:
    with pytest.raises(bitgen.UnsupportedError, match="not of architecture"):
        library.for_model(model.shape, [plan.of_model(model.shape, "avx2")], BuildOptions(targets.platform_of("arm64")))
