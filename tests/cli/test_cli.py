"""The command line as users meet it: in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitgen import Sampling, api, cli, data
from bitgen.cli import tables
from bitgen.kernels import plan

BITGEN = [sys.executable, "-m", "bitgen"]


def bitgen(*args: str, stdin: str = "", ok: bool = True, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    out = subprocess.run([*BITGEN, *args], input=stdin, capture_output=True, text=True, timeout=timeout)
    if ok:
        assert out.returncode == 0, out.stderr
    assert "Traceback" not in out.stderr
    return out


def test_run_is_repeatable_and_separates_text_from_timing() -> None:
    args = ("run", "-p", "Once upon a time", "-n", "24", "--seed", "7")
    first, second = bitgen(*args), bitgen(*args)
    assert first.stdout == second.stdout
    assert first.stdout.startswith("Once upon a time")
    assert len(first.stdout) > 40
    assert "tok/s" in first.stderr and "tok/s" not in first.stdout


def test_the_verbs_are_functions_of_a_file_or_an_open_model() -> None:
    model = api.load(threads=2)
    assert api.load(model) is model
    greedy = Sampling(temperature=0, repeat_penalty=1)
    text = "".join(api.generate(model, "Once upon a time", 12, sampling=greedy))
    assert text == "".join(api.generate(None, "Once upon a time", 12, sampling=greedy, threads=1))
    assert bitgen("run", "-p", "Once upon a time", "-n", "12", "--temp", "0", "--repeat-penalty", "1").stdout == (
        f"Once upon a time{text}\n"
    )
    assert api.embed(model, [text]).to_json()["embeddings"] == api.embed(None, [text]).to_json()["embeddings"]
    assert api.perplexity(model, text * 8, ctx=16).value == api.perplexity(None, text * 8, ctx=16).value
    report = api.bench(model, prompt=(), gen=4, threads=(1,), profile=True)
    assert [case.title for case in report.cases] == ["decode 4"] and report.peers is None
    assert report.profile and report.profile[0].case == report.cases[0]


def test_run_gives_the_same_text_at_any_thread_count() -> None:
    texts = {bitgen("run", "-p", "The dog", "-n", "16", "--seed", "3", "-t", t).stdout for t in ("1", "2", "3")}
    assert len(texts) == 1


def test_prompt_lookup_gives_the_same_text_and_says_what_it_gained() -> None:
    args = ("run", "-p", "Tom has a ball. Tom has a ball. Tom", "-n", "40", "--seed", "3", "--ignore-eos")
    plain = bitgen(*args)
    for more in (("--prompt-lookup",), ("--prompt-lookup", "4")):
        guessed = bitgen(*args, *more)
        assert guessed.stdout == plain.stdout
        assert "accepted" in guessed.stderr and "accepted" not in plain.stderr


def test_prompt_from_standard_input() -> None:
    out = bitgen("run", "-p", "-", "-n", "4", "--temp", "0", stdin="One day, a cat")
    assert out.stdout.startswith("One day, a cat")


def test_no_tokens_asked_for() -> None:
    assert bitgen("run", "-p", "Hello", "-n", "0").stdout == "Hello\n"


def test_a_closed_pipe_is_no_error() -> None:
    process = subprocess.Popen(
        [*BITGEN, "run", "-p", "Once", "-n", "200", "--ignore-eos"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    process.stdout.read(10)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait(timeout=60) == 0


def test_an_interrupt_ends_cleanly() -> None:
    process = subprocess.Popen(
        [*BITGEN, "run", "-p", "Once", "-n", "100000", "--ignore-eos"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    process.stdout.read(10)  # it is generating
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert process.returncode in (0, 130)  # 0 where the context was full before the signal came


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("run", "-p", "x", "-m", "nowhere.gguf"), "nowhere.gguf"),
        (("run", "-p", "x", "--isa", "mmx"), "mmx"),
        (("run", "-p", "x", "--top-p", "2"), "top_p"),
        (("run", "-p", "word " * 2000), "context"),
        (("build", "--model", "2B5T"), "2B4T"),
        (("build", "--arch", "arm64", "--isa", "avx2"), "arm64"),
        (("gen", "bg_nothing"), "kernel symbol"),
        (("gen", "bg_i2_s_gemv_m64_k64_bm3_bk128__avx2"), "bm must be"),
        (("info", "nowhere.gguf"), "nowhere.gguf"),
        (("synth", "nomodel", "-o", "x.gguf"), "nomodel"),
    ],
    ids=lambda v: "-".join(v)[:40] if isinstance(v, tuple) else None,
)
def test_errors_name_what_is_wrong(args: tuple[str, ...], words: str) -> None:
    out = bitgen(*args, ok=False)
    assert out.returncode == 1
    assert words in out.stderr
    assert out.stderr.startswith("bitgen: ")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(os.urandom(4096))
    for args in (("run", "-p", "x", "-m", str(junk)), ("info", str(junk)), ("bench", "-m", str(junk))):
        out = bitgen(*args, ok=False)
        assert out.returncode == 1 and "junk.gguf" in out.stderr


def test_gen_prints_a_kernel_and_its_assembly() -> None:
    symbols = bitgen("gen", "--model", "2B4T", "--isa", "avx2").stdout.split()
    assert len(symbols) >= 4
    text = bitgen("gen", symbols[0]).stdout
    assert symbols[0] in text and "static void run(" in text
    assert bitgen("gen", symbols[0]).stdout == text
    assert "vpmaddubsw" in bitgen("gen", symbols[0], "--asm").stdout


def test_info_as_text_and_json() -> None:
    from bitgen.data import shipped_path

    facts = json.loads(bitgen("info", str(shipped_path()), "--json").stdout)
    assert facts["architecture"] == "bitnet-b1.58"
    assert "architecture" in bitgen("info", str(shipped_path())).stdout


def test_bench_json_has_the_agreed_names() -> None:
    report = json.loads(bitgen("bench", "-t", "1,2", "--prompt", "32", "--gen", "8", "--json").stdout)
    assert set(report) == {"model", "host", "results"}
    ran = [(r["kind"], r["threads"]) for r in report["results"]]
    assert ran == [("prefill", 1), ("decode", 1), ("prefill", 2), ("decode", 2)]
    for r in report["results"]:
        assert set(r) == {
            "kind", "tokens", "threads", "batch", "context", "tok_s", "tok_s_min", "tok_s_max",
            "bytes_per_token", "gb_s", "bandwidth_share", "ops_share",
        }  # fmt: skip
        assert 0 < r["tok_s_min"] <= r["tok_s"] <= r["tok_s_max"]
        assert r["bandwidth_share"] > 0 and 0 < r["ops_share"] <= 1.5


def test_bench_of_sequences_together() -> None:
    report = json.loads(bitgen("bench", "-t", "1", "--prompt", "0", "--gen", "4", "--batch", "1,3", "--json").stdout)
    one, three = report["results"]
    assert (one["batch"], three["batch"]) == (1, 3)
    assert three["bytes_per_token"] < 0.5 * one["bytes_per_token"]


def test_bench_prints_a_table() -> None:
    out = bitgen("bench", "-t", "1", "--prompt", "16", "--gen", "4").stdout
    assert "prefill 16" in out and "decode 4" in out


def test_bench_at_a_filled_context() -> None:
    args = ("bench", "-t", "1", "--prompt", "32", "--gen", "4", "--context", "0,256", "--cache", "int8", "--json")
    report = json.loads(bitgen(*args).stdout)
    assert report["model"]["cache"] == "int8"
    rows = {(r["kind"], r["context"]): r["bytes_per_token"] for r in report["results"]}
    assert list(rows) == [("prefill", 0), ("decode", 0), ("prefill", 256), ("decode", 256)]
    position = 2 * 8 * 2 * (64 + 4)  # keys and values, layers, heads, int8 numbers and a scale of the shipped model
    assert rows["decode", 256] - rows["decode", 0] == 256 * position


def test_a_tuned_plan_is_a_table_of_its_evidence() -> None:
    shape, file = api.shape_of("2B4T"), data.folder("presets") / "plans" / "avx2.json"
    report = api.TuneReport(shape, plan.load(file), file, build="", threads=2)
    rows = tables.tuned(report).rows
    assert [row[:3] for row in rows[:2]] == [("qkv", "3840x2560", "decode"), ("qkv", "3840x2560", "prefill")]
    assert len(rows) == 2 * len(shape.matrices)
    evidence = report.plan.decisions[shape.matrices["down"]].evidence
    decode, prefill = evidence.gemv, evidence.gemm
    assert rows[-2][-3:-1] == (f"{decode.gb_s:.1f} GB/s", f"{decode.bandwidth_share:.0%}")
    assert rows[-1][-3:-1] == (f"{prefill.gop_s:.0f} GOP/s", f"{prefill.peak_share:.0%}")


def test_a_warm_start_is_quick_enough_to_feel_instant() -> None:
    """Not a benchmark: a start that recompiles or repacks takes many times this."""
    bitgen("run", "-p", "a", "-n", "1")
    started = time.perf_counter()
    bitgen("run", "-p", "a", "-n", "1")
    assert time.perf_counter() - started < 15


def test_build_writes_a_self_contained_folder(tmp_path: Path) -> None:
    path = Path(bitgen("build", "--isa", "scalar", "-o", str(tmp_path)).stdout.strip())
    assert path.parent.parent == tmp_path
    names = {p.name for p in path.parent.iterdir()}
    assert {"libbitgen.so", "spec.json", "build.log", "registry.c", "core", "bitgen.h"} <= names
    spec = json.loads((path.parent / "spec.json").read_text())
    assert spec["model"]["name"] == "stories" and list(spec["levels"]) == ["scalar"]


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, **__: object) -> dict[str, str]:
        raise OSError(28, "No space left on device", "somewhere/plan.json")

    monkeypatch.setattr(api, "info", full)
    result = CliRunner().invoke(cli.main, ["info", "x.gguf"])
    assert result.exit_code == 1
    assert result.output == "bitgen: somewhere/plan.json: No space left on device\n"


def test_a_full_cache_says_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(_: Path, **__: object) -> dict[str, str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path))
    monkeypatch.setattr(api, "info", full)
    result = CliRunner().invoke(cli.main, ["info", "x.gguf"])
    assert result.exit_code == 1 and f"the cache is {tmp_path}; BITGEN_CACHE" in result.output


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_a_lack_of_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def short(_: Path, **__: object) -> dict[str, str]:
        raise error

    monkeypatch.setattr(api, "info", short)
    result = CliRunner().invoke(cli.main, ["info", "x.gguf"])
    assert result.exit_code == 1 and result.output.startswith("bitgen: not enough memory")
