"""`bitgen bench` beyond its table: the profile, other engines, energy, the picture. No test judges a speed."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import places
import pytest
from click.testing import CliRunner

from bitgen import Model, cli
from bitgen.checkpoints import presets
from bitgen.compile import binding
from bitgen.errors import BitgenError, UnsupportedError
from bitgen.measure import bench, energy, peer_engines, peers, plot, profile
from bitgen.measure.peers import PEERS, Peer
from bitgen.measure.report import BenchReport, Case, PeerRow, Race

CASE_KEYS = {"kind", "tokens", "threads", "batch", "context"}
STEP_KEYS = {"step", "share", "ms_per_token", "calls", "gb_s", "gop_s", "bandwidth_share", "ops_share"}
NUMBERS = ("tok_s", "tok_s_min", "tok_s_max", "bitgen_tok_s", "ratio")
STEPS = {
    "qkv", "o", "gate_up", "down", "embed", "enter_attention", "split_heads", "attention", "leave_attention",
    "enter_ffn", "activate", "leave_ffn", "final_norm", "head",
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load(threads=2)


@pytest.fixture(scope="module")
def report(model: Model) -> BenchReport:
    return bench.bench(model, [2], [65, 16], 6)


# ---- profile -------------------------------------------------------------------------------------------------


def test_a_profile_accounts_for_all_of_the_time(model: Model, report: BenchReport) -> None:
    entries = profile.profile(model, report)
    assert [entry.case for entry in entries] == report.cases
    for entry in entries:
        steps = {step.step: step for step in entry.steps}
        assert set(steps) == STEPS | {profile.OUTSIDE}
        assert sum(step.share for step in entry.steps) == pytest.approx(1, abs=1e-6)
        assert all(step.share > 0 for step in entry.steps)
        shares = [step.share for step in entry.steps]
        assert shares == sorted(shares, reverse=True)
        passes = entry.case.tokens if entry.case.kind == "decode" else 1
        for name in ("qkv", "attention", "leave_ffn"):
            assert steps[name].calls == model.shape.layers * passes
        for name in ("embed", "head"):
            assert steps[name].calls == passes
        for name, step in steps.items():
            assert (step.gop_s is not None) == (name in model.shape.matrices)
            assert (step.gb_s is not None) == (name in model.shape.matrices or name == "head")


def test_a_profile_counts_the_work_of_a_product(model: Model, report: BenchReport) -> None:
    """GOP/s times seconds a token is the operations of a token; the bytes of all products are those of the model."""
    entry = profile.profile(model, report)[-1]
    assert entry.case.kind == "decode"
    products = [step for step in entry.steps if step.step in model.shape.matrices]
    operations = sum(step.gop_s * step.ms_per_token * 1e6 for step in products)
    assert operations == pytest.approx(2 * model.ternary_weights, rel=1e-6)
    read = sum(step.gb_s * step.ms_per_token * 1e6 for step in products)
    assert read == pytest.approx(model.weight_bytes, rel=1e-6)


@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (3, 1), (17, 2)])
def test_a_batch_reads_the_head_once_for_many(model: Model, batch: int, heads: int) -> None:
    """What the table counts a token is what the runtime's own clock saw: calls of the head, times its bytes."""
    report = bench.bench(model, [2], [], 4, batches=[batch])
    rate, entry = report.results[0], profile.profile(model, report)[0]
    assert {step.step: step.calls for step in entry.steps}["head"] == 4 * heads
    cache = bench._cache_bytes(model, Case("decode", 4, 2), "f16") / 4
    assert (rate.bytes_per_token - cache) * batch == pytest.approx(model.weight_bytes + heads * model.head_bytes)


def test_profiling_can_be_switched_and_changes_no_bit(model: Model) -> None:
    ids = list(range(40))
    plain = model.logits(ids)
    with model.session() as session:
        assert not any(calls for _, calls in session.profile(True).values())
        assert np.array_equal(session.forward(ids, every=True).view(np.int32), plain.view(np.int32))
        once = session.profile(False)
        assert once["down"][1] == model.shape.layers and once["down"][0] > 0
        session.forward([1])
        assert session.profile(True) == once  # nothing was timed; from zero again
        session.forward([1])
        assert session.profile(False)["head"][1] == 1


def test_a_profile_of_nothing_is_an_error(model: Model) -> None:
    none = binding.ffi().NULL
    assert model.lib.bg_profile(none, 1, none) == model.lib.BG_E_ARGUMENT


# ---- other engines -------------------------------------------------------------------------------------------


def fake(fault: str) -> Peer:
    program = places.LABS / "fake_peer.py"
    return Peer("fake", "numpy", "numpy", None, (sys.executable, str(program), fault))


def beside(model: Model, report: BenchReport, fault: str, monkeypatch: pytest.MonkeyPatch) -> tuple[PeerRow, ...]:
    monkeypatch.setitem(PEERS, "fake", fake(fault))
    return peers.compare(model, ["fake"], report)


def test_a_peer_that_is_right_is_timed(model: Model, report: BenchReport, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = beside(model, report, "none", monkeypatch)
    assert [row.case for row in rows] == report.cases
    for row in rows:
        assert set(row.to_json()) == {"peer", "about", "activation", *CASE_KEYS, *NUMBERS, "agreement", "error"}
        assert row.error is None and row.agreement == pytest.approx(1) and row.race is not None
        assert 0 < row.race.tok_s_min <= row.race.tok_s <= row.race.tok_s_max
        assert row.race.ratio > 0 and row.race.bitgen_tok_s > 0 and row.about == "fake 1.0"


def test_wrong_output_gets_a_sentence_and_no_ratio(
    model: Model, report: BenchReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {(row.case.kind, row.case.tokens): row for row in beside(model, report, "long prompts", monkeypatch)}
    wrong = rows.pop(("prefill", 65))
    assert "wrong output" in wrong.error and wrong.agreement < 0.5 and wrong.race is None
    assert all(wrong.to_json()[key] is None for key in NUMBERS)
    assert all(row.error is None and row.race.ratio > 0 for row in rows.values())


@pytest.mark.parametrize(
    ("fault", "words"), [("nan", "not finite"), ("dies", "signal 6"), ("refuses", "ValueError: no such model")]
)
def test_a_peer_that_fails_says_how(
    fault: str, words: str, model: Model, report: BenchReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = beside(model, report, fault, monkeypatch)
    assert len(rows) == len(report.results)
    for row in rows:
        assert words in row.error and row.race is None


def test_another_activation_does_not_pass_for_the_same(model: Model) -> None:
    """The check must see that an engine computes something else, however small: here SiLU for relu2."""

    def logits(activation: Any) -> Any:
        with peers.small_model(replace(model.shape, activation=activation), 17) as (_, ours):
            return peers.last_logits(ours, [bench.prompt(ours, 16)])

    relu2, silu = logits("relu2"), logits("silu")
    assert peers.correlation(relu2, relu2) == pytest.approx(1)
    assert 0.5 < peers.correlation(relu2, silu) < peers.AGREES


def test_other_sequences_and_contexts_are_left_out(
    model: Model, report: BenchReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PEERS, "fake", fake("none"))
    cases = Case("decode", 4, 1, batch=4), Case("decode", 4, 1, context=8)
    others = replace(report, results=tuple(replace(report.results[0], case=case) for case in cases))
    assert peers.compare(model, ["fake"], others) == ()


def test_a_peer_that_is_not_installed_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    result = CliRunner().invoke(cli.main, ["bench", "--vs", "llama.cpp", "--vs", "litespark"])
    assert result.exit_code == 1
    assert "-m pip install llama-cpp-python litespark-inference" in result.output


@pytest.mark.parametrize("name", list(PEERS))
def test_the_real_peers_agree(name: str, model: Model) -> None:
    peer = PEERS[name]
    if not peer.installed:
        pytest.skip(f"{name} is not installed: pip install {peer.package}")
    for verdict in peers.check(peer, model.shape, [("prefill", 33), ("decode", 5)], 2):
        assert verdict.error is None and verdict.agreement and verdict.agreement > peers.AGREES


@pytest.mark.peers
@pytest.mark.parametrize("name", ["Bonsai-1.7B", "Bonsai-1.7B-1bit", "BitCPM4-0.5B"])
def test_llama_cpp_agrees_on_a_scale_for_every_group(name: str) -> None:
    """Q2_0 in its own blocks of 64 for Bonsai's of 128, TQ2_0 for 256; on widths of which q6_K makes whole blocks."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install llama-cpp-python")
    shape = replace(presets.load(name), hidden=512, intermediate=768, heads=8, kv_heads=4, head_dim=64)
    if name.startswith("BitCPM4"):
        assert shape.rope_scaling and shape.rope_scaling.kind == "table"
    for verdict in peers.check(PEERS["llama.cpp"], shape, [("prefill", 33), ("decode", 5)], 2):
        assert verdict.error is None and verdict.agreement and verdict.agreement > 0.998


def test_bfloat16_rounds_to_even() -> None:
    values = np.array([1, -1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)
    rounded = (peer_engines._to_bf16(values).astype(np.uint32) << 16).view(np.float32)
    assert rounded.tolist() == [1, -1, 1, 1 + 2**-6, 1 + 2**-7]


# ---- energy --------------------------------------------------------------------------------------------------


def counter(folder: Path, name: str, energy_uj: object = 0, most: object = 1000) -> Path:
    folder.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{value}\n")
    return folder


def test_the_zones_that_add_up(tmp_path: Path) -> None:
    counter(tmp_path / "intel-rapl:0", "package-0", 5)
    counter(tmp_path / "intel-rapl:0:0", "core")
    counter(tmp_path / "intel-rapl:0:1", "dram")
    counter(tmp_path / "intel-rapl:1", "package-1")
    counter(tmp_path / "intel-rapl:2", "psys")
    counter(tmp_path / "intel-rapl-mmio:0", "package-0")
    zones = energy.zones(tmp_path)
    assert [zone.name for zone in zones] == ["package-0", "dram", "package-1"]
    assert zones[0].read() == 5


def test_a_counter_that_came_round(tmp_path: Path) -> None:
    zone = energy.Zone("package-0", tmp_path, 262143328850)
    assert zone.joules(1_000_000, 3_500_000) == 2.5
    assert zone.joules(262143328850 - 1_000_000, 2_000_000) == 3.0
    assert zone.joules(7, 7) == 0


def test_joules_per_token(model: Model, report: BenchReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that gains 6 J with each reading, and comes round every 20 J."""
    counter(tmp_path / "intel-rapl:0", "package-0", most=20_000_000)
    readings = iter(range(0, 10**12, 6_000_000))
    monkeypatch.setattr(energy.Zone, "read", lambda zone: next(readings) % zone.range_uj)
    found = energy.energy(model, report, root=tmp_path)
    assert found.zones == ("package-0",) and found.reason is None
    assert [row.case for row in found.results] == report.cases
    for row, plain in zip(found.results, found.to_json()["results"], strict=True):
        assert set(plain) == {*CASE_KEYS, "joules_per_token", "watts"}
        assert row.joules_per_token == pytest.approx(6 / row.case.tokens) and row.watts > 0


def test_why_there_is_no_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="no RAPL counters"):
        energy.zones(tmp_path / "nowhere")
    counter(tmp_path / "intel-rapl:0", "package-0", most="junk")
    with pytest.raises(UnsupportedError, match="does not work"):
        energy.zones(tmp_path)
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").write_text("1000")
    assert energy.zones(tmp_path)

    def forbidden(zone: energy.Zone) -> int:
        raise PermissionError(13, "Permission denied", str(zone.path / "energy_uj"))

    monkeypatch.setattr(energy.Zone, "read", forbidden)
    with pytest.raises(UnsupportedError, match=r"sudo chmod a\+r"):
        energy.zones(tmp_path)


# ---- the picture ---------------------------------------------------------------------------------------------


def test_a_plot_is_a_picture(report: BenchReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'bitgen[plot]'")
    file = tmp_path / "out.png"
    plot.draw(report, file)
    data = file.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert 800 < width < 3000 and 300 < height < 3000
    assert 10_000 < len(data) < 1_000_000


def test_the_bars_say_what_the_report_says(report: BenchReport) -> None:
    rate = report.results[-1]
    right = PeerRow("a", "a 1.0", "relu2", rate.case, Race(2.0, 1.0, 3.0, 6.08, 3.04), 1.0, None)
    wrong = replace(right, peer="b", race=None, error="wrong output: 0.1")
    ours, a, b = plot.bars(replace(report, peers=(right, wrong)), "decode")
    assert (ours.rate, ours.limit) == (rate.tok_s, pytest.approx(rate.tok_s / rate.bandwidth_share))
    assert (a.label, a.rate, a.limit, a.text) == ("a", 2.0, None, "2.0 (bitgen: 3.0 x)")
    assert (b.label, b.rate, b.limit, b.text) == ("b", 0, None, "wrong output")
    assert [bar.label for bar in plot.bars(report, "prefill")] == ["65, 2 threads", "16, 2 threads"]


def test_a_plot_without_matplotlib_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(cli.main, ["bench", "--plot", "out.png"])
    assert result.exit_code == 1 and "pip install 'bitgen[plot]'" in result.output


def test_a_plot_of_an_unknown_kind_or_of_nothing(report: BenchReport, tmp_path: Path) -> None:
    with pytest.raises(BitgenError, match=r"\.png, \.svg, \.pdf"):
        plot.require(tmp_path / "out.jpeg")
    with pytest.raises(BitgenError, match="no folder"):
        plot.require(tmp_path / "nowhere" / "out.png")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'bitgen[plot]'")
    with pytest.raises(BitgenError, match="nothing was measured"):
        plot.draw(replace(report, results=()), tmp_path / "out.png")


# ---- the command ---------------------------------------------------------------------------------------------


def test_the_optional_parts_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "llama.cpp", fake("long prompts"))
    args = ["bench", "-t", "1", "--prompt", "65", "--gen", "4", "--profile", "--energy", "--vs", "llama.cpp"]
    found = json.loads(CliRunner().invoke(cli.main, [*args, "--json"]).stdout)
    assert set(found) == {"model", "host", "results", "profile", "peers", "energy"}
    assert len(found["profile"]) == len(found["peers"]) == len(found["results"]) == 2
    for entry in found["profile"]:
        assert set(entry) == {*CASE_KEYS, "steps"}
        for step in entry["steps"]:
            assert set(step) == STEP_KEYS
    assert set(found["energy"]) == {"zones", "reason", "results"}
    assert bool(found["energy"]["reason"]) == (not found["energy"]["results"])
    text = CliRunner().invoke(cli.main, args).output
    for words in ("where the time of decode 4", "gate up", "beside other engines", "wrong output", "energy"):
        assert words in text


def test_the_names_of_cases() -> None:
    names = [Case("decode", 64, 1, *more).title for more in ((), (4,), (1, 3500))]
    assert names == ["decode 64", "decode 64 x 4", "decode 64 at 3500"]
