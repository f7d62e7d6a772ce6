"""Following a program: which blocks run how often, and which of them run as one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from bitgen.errors import BitgenError
from bitgen.tune.trace.program import Program

START = 0
"""Where edges into `run` come from, and where its return goes."""

NEARLY_ALWAYS = 0.9
MOST_BLOCKS = 20_000_000


@dataclass(frozen=True)
class Path:
    """Blocks that nearly always run one after the other; it loops when it mostly follows itself."""

    label: str
    lines: tuple[str, ...]
    count: float  # how often it begins
    loops: bool


@dataclass(frozen=True)
class Profile:
    """How often a call of a kernel goes from one block to another: (address, address) -> times."""

    program: Program
    edges: Mapping[tuple[int, int], float]

    def plus(self, other: Profile, times: float) -> Profile:
        """Edge by edge this and `times` the other: of calls on more panels or tokens, from two on few."""
        keys = dict.fromkeys((*self.edges, *other.edges))
        sums = {edge: self.edges.get(edge, 0) + times * other.edges.get(edge, 0) for edge in keys}
        return Profile(self.program, {edge: count for edge, count in sums.items() if count})

    @property
    def instructions(self) -> float:
        """How many instructions ran, those of libc's functions left out."""
        return sum(n * len(self.program.blocks[to].lines) for (_, to), n in self.edges.items() if to != START)

    @property
    def paths(self) -> list[Path]:
        """All that ran, the most instructions first."""
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
    """Call the kernel on n tokens and some panels; BitgenError where a branch depends on what is not known."""
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
