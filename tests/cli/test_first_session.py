"""The first minutes with bitgen on a terminal of 80 columns: whatever is waited for, the screen says what it is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import places
import pytest
import recorder
from recorder import BITGEN, Recording


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache, which one command after the other fills."""
    folder = tmp_path_factory.mktemp("first")
    folder.chmod(0o700)
    return folder


def command(cache: Path, *args: str, typed: Sequence[tuple[str, str]] = ()) -> Recording:
    environment = {"BITGEN_CACHE": str(cache), "HOME": str(cache), "PYTHONPATH": str(places.REPO)}
    found = recorder.record([*BITGEN, *args], typed, environment=environment)
    assert found.code == 0, found.last
    assert found.unexplained == []
    return found


def stages(found: Recording) -> str:
    return "\n".join(line for second in found.seconds for line in second)


PASTED = "\x1b[200~Tell me\nof a cat\x1b[201~\r"
"""Two lines, as a terminal sends what is pasted, and Enter."""
UP = "\x1b[A"


@pytest.mark.slow
def test_every_second_of_a_first_session_is_explained(cache: Path) -> None:
    first = command(cache, "run", "-p", "Once upon a time", "-n", "60", "--seed", "3")
    assert "compiling kernels" in stages(first) and "tok/s" in " ".join(first.last)
    again = command(cache, "run", "-p", "Once upon a time", "-n", "60", "--seed", "3")
    assert len(again.seconds) < len(first.seconds) and "compiling" not in stages(again)
    talking = ("chat", "--chat-template", "chatml", "-n", "8")
    talk = command(cache, *talking, typed=[(">>>", PASTED), (">>>", "/bye\r")])
    assert "of a cat" in "\n".join(talk.last) and "\n".join(talk.last).count("tok/s") == 2  # of one answer
    later = command(cache, *talking, typed=[(">>>", UP + UP + "\r"), (">>>", "/bye\r")])
    assert "of a cat" in "\n".join(later.last)  # from the history of the session before
    measured = command(cache, "bench")
    assert "prefill 128" in "\n".join(measured.last) and "no room for" in "\n".join(measured.last)
    tuned = command(cache, "tune", "-m", "stories")
    assert "(4 of 4): timing" in stages(tuned) and "plan: " in "\n".join(tuned.last)


@pytest.mark.slow
def test_quiet_shows_the_result_and_nothing_before(cache: Path) -> None:
    environment = {"BITGEN_CACHE": str(cache), "PYTHONPATH": str(places.REPO)}
    args = ("bench", "--gen", "400", "--prompt", "400")
    seen = [stages(recorder.record([*BITGEN, *args, *more], environment=environment)) for more in ((), ("--quiet",))]
    assert "(1 of 2)" in seen[0] and "(1 of 2)" not in seen[1]


SILENT = "import time; print('reading', flush=True); time.sleep(5)"
TALKING = "import time\nfor i in range(10): time.sleep(0.5); print(i, end='\\r', flush=True)"


@pytest.mark.slow
@pytest.mark.parametrize(("script", "still"), [(SILENT, True), (TALKING, False)])
def test_the_recorder_notes_what_stands_still(script: str, still: bool) -> None:
    found = recorder.record([sys.executable, "-c", script])
    assert found.code == 0 and len(found.seconds) >= 4
    assert bool(found.unexplained) is still
