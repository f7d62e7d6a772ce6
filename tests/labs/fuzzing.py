"""Inputs in great numbers: hypothesis once, or again and again for the minutes that BITGEN_FUZZ_MINUTES grants."""

from __future__ import annotations

import itertools
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

MINUTES = float(os.environ.get("BITGEN_FUZZ_MINUTES") or 0)
"""For all tests of a module together."""
GIB = 1 << 30
SECONDS = 60
"""For one input: more than any takes on a busy machine, less than a loop that a file can make long."""


def fuzz(test: Callable[[Any], None], inputs: st.SearchStrategy[Any], examples: int, share: float = 1) -> None:
    """Call `test` with many inputs, the same in every run; with BITGEN_FUZZ_MINUTES go on with others.

    examples: of a round. share: of the minutes, where the tests of a module divide them.
    """
    ends = time.monotonic() + 60 * MINUTES * share
    quiet = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    for number in itertools.count():
        seed(number)(quiet(given(inputs)(test)))()
        if time.monotonic() >= ends:
            return


@contextmanager
def limits(room: int = GIB, seconds: int = SECONDS) -> Iterator[None]:
    """What runs inside gets so many bytes that no file backs besides those that the process has, and so much time.

    Then MemoryError or TimeoutError is raised, or a library aborts: all of them fail the test.
    """

    def late(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    old = resource.getrlimit(resource.RLIMIT_DATA)
    found = re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_DATA, ((int(found[1]) << 10) + room, old[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_DATA, old)


INTERESTING = sorted({(1 << bits) + off for bits in (0, 3, 7, 8, 15, 16, 20, 31, 32, 62, 63, 64) for off in (-1, 0, 1)})
numbers = st.one_of(st.sampled_from([n for n in INTERESTING if n < 1 << 64]), st.integers(0, (1 << 64) - 1))

Edit = Callable[[bytearray], None]


def _flipped(at: int, bit: int) -> Edit:
    def edit(raw: bytearray) -> None:
        raw[at % len(raw)] ^= 1 << bit

    return edit


def _written(at: int, data: bytes) -> Edit:
    def edit(raw: bytearray) -> None:
        raw[at % len(raw) : at % len(raw) + len(data)] = data

    return edit


def _cut(at: int, count: int) -> Edit:
    def edit(raw: bytearray) -> None:
        del raw[at % len(raw) : at % len(raw) + count]

    return edit


def _again(at: int, count: int) -> Edit:
    def edit(raw: bytearray) -> None:
        raw[at % len(raw) : at % len(raw)] = raw[at % len(raw) : at % len(raw) + count]

    return edit


_places = st.one_of(st.integers(0, 4000), st.integers(0, 1 << 24))
edits: st.SearchStrategy[list[Edit]] = st.lists(
    st.one_of(
        st.builds(_flipped, _places, st.integers(0, 7)),
        st.builds(_written, _places, st.binary(min_size=1, max_size=9)),
        st.builds(_written, _places, numbers.map(lambda n: n.to_bytes(8, "little"))),
        st.builds(_cut, _places, st.one_of(st.integers(1, 40), st.just(1 << 30))),
        st.builds(_again, _places, st.integers(1, 400)),
    ),
    min_size=1, max_size=5,
)  # fmt: skip
"""Changes of a file's bytes, wherever they fall: flipped bits, other bytes, numbers, cuts, repetitions."""


def edited(raw: bytes, changes: list[Edit]) -> bytes:
    """A file's bytes after these changes; one that is cut to nothing stays so."""
    out = bytearray(raw)
    for change in changes:
        if out:
            change(out)
    return bytes(out)
