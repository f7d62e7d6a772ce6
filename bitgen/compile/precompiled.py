"""The compiler's header of vector instructions, parsed once for many units: that takes as long as compiling a kernel.

The objects are the same bytes without it, so it is no part of any key but its own.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bitgen import data, store, uses
from bitgen.compile.compiler import Compiler
from bitgen.errors import BitgenError

VECTORS = {"arm64": "arm_neon.h", "x86_64": "immintrin.h"}
"""Architecture -> the header."""

WORTH_IT = 6
"""Units with the same flags, of which each includes the header."""

Flags = tuple[str, ...]


def headers(arch: str, units: Iterable[tuple[Flags, str]], compiler: Compiler) -> dict[Flags, Flags]:
    """Flags of units -> the options that bring the parsed header; {} where it does not pay or cannot be had.

    units: of those that are to be compiled, the flags in all and the text.
    """
    include = VECTORS.get(arch)
    count = Counter(flags for flags, text in units if include and f"#include <{include}>" in text)
    found: dict[Flags, Flags] = {}
    for flags in (flags for flags, n in count.items() if n >= WORTH_IT):
        try:
            found[flags] = ("-include-pch", str(_parsed(f"#include <{include}>\n", flags, compiler)))
        except (BitgenError, OSError):
            continue  # the compiler has no such thing, or the cache cannot be written
    return found


def _parsed(text: str, flags: Flags, compiler: Compiler) -> Path:
    """The parsed header in the cache, whose hash lies beside it: the compiler fails on one that is damaged."""
    folder = data.cached("headers") / hashlib.sha256(repr((compiler.version, flags, text)).encode()).hexdigest()[:32]
    header, parsed, proof = (folder / f"vectors.{end}" for end in ("h", "pch", "sha256"))

    def is_sound() -> bool:
        try:  # the compiler asks for the header's text again
            return header.read_text() == text and proof.read_text() == store.sha256(parsed)
        except (OSError, ValueError):
            return False

    def make() -> None:
        with data.replacing(header, parents=True) as part:
            part.write_text(text)
        with data.replacing(parsed) as part:
            words = ["-Xclang", "-fno-pch-timestamp", "-x", "c-header", str(header), "-o", str(part)]
            compiler.run([*flags, *words], part.parent, "parsing a header")
            digest = store.sha256(part)
        with data.replacing(proof) as part:
            part.write_text(digest)

    data.once(folder, is_sound, make, lambda: None)
    uses.touch(folder)
    return parsed
