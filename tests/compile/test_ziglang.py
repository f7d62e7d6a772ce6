"""A machine without a compiler: one is fetched with pip from the index that the user is configured for, once."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bitgen import data, targets
from bitgen.compile import compiler, ziglang
from bitgen.errors import BitgenError, CompileError

HOST = targets.platform_of()
VERSION = "0.15.1"

FAKE = """#!/bin/sh
case "$*" in *--version*) echo 'clang version 20.1.0'; exit 0;; esac
while [ $# -gt 1 ]; do shift; done
echo object > "$1"
"""
"""A zig that says it is a clang, and compiles anything."""

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="the zig of the tests is a shell script"),
    pytest.mark.skipif(not importlib.util.find_spec("pip"), reason="pip is not installed"),
]


def index(folder: Path, program: str = FAKE) -> Path:
    """A folder with a wheel of ziglang, which pip takes for an index."""
    folder.mkdir(exist_ok=True)
    info = f"ziglang-{VERSION}.dist-info"
    files = {
        "ziglang/__init__.py": "",
        "ziglang/zig": program,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: ziglang\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}"
        for name, text in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    with zipfile.ZipFile(folder / f"ziglang-{VERSION}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = (0o100755 if name == "ziglang/zig" else 0o100644) << 16
            wheel.writestr(member, text)
    return folder


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with an empty cache and an index, but without clang, ziglang and uv. Gives the cache."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "ziglang" else find_spec(name, *a)
    )
    monkeypatch.setattr(shutil, "which", lambda name, **_: None)
    for name in ("BITGEN_CC", *data.OFFLINE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index(tmp_path / "index")))
    compiler.installed.cache_clear()
    yield tmp_path / "cache"
    compiler.installed.cache_clear()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that install something, as they are run."""
    run, seen = subprocess.run, []

    def counted(command: list[str], **more: Any) -> Any:
        if "install" in command:
            assert {more["env"][name] for name in ("PIP_USER", "PIP_REQUIRE_VIRTUALENV")} == {"0"}
            assert more["env"]["PIP_BREAK_SYSTEM_PACKAGES"] == "1"  # it goes into a folder of ours
            seen.append(command)
        return run(command, **more)

    monkeypatch.setattr(subprocess, "run", counted)
    return seen


def test_it_is_fetched_once_and_said(
    bare: Path, runs: list[list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_USER", "1")  # which cannot go with a folder
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    found = compiler.find_compiler(HOST)
    assert found.zig and found.version == f"clang version 20.1.0 of ziglang {VERSION}"
    program = Path(found.command[0])
    assert program.is_relative_to(bare / "ziglang") and program.stat().st_mode & 0o022 == 0
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1
    assert f"pip fetches {ziglang.REQUIREMENT} once" in said.err and "MB" in said.err and str(bare) in said.err
    compiler.installed.cache_clear()
    monkeypatch.setenv("BITGEN_OFFLINE", "1")
    assert compiler.find_compiler(HOST) == found and len(runs) == 1
    assert [each.name for each in program.parent.parent.parent.iterdir()] == [program.parent.parent.name]


def test_threads_that_need_it_at_once_fetch_it_once(runs: list[list[str]]) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: compiler.find_compiler(HOST), range(3)))
    assert len(runs) == 1 and found == found[:1] * 3


def truncate(program: Path) -> None:
    program.write_text("#!/bin/sh\n")


HARMS: tuple[Callable[[Path], object], ...] = (
    lambda program: program.write_text("#!/bin/sh\n"),
    lambda program: program.chmod(0o757),
    lambda program: program.parent.chmod(0o777),
    Path.unlink,
)


def test_one_that_was_changed_is_fetched_anew(runs: list[list[str]]) -> None:
    program = Path(compiler.find_compiler(HOST).command[0])
    for times, harm in enumerate(HARMS, 2):
        harm(program)
        compiler.installed.cache_clear()
        assert Path(compiler.find_compiler(HOST).command[0]) == program
        assert len(runs) == times and program.read_text() == FAKE


def refused(*words: str) -> None:
    """No compiler is found, and the error says why, and what the ways out are."""
    with pytest.raises(compiler.NoCompilerError) as e:
        compiler.find_compiler(HOST)
    for word in (*words, "pip install ziglang", "apt-get install clang", "BITGEN_CC="):
        assert word in str(e.value), word


@pytest.mark.parametrize("name", data.OFFLINE)
@pytest.mark.parametrize("value", ["1", "true", "YES", "2"])
def test_never_when_no_network_is_wanted(
    runs: list[list[str]], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    refused(f"none can be fetched: {name} asks for no network.")
    assert not runs


@pytest.mark.parametrize("value", ["", "0", "false", "OFF", "no"])
def test_what_does_not_ask_for_it(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("BITGEN_OFFLINE", value)
    assert data.offline() is None


def test_an_index_without_it(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    refused("pip install", "failed: ERROR:", "ziglang")
    assert not list((bare / "ziglang").iterdir())


def test_an_index_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NO_INDEX": "0", "FIND_LINKS": "", "INDEX_URL": "http://127.0.0.1:9", "RETRIES": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    refused("failed: ERROR:", "Connection refused")


def test_one_that_does_not_work(tmp_path: Path, runs: list[list[str]]) -> None:
    index(tmp_path / "index", "#!/bin/sh\nexit 3\n")
    refused("the one in the cache does not work", "does not serve")
    assert len(runs) == 1


def test_no_pip_and_no_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    refused("there is neither pip nor uv")


def test_other_pips_where_this_python_has_none(
    runs: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Environments of uv and pipx have none: the one inside ensurepip serves, but one on the PATH comes first."""
    find_spec = importlib.util.find_spec
    there = find_spec("ensurepip")
    if not list(ziglang._pip_wheels()):
        pytest.skip("this Python has no ensurepip")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: there if name == "ensurepip" else None)
    assert compiler.find_compiler(HOST).zig and runs[0][1].endswith("whl/pip")
    monkeypatch.setattr(shutil, "which", lambda name, **_: "/some/pip3" if name == "pip3" else None)
    assert ziglang.installer() == ["/some/pip3", "install", "--no-input"]


def test_uv_where_there_is_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = tmp_path / "uv"
    pip = f'{sys.executable} -m pip install --no-deps --target "$6" "$7"'
    uv.write_text(f'#!/bin/sh\n[ "$1 $2 $3" = "pip install --python" ] && [ "$5" = --no-deps ] && shift && {pip}\n')
    uv.chmod(0o755)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    monkeypatch.setattr(shutil, "which", lambda name, **_: str(uv) if name == "uv" else None)
    assert compiler.find_compiler(HOST).zig


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ziglang.store, "work_folder", full)
    with pytest.raises(BitgenError, match="No space left on device; free some space or set BITGEN_CACHE") as e:
        compiler.find_compiler(HOST)
    assert not isinstance(e.value, CompileError)


def test_what_is_built_already_needs_none(runs: list[list[str]]) -> None:
    """A cache that was filled where there was a compiler serves where there is none, and nothing is fetched."""
    from bitgen.compile import clang

    unit = [clang.Unit("a.c", "a.o")]
    found = clang.build("t", {"a.c": "int a;\n"}, unit, {})
    shutil.rmtree(data.cached("ziglang"))
    compiler.installed.cache_clear()
    runs.clear()
    assert clang.build("t", {"a.c": "int a;\n"}, unit, {}) == found and not runs


def test_the_main_job_on_a_bare_machine(tmp_path: Path) -> None:
    """The whole command in processes that find no compiler: refused without a network; with one it fetches a compiler,
    here a wheel whose zig is this machine's clang; and what was built then serves without it, and without a network.
    """
    paths = os.environ.get("PATH", "")
    clang = next((Path(p) / "clang" for p in paths.split(os.pathsep) if (Path(p) / "clang").is_file()), None)
    if clang is None:
        pytest.skip("no system clang to stand behind the fetched one")
    index(tmp_path / "index", f'#!/bin/sh\nshift\nPATH={paths} exec {clang} "$@"\n')
    (tmp_path / "hidden" / "ziglang").mkdir(parents=True)
    (tmp_path / "hidden" / "ziglang" / "__init__.py").write_text("")
    modules = os.pathsep.join([str(tmp_path / "hidden"), *filter(None, sys.path)])
    command = [sys.executable, "-m", "bitgen", "run", "-p", "Once", "-n", "4", "--temp", "0", "--isa", "scalar"]

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": modules, **more}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)

    cold = run(BITGEN_OFFLINE="1")
    assert cold.returncode == 1 and "no C compiler found" in cold.stderr and "Traceback" not in cold.stderr
    first = run()
    assert first.returncode == 0 and first.stdout.startswith("Once") and "pip fetches" in first.stderr, first.stderr
    shutil.rmtree(data.cached("ziglang"))
    warm = run(BITGEN_OFFLINE="1")
    assert (warm.returncode, warm.stdout) == (0, first.stdout) and "fetches" not in warm.stderr, warm.stderr
