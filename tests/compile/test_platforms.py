"""Every platform links, with bitgen.h's functions as its exports and no others; those that can be executed here are:
Windows under wine, arm64 Linux under qemu-user (test_foreign.py holds its logits against this machine's)."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import places
import pytest
from click.testing import CliRunner

import bitgen
from bitgen import api, cli, data, targets
from bitgen.compile import clang, library, pack
from bitgen.compile.clang import Artefact, BuildOptions, Unit
from bitgen.gguf.reader import read_gguf
from bitgen.kernels import plan

TOKENS = [1, 17, 300, 299, 5, 4, 1000]
WINDOWS = targets.platform_of("x86_64", "windows")
ISA = {"x86_64": "avx2", "arm64": "neon", "riscv64": "scalar"}
QUICK = [("x86_64", "windows"), ("arm64", "macos"), ("arm64", "musl"), ("arm64", "linux")]
EACH = [p if p in QUICK else pytest.param(*p, marks=pytest.mark.slow) for p in targets.PLATFORMS]
LINKER = {"macos": {"__mh_dylib_header", "___dso_handle"}}  # what zig's linker adds to the exports


# ---- names ---------------------------------------------------------------------------------------------------


def test_a_platform_that_does_not_exist_lists_those_that_do() -> None:
    with pytest.raises(bitgen.UnsupportedError, match="systems of riscv64: linux, musl"):
        targets.platform_of("riscv64", "windows")
    result = CliRunner().invoke(cli.main, ["build", "--arch", "riscv64", "--os", "macos"])
    assert result.exit_code == 1 and "linux, musl" in result.output


def test_the_default_system() -> None:
    assert targets.is_host(targets.platform_of())
    assert targets.platform_of("riscv64" if targets.host_arch() != "riscv64" else "arm64").system.name == "linux"


@pytest.mark.parametrize(
    ("system", "machine", "expected", "library_name"),
    [
        ("Darwin", "arm64", "arm64-macos", "libbitgen.dylib"),
        ("Windows", "AMD64", "x86_64-windows", "bitgen.dll"),
        ("Linux", "riscv64", "riscv64-linux", "libbitgen.so"),
    ],
)
def test_hosts(monkeypatch: pytest.MonkeyPatch, system: str, machine: str, expected: str, library_name: str) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    where = targets.platform_of()
    assert str(where) == expected and where.system.library == library_name


def test_no_system_compiler_is_asked_for_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITGEN_SYSROOT", raising=False)
    monkeypatch.delenv("BITGEN_CC", raising=False)
    for where in targets.PLATFORMS.values():
        if not targets.is_host(where):
            assert clang.find_compiler(where).zig, where


def test_a_level_that_a_system_does_not_grant() -> None:
    with pytest.raises(bitgen.UnsupportedError, match="not of architecture 'x86_64' on windows"):
        library.for_kernels("amx", (), BuildOptions(WINDOWS))


# ---- what the linker made ------------------------------------------------------------------------------------


def functions() -> set[str]:
    """The functions that bitgen.h declares."""
    text = re.sub(r"//.*", "", (data.folder("runtime") / "bitgen.h").read_text())
    return set(re.findall(r"\b(bg_\w+)\(", text))


def exports(binary: Any, system: str) -> set[str]:
    """The names that a library parsed by lief gives to others."""
    if system == "windows":
        return {f.name for f in binary.exported_functions}
    if system == "macos":
        trie = binary.dyld_info if binary.has_dyld_info else binary.dyld_exports_trie
        names = {e.symbol.name for e in trie.exports} - LINKER["macos"]
        return {name.removeprefix("_") for name in names}
    return {s.name for s in binary.dynamic_symbols if s.exported}


def needs(binary: Any) -> list[str]:
    """The libraries that a library or program asks for; those of macOS begin with a library's own name."""
    return [name if isinstance(name, str) else name.name for name in binary.libraries]


@pytest.mark.parametrize(("arch", "system"), EACH)
def test_the_library_exports_the_header(arch: str, system: str, tmp_path: Path) -> None:
    lief = pytest.importorskip("lief")
    artefact = api.build("stories", arch=arch, system=system, isa=ISA[arch], root=tmp_path)
    where = targets.PLATFORMS[arch, system]
    assert artefact.path.name == where.system.library
    binary = lief.parse(str(artefact.path))
    assert exports(binary, system) == functions()
    machine = str(binary.header.cpu_type if system == "macos" else getattr(
        binary.header, "machine_type" if system in ("linux", "musl") else "machine"
    ))  # fmt: skip
    names = {"x86_64": ("X86_64", "AMD64"), "arm64": ("ARM64", "AARCH64"), "riscv64": ("RISCV",)}
    assert machine.split(".")[-1] in names[arch]
    needed = needs(binary)
    if system == "macos":
        assert binary.header.file_type == lief.MachO.Header.FILE_TYPE.DYLIB
        assert needed == ["@rpath/libbitgen.dylib", "/usr/lib/libSystem.B.dylib"]  # its own name, and the system
        assert binary.build_version.minos[0] == 11 and binary.has_code_signature == (arch == "arm64")
    if system == "windows":
        assert (artefact.folder / "bitgen.lib").exists()
        assert all(name == "KERNEL32.dll" or name.startswith("api-ms-win-crt-") for name in needed), needed
    if system == "musl":
        assert needed == ["libc.so"]


@pytest.mark.parametrize(("arch", "system"), EACH)
def test_the_program_needs_nothing(arch: str, system: str, tmp_path: Path) -> None:
    lief = pytest.importorskip("lief")
    artefact = api.build("stories", arch=arch, system=system, isa=ISA[arch], root=tmp_path, program=True)
    assert artefact.path.name == f"bitgen-runner{'.exe' if system == 'windows' else ''}"
    binary = lief.parse(str(artefact.path))
    needed = needs(binary)
    if system == "macos":
        assert needed == ["/usr/lib/libSystem.B.dylib"]
    elif system == "windows":
        assert all(n in ("KERNEL32.dll", "SHELL32.dll") or n.startswith("api-ms-win-crt-") for n in needed), needed
    else:
        assert not needed and not binary.has_interpreter


# ---- what runs here ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The environment of a Windows of our own; its first start takes seconds."""
    if shutil.which("wine") is None:
        pytest.skip("wine is not installed (Debian: wine wine64)")
    folder = tmp_path_factory.mktemp("wine")
    quiet = {"WINEDEBUG": "-all", "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe="}
    environment = {**os.environ, **quiet, "HOME": str(folder), "WINEPREFIX": str(folder / "prefix")}
    done = subprocess.run(["wine", "cmd", "/c", "ver"], env=environment, capture_output=True, timeout=300)
    if b"Windows" not in done.stdout:
        pytest.skip(f"wine does not start here: {done.stderr.decode(errors='replace')[:200]}")
    yield environment
    subprocess.run(["wine", "wineboot", "--shutdown"], env=environment, capture_output=True, timeout=120)
    shutil.rmtree(folder, ignore_errors=True)


def run(command: Sequence[str | Path], environment: Mapping[str, str], stdin: str = "") -> bytes:
    done = subprocess.run(
        list(map(str, command)), input=stdin.encode(), env=environment, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


def os_lab(arch: str, system: str) -> Path:
    """The program of os_lab.c for a platform."""
    sources = library.runtime_files("bitgen.h", "os/*.[ch]", "programs/system.[ch]")
    sources["os_lab.c"] = (places.LABS / "os_lab.c").read_text()
    told = ("-Dgetauxval=told_hwcap",)
    units = [Unit(n, library.object_name(n), told if n == "os/posix.c" else ()) for n in sources if n.endswith(".c")]
    return clang.build("os-lab", sources, units, {}, BuildOptions(targets.platform_of(arch, system), "os_lab.c")).path


def check_os_lab(command: list[str | Path], environment: Mapping[str, str], folder: Path, told: bool) -> None:
    """Run os_lab and hold its lines against what os.h promises; `told`: the system is asked about ISA levels."""
    (folder / "größe").write_text("bytes of a file")
    (folder / "empty").touch()
    arguments = [*command, folder / "größe", folder / "empty", folder / "missing", folder]

    def lines(hwcap: str) -> list[str]:
        return run(arguments, {**environment, "TOLD_HWCAP": hwcap}).decode().splitlines()

    files = ["file 0 bytes of a file", "empty -4", "missing -3", "folder -3"]
    same = [*files, "misaligned 0", "signals 0 1", "thread 42", "probes 1 0 0", "probes 1 0 0"]
    assert lines("-1") == [*same, "named 1 1", "and traps 0"]
    assert lines("0") == [*same, "named 0 0" if told else "named 1 1", "and traps 0"]
    assert lines("0x100000") == [*same, "named 1 0" if told else "named 1 1", "and traps 0"]


def test_this_system_keeps_its_promises(tmp_path: Path) -> None:
    where = targets.platform_of()
    told = where.arch == "arm64" and where.system.name != "macos"
    check_os_lab([os_lab(where.arch, where.system.name)], os.environ, tmp_path, told)


@pytest.mark.qemu
def test_linux_on_arm64_is_asked_what_all_cores_have(tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("qemu-aarch64-static is not installed (Debian: qemu-user-static)")
    check_os_lab(["qemu-aarch64-static", os_lab("arm64", "musl")], os.environ, tmp_path, told=True)


def test_windows_keeps_its_promises(wine: Mapping[str, str], tmp_path: Path) -> None:
    check_os_lab(["wine", os_lab("x86_64", "windows")], wine, tmp_path, told=False)


@pytest.fixture(scope="module")
def windows_runner(wine: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """The test program of the shipped model with every level of Windows."""
    return api.build("stories", arch="x86_64", system="windows", root=tmp_path_factory.mktemp("build"), program=True)


needs_x86 = pytest.mark.skipif(targets.host_arch() != "x86_64", reason="wine executes x86-64's Windows on x86-64 only")


@needs_x86
def test_windows_runs_the_levels_that_this_cpu_executes(windows_runner: Artefact, wine: Mapping[str, str]) -> None:
    """On a CPU without AVX-512 some probes trap, and the program lives on."""
    levels = [line.split("\t")[:2] for line in run(["wine", windows_runner.path, "info"], wine).decode().splitlines()]
    runs = library.host_isas()
    expected = [(t.isa, "runs" if t.isa in runs else "does not run") for t in targets.levels(WINDOWS)]
    assert list(map(tuple, levels)) == expected


@needs_x86
@pytest.mark.parametrize("cache", ["f16", "int8"])
def test_windows_gives_the_same_bits(
    windows_runner: Artefact, wine: Mapping[str, str], tmp_path: Path, cache: Any
) -> None:
    model = bitgen.Model.load()
    expected = model.logits(TOKENS, cache=cache)
    tested = [t.isa for t in targets.levels(WINDOWS) if t.isa in library.host_isas()]
    for isa in tested:
        packed = tmp_path / f"größe-{isa}.bgpk"
        pack.write(packed, read_gguf(model.path), plan.of_model(model.shape, isa))
        for threads, chunk in (("1", "7"), ("3", "4")):
            options = ("--isa", isa, "--threads", threads, "--chunk", chunk, "--cache", cache)
            command = ["wine", windows_runner.path, "logits", packed, *options]
            out = run(command, wine, " ".join(map(str, TOKENS)))
            assert np.array_equal(np.frombuffer(out, np.float32).reshape(expected.shape), expected), (isa, threads)
    assert "scalar" in tested


@pytest.mark.slow
def test_a_static_program_of_this_architecture_gives_the_same_bits(tmp_path: Path) -> None:
    """Linked with musl by ziglang, whatever compiler this machine has."""
    if targets.host_system() not in ("linux", "musl"):
        pytest.skip("a Linux program needs Linux")
    model = bitgen.Model.load()
    isa = next(isa for isa in library.host_isas() if isa in ISA.values())
    runner = api.build("stories", arch=targets.host_arch(), system="musl", isa=isa, root=tmp_path, program=True)
    pack.write(tmp_path / "m.bgpk", read_gguf(model.path), plan.of_model(model.shape, isa))
    out = run([runner.path, "logits", tmp_path / "m.bgpk"], os.environ, " ".join(map(str, TOKENS)))
    assert np.array_equal(np.frombuffer(out, np.float32).reshape(len(TOKENS), -1), model.logits(TOKENS))


CALLER = r"""
#include <stdio.h>
#include <windows.h>
int main(int argc, char **argv) {
  HMODULE lib = argc > 1 ? LoadLibraryA(argv[1]) : NULL;
  if (!lib) return 1;
  int (*best)(void) = (int (*)(void))(void *)GetProcAddress(lib, "bg_isa_best");
  const char *(*name)(int) = (const char *(*)(int))(void *)GetProcAddress(lib, "bg_isa_name");
  puts(name(best()));
  return 0;
}
"""


@needs_x86
def test_the_dll_loads(wine: Mapping[str, str], tmp_path: Path) -> None:
    best = next(isa for isa in ("avx2", "scalar") if isa in library.host_isas())
    artefact = api.build("stories", arch="x86_64", system="windows", isa=best, root=tmp_path)
    units = [Unit("caller.c", "caller.o")]
    caller = clang.build("caller", {"caller.c": CALLER}, units, {}, BuildOptions(WINDOWS, "caller.c"))
    assert run(["wine", caller.path, f"Z:{artefact.path}"], wine).decode().strip() == best


@needs_x86
def test_the_standalone_program_tells_the_same(wine: Mapping[str, str], tmp_path: Path) -> None:
    """Weights beside the .exe and behind it; the prompt has letters beyond any code page of old."""
    prompt = "Größe was a 🐈. Once"
    expected = prompt + "".join(bitgen.Model.load().generate(prompt, 12, temperature=0, repeat_penalty=1, stop=False))
    for one_file in (False, True):
        folder = tmp_path / f"für {one_file}"
        made = api.standalone(arch="x86_64", system="windows", folder=folder, one_file=one_file)
        assert [f.name for f in made.files] == ["stories.exe", "stories.exe.bgpk"][: 1 if one_file else 2]
        command = ["wine", made.files[0], "-n", "12", "--temp", "0", "--ignore-eos", "--repeat-penalty", "1", "-p"]
        assert run([*command, prompt], wine).decode() == expected + "\n"
        assert run([*command, "-"], wine, prompt).decode() == expected + "\n"


def test_the_standalone_program_links_for_macos(tmp_path: Path) -> None:
    lief = pytest.importorskip("lief")
    made = api.standalone(arch="arm64", system="macos", isa="neon", folder=tmp_path)
    assert needs(lief.parse(str(made.files[0]))) == ["/usr/lib/libSystem.B.dylib"]
