"""The search, replayed on recorded times; the loop around it, with a laboratory that computes its times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from bitgen import plan as plans
from bitgen import space, tune
from bitgen.errors import BitgenError
from bitgen.spec import GemmShape, KernelSpec

SHAPES = [GemmShape(256, 256), GemmShape(128, 512)]


def test_race_finds_the_fastest_and_times_all() -> None:
    times = {f"k{i}": 1.0 + i for i in range(9)}
    medians = tune.race(list(times), times.__getitem__)
    assert medians == times


def test_race_is_fair_to_drift() -> None:
    """The machine slows down while the race runs; the order of the candidates must not decide it."""
    clock = iter(range(10**6))

    def measure(candidate: str) -> float:
        return {"a": 1.00, "b": 0.98, "c": 1.5}[candidate] * (1 + next(clock) / 1000)

    medians = tune.race(["a", "b", "c"], measure)
    assert min(medians, key=medians.__getitem__) == "b"


def test_race_survives_outliers() -> None:
    calls = iter(range(10**6))
    medians = tune.race(["slow", "fast"], lambda c: 50.0 if next(calls) == 1 else {"slow": 2.0, "fast": 1.0}[c])
    assert medians == {"slow": 2.0, "fast": 1.0}


@pytest.mark.parametrize("n", range(1, 40))
def test_race_rounds_counts_the_steps(n: int) -> None:
    steps = []
    tune.race(list(range(n)), float, lambda: steps.append(1))
    assert len(steps) == tune.race_rounds(n)


class FakeLab:
    """Times by formula; remembers what was verified and timed."""

    made: ClassVar[list[FakeLab]] = []

    def __init__(
        self, isa: str, specs: Sequence[KernelSpec], threads: int, progress: Callable[[int, int], None]
    ) -> None:
        self.specs, self.verified, self.timed = specs, [], []
        FakeLab.made.append(self)

    def verify(self, spec: KernelSpec) -> None:
        self.verified.append(spec)

    def seconds(self, spec: KernelSpec, threads: int = 2) -> float:
        assert spec in self.verified
        self.timed.append(spec)
        slow = 2.0 if spec.layout.format != "tl2" else 1.0
        return (threads - 2) ** 2 / 100 + slow + spec.layout.bm / 1000 + spec.tile.prefetch / 1e6 + spec.tile.nr / 100

    def bandwidth(self) -> float:
        return 2e10

    def peak(self) -> float:
        return 1e12

    def weight_bytes(self, spec: KernelSpec) -> int:
        return spec.shape.m * spec.shape.k // 4


@pytest.fixture(autouse=True)
def laboratory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path))
    monkeypatch.setattr(tune, "Lab", FakeLab)
    FakeLab.made = []


def test_the_fastest_pair_of_one_layout_wins() -> None:
    decision = tune.tune(SHAPES, "avx2", 2).decisions[SHAPES[0]]
    assert decision.plan.layout.format == "tl2"
    specs = decision.plan.specs(SHAPES[0], "avx2")
    assert all(space.legal(s) is None for s in specs)
    tried = decision.evidence["gemv"]["tried"]
    assert tried[specs[0].symbol] == min(tried.values())
    default = space.default_plan(SHAPES[0], "avx2").specs(SHAPES[0], "avx2")
    assert decision.evidence["gemv"]["default_seconds"] == tried[default[0].symbol]


def test_the_thread_count_is_measured_too() -> None:
    made = tune.tune(SHAPES, "avx2", 4)
    assert set(made.decisions[SHAPES[0]].evidence["gemv"]["seconds_by_threads"]) == {"1", "2", "4"}
    assert plans.best_threads(list(made.decisions.values())) == 2
    assert plans.best_threads([]) is None


def test_a_second_run_measures_nothing() -> None:
    first = tune.tune(SHAPES, "avx2", 2)
    made = len(FakeLab.made)
    assert tune.tune(SHAPES, "avx2", 2).to_json() == first.to_json()
    assert len(FakeLab.made) == made


def test_other_threads_or_more_effort_measure_again() -> None:
    tune.tune(SHAPES, "avx2", 2)
    tune.tune(SHAPES, "avx2", 1)
    assert len(FakeLab.made) == 2 * len(SHAPES)
    tune.tune(SHAPES, "avx2", 1, "thorough")
    assert len(FakeLab.made) == 3 * len(SHAPES)
    tune.tune(SHAPES, "avx2", 1, "quick")
    assert len(FakeLab.made) == 3 * len(SHAPES)


def test_an_interrupted_run_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    decide = tune.decide

    def interrupted(shape: GemmShape, *rest: object) -> plans.Decision:
        if shape == SHAPES[1]:
            raise KeyboardInterrupt
        return decide(shape, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tune, "decide", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune.tune(SHAPES, "avx2", 2)
    monkeypatch.setattr(tune, "decide", decide)
    tune.tune(SHAPES, "avx2", 2)
    assert len(FakeLab.made) == len(SHAPES)


def test_a_stale_plan_is_replanned(monkeypatch: pytest.MonkeyPatch) -> None:
    tune.tune(SHAPES, "avx2", 2)
    monkeypatch.setattr(plans, "template_stamp", lambda: "other templates")
    tune.tune(SHAPES, "avx2", 2)
    assert len(FakeLab.made) == 2 * len(SHAPES)


def test_thorough_tries_more() -> None:
    quick, thorough = (tune.candidates(SHAPES[0], "avx2", effort) for effort in ("quick", "thorough"))
    assert set(quick) < set(thorough)
    assert all(space.legal(s) is None for s in thorough)


def test_a_damaged_plan_is_a_clear_error() -> None:
    tune.tune(SHAPES, "avx2", 2)
    path = plans.host_path("avx2")
    for damage in ("", "{", "[]", '{"version": 99}', '{"version": 1}'):
        path.write_text(damage)
        with pytest.raises(BitgenError, match="delete it and tune again"):
            plans.load(path)
