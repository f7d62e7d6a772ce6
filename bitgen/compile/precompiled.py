"""The compiler's header of vector instructions, parsed once for many units: that takes as long as compiling a kernel.

The objects are the same bytes without it, so it is no part of any key but its own.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bitgen import data
from bitgen.errors import BitgenError

VECTORS = {"arm64": "arm_neon.h", "x86_64": "immintrin.h"}
"""Architecture -> the header."""

WORTH_IT = 6
"""Units with the same flags, of which each includes the header."""

Flags = tuple[str, ...]
Compile = Callable[[Sequence[str], Path], object]
"""(arguments, working folder): runs the compiler; CompileError where it fails."""


def headers(arch: str, units: Iterable[tuple[Flags, str]], key: str, compile: Compile) -> dict[Flags, Flags]:
    """Flags of units -> the options that bring the parsed header; {} where it does not pay or cannot be had.

    units: of those that are to be compiled, the flags in all and the text.
    key: what else a parsed header depends on, the compiler's version.
    """
    include = VECTORS.get(arch)
    count = Counter(flags for flags, text in units if include and f"#include <{include}>" in text)
    found: dict[Flags, Flags] = {}
    for flags in (flags for flags, n in count.items() if n >= WORTH_IT):
        try:
            found[flags] = ("-include-pch", str(_parsed(f"#include <{include}>\n", flags, key, compile)))
        except (BitgenError, OSError):
            continue  # the compiler has no such thing, or the cache cannot be written
    return found


def _parsed(text: str, flags: Flags, key: str, compile: Compile) -> Path:
    """The parsed header in the cache."""
    digest = hashlib.sha256(repr((key, flags, text)).encode()).hexdigest()[:32]
    folder = data.cache_root() / "headers" / digest
    parsed = folder / "vectors.pch"
    if not parsed.exists():
        folder.mkdir(parents=True, exist_ok=True)
        header = folder / "vectors.h"  # the compiler asks for it again
        with data.replacing(header) as part:
            part.write_text(text)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / "vectors.pch"
            compile([*flags, "-Xclang", "-fno-pch-timestamp", "-x", "c-header", str(header), "-o", str(made)], folder)
            made.replace(parsed)
    return parsed
