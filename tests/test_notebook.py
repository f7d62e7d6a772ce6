"""Reports in notebooks."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from bitgen import data
from bitgen.checkpoints import presets
from bitgen.kernels import plan
from bitgen.measure.report import (
    BenchReport,
    Case,
    Energy,
    EnergyRow,
    Limits,
    Machine,
    PeerRow,
    Profile,
    Rate,
    Step,
    Subject,
)
from bitgen.notebook import table
from bitgen.tune.report import TuneReport

EVIL = '<script>alert("&")</script>'


class Tags(HTMLParser):
    """Counts tags and collects text; nothing but tables is allowed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("table", "caption", "thead", "tbody", "tr", "th", "td", "p"), tag
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_is_escaped() -> None:
    found = Tags(table(EVIL, [{EVIL: EVIL, "n": 12345}, {EVIL: None, "n": 0.123456}]))
    assert found.text.count(EVIL) == 3 and "12,345" in found.text and "0.1235" in found.text
    assert found.tags.count("tr") == 3 and found.tags.count("td") == 4
    assert table("nothing", []) == ""


def test_a_report_of_bench() -> None:
    case = Case("decode", 8, 2)
    report = BenchReport(
        Subject(EVIL, "m.gguf", "certified", "f16", "avx2", "silu"),
        Machine("a CPU", "Linux", "clang", 0.0, {2: Limits(1e9, 1e9)}),
        (Rate(case, 10.0, 9.0, 11.0, 1e6, 1.0, 0.5, 0.1),),
    )
    assert Tags(report._repr_html_()).text.startswith(f"{EVIL} on avx2")
    step = Step("gate_up", 0.5, 1.0, 8.0, None, None, None, None)
    more = replace(
        report,
        profile=(Profile(case, (step,)),),
        peers=(PeerRow("other", EVIL, "silu", case, None, None, "not there"),),
        energy=Energy(("package",), None, (EnergyRow(case, 0.5, 9.0),)),
    )
    found = Tags(more._repr_html_())
    assert found.tags.count("table") == 4 and "where the time of decode 8" in found.text and "not there" in found.text
    none = replace(report, energy=Energy((), EVIL, ()))
    assert Tags(none._repr_html_()).tags.count("p") == 1


def test_a_report_of_tune() -> None:
    shape, file = presets.load("2B4T"), data.folder("presets") / "plans" / "avx2.json"
    report = TuneReport(shape, plan.load(file), Path(EVIL), "", 2)
    found = Tags(report._repr_html_())
    assert found.tags.count("tr") == 1 + 2 * len(shape.matrices)
    assert EVIL in found.text and "_gemm_" in found.text and "microseconds" in found.text
