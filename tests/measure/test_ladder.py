"""`bitgen bench --ladder` on tiny rungs: what it measures, keeps and leaves out, and that nothing is left of them."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bitgen import api, cli, data, store
from bitgen.checkpoints import ladder as sizes
from bitgen.checkpoints.synth import SynthCheckpoint
from bitgen.compile import library, pack
from bitgen.errors import ArgumentError, BitgenError, UnsupportedError
from bitgen.kernels import plan
from bitgen.measure import bench, ladder, ladder_plot, machine, rungs
from bitgen.measure.machine import Memory

TABLE = {
    "shape": {
        "architecture": "bitnet", "vocab": 300, "context": 64, "rope_theta": 1e4, "norm_eps": 1e-5,
        "activation": "silu", "sub_norms": True, "tied": True, "rope_interleaved": False,
    },
    "rungs": {"1K": [256, 512, 1, 4], "2K": [256, 512, 2, 4]},  # of the same matrices, which are built once
}  # fmt: skip
GB = 10**9


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where rungs of a few hundred thousand weights are packed: a folder that is empty in the end."""
    cached, own = data.cached, tmp_path_factory.mktemp("ladder")
    monkeypatch.setattr(sizes, "_table", lambda: TABLE)
    monkeypatch.setattr(data, "cached", lambda kind: own if kind == "ladder" else cached(kind))
    yield own
    assert not [path for path in own.iterdir() if path.name.startswith(".bitgen")]


def climbed(file: Path, *only: str, **how: Any) -> rungs.LadderReport:
    return api.ladder(only, threads=[1], gen=4, output=file, **how)


def fail(*_: Any, **__: Any) -> Any:
    raise AssertionError("measured again")


def test_a_climb_measures_every_rung(tmp_path: Path) -> None:
    told: list[str] = []
    file = tmp_path / "results.jsonl"
    report = climbed(file, progress=lambda stage, *_: told.append(stage))
    assert [rate.rung for rate in report.rates] == ["ladder-1K", "ladder-2K"] and not report.misfits
    assert [rate.size for rate in report.rates] == ["1K", "2K"]
    for rate in report.rates:
        shape = sizes.load(rate.rung)
        assert rate.parameters == sizes.parameters(shape) and rate.threads == 1
        assert 0 < rate.tok_s_min <= rate.tok_s <= rate.tok_s_max and rate.bandwidth_share > 0
        assert (rate.kind, rate.tokens, rate.isa, rate.head) == ("decode", 4, library.host_isa(), "certified")
        assert 1.5 < rate.bits < 4
    assert rungs.read(file) == list(report.rates)
    assert "ladder-1K (1 of 2): making the model" in told and "ladder-2K (2 of 2): decode 4, 1 thread (1 of 1)" in told


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.jsonl"
    first = climbed(file, "1K")
    with monkeypatch.context() as patched:
        patched.setattr(ladder, "_measured", fail)
        assert climbed(file, "ladder-1k") == first
        for other in ({"prompt": [8]}, {"cache": "int8"}, {"head": "f16"}):
            with pytest.raises(AssertionError, match="measured again"):
                climbed(file, "1K", **other)
    whole = climbed(file)
    assert whole.rates[0] == first.rates[0] and len(rungs.read(file)) == 2
    monkeypatch.setattr("bitgen.__version__", "another")
    assert climbed(file, "1K").rates[0].kernels != first.rates[0].kernels and len(rungs.read(file)) == 3


def test_prefills_are_measured_where_they_are_asked_for(tmp_path: Path) -> None:
    report = climbed(tmp_path / "r.jsonl", "1K", prompt=[8])
    assert [(rate.kind, rate.tokens) for rate in report.rates] == [("prefill", 8), ("decode", 4)]


def test_an_interrupted_climb_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, measure = tmp_path / "results.jsonl", bench.bench

    def interrupted(model: Any, *args: Any, **more: Any) -> Any:
        if model.shape.name == "ladder-2K":
            assert model.packed.is_file()
            raise KeyboardInterrupt
        return measure(model, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(bench, "bench", interrupted)
        with pytest.raises(KeyboardInterrupt):
            climbed(file)
    (first,) = rungs.read(file)
    assert climbed(file).rates[0] == first and len(rungs.read(file)) == 2


def test_what_a_killed_climb_left_is_swept(tmp_path: Path, folder: Path) -> None:
    left = folder / ".bitgen-0123456789abcdef"
    left.mkdir(0o700)
    (left / "owner").write_bytes(store.kernel())
    (left / "ladder-100B.bgpk").write_bytes(bytes(1000))
    climbed(tmp_path / "r.jsonl", "1K")
    assert not left.exists()


def planned(size: str) -> tuple[int, int]:
    """Bytes of a rung by its plan, and by the smallest."""
    shape, isa = sizes.load(size), library.host_isa()
    best, least = plan.of_model(shape, isa), ladder.smallest(shape, isa)
    return pack.expected_bytes(shape, best, "certified"), pack.expected_bytes(shape, least, "certified")


def test_a_rung_that_does_not_fit_is_left_out_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: Memory(64 * GB, 200_000_000, None))
    report = climbed(tmp_path / "r.jsonl", "1K")
    (misfit,) = report.misfits
    assert (misfit.rung, misfit.of, misfit.free_bytes) == ("ladder-1K", "memory", 200_000_000)
    assert misfit.needed_bytes > ladder.WORKING_BYTES + planned("1K")[1] and not report.rates
    assert str(misfit) == "ladder-1K does not fit: it needs 0.3 GB of memory, and 0.2 GB are free"
    monkeypatch.setattr(machine, "memory", lambda: None)  # not known: tried
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1000))
    (misfit,) = climbed(tmp_path / "r.jsonl", "1K").misfits
    assert (misfit.of, misfit.needed_bytes, misfit.free_bytes) == ("disk", planned("1K")[1], 1000)


def test_for_want_of_room_a_rung_is_packed_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best, least = planned("2K")
    assert least < best
    before = climbed(tmp_path / "r.jsonl", "2K").rates
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")((best + least) // 2))
    assert climbed(tmp_path / "r.jsonl", "2K").rates == before
    (smaller,) = climbed(tmp_path / "other.jsonl", "2K").rates
    assert smaller.bits < before[0].bits and smaller.bytes_per_token < before[0].bytes_per_token


@pytest.mark.parametrize("head", ["certified", "f16", "int8"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_model_has_about_the_expected_bytes(tmp_path: Path, head: pack.Head, tied: bool) -> None:
    shape = replace(sizes.load("2K"), vocab=5000, tied=tied)
    made = plan.of_model(shape, "scalar")
    pack.write(tmp_path / "m.bgpk", SynthCheckpoint(shape), made, head)
    found = (tmp_path / "m.bgpk").stat().st_size
    assert pack.expected_bytes(shape, made, head) == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("line", ["", "{", "[]", "3", '{"rung": "ladder-1K"}', "tok_s is text"])
def test_a_file_of_something_else_is_named_and_kept(tmp_path: Path, line: str) -> None:
    file = tmp_path / "notes.txt"
    rate = climbed(tmp_path / "r.jsonl", "1K").rates[0]
    text = f"{line.replace('tok_s is text', json.dumps({**asdict(rate), 'tok_s': 'fast'}))}\n"
    file.write_text(text)
    with pytest.raises(BitgenError, match=r"notes\.txt, line 1: .*no result of the ladder"):
        climbed(file, "1K")
    assert file.read_text() == text


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no size '3K' is on the ladder; known: 1K, 2K"):
        climbed(tmp_path / "r.jsonl", "3K")
    with pytest.raises(ArgumentError, match="head is"):
        climbed(tmp_path / "r.jsonl", "1K", head="f8")
    with pytest.raises(ArgumentError, match="nothing to measure"):
        api.ladder(["1K"], gen=0, output=tmp_path / "r.jsonl")
    with pytest.raises(UnsupportedError, match="sse9"):
        climbed(tmp_path / "r.jsonl", "1K", isa="sse9")
    with pytest.raises(BitgenError, match="not a regular file"):
        climbed(tmp_path, "1K")
    assert list(tmp_path.iterdir()) == []


# ---- what is shown -------------------------------------------------------------------------------------------


def bitgen(*args: str | Path) -> Any:
    return CliRunner().invoke(cli.main, ["bench", *map(str, args)])


def test_the_command_prints_a_table_and_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("--ladder", "-t", "1", "--gen", "4", "-o", tmp_path / "r.jsonl")
    shown = bitgen(*args, "--sizes", "1k")
    assert shown.exit_code == 0, shown.output
    assert "1K" in shown.stdout and "2K" not in shown.stdout and "people read 5 to 7 tokens a second" in shown.stdout
    assert str(tmp_path / "r.jsonl") in shown.stdout.replace("\n", "")
    monkeypatch.setattr(machine, "memory", lambda: Memory(64 * GB, 200_000_000, None))
    both = bitgen(*args)
    assert (
        "1K" in both.stdout and "ladder-2K does not fit: it needs 0.3 GB of memory, and 0.2 GB are free" in both.stdout
    )
    found = json.loads(bitgen(*args, "--json").stdout)
    assert [each["rung"] for each in found["results"]] == ["ladder-1K"]
    assert [each["rung"] for each in found["misfits"]] == ["ladder-2K"]
    assert found["reading_tok_s"] == [5.0, 7.0] and found["file"] == str(tmp_path / "r.jsonl")


def test_an_interrupted_command_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "_measured", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    shown = bitgen("--ladder", "-o", tmp_path / "r.jsonl")
    assert shown.exit_code and "interrupted; the same command goes on from here" in shown.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--ladder", "--vs", "llama.cpp", "--batch", "2"), "leave out --batch, --vs"),
        (("--ladder", "-m", "x.gguf"), "leave out --model"),
        (("--ladder", "--gen", "0"), "leaves nothing to measure"),
        (("--sizes", "1K"), "--sizes: only with --ladder"),
        (("-o", "x.jsonl"), "--output: only with --ladder"),
    ],
)
def test_options_that_contradict_each_other(args: tuple[str, ...], message: str) -> None:
    shown = bitgen(*args)
    assert shown.exit_code == 2 and message in shown.output


def test_a_plot_has_a_line_for_each_number_of_threads(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'bitgen[plot]'")
    rate = climbed(tmp_path / "r.jsonl", "1K", plot=tmp_path / "one.png").rates[0]
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    more = [
        replace(rate, rung="ladder-100B", bytes_per_token=2e10, tok_s=1.7),
        replace(rate, threads=2, tok_s=2 * rate.tok_s),
        replace(rate, kind="prefill"),
    ]
    report = rungs.LadderReport(tmp_path / "r.jsonl", (more[0], rate, *more[1:]), (), None)
    assert ladder_plot.series(report) == {1: [rate, more[0]], 2: [more[1]]}
    ladder_plot.draw(report, tmp_path / "two.svg")
    text = (tmp_path / "two.svg").read_text()
    assert "<svg" in text
    with pytest.raises(BitgenError, match="nothing was decoded"):
        ladder_plot.draw(replace(report, rates=(more[2],)), tmp_path / "none.png")
