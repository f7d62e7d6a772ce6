"""What --json prints, of every command that has it: keys without blanks, numbers as numbers, units in the keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_tables import bench_report, receipt, tune_report

from bitgen import api, cli, data
from bitgen.cli.main import COMMANDS
from bitgen.errors import BitgenError
from bitgen.tune import cost_model

SYMBOL = "bg_i2_s_gemv_m256_k256_bm4_bk128__avx2"


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no container, with the keys that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner, path)
    else:
        yield path, value


def check(value: Any) -> None:
    for path, leaf in walk(value):
        assert re.fullmatch(r"(/[\w.+-]+)+", path, re.ASCII), path
        assert leaf is None or isinstance(leaf, (bool, int, float, str)), path
        if isinstance(leaf, str):
            for_people = re.fullmatch(r"[+-]?[\d,]+(\.\d+)? ?(%|x|[kKMGT]i?B(/s)?|GOP/s|us|ms|s|tok/s)?", leaf)
            assert not for_people, (path, leaf)


@pytest.mark.parametrize("bad", [{"two words": 1}, {"size": "340.9 KiB"}, {"share": "12%"}, {"n": ["1,234"]}])
def test_the_walk_finds_what_people_read(bad: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check(bad)


def as_json(*args: str | Path) -> Any:
    found = CliRunner().invoke(cli.main, [*map(str, args), "--json"])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_list() -> None:
    found = as_json("list")
    check(found)
    assert found["models"][0]["name"] == "stories" and found["cache"]["build"]["bytes"] >= 0


def test_info() -> None:
    facts = as_json("info", data.shipped_path())
    check(facts)
    assert (
        facts["bytes"] == data.shipped_path().stat().st_size and facts["heads"] * facts["head_dim"] == facts["hidden"]
    )
    assert set(facts["kernels"]) == {"qkv", "o", "gate_up", "down"} and facts["kernels"]["o"]["source"]
    assert sum(facts["tensors"].values()) > 50


def test_build(tmp_path: Path) -> None:
    made = as_json("build", "--isa", "scalar", "-o", tmp_path)
    check(made)
    assert Path(made["library"]).stat().st_size == made["bytes"] and made["levels"] == ["scalar"]
    made = as_json("build", "--isa", "scalar", "--standalone", "-o", tmp_path)
    check(made)
    assert [Path(file["path"]).stat().st_size for file in made["files"]] == [file["bytes"] for file in made["files"]]


def test_gen() -> None:
    listed = as_json("gen", "-m", "2B4T", "--isa", "avx2")
    check(listed)
    assert CliRunner().invoke(cli.main, ["gen", "-m", "2B4T", "--isa", "avx2"]).output.split() == listed["kernels"]


def test_the_cost_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        cost_model._llvm_mca()
    except BitgenError as error:
        pytest.skip(str(error))
    found = as_json("gen", SYMBOL, "--mca", "znver3")
    check(found)
    assert found["products"] == 256 * 256 and found["cycles"] > 0 and 0 < found["loop_share"] <= 1
    text = CliRunner().invoke(cli.main, ["gen", SYMBOL, "--mca", "znver3"]).output
    assert f"{found['cycles']:,.1f}" in text and SYMBOL in text


def reports(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, made in (("bench", bench_report()), ("verify", receipt()), ("tune", tune_report())):
        monkeypatch.setattr(api, name, lambda *_, made=made, **__: made)
    monkeypatch.setattr(api, "check_output", lambda *_: None)


def test_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    reports(monkeypatch)
    found = as_json("bench")
    check(found)
    assert found["results"][0]["tok_s"] == 12345.67 and found["profile"][0]["steps"][0]["ms_per_token"] == 12.345
    assert found["peers"][0]["ratio"] == 3.5 and found["energy"]["results"][0]["watts"] == 98.7


def test_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    reports(monkeypatch)
    found = as_json("tune", "-m", "2B4T")
    check(found)
    down = next(matrix for matrix in found["matrices"] if matrix["matrix"] == "down")
    assert (down["m"], down["k"]) == (2560, 6912) and down["decode_symbol"] in down["evidence"]["gemv"]["tried"]
    assert found["threads"] == 128 and found["cpu"] != found["cpu_key"]


def test_verify_says_on_stdout_what_the_receipt_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reports(monkeypatch)
    found = CliRunner().invoke(cli.main, ["verify", "--json", "-o", str(tmp_path / "r.json")])
    assert found.exit_code == 1, "a check failed"
    printed = json.loads(found.stdout)
    check(printed)
    assert printed["verdict"] == "FAIL" and json.loads((tmp_path / "r.json").read_text()) == printed


def test_perplexity_and_embed(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Tom has a red ball. " * 40)
    for args in (("perplexity", "-f", tmp_path / "text", "--ctx", "32"), ("embed", "a")):
        check(as_json(*args))


def test_what_is_no_number_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = {"name": "m", "share": float("nan"), "rows": [{"rate": float("inf")}, 1.5], "pair": (float("-inf"), 2)}
    monkeypatch.setattr(api, "info", lambda _, **__: odd)
    found = CliRunner().invoke(cli.main, ["info", "m.gguf", "--json"])
    json.loads(found.stdout, parse_constant=pytest.fail)
    assert json.loads(found.stdout) == {"name": "m", "share": None, "rows": [{"rate": None}, 1.5], "pair": [None, 2]}


def test_nothing_else_is_on_standard_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reports(monkeypatch)
    for args in (["bench", "--profile", "--energy", "--plot", str(tmp_path / "p.png")], ["tune", "-m", "2B4T"]):
        json.loads(CliRunner().invoke(cli.main, [*args, "--json", "-t", "1"]).stdout)


def commands_with_json() -> Sequence[str]:
    return [str(c.name) for c in COMMANDS if any("--json" in param.opts for param in c.params)]


def test_where_there_is_a_table_there_is_json() -> None:
    assert {"tune", "verify", "build", "info", "bench", "gen", "perplexity", "embed"} <= set(commands_with_json())
