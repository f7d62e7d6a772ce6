"""Tables at the widths of terminals: what is shown is whole, what is left out is named."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bitgen import api, data
from bitgen.cli import tables
from bitgen.cli.grid import Column, Grid
from bitgen.kernels import plan
from bitgen.measure.receipt import Check, Receipt
from bitgen.measure.report import (
    BenchReport,
    Case,
    Energy,
    EnergyRow,
    Limits,
    Machine,
    PeerRow,
    Profile,
    Race,
    Rate,
    Step,
    Subject,
)
from bitgen.measure.rungs import LadderReport, RungRate

WIDTHS = (60, 80, 160)


def bench_report() -> BenchReport:
    """A report with every part, and figures as wide as they come."""
    decode, prefill = Case("decode", 64, 128, batch=16, context=32768), Case("prefill", 32768, 128)
    rates = [Rate(case, 12345.67, 12001.23, 12987.65, 1234567890.0, 1234.5, 1.033, 0.087) for case in (decode, prefill)]
    step = Step("attention_values", 0.4567, 12.345, 1920.0, 123.4, 5678.0, 0.987, 0.123)
    race = Race(1234.5, 1200.1, 1300.2, 4321.0, 3.5)
    peers = (
        PeerRow("llama.cpp", "llama-cpp-python 0.3.16 (TQ2_0)", "silu", prefill, race, 1.0, None),
        PeerRow("litespark", "litespark 1.0", "relu2", decode, None, None, "wrong output: its logits are not finite"),
    )
    return BenchReport(
        Subject("bitnet-b1.58-2B-4T", "m.gguf", "certified", "int8", "avx512vbmi", "relu2"),
        Machine("AMD EPYC 9B14 96-Core Processor", "Linux", "clang 14", 0.0, {128: Limits(3.59e10, 9.42e11)}),
        tuple(rates),
        profile=(Profile(decode, (step,)),),
        peers=peers,
        energy=Energy(("package-0", "dram"), None, (EnergyRow(decode, 1.234, 98.7),)),
    )


def ladder_report() -> LadderReport:
    """Figures as wide as they come."""
    rate = RungRate(
        "ladder-100B", 100225871872, "0" * 16, 1.6, "AMD EPYC 9B14 96-Core Processor", "avx512vbmi", "certified", "f16",
        "decode", 64, 128, 1.7034, 1.6512, 1.7499, 20345678901.0, 3.59e10, 12.345,
    )  # fmt: skip
    return LadderReport(Path("r.jsonl"), (rate, replace(rate, rung="ladder-125M", tok_s=12345.67)), (), None)


def tune_report() -> api.TuneReport:
    file = data.folder("presets") / "plans" / "avx2.json"
    return api.TuneReport(api.shape_of("2B4T"), plan.load(file), file, build="", threads=128)


def receipt() -> Receipt:
    found = Receipt({}, {"name": "2B4T", "sha256": "0123456789abcdef" * 4}, {"plans": {"avx512vbmi": {}, "avx2": {}}})
    found.checks += [
        Check("kernels", "bg_i2_s_gemv_m2560_k2560_bm4_bk128_pf1024__avx2", True, "equal to the oracle", 123.456),
        Check("same bits", "avx2, i2_s", False, "7 of 1234567 logits differ", 1.5),
    ]
    return found


def grids() -> list[Grid]:
    report = bench_report()
    extras = [extra for extra in tables.extras(report) if isinstance(extra, Grid)]
    return [
        tables.rates(report),
        *extras,
        tables.ladder(ladder_report()),
        tables.tuned(tune_report()),
        tables.receipt(receipt()),
    ]


def printed(grid: Grid, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, markup=False, emoji=False).print(grid)
    return out.getvalue()


def left_out(text: str) -> set[str]:
    found = re.search(r"no room for (.*?): --json has all", " ".join(text.split()))
    return set(found[1].split(", ")) if found else set()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("number", range(len(grids())))
def test_no_figure_is_cut_and_what_is_left_out_is_named(number: int, width: int) -> None:
    grid = grids()[number]
    text = printed(grid, width)
    assert "…" not in text and all(len(line) <= width for line in text.splitlines())
    missing = left_out(text)
    for at, column in enumerate(grid.columns):
        if column.name in missing:
            continue
        if not column.words:
            assert column.name in text, column
            assert all(row[at].strip() in text for row in grid.rows), column
        else:  # folded, and whole
            assert all(set(re.findall(r"\w{1,8}", row[at])) <= set(re.findall(r"\w{1,8}", text)) for row in grid.rows)


def test_a_wide_terminal_shows_all() -> None:
    assert [left_out(printed(grid, 160)) for grid in grids()] == [set()] * len(grids())


def test_the_least_important_goes_first() -> None:
    rates = [left_out(printed(tables.rates(bench_report()), width)) for width in (80, 60)]
    assert rates[0] < rates[1] and "MB/token" in rates[0] and not {"tok/s", "threads"} & rates[1]
    tuned = left_out(printed(tables.tuned(tune_report()), 60))
    assert "time" in tuned and not {"matrix", "phase", "rate", "of limit"} & tuned


def test_a_pipe_is_not_squeezed() -> None:
    assert not left_out(printed(tables.rates(bench_report()), 160))


@pytest.mark.parametrize(("columns", "dropped"), [("0", False), ("60", True), (None, False)])
def test_columns_of_a_pipe_are_those_that_the_surroundings_say(columns: str | None, dropped: bool) -> None:
    script = "from test_tables import *\nfrom bitgen.cli.console import OUT\nOUT.print(tables.rates(bench_report()))"
    surroundings = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    variables = {**surroundings, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    if columns:
        variables["COLUMNS"] = columns
    found = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=True)
    assert bool(left_out(found.stdout)) is dropped and "12345.7" in found.stdout


def test_words_fold_where_they_must() -> None:
    grid = Grid(
        "t", (Column("n"), Column("why", words=True)), [("123456", "a sentence that is longer than the screen")]
    )
    lines = printed(grid, 30).splitlines()
    assert any("123456" in line for line in lines)
    assert " ".join(line[9:].strip() for line in lines[4:]).split() == grid.rows[0][1].split()


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("25 17 AMD EPYC 9B14", "AMD EPYC 9B14"),
        ("6 85 Intel(R) Xeon(R) CPU @ 2.00GHz", "Intel(R) Xeon(R) CPU @ 2.00GHz"),
        ("0x41 0xd0c", "Neoverse-N1"),
        ("0x41 0xd08 ARMv8 Processor rev 3 (v8l)", "Cortex-A72"),
        ("0x99 0xfff", "0x99 0xfff"),
        ("Apple M1", "Apple M1"),
        ("unknown CPU", "unknown CPU"),
        ("7 8", "7 8"),
    ],
)
def test_a_cpu_has_the_name_that_it_is_sold_by(name: str, title: str) -> None:
    assert plan.cpu_title(name) == title
