"""Plans: their file form, the stamps of their kernels, and the order in which they are looked up."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest

from bitgen import data
from bitgen.checkpoints import presets
from bitgen.errors import BitgenError
from bitgen.kernels import plan, render, space
from bitgen.kernels.evidence import Decode, Measured, Prefill, to_json
from bitgen.kernels.formats import FORMATS
from bitgen.kernels.plan import Decision, Plan
from bitgen.spec import GemmShape, Layout, MatrixPlan, Tile
from bitgen.targets import TARGETS

ISA = "avx2"
SHAPE = presets.load("stories")
GEMM = SHAPE.matrices["o"]
OTHER = MatrixPlan(Layout("i2_s", 2, 128), Tile(prefetch=2048), Tile(nr=4, kc=128))

TRIED = {"some_kernel": 1e-3}
EVIDENCE = Measured(
    4, 30.0, Decode(1e-3, 2e-3, {"1": 2e-3, "2": 1e-3, "4": 3e-3}, 20.0, 0.6, TRIED),
    Prefill(128, 1e-2, 1e-2, 200.0, 0.9, TRIED),
)  # fmt: skip
OTHER_KERNELS = "shipped, chosen among other kernels"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path))


def decided(decision: MatrixPlan, stamp: str | None = None) -> dict[GemmShape, Decision]:
    """A decision about GEMM with today's kernels, or with those of a stamp."""
    current = Decision.of(decision, GEMM, ISA, EVIDENCE)
    return {GEMM: current if stamp is None else dataclasses.replace(current, stamp=stamp)}


def host_plan(decisions: dict[GemmShape, Decision]) -> Plan:
    made = Plan(ISA, plan.cpu_name(), "clang", decisions=decisions)
    plan.save(made, plan.host_path(ISA))
    return made


def edit_templates(monkeypatch: pytest.MonkeyPatch, edit: Callable[[str], str]) -> None:
    """Render from templates whose text is edited so."""
    environment = render._environment.__wrapped__()
    files = environment.loader
    assert files is not None
    environment.loader = jinja2.FunctionLoader(lambda name: edit(files.get_source(environment, name)[0]))
    monkeypatch.setattr(render, "_environment", lambda: environment)
    monkeypatch.setattr(render, "render_kernel", render.render_kernel.__wrapped__)


def every_template() -> dict[str, tuple[str, str]]:
    """Of a decision for each template: its stamp, and the C of its two kernels."""
    found = {}
    for format, isa in space.TEMPLATES:
        shape = GemmShape(960, 1920, 128 if FORMATS[format].grouped else 0, FORMATS[format].binary)
        layout = next(x for x in space.candidate_layouts(shape, isa, thorough=True) if x.format == format)
        gemv, gemm = (space.candidate_tiles(op, shape, isa, layout)[0] for op in ("gemv", "gemm"))
        matrix = MatrixPlan(layout, gemv, gemm)
        text = "".join(render.render_kernel(spec) for spec in matrix.specs(shape, isa))
        found[f"{format}-{isa}"] = plan.stamp(matrix, shape, isa), text
    return found


def test_file_round_trip() -> None:
    made = host_plan(decided(OTHER))
    assert plan.load(plan.host_path(ISA)) == made


def test_host_plan_comes_first() -> None:
    assert plan.of_model(SHAPE, ISA).sources["o"] != "tuned on this host"
    host_plan(decided(OTHER))
    found = plan.of_model(SHAPE, ISA)
    assert found.matrices["o"] == OTHER and found.sources["o"] == "tuned on this host"
    assert found.threads == 2
    assert "o=i2_s_bm2_bk128" in found.layout_key.split(";")


def test_a_given_plan_comes_before_the_hosts(tmp_path: Path) -> None:
    host_plan(decided(OTHER))
    mine = MatrixPlan(Layout("i2_s", 8, 128), Tile(prefetch=1024), Tile(nr=6))
    made = Plan(ISA, "board", basis="measured on board by ssh", decisions=decided(mine))
    plan.save(made, tmp_path / "board.json")
    given = plan.for_build(tmp_path / "board.json", SHAPE, [ISA, "scalar"])
    assert given == made
    found = plan.of_model(SHAPE, ISA, [given])
    assert found.matrices["o"] == mine and found.sources["o"] == "given, measured on board by ssh"
    assert plan.of_model(SHAPE, "scalar", [given]).sources["o"] == "default"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"isa": "neon"}, "not built here; only avx2, scalar"),
        ({"decisions": decided(OTHER, "older")}, "tune again"),
        ({"decisions": {}}, "tune again"),  # as a file of an earlier version is read
        ({"decisions": {GemmShape(1, 1): Decision(OTHER)}}, "decides no matrix of stories"),
    ],
)
def test_a_given_plan_that_would_do_nothing_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    good = Plan(ISA, "board", decisions=decided(OTHER))
    plan.save(dataclasses.replace(good, **change), tmp_path / "board.json")
    with pytest.raises(BitgenError, match=words):
        plan.for_build(tmp_path / "board.json", SHAPE, [ISA, "scalar"])
    with pytest.raises(BitgenError, match="bitgen tune -o"):
        plan.for_build(tmp_path / "none.json", SHAPE, [ISA])


def test_a_cpu_is_named_by_its_cpuinfo() -> None:
    text = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0b\n"
    assert plan.cpu_name(text) == "0x41 0xd0b"
    assert plan.path_of("0x41 0xd0b", "dotprod").name == "0x41-0xd0b-dotprod.json"


def test_edited_comments_and_lines_keep_every_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    before = every_template()
    edit_templates(monkeypatch, lambda text: text.replace("\n// ", "\n// Edited: ").replace(";\n", "; // ends\n\n"))
    after = every_template()
    assert {name: stamp for name, (stamp, _) in after.items()} == {name: stamp for name, (stamp, _) in before.items()}
    assert all(after[name][1] != text for name, (_, text) in before.items())


@pytest.mark.parametrize(
    "old, new",
    [
        ("acc[r] = _mm256_add_epi16(acc[r], dot(c, x));", "acc[r] = _mm256_sub_epi16(acc[r], dot(c, x));"),
        ("_mm256_srli_epi16(v, 6)", "_mm256_srli_epi32(v, 6)"),
        ("memset(", "memset (0, "),
        ("HEADER = 64", "HEADER = 128"),
    ],
)
def test_an_edited_instruction_makes_exactly_its_kernels_stale(
    monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    before = every_template()
    edit_templates(monkeypatch, lambda text: text.replace(old, new))
    stale = {name for name, (stamp, _) in every_template().items() if stamp != before[name][0]}
    assert stale == {name for name, (_, text) in before.items() if old in text} and stale


def test_a_stale_decision_of_the_host_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan.of_model(SHAPE, ISA)
    host_plan(decided(OTHER, "older"))
    assert plan.of_model(SHAPE, ISA) == before
    host_plan(decided(OTHER))
    edit_templates(monkeypatch, lambda text: text.replace("dot(c, x)", "dot(c, c)"))
    planned = plan.of_model(SHAPE, ISA)
    assert planned.matrices == before.matrices and "tuned on this host" not in planned.sources.values()


def test_a_file_of_an_earlier_version_is_passed_over() -> None:
    """Version 1 had one stamp of all template text."""
    before = plan.of_model(SHAPE, ISA)
    matrix = {
        "layout": {"format": "i2_s", "bm": 2, "bk": 128},
        "gemv": {},
        "gemm": {"nr": 4},
        "evidence": to_json(EVIDENCE),
    }
    raw = {"version": 1, "isa": ISA, "cpu": plan.cpu_name(), "stamp": "95d26c55dc23ad2a", "compiler": "clang"}
    path = plan.host_path(ISA)
    path.write_text(json.dumps({**raw, "matrices": {str(GEMM): matrix}}))
    assert plan.load(path) == Plan(ISA, plan.cpu_name(), "clang")
    assert plan.of_model(SHAPE, ISA) == before
    with pytest.raises(BitgenError, match="kernels of another bitgen; tune again"):
        plan.for_build(path, SHAPE, [ISA])


@pytest.mark.parametrize(
    "decisions, source",
    [
        (decided(OTHER), "shipped"),
        (decided(OTHER, "older"), OTHER_KERNELS),
        (decided(OTHER, ""), OTHER_KERNELS),
        ({GEMM: Decision(MatrixPlan(Layout("i2_s", 3, 128), Tile(), Tile(nr=4)))}, "default"),
    ],
)
def test_a_stale_decision_that_ships_serves_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decisions: dict[GemmShape, Decision], source: str
) -> None:
    plan.save(Plan(ISA, "any", decisions=decisions), tmp_path / "plans" / f"{ISA}.json")
    folder = data.folder
    monkeypatch.setattr(data, "folder", lambda name: tmp_path if name == "presets" else folder(name))
    found = plan.of_model(SHAPE, ISA)
    assert found.sources["o"] == source
    assert found.matrices["o"] == (space.default_plan(GEMM, ISA) if source == "default" else OTHER)


def test_an_illegal_decision_is_passed_over() -> None:
    before = plan.of_model(SHAPE, ISA)
    host_plan({GEMM: Decision(MatrixPlan(Layout("i2_s", 3, 128), Tile(), Tile(nr=4)), {}, "some")})
    assert plan.of_model(SHAPE, ISA) == before


@pytest.mark.parametrize("isa", TARGETS)
def test_every_preset_has_legal_defaults(isa: str) -> None:
    for name in presets.names():
        for gemm in presets.load(name).all_matrices.values():
            assert all(space.legal(s) is None for s in space.default_plan(gemm, isa).specs(gemm, isa))


@pytest.mark.parametrize("path", sorted((data.folder("presets") / "plans").glob("*.json")), ids=lambda p: p.stem)
def test_shipped_plans_are_legal(path: Path) -> None:
    assert json.loads(path.read_text())["version"] == plan.VERSION
    shipped = plan.load(path)
    assert shipped is not None and shipped.isa == path.stem and shipped.decisions and shipped.basis
    for shape, decision in shipped.decisions.items():
        assert decision.is_legal(shape, shipped.isa)


def test_a_level_without_a_shipped_plan_takes_that_of_the_level_below() -> None:
    below, found = plan.of_model(SHAPE, "dotprod"), plan.of_model(SHAPE, "i8mm")
    assert found.matrices == below.matrices
    assert set(found.sources.values()) == set(below.sources.values()) == {OTHER_KERNELS}


def test_a_model_with_unknown_shapes_gets_defaults() -> None:
    found = plan.of_model(SHAPE, "scalar")
    assert set(found.sources.values()) <= {"default", "shipped", OTHER_KERNELS}
    assert all(isinstance(m, MatrixPlan) for m in found.matrices.values())
    assert GemmShape(1, 1) not in SHAPE.matrices.values()
