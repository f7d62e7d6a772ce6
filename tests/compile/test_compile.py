"""The compiler's caller: caching, atomic appearance, errors that help."""

import ctypes
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bitgen import targets
from bitgen.compile import clang, library, precompiled
from bitgen.compile.clang import Artefact, BuildOptions, Unit
from bitgen.errors import BitgenError, CompileError
from bitgen.kernels import space
from bitgen.spec import GemmShape, KernelSpec, Layout, Tile

ANSWER = '__attribute__((visibility("default"))) int answer(void) { return 42; }\n'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(text: str = ANSWER, flags: tuple[str, ...] = (), root: Path | None = None) -> Artefact:
    return clang.build("t", {"a.c": text}, [Unit("a.c", "a.o", flags)], {"made": "for a test"}, BuildOptions(root=root))


def test_a_build_works_and_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    first = build()
    assert ctypes.CDLL(str(first.path)).answer() == 42
    assert {p.name for p in first.folder.iterdir()} == {"a.c", "spec.json", "build.log", "libbitgen.so"}
    assert first.spec["made"] == "for a test" and first.spec["arch"] == targets.host_arch()
    monkeypatch.setattr(clang, "_run", lambda *_: pytest.fail("the compiler ran again"))
    assert build() == first


def test_objects_are_shared_between_builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build()
    assert "a.o: from the object cache" in (build(root=tmp_path / "other").folder / "build.log").read_text()


def test_a_header_parsed_once_changes_no_byte(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Of a level's units; a compiler that cannot parse a header beforehand compiles them all the same."""
    isa = library.host_isa()
    kernels = [
        KernelSpec("gemv", GemmShape(m, 256), isa, Layout("i2_s", 4, 256), Tile()) for m in (4, 8, 12, 16, 20, 24)
    ]
    kernels = [replace(k, layout=space.default_plan(k.shape, isa).layout) for k in kernels]
    made = []
    for spoil in (False, True):
        shutil.rmtree(cache)
        if spoil:
            monkeypatch.setattr(precompiled, "WORTH_IT", 100)
        built = library.for_kernels(isa, kernels)
        log = (built.folder / "build.log").read_text()
        assert ("-include-pch" in log) != spoil or isa == "scalar"
        made.append(built.path.read_bytes())
    assert made[0] == made[1]


def test_the_key_covers_text_and_flags() -> None:
    folders = {build().folder, build(ANSWER + "\n").folder, build(flags=("-DX",)).folder}
    assert len(folders) == 3


def test_no_absolute_paths_in_the_library() -> None:
    artefact = build()
    assert str(artefact.folder).encode() not in artefact.path.read_bytes()


def test_an_error_shows_command_source_and_words(cache: Path) -> None:
    with pytest.raises(CompileError) as e:
        build("int broken(void) { return nonsense; }\n")
    message = str(e.value)
    assert "compiling a.c failed" in message and "-c a.c" in message and "nonsense" in message
    kept = next((cache / "build").glob("*.failed"))
    assert str(kept) in message
    assert "nonsense" in (kept / "a.c").read_text() and "error" in (kept / "build.log").read_text()


def test_an_undefined_symbol_is_found_at_link_time() -> None:
    with pytest.raises(CompileError, match="linking"):
        build("int other(void);\nint f(void) { return other(); }\n")


def test_a_failed_build_does_not_spoil_a_later_one() -> None:
    with pytest.raises(CompileError):
        build("#error no\n")
    assert build().path.exists()


def test_an_interrupt_leaves_nothing(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(clang, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build()
    assert list((cache / "build").iterdir()) == []


def test_an_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BitgenError, match="BITGEN_CACHE"):
        build(root=tmp_path / "file" / "below")


def test_processes_building_the_same_do_not_disturb_each_other(cache: Path) -> None:
    script = (
        "from bitgen.compile import clang\n"
        "a = clang.build('t', {'a.c': 'int x;\\n'}, [clang.Unit('a.c', 'a.o')], {})\n"
        "print(a.path.exists())"
    )
    running = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [p.communicate(timeout=120)[0].strip() for p in running] == ["True"] * 4
    assert len(list((cache / "build").iterdir())) == 1


def test_no_compiler_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clang.find_compiler.cache_clear()
    monkeypatch.setattr(clang, "_probe", lambda command: None)
    try:
        with pytest.raises(CompileError, match="pip install ziglang") as e:
            clang.find_compiler(targets.platform_of())
        assert "apt-get install clang" in str(e.value)
    finally:
        clang.find_compiler.cache_clear()


def test_a_named_compiler_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    clang.find_compiler.cache_clear()
    monkeypatch.setenv("BITGEN_CC", "/bin/true")
    try:
        with pytest.raises(CompileError, match="BITGEN_CC"):
            clang.find_compiler(targets.platform_of())
    finally:
        clang.find_compiler.cache_clear()


def test_ziglang_serves_without_a_system_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    zig = clang._probe((sys.executable, "-m", "ziglang", "cc"))
    assert zig is not None and zig.zig
    monkeypatch.setattr(clang, "find_compiler", lambda *_: zig)
    assert ctypes.CDLL(str(build().path)).answer() == 42


@pytest.mark.parametrize("isa", targets.TARGETS)
def test_every_target_names_a_level_below_it(isa: str) -> None:
    assert targets.fallbacks(isa)[-1] == "scalar"
