"""Assembly text -> basic blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from bitgen.errors import UnsupportedError
from bitgen.tune.trace import arm64, x86_64
from bitgen.tune.trace.machine import Machine, Step

CODE, DATA, STACK, ARGUMENTS = 1 << 40, (1 << 40) + (1 << 28), 2 << 40, 3 << 40
"""Bases of the regions of a made-up address space. An instruction has 4 bytes on every architecture; jump tables are
within 32 bits of the code."""

_ARCHES = {"arm64": arm64, "x86_64": x86_64}
_DATA = {".byte": 1, ".short": 2, ".hword": 2, ".2byte": 2, ".long": 4, ".word": 4, ".xword": 8, ".quad": 8}


@dataclass(frozen=True)
class Block:
    """A basic block: its instructions as text for llvm-mca, and the steps of the scalar ones."""

    label: str  # the compiler's label of this block, or of the last block before it that has one
    lines: tuple[str, ...]
    steps: tuple[Step, ...]
    after: int  # address of the following block


@dataclass
class Program:
    """The blocks of one assembly file by address, its labels, and its jump tables byte by byte."""

    arch: str
    blocks: dict[int, Block] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[int, int] = field(default_factory=dict)

    def machine(self, n: int, panels: int) -> Machine:
        """A machine at the entry of run(w, operand, n, y, 0, panels, scratch), as in runtime/kernel.h."""
        machine = Machine()
        machine.memory |= self.tables
        w, operand, y, scratch = (ARGUMENTS + (i << 36) for i in range(4))
        _ARCHES[self.arch].call(machine, STACK, (w, operand, n, y, 0, panels, scratch))
        return machine


def parse(text: str, arch: str) -> Program:
    """The program of one assembly file of clang: AArch64, or x86-64 in AT&T syntax.

    UnsupportedError for another architecture.
    """
    if arch not in _ARCHES:
        raise UnsupportedError(f"the cost model follows code of {' and '.join(_ARCHES)}, not of {arch}")
    decoder, program = _ARCHES[arch], Program(arch)
    code: list[tuple[str, str]] = []  # the label that starts a block here, or ""; the instruction
    words: list[tuple[int, int, str]] = []  # entries of jump tables: address, size, expression
    pending, at, in_table = list[str](), DATA, False
    for raw in text.splitlines():
        line = re.sub(r"\s+", " ", re.split(decoder.COMMENT, raw)[0]).strip()
        directive, _, rest = line.partition(" ")
        if found := re.fullmatch(r"([\w.$]+):", line):
            pending.append(found[1])
        elif directive in _DATA:
            program.labels |= dict.fromkeys(pending, at)
            in_table = any(name.startswith(".LJTI") for name in pending) or (in_table and not pending)
            pending.clear()
            if in_table:
                words.append((at, _DATA[directive], rest))
            at += _DATA[directive]
        elif line and not line.startswith("."):
            program.labels |= dict.fromkeys(pending, CODE + 4 * len(code))
            # Other labels, for line numbers and unwinding, are no jump targets.
            code.append((next((n for n in pending if n.startswith(".LBB") or n[0] != "."), ""), line))
            pending.clear()
    for where, size, expression in words:
        value = _table_entry(expression, program.labels)
        program.tables |= {where + i: value >> 8 * i & 255 for i in range(size)}
    _divide(program, code)
    return program


def _table_entry(expression: str, labels: dict[str, int]) -> int:
    """The value of `A`, `A-B` or `(A-B)>>2`, where A and B are labels."""
    a, b, shift = re.fullmatch(r"\(?([\w.$]+)(?:-([\w.$]+))?\)?(?:>>(\d+))?", expression).groups()  # type: ignore[union-attr]
    return labels[a] - (labels[b] if b else 0) >> int(shift or 0)


def _divide(program: Program, code: list[tuple[str, str]]) -> None:
    """Divide code into basic blocks: they begin at labels and after jumps, calls and returns."""
    decoder = _ARCHES[program.arch]
    start, name = 0, ""
    for i, (label, line) in enumerate(code):
        name = label or name
        last = i + 1 == len(code) or code[i + 1][0] or decoder.JUMP.match(line)
        if last:
            after = CODE + 4 * (i + 1)
            lines = tuple(text for _, text in code[start : i + 1])
            steps = tuple(s for text in lines if (s := decoder.decode(text, program.labels, after)) is not None)
            program.blocks[CODE + 4 * start] = Block(name, lines, steps, after)
            start = i + 1
