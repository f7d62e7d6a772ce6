"""bitgen doctor: every fault that a check is there for, made; and that no fault keeps the report from being written."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from hub_server import TOKEN, Hub

from bitgen import api, cli, data, targets
from bitgen.cgroups import MemoryLimit
from bitgen.checkpoints import presets
from bitgen.compile import compiler, library, ziglang
from bitgen.errors import BitgenError
from bitgen.kernels import plan, space
from bitgen.measure import doctor, install_checks, machine, machine_checks
from bitgen.measure.findings import Finding, Models

SHAPE = presets.load("2B4T")
MODELS: Models = {"2B4T": lambda: SHAPE}


def found(name: str, models: Models = MODELS) -> list[Finding]:
    """What one check of the table finds."""
    return doctor._isolated(next(check for check in doctor.CHECKS if check.name == name), models)


def one(name: str, models: Models = MODELS) -> Finding:
    (finding,) = found(name, models)
    return finding


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and no compiler remembered."""
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BITGEN_CC", raising=False)
    compiler.installed.cache_clear()
    yield tmp_path / "cache"
    compiler.installed.cache_clear()


# ---- the report ---------------------------------------------------------------------------------------------------


def test_all_is_well_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it, on the machine of the tests; the network is none of theirs."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    report = api.doctor()
    assert report.ok, [f for f in report.findings if f.state == "problem"]
    assert {f.check for f in report.findings} == {check.name for check in doctor.CHECKS}
    assert [f.values["model"] for f in report.findings if f.check == "memory" and f.values.get("model")] == [
        data.SHIPPED, "2B4T",
    ]  # fmt: skip
    taken = [f.values["level"] for f in report.findings if f.check == "level" and f.values["taken"]]
    assert taken == [library.host_isa()]
    for finding in report.findings:
        assert finding.state == "ok" or finding.advice, finding


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from keys(inner)


def test_json_is_for_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = CliRunner().invoke(cli.main, ["doctor", "--json", "-m", "2B4T"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert not [key for key in keys(report) if not re.fullmatch(r"[\w.-]+", key)]
    memory = next(f["values"] for f in report["findings"] if f["check"] == "memory" and "model" in f["values"])
    assert memory["kv_f16_bytes"] == 30 * 5 * 4096 * 2 * 128 * 2 and memory["context_tokens"] == 4096
    assert memory["kv_int8_bytes"] == 30 * 5 * 4096 * 2 * (128 + 4)


def test_lines_are_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        Finding("hub_cache", "ok", "a fact\x1b[2J"),
        Finding("level", "warning", "another [red]fact", "do this"),
    )
    monkeypatch.setattr(api, "doctor", lambda *_, **__: doctor.Report(rows))
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.output.splitlines()]
    assert lines[0].split(maxsplit=3) == ["ok", "hub", "cache", r"a fact\x1b[2J"]
    assert lines[1].endswith("another [red]fact") and lines[2].strip() == "-> do this"


def test_a_problem_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (doctor.Check("x", broken(BitgenError("no; do this")), vital=True),))
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert result.exit_code == 1 and "problem" in result.output and "no; do this" in result.output
    assert json.loads(CliRunner().invoke(cli.main, ["doctor", "--json"]).stdout)["ok"] is False


def broken(error: BaseException) -> Any:
    def find(_: Models) -> Iterator[Finding]:
        yield Finding("x", "ok", "as far as this")
        raise error

    return find


@pytest.mark.parametrize("error", [OSError(5, "bad disk"), ValueError("x"), SystemExit(3), MemoryError()])
def test_a_check_that_fails_is_a_line(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    after = doctor.Check("y", lambda _: iter([Finding("y", "ok", "well")]))
    monkeypatch.setattr(doctor, "CHECKS", (doctor.Check("x", broken(error)), after))
    report = doctor.examine({})
    assert [f.state for f in report.findings] == ["ok", "warning", "ok"] and report.ok
    assert type(error).__name__ in report.findings[1].fact and "report it" in report.findings[1].advice


@pytest.mark.parametrize(("vital", "state"), [(True, "problem"), (False, "warning")])
def test_a_check_that_hangs_is_a_line(vital: bool, state: str) -> None:
    def find(_: Models) -> Iterator[Finding]:
        yield Finding("x", "ok", "as far as this")
        time.sleep(60)

    lines = doctor._isolated(doctor.Check("x", find, vital, limit_s=0.05), {})
    assert [f.state for f in lines] == ["ok", state] and lines[1].fact == "no answer within 0.05 seconds"


@pytest.mark.skipif(os.name == "nt", reason="the rights of POSIX")
def test_where_everything_is_broken(tmp_path: Path) -> None:
    """No home, no compiler, no place for a cache, an endpoint that is none, a model that is none: in one process."""
    (tmp_path / "file").write_text("")
    (tmp_path / "broken" / "ziglang").mkdir(parents=True)
    (tmp_path / "broken" / "ziglang" / "__init__.py").write_text("")
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "broken"), *filter(None, sys.path)]),
        "HOME": str(tmp_path / "file" / "home"), "BITGEN_CACHE": str(tmp_path / "file" / "cache"),
        "HF_ENDPOINT": "http://user:secret@127.0.0.1:9", "PATH": str(tmp_path),
    }  # fmt: skip
    command = [sys.executable, "-m", "bitgen", "doctor", "--json", "-m", str(tmp_path / "no.gguf")]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert out.returncode == 1 and "Traceback" not in out.stderr, out.stderr
    assert "secret" not in out.stdout + out.stderr
    states = {f["check"]: f["state"] for f in json.loads(out.stdout)["findings"]}
    assert {name for name, state in states.items() if state == "problem"} >= {"cache", "model", "compiler"}
    assert states["hub"] == states["level"] == states["plan"] == "warning"
    assert states["version"] == states["cpu"] == "ok" and not (tmp_path / "file").is_dir()


# ---- the machine --------------------------------------------------------------------------------------------------

CPUINFO = "processor : 0\nmodel name\t: Some CPU 9000\nflags\t\t: {}\n\nprocessor : 1\nflags\t\t: {} extra\n"
ARM = "CPU implementer : 0x41\nCPU part : 0xd0b\n"
VNNI = "fma f16c avx2 avx512f avx512bw avx512dq avx512vl avx512_vnni"


def root(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"proc/cpuinfo": f"cpu family : 6\nmodel : 1\n{CPUINFO}"}, "Some CPU 9000"),
        ({"proc/cpuinfo": f"{ARM}Model\t: Raspberry Pi 5\n"}, "Cortex-A76 (Raspberry Pi 5)"),
        ({"proc/cpuinfo": ARM, "proc/device-tree/model": "Some Board\0"}, "Cortex-A76 (Some Board)"),
        ({"proc/cpuinfo": "CPU implementer : 0x7a\nCPU part : 0x1\n"}, "0x7a 0x1"),
        ({}, "unknown CPU"),
    ],
)  # fmt: skip
@pytest.mark.skipif(sys.platform != "linux", reason="Linux's files")
def test_names_of_cpus(tmp_path: Path, files: dict[str, str], name: str) -> None:
    assert machine.cpu_brand(root(tmp_path, files)) == name


def test_every_level_needs_what_linux_has_a_name_for() -> None:
    names = {name for target in targets.TARGETS.values() for name in machine.needs(target)}
    assert names == {*VNNI.split(), "avx512vbmi", "avx_vnni", "amx_tile", "amx_int8", "asimddp", "i8mm"}


def levels_on(monkeypatch: pytest.MonkeyPatch, flags: str, runs: tuple[str, ...], tiles: bool) -> dict[str, Finding]:
    """What is said of each level on an x86-64 that lists these extensions and executes these levels."""
    monkeypatch.setattr(targets, "platform_of", lambda: targets.PLATFORMS["x86_64", "linux"])
    monkeypatch.setattr(compiler, "installed", lambda _: None)
    monkeypatch.setattr(library, "host_isas", lambda: runs)
    monkeypatch.setattr(machine, "instructions", lambda: frozenset(flags.split()))
    monkeypatch.setattr(machine, "grants_tiles", lambda: tiles)
    return {f.values["level"]: f for f in found("level")}


def test_why_a_level_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = levels_on(monkeypatch, f"{VNNI} avx512vbmi amx_tile amx_int8", ("avx512vnni", "avx2", "scalar"), False)
    assert lines["avx512vnni"].fact.startswith("avx512vnni runs, and is taken") and lines["avx2"].state == "ok"
    assert lines["amx"].state == "warning" and "the kernel does not grant tiles" in lines["amx"].fact
    assert lines["avx512vbmi"].state == "warning" and "trap or compute wrongly" in lines["avx512vbmi"].fact
    assert lines["avxvnni"].state == "ok" and lines["avxvnni"].fact.endswith("the CPU lacks avx_vnni")
    lines = levels_on(monkeypatch, f"{VNNI} amx_tile", ("avx512vnni", "avx2", "scalar"), True)
    assert lines["amx"].values["lacks"] == ["avx512vbmi", "amx_int8"]
    lines = levels_on(monkeypatch, "sse2", ("scalar",), False)
    assert lines["scalar"].state == "warning" and "slow" in lines["scalar"].advice
    lines = levels_on(monkeypatch, "", ("avx2", "scalar"), False)  # no /proc/cpuinfo
    assert lines["amx"].state == "ok" and lines["amx"].fact.endswith("its probe trapped: the CPU lacks it")


def test_instructions_are_those_of_all_cpus(tmp_path: Path) -> None:
    assert machine.instructions(root(tmp_path, {"proc/cpuinfo": CPUINFO.format("avx2 fma", "avx2")})) == {"avx2"}
    assert machine.instructions(tmp_path / "none") == frozenset()


@pytest.mark.parametrize(("quota", "state"), [(None, "ok"), (2.5, "ok"), (0.5, "warning")])
def test_a_part_of_a_cpu_is_too_little(monkeypatch: pytest.MonkeyPatch, quota: float | None, state: str) -> None:
    monkeypatch.setattr(machine_checks, "cpu_quota", lambda: quota)
    finding = one("threads")
    assert finding.state == state and finding.values["quota"] == quota
    assert finding.values["threads"] == targets.default_threads()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's files")
def test_memory_is_what_the_group_leaves(tmp_path: Path) -> None:
    meminfo = "MemTotal:  16000000 kB\nMemFree: 5 kB\nMemAvailable:  8000000 kB\n"
    here = root(tmp_path, {"proc/meminfo": meminfo})
    assert machine.memory(here) == machine.Memory(16_384_000_000, 8_192_000_000, None)
    mount = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    group = {
        "memory.max": "3000000000",
        "memory.current": "2000000000",
        "memory.stat": "anon 5\ninactive_file 500000000\n",
    }
    root(here, {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mount})
    root(here / "sys/fs/cgroup", group)
    limit = MemoryLimit(3_000_000_000, 1_500_000_000)
    assert machine.memory(here) == machine.Memory(16_384_000_000, 1_500_000_000, limit)


WEIGHTS, F16, INT8 = (machine_checks.weight_bytes(SHAPE), machine_checks.kv_bytes(SHAPE, 2, 0),
                      machine_checks.kv_bytes(SHAPE, 1, 4))  # fmt: skip


@pytest.mark.parametrize(
    ("available", "state", "words"),
    [
        (WEIGHTS + F16, "ok", ""),
        (WEIGHTS + INT8, "warning", "with --cache int8 all"),
        (WEIGHTS + INT8 // 2, "warning", "below 2,048 tokens"),
        (WEIGHTS - 1, "warning", "smaller model"),
    ],
)
def test_a_model_beside_the_memory(monkeypatch: pytest.MonkeyPatch, available: int, state: str, words: str) -> None:
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(1 << 40, available, None))
    _, finding = found("memory")
    assert finding.state == state and words in finding.advice, finding


def test_memory_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: None)
    first, second = found("memory")
    assert first.state == "warning" and second.state == "ok"


def test_weights_are_about_what_packing_writes() -> None:
    model = api.load()
    assert machine_checks.weight_bytes(model.shape) == pytest.approx(model.packed.stat().st_size, rel=0.05)


def test_a_model_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    models = {"bad": lambda: api.shape_of(tmp_path / "bad.gguf")}
    assert one("model", models).state == "problem" and "bad.gguf" in one("model", models).fact
    assert [f.check for f in found("memory", models)] == ["memory"] and not found("plan", models)


# ---- the installation ---------------------------------------------------------------------------------------------


def test_a_file_in_place_of_the_cache(fresh: Path) -> None:
    fresh.write_text("")
    finding = one("cache")
    assert finding.state == "problem" and "cannot be written to" in finding.fact and "BITGEN_CACHE" in finding.advice


@pytest.mark.skipif(os.name == "nt", reason="the rights of POSIX")
def test_a_cache_of_everybody(fresh: Path) -> None:
    fresh.mkdir()
    fresh.chmod(0o777)
    finding = one("cache")
    assert finding.state == "problem" and "other users may write" in finding.fact and "BITGEN_CACHE" in finding.fact


def test_no_home_for_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: str) -> str:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("BITGEN_CACHE")
    monkeypatch.setattr(data.platformdirs, "user_cache_dir", none)
    finding = one("cache")
    assert finding.state == "problem" and "set BITGEN_CACHE" in finding.fact


def test_a_full_disk_and_a_nearly_full_one(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    finding = one("cache")
    assert finding.state == "warning" and finding.fact.endswith("1.0 MB free")

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(install_checks.store, "work_folder", full)
    finding = one("cache")
    assert finding.state == "problem" and "No space left" in finding.fact


@pytest.mark.skipif(not hasattr(os, "ST_NOEXEC"), reason="the flag of Linux")
def test_a_disk_that_executes_nothing(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(fresh.parent)
    fields = {name: getattr(real, name) for name in dir(real) if name.startswith("f_")}
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**{**fields, "f_flag": os.ST_NOEXEC}))
    finding = one("cache")
    assert finding.state == "problem" and "noexec" in finding.advice


def test_what_the_cache_holds(fresh: Path) -> None:
    (data.cached("packed") / "a").write_bytes(bytes(3_000_000))
    finding = one("cache")
    assert finding.values["held_bytes"]["packed"] == 3_000_000 and "packed 3.0 MB" in finding.fact
    assert not list((fresh / "build").iterdir())  # what was written to see that it can be is gone


@pytest.mark.skipif(os.name == "nt", reason="the rights of POSIX")
def test_the_cache_of_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "a" / "hub"))
    finding = one("hub_cache")
    assert finding.state == "ok" and finding.values["exists"] is False and not (tmp_path / "a").exists()
    snapshot = tmp_path / "a" / "hub" / "models--o--n" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    finding = one("hub_cache")
    assert finding.state == "ok" and finding.values["repositories"] == 1 and finding.values["held_bytes"] == 2
    (tmp_path / "a" / "hub").chmod(0o777)
    assert one("hub_cache").state == "warning" and "chmod go-w" in one("hub_cache").advice
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert one("hub_cache").state == "warning" and "HF_HOME" in one("hub_cache").advice


def none_there(*_: object) -> Any:
    raise compiler.NoCompilerError("\nclang does not serve: no headers")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "installed", none_there)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(ziglang, "installer", lambda: ["pip"])
    assert one("compiler").state == "warning" and "the first run fetches ziglang" in one("compiler").advice
    for name in ("level", "plan"):
        assert one(name).state == "ok" and one(name).fact == "not known before there is a compiler"
    monkeypatch.setenv("BITGEN_OFFLINE", "1")
    finding = one("compiler")
    assert finding.state == "problem" and "clang does not serve: no headers\nnone can be fetched" in finding.fact
    assert "BITGEN_OFFLINE" in finding.fact and "install clang" in finding.advice
    monkeypatch.delenv("BITGEN_OFFLINE")
    monkeypatch.setattr(ziglang, "installer", lambda: None)
    assert one("compiler").state == "problem" and "neither pip nor uv" in one("compiler").fact
    for name in ("level", "plan"):
        assert one(name).state == "warning" and one(name).fact.startswith("not known: ")


def test_a_named_compiler_that_is_none(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITGEN_CC", "/no/such/clang")
    finding = one("compiler")
    assert finding.state == "problem" and "BITGEN_CC='/no/such/clang'" in finding.fact
    assert one("level").state == "warning"


@pytest.mark.skipif(os.name == "nt", reason="the compilers of the tests are shell scripts")
def test_a_compiler_that_does_not_end(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clang").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "clang").chmod(0o755)
    monkeypatch.setattr(compiler, "TIMEOUT_S", 0.2)
    monkeypatch.setenv("BITGEN_CC", str(tmp_path / "clang"))
    assert one("compiler").state == "problem" and "does not end" in one("compiler").fact


def test_compilers_that_are_not_used_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {("good",): compiler.Compiler(("good",), "clang version 19", False)}

    def probe(command: tuple[str, ...], _: Any) -> compiler.Compiler:
        if command not in made:
            raise compiler.CompileError("it cannot compile: error: 'pthread.h' file not found")
        return made[command]

    monkeypatch.delenv("BITGEN_CC", raising=False)
    monkeypatch.setattr(compiler, "installed", lambda _: made[("good",)])
    monkeypatch.setattr(compiler, "candidates", lambda _: [("bad",), ("good",)])
    monkeypatch.setattr(compiler, "probe", probe)
    used, other = found("compiler")
    assert used.values == {"command": ["good"], "version": "clang version 19", "used": True, "named": False}
    assert other.state == "warning" and "bad does not serve: it cannot compile" in other.fact and other.advice


def test_plans(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "host_isa", lambda: "scalar")
    finding = one("plan")
    assert (
        finding.state == "ok" and "4 matrices default" in finding.fact and "bitgen tune --model 2B4T" in finding.advice
    )
    decisions = {}
    for role, gemm in SHAPE.matrices.items():
        made = space.default_plan(gemm, "scalar")
        decisions[gemm] = plan.Decision(made, None, "old" if role == "o" else plan.stamp(made, gemm, "scalar"))
    plan.save(plan.Plan("scalar", "this", decisions=decisions), plan.host_path("scalar"))
    finding = one("plan")
    assert finding.state == "warning" and finding.values["stale"] == ["o"] and "anew" in finding.advice
    assert "3 matrices tuned on this host" in finding.fact
    plan.host_path("scalar").write_text("{")
    finding = one("plan")
    assert finding.state == "problem" and "delete it and tune again" in finding.fact


@pytest.fixture
def a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with Hub("o/n", tmp_path).serve() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


def test_the_hub_and_a_token(a_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = one("hub")
    assert finding.state == "ok" and finding.values["endpoint"] == a_hub.url and finding.values["token"] is False
    assert len(a_hub.asked) == 1
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    finding = one("hub")
    assert finding.values["token"] is True and "with a token" in finding.fact
    assert TOKEN not in repr(finding)


def unreachable() -> None:
    raise OSError("no route to http://user:secret@host/x")


def test_a_hub_that_is_broken_away_or_not_wanted(a_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(install_checks, "ANSWER_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://user:secret@127.0.0.1:{port}/x")
        finding = one("hub")
    assert finding.state == "warning" and "cannot be reached" in finding.fact and "secret" not in repr(finding)
    assert finding.values["endpoint"] == f"http://127.0.0.1:{port}/x"
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:secret@host/x")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.get_session", unreachable)
        assert one("hub").fact == "http://host/x cannot be reached: OSError: no route to http://host/x"
    monkeypatch.setattr(constants, "ENDPOINT", "not a url")
    assert one("hub").state == "warning"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    finding = one("hub")
    assert finding.state == "ok" and "HF_HUB_OFFLINE" in finding.fact and finding.values["offline"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("BITGEN_OFFLINE", "1")
    assert "BITGEN_OFFLINE" in one("hub").fact and not a_hub.asked


def test_a_hub_that_has_trouble(a_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from hub_server import Handler

    monkeypatch.setattr(Handler, "do_GET", lambda self: self.refuse(503, "Busy", "busy"))
    finding = one("hub")
    assert finding.state == "warning" and "answers 503" in finding.fact and finding.values["status"] == 503


def test_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_checks.importlib.util, "find_spec", lambda name: name == "matplotlib" or None)
    lines = {f.values["extra"]: f for f in found("extra")}
    assert lines["plot"].values["installed"] and not lines["plot"].advice
    assert not lines["lm-eval"].values["installed"] and "pip install 'bitgen[lm-eval]'" in lines["lm-eval"].advice


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(install_checks, "PORT", other.getsockname()[1])
        assert one("port").state == "warning" and one("port").values["free"] is False
    assert one("port").state == "ok"
