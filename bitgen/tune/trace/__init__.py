"""Execution counts of a compiled kernel's basic blocks, from its assembly alone: no device, no emulator.

    assembly text -> program.parse -> Program -> profile.follow -> Profile

A kernel's control flow never depends on weights or activations, only on addresses and trip counts. So only the scalar
instructions are interpreted, on integers that are known or unknown (machine.py; arm64.py and x86_64.py define their
meaning); vector instructions are only counted. A branch on an unknown integer is an error, not a guess.
"""

from bitgen.tune.trace.profile import NEARLY_ALWAYS, Path, Profile, follow
from bitgen.tune.trace.program import Block, Program, parse

__all__ = ["NEARLY_ALWAYS", "Block", "Path", "Profile", "Program", "follow", "parse"]
