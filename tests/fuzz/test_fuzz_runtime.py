"""The fuzzers of the C runtime, each for some seconds: every input of the corpora, then new ones. tests/fuzz/run lets
them search for longer."""

from __future__ import annotations

from pathlib import Path

import fuzzing
import libfuzzer
import pytest

SECONDS = max(3, round(60 * fuzzing.MINUTES / len(libfuzzer.TARGETS)))


@pytest.fixture(scope="module", autouse=True)
def _fuzzers_can_be_built() -> None:
    if missing := libfuzzer.why_not():
        pytest.skip(missing)


@pytest.mark.parametrize("name", libfuzzer.TARGETS)
def test_nothing_is_found_quickly(name: str, tmp_path: Path) -> None:
    found = libfuzzer.run(name, SECONDS, tmp_path)
    inputs = len(list((libfuzzer.FUZZ / "corpus" / name).iterdir()))
    assert not found.faults and found.executions > inputs > 0, found.log[-3000:]


def test_a_fault_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that is left out is found at once, from the corpus alone."""
    sources, units = libfuzzer.TARGETS["vocabulary"].tree()
    sources["text/vocabulary.c"] = sources["text/vocabulary.c"].replace("!specials_are_text(v) ||", "")
    monkeypatch.setitem(
        libfuzzer.TARGETS,
        "vocabulary",
        libfuzzer.Target(lambda: (sources, units), libfuzzer.TARGETS["vocabulary"].seeds),
    )
    found = libfuzzer.run("vocabulary", SECONDS, tmp_path)
    assert len(found.faults) == 1 and "heap-buffer-overflow" in found.log
