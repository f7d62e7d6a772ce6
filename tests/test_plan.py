"""Plans: their file form and the order in which they are looked up."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bitgen import data, plan, presets, space
from bitgen.errors import BitgenError
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


def test_a_given_plan_comes_before_the_hosts(tmp_path: Path) -> None:
    host_plan(OTHER)
    mine = MatrixPlan(Layout("i2_s", 8, 128), Tile(prefetch=1024), Tile(nr=6))
    made = Plan(ISA, "board", plan.template_stamp(), basis="measured on board by ssh", decisions={GEMM: Decision(mine)})
    plan.save(made, tmp_path / "board.json")
    given = plan.for_build(tmp_path / "board.json", SHAPE, [ISA, "scalar"])
    assert given == made
    found = plan.lookup(SHAPE, ISA, [given])
    assert found.matrices["o"] == mine and found.sources["o"] == "given, measured on board by ssh"
    assert plan.lookup(SHAPE, "scalar", [given]).sources["o"] == "default"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"isa": "neon"}, "not built here; only avx2, scalar"),
        ({"stamp": "older"}, "tune again"),
        ({"decisions": {GemmShape(1, 1): Decision(OTHER)}}, "decides no matrix of stories"),
    ],
)
def test_a_given_plan_that_would_do_nothing_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    good = Plan(ISA, "board", plan.template_stamp(), decisions={GEMM: Decision(OTHER)})
    plan.save(dataclasses.replace(good, **change), tmp_path / "board.json")
    with pytest.raises(BitgenError, match=words):
        plan.for_build(tmp_path / "board.json", SHAPE, [ISA, "scalar"])
    with pytest.raises(BitgenError, match="bitgen tune -o"):
        plan.for_build(tmp_path / "none.json", SHAPE, [ISA])


def test_a_cpu_is_named_by_its_cpuinfo() -> None:
    text = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0b\n"
    assert plan.cpu_name(text) == "0x41 0xd0b"
    assert plan.path_of("0x41 0xd0b", "dotprod").name == "0x41-0xd0b-dotprod.json"


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
    below, found = plan.lookup(SHAPE, "dotprod"), plan.lookup(SHAPE, "i8mm")
    assert found.matrices == below.matrices
    assert set(found.sources.values()) == set(below.sources.values()) == {"shipped"}


def test_a_model_with_unknown_shapes_gets_defaults() -> None:
    found = plan.lookup(SHAPE, "scalar")
    assert set(found.sources.values()) <= {"default", "shipped"}
    assert all(isinstance(m, MatrixPlan) for m in found.matrices.values())
    assert GemmShape(1, 1) not in SHAPE.matrices.values()
