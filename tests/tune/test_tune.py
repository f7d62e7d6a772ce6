"""The search, replayed on recorded times; the loop around it, with a laboratory that computes its times."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner

from bitgen import api, cli
from bitgen.checkpoints import presets
from bitgen.errors import BitgenError
from bitgen.kernels import plan as plans
from bitgen.kernels import space
from bitgen.spec import GemmShape, KernelSpec, Listener
from bitgen.tune import search

SHAPES = [GemmShape(256, 256), GemmShape(128, 512)]


def test_race_finds_the_fastest_and_times_all() -> None:
    times = {f"k{i}": 1.0 + i for i in range(9)}
    assert search.race(list(times), times.__getitem__) == search.Race(times, disturbed=False)


def test_race_is_fair_to_drift() -> None:
    """The machine slows down while the race runs; the order of the candidates must not decide it."""
    clock = iter(range(10**6))

    def measure(candidate: str) -> float:
        return {"a": 1.00, "b": 0.98, "c": 1.5}[candidate] * (1 + next(clock) / 1000)

    medians = search.race(["a", "b", "c"], measure).medians
    assert min(medians, key=medians.__getitem__) == "b"


def test_race_survives_outliers() -> None:
    calls = iter(range(10**6))
    raced = search.race(["slow", "fast"], lambda c: 50.0 if next(calls) == 1 else {"slow": 2.0, "fast": 1.0}[c])
    assert raced == search.Race({"slow": 2.0, "fast": 1.0}, disturbed=False)


def disturbed_until(end: int) -> Callable[[str], float]:
    """Something else takes the CPU in turns until that measurement, and only ever from the fast one."""
    calls = iter(range(10**6))

    def measure(candidate: str) -> float:
        other = next(calls) < end and candidate == "fast"
        return {"reference": 1.5, "fast": 1.0, "slow": 2.0}[candidate] * (next(noise) if other else 1.0)

    noise = iter([1.0, 3.0, 5.0] * 1000)
    return measure


def test_disturbed_rounds_are_measured_again() -> None:
    """Without that, the fast one would lose: its median within the noise is 3."""
    raced = search.race(["reference", "slow", "fast"], disturbed_until(20))
    assert raced == search.Race({"reference": 1.5, "slow": 2.0, "fast": 1.0}, disturbed=False)


def test_a_machine_that_stays_disturbed_is_told_of() -> None:
    calls: list[str] = []
    noise = iter([1.0, 1.5, 2.0] * 1000)

    def measure(candidate: str) -> float:
        calls.append(candidate)
        return next(noise)

    assert search.race(["a", "b"], measure).disturbed
    assert len(calls) == 2 * search.ROUNDS * (1 + search.REPEATS)


def test_noise_of_candidates_that_cannot_win_is_no_disturbance() -> None:
    noise = iter([9.0, 5.0, 7.0] * 1000)
    raced = search.race(["a", "b", "c"], lambda c: next(noise) if c == "c" else {"a": 1.0, "b": 2.0}[c])
    assert not raced.disturbed


@pytest.mark.parametrize("n", range(1, 40))
def test_race_rounds_counts_the_steps(n: int) -> None:
    steps = []
    search.race(list(range(n)), float, lambda: steps.append(1))
    assert len(steps) == search.race_rounds(n)


class FakeLab:
    """Times by formula; remembers what was verified and timed."""

    made: ClassVar[list[FakeLab]] = []

    def __init__(self, specs: Sequence[KernelSpec], noise: Iterator[float]) -> None:
        self.specs, self.verified, self.timed, self.closed, self.noise = specs, [], [], False, noise
        FakeLab.made.append(self)

    def verify(self, spec: KernelSpec) -> None:
        self.verified.append(spec)

    def seconds(self, spec: KernelSpec, threads: int = 2) -> float:
        assert spec in self.verified
        self.timed.append(spec)
        slow = 2.0 if spec.layout.format != "tl2" else 1.0
        tile = spec.tile.prefetch / 1e6 + spec.tile.nr / 100
        return next(self.noise) + (threads - 2) ** 2 / 100 + slow + spec.layout.bm / 1000 + tile

    def bandwidth(self) -> float:
        return 2e10

    def peak(self) -> float:
        return 1e12

    def weight_bytes(self, spec: KernelSpec) -> int:
        return spec.shape.m * spec.shape.k // 4

    def close(self) -> None:
        self.closed = True


class FakeSite:
    """A CPU whose times are formulas; with noise where it has other work."""

    arch, isas, cpus, cpu, basis, compiler = "x86_64", ("avx2",), 2, "Fake CPU 1", "computed", "none 1"

    def __init__(self, load: float = 0.0, noise: Sequence[float] = (0.0,)) -> None:
        self.load, self.noise = load, itertools.cycle(noise)

    def lab(self, isa: str, specs: Sequence[KernelSpec], threads: int, listener: Listener) -> FakeLab:
        listener("compiling kernels", len(specs), len(specs))
        return FakeLab(specs, self.noise)


@pytest.fixture(autouse=True)
def laboratory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITGEN_CACHE", str(tmp_path))
    monkeypatch.setattr(search, "Host", FakeSite)
    FakeLab.made = []


def test_the_fastest_pair_of_one_layout_wins() -> None:
    decision = search.tune(SHAPES, "avx2", 2).decisions[SHAPES[0]]
    assert decision.plan.layout.format == "tl2"
    specs = decision.plan.specs(SHAPES[0], "avx2")
    assert all(space.legal(s) is None for s in specs)
    tried = decision.evidence.gemv.tried
    assert tried[specs[0].symbol] == min(tried.values())
    default = space.default_plan(SHAPES[0], "avx2").specs(SHAPES[0], "avx2")
    assert decision.evidence.gemv.default_seconds == tried[default[0].symbol]


@pytest.mark.parametrize("name", ["Bonsai-1.7B", "Bonsai-8B"])
def test_a_head_is_tried_on_some_of_its_rows(name: str) -> None:
    """What is decided is about all of them, and legal; what is tried has whole panels and takes no gigabytes."""
    head = presets.load(name).all_matrices["head"]
    decision = search.tune([head], "avx2", 2).decisions[head]
    assert decision.is_current(head, "avx2")
    (tried,) = {spec.shape for lab in FakeLab.made for spec in lab.specs}
    assert tried == dataclasses.replace(head, m=tried.m) == space.trial_shape(head)
    assert tried.m * tried.k <= 1 << 26 and 10_000 < tried.m < head.m
    assert not any(tried.m % spec.layout.bm for lab in FakeLab.made for spec in lab.specs)
    assert space.trial_shape(GemmShape(46080, 3072)) == GemmShape(46080, 3072)
    assert space.trial_shape(GemmShape(1 << 21, 1 << 16, 64)) == GemmShape(960, 1 << 16, 64)


def test_the_thread_count_is_measured_too() -> None:
    made = search.tune(SHAPES, "avx2", 4)
    assert set(made.decisions[SHAPES[0]].evidence.gemv.seconds_by_threads) == {"1", "2", "4"}
    assert plans.best_threads(list(made.decisions.values())) == 2
    assert plans.best_threads([]) is None


def test_a_second_run_measures_nothing() -> None:
    first = search.tune(SHAPES, "avx2", 2)
    made = len(FakeLab.made)
    assert search.tune(SHAPES, "avx2", 2).to_json() == first.to_json()
    assert len(FakeLab.made) == made


def test_other_threads_or_more_effort_measure_again() -> None:
    search.tune(SHAPES, "avx2", 2)
    search.tune(SHAPES, "avx2", 1)
    assert len(FakeLab.made) == 2 * len(SHAPES)
    search.tune(SHAPES, "avx2", 1, "thorough")
    assert len(FakeLab.made) == 3 * len(SHAPES)
    search.tune(SHAPES, "avx2", 1, "quick")
    assert len(FakeLab.made) == 3 * len(SHAPES)


def test_what_goes_on_is_told_with_matrix_stage_and_candidates() -> None:
    told: list[tuple[str, int, int]] = []
    search.tune(SHAPES, "avx2", 2, listener=lambda *stage: told.append(stage))
    tried = search.candidates(SHAPES[0], "avx2", "quick")
    decode = sum(spec.op == "gemv" for spec in tried)
    rounds = search.race_rounds(decode)
    first = [stage for stage in told if stage[0].startswith(f"{SHAPES[0]} (1 of {len(SHAPES)}): ")]
    stages = list(dict.fromkeys(stage.partition(": ")[2] for stage, _, _ in first))
    assert stages[:3] == ["compiling kernels", "verifying kernels", f"timing {decode} decode kernels"]
    assert stages[3].endswith(" prefill kernels")
    assert stages[4:] == ["measuring the machine's limits", "timing numbers of threads"]
    assert [done for stage, done, total in first if "decode" in stage] == list(range(rounds + 1))
    assert all(stage.startswith(f"{SHAPES[1]} (2 of ") for stage, _, _ in told[len(first) :])


def test_what_is_forgotten_is_measured_again_and_named() -> None:
    path = plans.path_of(FakeSite.cpu, "avx2")
    assert plans.forget(path, SHAPES) == set()
    made = search.tune(SHAPES, "avx2", 2)
    assert plans.forget(path, [SHAPES[0], GemmShape(64, 64)]) == {SHAPES[0]}
    assert plans.load(path).decisions == {SHAPES[1]: made.decisions[SHAPES[1]]}
    before = len(FakeLab.made)
    assert search.tune(SHAPES, "avx2", 2).to_json() == made.to_json()
    assert len(FakeLab.made) == before + 1


def test_tune_reset_says_what_it_forgot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "Host", lambda _: FakeSite())
    assert api.tune("stories").forgotten == ()
    made = len(FakeLab.made)
    found = CliRunner().invoke(cli.main, ["tune", "-m", "stories", "--reset"])
    assert "forgotten: what was decided before for qkv, o, gate_up, down\n" in found.output, found.output
    assert len(FakeLab.made) == 2 * made
    assert "forgotten" not in CliRunner().invoke(cli.main, ["tune", "-m", "stories"]).output


def test_an_interrupted_run_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    decide = search.decide

    def interrupted(shape: GemmShape, *rest: object) -> plans.Decision:
        if shape == SHAPES[1]:
            raise KeyboardInterrupt
        return decide(shape, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "decide", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search.tune(SHAPES, "avx2", 2)
    monkeypatch.setattr(search, "decide", decide)
    search.tune(SHAPES, "avx2", 2)
    assert len(FakeLab.made) == len(SHAPES)


def test_only_stale_decisions_are_measured_again() -> None:
    first = search.tune(SHAPES, "avx2", 2)
    path = plans.path_of(FakeSite.cpu, "avx2")
    for shape in SHAPES:
        known = first.decisions[shape]
        marked = dataclasses.replace(known.evidence, load=0.125)
        first.decisions[shape] = dataclasses.replace(known, evidence=marked)
    first.decisions[SHAPES[0]] = dataclasses.replace(first.decisions[SHAPES[0]], stamp="older")
    plans.save(first, path)
    second = search.tune(SHAPES, "avx2", 2)
    assert len(FakeLab.made) == len(SHAPES) + 1
    assert [second.decisions[s].evidence.load == 0.125 for s in SHAPES] == [False, True]
    assert all(second.decisions[s].is_current(s, "avx2") for s in SHAPES)
    assert plans.load(path) == second


def test_a_plan_of_an_earlier_version_is_made_anew() -> None:
    made = search.tune(SHAPES, "avx2", 2)
    path = plans.path_of(FakeSite.cpu, "avx2")
    path.write_text(json.dumps(made.to_json() | {"version": 1, "stamp": "of all templates"}))
    assert search.tune(SHAPES, "avx2", 2).to_json() == made.to_json()
    assert len(FakeLab.made) == 2 * len(SHAPES)


def test_another_compiler_measures_all_again(monkeypatch: pytest.MonkeyPatch) -> None:
    search.tune(SHAPES, "avx2", 2)
    monkeypatch.setattr(FakeSite, "compiler", "none 2")
    assert search.tune(SHAPES, "avx2", 2).compiler == "none 2"
    assert len(FakeLab.made) == 2 * len(SHAPES)


def test_a_plan_says_whose_it_is_and_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    made = search.tune(SHAPES, "avx2", 2, path=tmp_path / "board.json")
    assert (made.cpu, made.basis, made.compiler) == ("Fake CPU 1", "computed", "none 1")
    assert plans.load(tmp_path / "board.json") == made
    assert not plans.path_of("Fake CPU 1", "avx2").exists()
    assert all(lab.closed for lab in FakeLab.made)


def test_a_plan_of_another_cpu_is_not_overwritten(tmp_path: Path) -> None:
    search.tune(SHAPES, "avx2", 2, path=tmp_path / "board.json")
    other = FakeSite()
    other.cpu = "Fake CPU 2"
    with pytest.raises(BitgenError, match=r"Fake CPU 1.*name another file"):
        search.tune(SHAPES, "avx2", 2, site=other, path=tmp_path / "board.json")


@pytest.mark.parametrize(
    "site, disturbed",
    [
        (FakeSite(), False),
        (FakeSite(load=2.4), False),  # that many may be our own threads
        (FakeSite(load=2.6), True),
        (FakeSite(noise=(0.0, 2.0, 4.0, 1.0, 3.0, 7.0, 5.0)), True),
    ],
)
def test_a_disturbed_tuning_is_told_of_and_done_again(site: FakeSite, disturbed: bool) -> None:
    shape = SHAPES[:1]
    evidence = search.tune(shape, "avx2", 2, site=site).decisions[shape[0]].evidence
    assert (evidence.disturbed, evidence.load) == (disturbed, site.load)
    quiet = search.tune(shape, "avx2", 2).decisions[shape[0]].evidence
    assert not quiet.disturbed
    assert len(FakeLab.made) == 1 + disturbed


def test_thorough_tries_more() -> None:
    quick, thorough = (search.candidates(SHAPES[0], "avx2", effort) for effort in ("quick", "thorough"))
    assert set(quick) < set(thorough)
    assert all(space.legal(s) is None for s in thorough)


def test_a_damaged_plan_is_a_clear_error() -> None:
    search.tune(SHAPES, "avx2", 2)
    path = plans.path_of(FakeSite.cpu, "avx2")
    for damage in ("", "{", "[]", '{"version": 99}', '{"version": 1}'):
        path.write_text(damage)
        with pytest.raises(BitgenError, match="delete it and tune again"):
            plans.load(path)
