"""Execution counts of the edges between a program's blocks, and the paths that blocks form."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from bitgen.errors import BitgenError
from bitgen.tune.trace.program import Program

START = 0
"""The source of the edge into `run`, and the target of its return."""

NEARLY_ALWAYS = 0.9
MOST_BLOCKS = 20_000_000


@dataclass(frozen=True)
class Path:
    """Blocks that nearly always run in sequence; a loop if most of its runs follow another run of it."""

    label: str
    lines: tuple[str, ...]
    count: float  # number of runs
    loops: bool


@dataclass(frozen=True)
class Profile:
    """Counts of the edges of one call of a kernel: (address of a block, address of the next) -> times."""

    program: Program
    edges: Mapping[tuple[int, int], float]

    def plus(self, other: Profile, times: float) -> Profile:
        """The sum of this profile and `times` the other, edge by edge: extrapolates in panels or tokens."""
        keys = dict.fromkeys((*self.edges, *other.edges))
        sums = {edge: self.edges.get(edge, 0) + times * other.edges.get(edge, 0) for edge in keys}
        return Profile(self.program, {edge: count for edge, count in sums.items() if count})

    @property
    def instructions(self) -> float:
        """Number of executed instructions, without those of libc's functions."""
        return sum(n * len(self.program.blocks[to].lines) for (_, to), n in self.edges.items() if to != START)

    @property
    def paths(self) -> list[Path]:
        """All executed code as paths, those with the most executed instructions first."""
        into, out = defaultdict[int, float](float), defaultdict[int, float](float)
        for (source, to), count in self.edges.items():
            out[source] += count
            into[to] += count
        joined = {
            a: b
            for (a, b), count in self.edges.items()
            if START < a < b and count > NEARLY_ALWAYS * max(out[a], into[b])
        }
        found = []
        for first in into.keys() - joined.values() - {START}:
            lines, last = list(self.program.blocks[first].lines), first
            while last in joined:
                last = joined[last]
                lines += self.program.blocks[last].lines
            loops = self.edges.get((last, first), 0) > into[first] / 2
            found.append(Path(self.program.blocks[first].label, tuple(lines), into[first], loops))
        return sorted(found, key=lambda path: (-path.count * len(path.lines), path.label))


def follow(program: Program, n: int, panels: int) -> Profile:
    """Profile of a call of the kernel with n tokens and so many panels; BitgenError when a branch depends on data."""
    machine, at, before = program.machine(n, panels), program.labels["run"], START
    edges = Counter[tuple[int, int]]()
    for _ in range(MOST_BLOCKS):
        edges[before, at] += 1
        if at == START:
            return Profile(program, edges)
        block, before, to = program.blocks[at], at, None
        for step in block.steps:
            to = step(machine)
        at = block.after if to is None else to
    raise BitgenError(f"gave up following a kernel after {MOST_BLOCKS} blocks, near {block.label}")
