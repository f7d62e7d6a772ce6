"""The checksum of a packed model: whether its bytes are those that were written.

It is in the header (`bg_header` of runtime/core/model.h) and consists of two hashes of 16 bytes. The first is of all
that follows the header, then of the header with zeros for its checksum. The second is of that header and of samples
spread over what follows: it is compared at every start, when reading all of a model would cost more than loading it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from bitgen.errors import FormatError
from bitgen.headers import capacity, constants, declared

SAMPLES, SAMPLE = 64, 16 << 10  # pieces, and the bytes of each
HALF = 16  # bytes of a hash
PIECE = 1 << 20  # bytes read at once


def new() -> hashlib.blake2b:
    """The hash to which a writer gives all bytes behind the header."""
    return hashlib.blake2b(digest_size=HALF)


def finish(f: BinaryIO, header: bytes, digest: hashlib.blake2b) -> None:
    """Write the header of a file that is complete but for it; its checksum is zero, and becomes what it is."""
    digest.update(header)
    sums, at = digest.digest() + _of_samples(f, header), _place()
    f.seek(0)
    f.write(header[: at.start] + sums + header[at.stop :])


def check(path: Path, *, whole: bool = True) -> None:
    """FormatError unless a packed model is as it was written.

    whole: all of its bytes are compared; otherwise its header and a MiB of samples.
    """
    with path.open("rb", buffering=0) as f:
        header, at = f.read(constants("core/model.h", "bg_packed")["PACKED_HEADER"]), _place()
        blank, sums = header[: at.start] + bytes(2 * HALF) + header[at.stop :], header[at]
        if _of_samples(f, blank) != sums[HALF:] or (whole and _of_all(f, blank) != sums[:HALF]):
            raise FormatError(f"{path} is damaged: its bytes are not those that were written")


def identity(path: Path) -> bytes:
    """The checksum that a packed model carries: others have others."""
    with path.open("rb", buffering=0) as f:
        return f.read(constants("core/model.h", "bg_packed")["PACKED_HEADER"])[_place()]


def is_sound(path: Path, *, whole: bool = False) -> bool:
    """Whether there is a packed model that passes `check`."""
    try:
        check(path, whole=whole)
    except (OSError, FormatError):
        return False
    return True


def _place() -> slice:
    """Where the header has its checksum."""
    start = declared("core/model.h").offsetof("bg_header", "checksum")
    return slice(start, start + capacity("core/model.h", "bg_header", "checksum"))


def _of_samples(f: BinaryIO, header: bytes) -> bytes:
    """Hash of a header and of samples of the file behind it, the first of which begins there and the last ends it."""
    digest, last = new(), max(f.seek(0, os.SEEK_END) - SAMPLE, len(header))
    digest.update(header)
    for i in range(SAMPLES):
        f.seek(len(header) + (last - len(header)) * i // (SAMPLES - 1))
        digest.update(f.read(SAMPLE))
    return digest.digest()


def _of_all(f: BinaryIO, header: bytes) -> bytes:
    """Hash of all bytes behind a header, then of the header."""
    digest = new()
    f.seek(len(header))
    while piece := f.read(PIECE):
        digest.update(piece)
    digest.update(header)
    return digest.digest()
