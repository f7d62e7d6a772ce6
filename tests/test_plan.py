"""Plans: their file form and the order in which they are looked up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitgen import data, plan, presets, space
from bitgen.plan import Decision, Plan
from bitgen.spec import GemmShape, Layout, MatrixPlan, Tile
from bitgen.targets import TARGETS

ISA = "avx2"
SHAPE = presets.load("stories")
GEMM = SHAPE.matrices["o"]
OTHER = MatrixPlan(Layout("i2_s", 2, 128), Tile(prefetch=2048), Tile(nr=4, kc=128))

EVIDENCE = {"gemv": {"seconds_by_threads": {"1": 2e-3, "2": 1e-3, "4": 3e-3}}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path))


def host_plan(decision: MatrixPlan, stamp: str | None = None) -> Plan:
    made = Plan(
        ISA, plan.cpu_name(), stamp or plan.template_stamp(), "clang", decisions={GEMM: Decision(decision, EVIDENCE)}
    )
    plan.save(made, plan.host_path(ISA))
    return made


def test_file_round_trip() -> None:
    made = host_plan(OTHER)
    assert plan.load(plan.host_path(ISA)) == made


def test_host_plan_comes_first() -> None:
    assert plan.lookup(SHAPE, ISA).sources["o"] in ("shipped", "default")
    host_plan(OTHER)
    found = plan.lookup(SHAPE, ISA)
    assert found.matrices["o"] == OTHER and found.sources["o"] == "tuned on this host"
    assert found.threads == 2
    assert "o=i2_s_bm2_bk128" in found.layout_key.split(";")


def test_measurements_of_other_templates_are_passed_over() -> None:
    host_plan(OTHER, stamp="older")
    assert plan.lookup(SHAPE, ISA).sources["o"] in ("shipped", "default")


def test_an_illegal_decision_is_passed_over() -> None:
    host_plan(MatrixPlan(Layout("i2_s", 3, 128), Tile(), Tile(nr=4)))
    assert plan.lookup(SHAPE, ISA).sources["o"] in ("shipped", "default")


@pytest.mark.parametrize("isa", TARGETS)
def test_every_preset_has_legal_defaults(isa: str) -> None:
    for name in presets.names():
        for gemm in presets.load(name).matrices.values():
            assert all(space.legal(s) is None for s in space.default_plan(gemm, isa).specs(gemm, isa))


@pytest.mark.parametrize("path", sorted((data.folder("presets") / "plans").glob("*.json")), ids=lambda p: p.stem)
def test_shipped_plans_are_legal(path: Path) -> None:
    shipped = plan.load(path)
    assert shipped is not None and shipped.isa == path.stem and shipped.decisions
    for shape, decision in shipped.decisions.items():
        assert all(space.legal(s) is None for s in decision.plan.specs(shape, shipped.isa))
    assert json.loads(path.read_text())["matrices"]


def test_a_level_without_a_shipped_plan_takes_that_of_the_level_below() -> None:
    below, found = plan.lookup(SHAPE, "avx512vnni"), plan.lookup(SHAPE, "avx512vbmi")
    assert found.matrices == below.matrices
    assert set(found.sources.values()) == set(below.sources.values()) == {"shipped"}


def test_a_model_with_unknown_shapes_gets_defaults() -> None:
    found = plan.lookup(SHAPE, "scalar")
    assert set(found.sources.values()) <= {"default", "shipped"}
    assert all(isinstance(m, MatrixPlan) for m in found.matrices.values())
    assert GemmShape(1, 1) not in SHAPE.matrices.values()
