"""Shared by all tests: a cache of their own, and where the fixtures written by other engines are."""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy loads: its threads only contend on small models

import numpy as np
import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """A worker for each CPU where pytest-xdist is installed, unless -n says otherwise or single tests are named.

    Here rather than among the options of pyproject.toml, with which pytest would not start without xdist. Workers take
    stretches of the tests in their order, so that few fixtures are made twice, and an idle one half of another's rest.
    """
    option = config.option
    if not hasattr(option, "numprocesses") or hasattr(config, "workerinput"):  # a worker has no workers
        return
    if option.numprocesses is None and not option.usepdb and not any("::" in each for each in config.args):
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        option.numprocesses = cpus if cpus > 1 else 0
    if option.numprocesses and option.dist == "no":
        option.dist = "worksteal"


def pytest_configure(config: pytest.Config) -> None:
    """Builds, packed models and plans of the tests never touch the user's; compiled objects outlive a run."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # the background job of a shell: so would children
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.cache is not None:
        folder = config.cache.mkdir("bitgen")
        folder.chmod(0o700)  # whatever the umask is: bitgen takes no cache that others may write to
        os.environ["BITGEN_CACHE"] = str(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests put on record, such as how far logits are from those of transformers: the README's table of models."""
    passed = terminalreporter.stats.get("passed", [])
    lines = [f"{r.nodeid}: {key} {value}" for r in passed if r.when == "call" for key, value in r.user_properties]
    if lines:
        terminalreporter.section("on record")
        terminalreporter.write_line("\n".join(sorted(lines)))  # workers end in any order


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Files written by other engines: BITGEN_FIXTURES, or the folder beside the checkout."""
    folder = Path(os.environ.get("BITGEN_FIXTURES") or REPO.parent / "shared" / "fixtures")
    if not folder.is_dir():
        pytest.skip(f"no fixtures at {folder}; BITGEN_FIXTURES names another folder")
    return folder


@pytest.fixture(scope="session")
def foreign() -> dict[str, np.ndarray]:
    """Tensors that other engines wrote, by "name/part": their bytes, the weights they hold, tiles of TL1 and TL2."""
    return dict(np.load(Path(__file__).parent / "data" / "foreign.npz"))
