"""Finding a compiler: those that are none, lack headers, or cannot write; what is said then."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitgen import targets
from bitgen.compile import clang, compiler, ziglang
from bitgen.compile.clang import Unit
from bitgen.errors import CompileError

HOST = targets.platform_of()
CLANG = "#!/bin/sh\ncase \"$*\" in *--version*) echo 'clang version 19.1.0'; exit 0;; esac\n"
"""The beginning of a program that says it is a clang."""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the compilers of the tests are shell scripts")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, and no compiler remembered from other tests."""
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BITGEN_CC", raising=False)
    compiler.installed.cache_clear()
    yield tmp_path / "cache"
    compiler.installed.cache_clear()


def program(folder: Path, text: str | bytes, name: str = "clang") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o755)
    return str(path)


NONE: dict[str, str | bytes] = {
    "says nothing": "#!/bin/sh\n",
    "another": "#!/bin/sh\necho gcc 12\n",
    "too old": "#!/bin/sh\necho clang version 13.0.0\n",
    "no text": b"#!/bin/sh\nprintf '\\377\\376 gcc'; printf '\\377' >&2; exit 1\n",
    "writes nothing": CLANG + "exit 0\n",
    "fails": CLANG + "printf 'error: \\377 no' >&2; exit 1\n",
    "not executable code": b"\x7fELF",
    "no such interpreter": "#!/no/such/shell\n",
}


@pytest.mark.parametrize("text", NONE.values(), ids=NONE.keys())
def test_a_named_compiler_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | bytes) -> None:
    monkeypatch.setenv("BITGEN_CC", program(tmp_path / "bin", text))
    with pytest.raises(CompileError, match=r"BITGEN_CC='.*clang' does not run as a clang of 14 or newer for .*: \S"):
        compiler.find_compiler(HOST)


@pytest.mark.parametrize("named", ["clang '", 'clang "', "   ", "\t", "\\", "/bin/true", "/no/such/clang", "-v", "/"])
def test_words_that_name_no_compiler(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("BITGEN_CC", named)
    with pytest.raises(CompileError, match=r"BITGEN_CC=.* does not run as a clang of 14 or newer for .*: "):
        compiler.find_compiler(HOST)


def test_a_compiler_that_stops_writing_is_named(tmp_path: Path) -> None:
    """It passed when it was tried."""
    broken = compiler.Compiler((program(tmp_path / "bin", CLANG),), "19", zig=False)
    with pytest.raises(CompileError, match=r"a\.c failed \(exit code 0, but wrote no a\.o\)\n  command: .*clang"):
        broken.run(["-c", "a.c", "-o", "a.o"], tmp_path, "compiling a.c")


def test_messages_of_any_encoding_are_shown(tmp_path: Path) -> None:
    broken = compiler.Compiler((program(tmp_path / "bin", CLANG + "printf 'gr\\366\\337e'>&2; exit 1\n"),), "19", False)
    with pytest.raises(CompileError, match="gr\ufffd\ufffde"):
        broken.run(["-c", "a.c", "-o", "a.o"], tmp_path, "compiling a.c")


def test_no_compiler_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And what is wrong with those that are there."""
    program(tmp_path / "bin", CLANG + "echo \"error: 'pthread.h' file not found\" >&2; exit 1\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(ziglang, "programs", lambda: iter([Path("/no/zig")]))
    monkeypatch.setenv("BITGEN_OFFLINE", "1")
    with pytest.raises(compiler.NoCompilerError, match="pip install ziglang") as e:
        compiler.find_compiler(HOST)
    message = str(e.value)
    assert "apt-get install clang" in message and "BITGEN_CC=" in message
    assert "\nclang does not serve: it cannot compile: error: 'pthread.h' file not found" in message
    assert "\n/no/zig cc does not serve: cannot run /no/zig" in message
    assert "none can be fetched: BITGEN_OFFLINE asks for no network" in message


def test_a_clang_without_headers_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    program(tmp_path / "bin", CLANG + "echo \"fatal error: 'pthread.h' file not found\" >&2; exit 1\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(compiler.shutil, "which", lambda name: name if name == "clang" else None)
    found = compiler.find_compiler(HOST)
    assert found.zig and found.command == (str(next(ziglang.programs())), "cc")


def test_headers_are_looked_for_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = tmp_path / "said"
    text = f'{CLANG}echo "$*" >> {said}; while [ $# -gt 1 ]; do shift; done; echo x > "$1"\n'
    monkeypatch.setenv("BITGEN_CC", program(tmp_path / "bin", text))
    for _ in range(2):
        compiler.installed.cache_clear()
        assert compiler.find_compiler(HOST).version == "clang version 19.1.0"
    assert len(said.read_text().splitlines()) == 1


def test_zig_writes_to_our_cache_where_it_cannot_to_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh: Path
) -> None:
    pytest.importorskip("ziglang")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))  # a file: not even root makes a folder in it
    for name in ("XDG_CACHE_HOME", "ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    found = compiler.find_compiler(HOST)
    assert found.zig and found.environment["ZIG_GLOBAL_CACHE_DIR"] == str(fresh / "zig")
    answer = '__attribute__((visibility("default"))) int answer(void) { return 42; }\n'
    assert ctypes.CDLL(str(clang.build("t", {"a.c": answer}, [Unit("a.c", "a.o")], {}).path)).answer() == 42


def test_ziglang_serves_without_a_system_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    assert compiler.find_compiler(HOST).zig
