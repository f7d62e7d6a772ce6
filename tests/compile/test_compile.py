"""The compiler's caller: caching, atomic appearance, errors that help."""

import ctypes
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bitgen import data, store, targets
from bitgen.compile import clang, compiler, library, precompiled
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
    monkeypatch.setattr(compiler.Compiler, "run", lambda *_: pytest.fail("the compiler ran again"))
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
    kernels = [dataclasses.replace(k, layout=space.default_plan(k.shape, isa).layout) for k in kernels]
    made = []
    for spoil in (False, True):
        shutil.rmtree(cache, ignore_errors=True)  # absent where the host's levels were known already
        if spoil:
            monkeypatch.setattr(precompiled, "WORTH_IT", 100)
        built = library.for_kernels(isa, kernels)
        log = (built.folder / "build.log").read_text()
        assert ("-include-pch" in log) != spoil or isa == "scalar"
        made.append(built.path.read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("name", ["vectors.pch", "vectors.h", "vectors.sha256"])
def test_a_damaged_parsed_header_is_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(precompiled, "WORTH_IT", 1)
    monkeypatch.setitem(precompiled.VECTORS, targets.host_arch(), "stdint.h")
    text = "#include <stdint.h>\n" + ANSWER
    build(text)
    (damaged,) = cache.glob(f"headers/*/{name}")
    right = damaged.read_bytes()
    damaged.write_bytes(right[: len(right) // 2])
    assert ctypes.CDLL(str(build(text + "\n").path)).answer() == 42
    assert len(damaged.read_bytes()) == len(right)
    assert "-include-pch" in (build(text + "\n").folder / "build.log").read_text()


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

    monkeypatch.setattr(compiler.Compiler, "run", interrupted)
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


@pytest.mark.parametrize("isa", targets.TARGETS)
def test_every_target_names_a_level_below_it(isa: str) -> None:
    assert targets.fallbacks(isa)[-1] == "scalar"


# ---- damage, and other users ----------------------------------------------------------------------------------


def cut(artefact: Artefact) -> None:
    os.truncate(artefact.path, artefact.path.stat().st_size // 2)


def flip(artefact: Artefact) -> None:
    raw = bytearray(artefact.path.read_bytes())
    raw[len(raw) // 2] ^= 1
    artefact.path.write_bytes(raw)


def remove(artefact: Artefact) -> None:
    artefact.path.unlink()


def no_spec(artefact: Artefact) -> None:
    (artefact.folder / "spec.json").unlink()


def half_written(artefact: Artefact) -> None:
    """As after a power cut: names without bytes."""
    for path in artefact.folder.iterdir():
        path.write_bytes(b"")


def wrote(text: str) -> Callable[[Artefact], None]:
    return lambda artefact: (artefact.folder / "spec.json").write_text(text) and None


def writable(artefact: Artefact) -> None:
    artefact.folder.chmod(0o777)


def writable_library(artefact: Artefact) -> None:
    artefact.path.chmod(0o666)


SPECS = ["", "{", "[]", "null", "3", '{"product": 3}', '{"product": "libbitgen.so"}', "[" * 100_000]


@pytest.mark.parametrize("root", [None, "out"])
@pytest.mark.parametrize(
    "change", [cut, flip, remove, no_spec, half_written, writable, writable_library, *map(wrote, SPECS)]
)
def test_a_damaged_build_is_made_anew(tmp_path: Path, root: str | None, change: Callable[[Artefact], object]) -> None:
    """In the cache, and in a folder that a user names."""
    where = tmp_path / root if root else None
    first = build(root=where)
    right = first.path.read_bytes()
    change(first)
    assert clang.opened(first.folder) is None
    again = build(root=where)
    assert again == first and again.path.read_bytes() == right
    assert [path.name for path in first.folder.parent.iterdir()] == [first.folder.name]


def test_a_spec_of_no_text_is_no_spec() -> None:
    first = build()
    (first.folder / "spec.json").write_bytes(b"\xff\xfe{")
    assert clang.opened(first.folder) is None and build() == first


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="giving a file to another user takes root")
@pytest.mark.parametrize("path", [lambda made: made.folder, lambda made: made.path])
def test_a_build_of_another_user_is_made_anew(tmp_path: Path, path: Callable[[Artefact], Path]) -> None:
    first = build(root=tmp_path / "out")
    os.chown(path(first), 65534, -1)
    assert clang.opened(first.folder) is None
    assert path(build(root=tmp_path / "out")).stat().st_uid == 0


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
def test_a_cache_that_others_may_write_to_is_refused(cache: Path) -> None:
    build()
    cache.chmod(0o777)
    with pytest.raises(BitgenError, match=f"other users may write to {cache}, .*BITGEN_CACHE"):
        build()


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
def test_a_generous_umask_does_not_spoil_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o002)
    try:
        first = build(root=tmp_path / "out")
    finally:
        os.umask(before)
    monkeypatch.setattr(compiler.Compiler, "run", lambda *_: pytest.fail("built again"))
    assert build(root=tmp_path / "out") == first


def test_a_damaged_object_is_compiled_again(cache: Path, tmp_path: Path) -> None:
    build()
    (kept,) = (cache / "objects").iterdir()
    for raw in (b"", kept.read_bytes()[:-1], bytes(100)):
        kept.write_bytes(raw)
        made = build(root=tmp_path / str(len(raw)))
        assert ctypes.CDLL(str(made.path)).answer() == 42


# ---- names ----------------------------------------------------------------------------------------------------

NAMES = ["a/b", "../../x", "/tmp/x", "a\0b", "n" * 300, "模" * 300, "..", "", "-rf", "a\nb", "\udcff"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_not_a_path(tmp_path: Path, name: str) -> None:
    made = clang.build(name, {"a.c": ANSWER}, [Unit("a.c", "a.o")], {}, BuildOptions(root=tmp_path / "out"))
    assert made.folder.parent == tmp_path / "out" and list((tmp_path / "out").iterdir()) == [made.folder]
    assert ctypes.CDLL(str(made.path)).answer() == 42


# ---- without a compiler ---------------------------------------------------------------------------------------


def none_there(platform: object) -> compiler.Compiler:
    raise compiler.NoCompilerError("no C compiler found")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What takes all compilers away, those too that might be fetched."""

    def take() -> None:
        monkeypatch.setattr(clang, "installed", none_there)
        monkeypatch.setattr(clang, "find_compiler", none_there)

    return take


def test_what_is_built_needs_no_compiler(no_compiler: Callable[[], None]) -> None:
    first = build()
    no_compiler()
    assert build() == first
    for change in (ANSWER + "\n", "int other;\n"):
        with pytest.raises(CompileError, match="no C compiler found"):
            build(change)
    with pytest.raises(CompileError):
        build(flags=("-DX",))
    flip(first)
    with pytest.raises(CompileError):
        build()


def test_the_last_of_two_compilers_serves(monkeypatch: pytest.MonkeyPatch, no_compiler: Callable[[], None]) -> None:
    found = clang.find_compiler(targets.platform_of())
    made = []
    for version in ("clang version 98.0", "clang version 99.0"):
        monkeypatch.setattr(clang, "installed", lambda _, v=version: dataclasses.replace(found, version=v))
        made.append(build())
        os.utime(made[-1].folder, (len(made), len(made)))
    assert made[0].folder != made[1].folder
    no_compiler()
    assert build() == made[1]


# ---- at once --------------------------------------------------------------------------------------------------


def test_one_thread_builds_and_the_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    run, linked, told = compiler.Compiler.run, [], []

    def slowly(self: compiler.Compiler, arguments: list[str], cwd: Path, what: str) -> str:
        linked.append(what)
        while not told:  # until another thread has come
            time.sleep(0.01)
        return run(self, arguments, cwd, what)

    monkeypatch.setattr(compiler.Compiler, "run", slowly)
    options = BuildOptions(listener=lambda stage, *_: told.append(1) if stage == data.WAITING else None)
    with ThreadPoolExecutor(3) as pool:
        work = [pool.submit(clang.build, "t", {"a.c": ANSWER}, [Unit("a.c", "a.o")], {}, options) for _ in range(3)]
    assert len({each.result().folder for each in work}) == 1
    assert sorted(linked) == ["compiling a.c", "linking libbitgen.so"] and len(told) == 2


def test_without_locks_each_builds_and_one_stays(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def unavailable(*_: object, **__: object) -> bool:
        raise OSError("no locks available")

    monkeypatch.setattr(store, "lock_descriptor", unavailable)
    with ThreadPoolExecutor(4) as pool:
        made = [each.result() for each in [pool.submit(build) for _ in range(4)]]
    assert all(clang.opened(each.folder) == made[0] for each in made)
    assert list((cache / "build").iterdir()) == [made[0].folder]
