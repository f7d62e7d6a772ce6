"""How often each part of a compiled kernel runs, from its assembly alone: no device, no emulator.

    assembly text -> program.parse -> Program -> profile.follow -> Profile

What a kernel does next never depends on the weights or activations, only on addresses and trip counts. So the scalar
instructions are followed, on integers that are known or not (`machine.py`; `arm64.py` and `x86_64.py` know their
meaning), and those on vectors merely counted. A branch on an unknown integer is an error, not a guess.
"""

from bitgen.tune.trace.profile import NEARLY_ALWAYS, Path, Profile, follow
from bitgen.tune.trace.program import Block, Program, parse

__all__ = ["NEARLY_ALWAYS", "Block", "Path", "Profile", "Program", "follow", "parse"]
