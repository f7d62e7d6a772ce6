"""Prompt caches on disk: what a session computed of its tokens, for a later session of the same model.

A file is a head, the tokens as int32, and the keys and values of one position after the other, as bg_session_save
gives them; then, of a model with Gated DeltaNet, the state after the last of them (bg_state_save), the number of an
earlier position as uint64, and, unless that is the last one too, the state there. The head says of which model, type of
cache and definition of the floats they are, and has a checksum of the whole file. So a file of another model is
refused, and one that is damaged too: it is read to its end before anything of it is used. A checksum is no signature:
whoever can write the file decides what the model continues.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bitgen import data
from bitgen.engine.opened import Ids
from bitgen.errors import EngineError, FormatError

MAGIC = b"BITGENKV"
VERSIONS = WITHOUT_STATE, WITH_STATE = 1, 2
HEAD = struct.Struct("<8sIIIIQ32s32s")
"""Magic, version, definition, type of cache, tokens, bytes of a position, the model's identity, checksum."""
CHECKSUM = 32
"""Bytes: BLAKE2b of the head with zeros in its place, then of all that follows."""
PIECE = 1 << 20
"""Bytes that are in memory at once; more where a position has more."""


@dataclass(frozen=True)
class Kind:
    """What a prompt cache and the session that reads it have in common."""

    model: bytes  # the identity of its packed file, [32]
    definition: int  # BG_DEFINITION
    cache: int  # of enum bg_cache
    position_bytes: int
    state_bytes: int = 0  # of a state behind the positions

    @property
    def version(self) -> int:
        """Of the file."""
        return WITH_STATE if self.state_bytes else WITHOUT_STATE

    @property
    def behind(self) -> tuple[int, ...]:
        """How many bytes may follow the positions."""
        return (self.state_bytes + 8, 2 * self.state_bytes + 8) if self.state_bytes else (0,)

    @property
    def at_once(self) -> int:
        """Positions of one piece."""
        return max(PIECE // self.position_bytes, 1)

    def head(self, tokens: int, checksum: bytes = bytes(CHECKSUM)) -> bytes:
        """The first bytes of a file with so many tokens."""
        return HEAD.pack(
            MAGIC, self.version, self.definition, self.cache, tokens, self.position_bytes, self.model, checksum
        )


def write(path: Path, kind: Kind, tokens: bytes, pieces: Iterable[bytes]) -> None:
    """Write a prompt cache of tokens, int32 [n], and their positions, in pieces. It appears whole or not at all."""
    head = kind.head(len(tokens) // 4)
    digest = hashlib.blake2b(head, digest_size=CHECKSUM)
    with data.replacing(path) as part, part.open("wb") as f:
        f.write(head)
        for piece in chain([tokens], pieces):
            digest.update(piece)
            f.write(piece)
        f.seek(0)
        f.write(kind.head(len(tokens) // 4, digest.digest()))


class PromptCache:
    """An open file, whose head and tokens are looked at; `pieces` reads the rest."""

    def __init__(self, path: Path, f: BinaryIO, kind: Kind, vocab: int, context: int) -> None:
        """FormatError: it is no prompt cache, or none for a session of this kind. EngineError: of too many tokens."""
        self._path, self._file, self._kind = path, f, kind
        head = f.read(HEAD.size)
        if len(head) < HEAD.size or not head.startswith(MAGIC):
            raise FormatError(f"{path}: is not a prompt cache of bitgen")
        _, version, definition, cache, count, position_bytes, model, self._checksum = HEAD.unpack(head)
        self._check_kind(version, Kind(model, definition, cache, position_bytes))
        if count > context:
            raise EngineError(f"{path}: holds {count} tokens, this session's context {context}")
        self._blank = kind.head(count)
        self.states: list[tuple[int, bytes]] = []  # positions and the states there, the last first, once all is read
        if os.fstat(f.fileno()).st_size - HEAD.size - count * (4 + position_bytes) not in kind.behind:
            raise FormatError(f"{path}: is damaged: it has not the size that its head says")
        self._tokens = f.read(4 * count)
        self.tokens: Ids = np.frombuffer(self._tokens, "<i4")
        if len(self.tokens) != count or (count and not 0 <= self.tokens.min() <= self.tokens.max() < vocab):
            raise FormatError(f"{path}: is damaged: it has tokens that the model has not")

    def _check_kind(self, version: int, found: Kind) -> None:
        mine, path = self._kind, self._path
        known = version == mine.version or (version in VERSIONS and found.model != mine.model)
        if not known or found.definition != mine.definition:
            raise FormatError(f"{path}: is a prompt cache of another version of bitgen; save it again")
        if found.model != mine.model:
            raise FormatError(
                f"{path}: is a prompt cache of another model, or of this one with other kernels or another head; "
                "save it again"
            )
        if found.cache != mine.cache:
            raise FormatError(f"{path}: has keys and values of another type (f16, f32 or int8) than this session")
        if found.position_bytes != mine.position_bytes:
            raise FormatError(f"{path}: is damaged: a position has {found.position_bytes} bytes")

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Numbers of positions, and their bytes. FormatError in the end where the checksum is another."""
        digest = hashlib.blake2b(self._blank + self._tokens, digest_size=CHECKSUM)
        self._file.seek(HEAD.size + len(self._tokens))
        left, size = len(self.tokens), self._kind.position_bytes
        while left:
            count = min(left, self._kind.at_once)
            piece = self._file.read(count * size)
            if len(piece) < count * size:
                break
            digest.update(piece)
            left -= count
            yield count, piece
        behind = self._file.read(max(self._kind.behind))
        digest.update(behind)
        if left or digest.digest() != self._checksum:
            raise FormatError(f"{self._path}: is damaged: its bytes are not those that were saved")
        self.states = self._states_of(behind)

    def _states_of(self, behind: bytes) -> list[tuple[int, bytes]]:
        """What follows the positions, taken apart."""
        size, last = self._kind.state_bytes, len(self.tokens)
        if not size:
            return []
        at, earlier = int.from_bytes(behind[size : size + 8], "little"), behind[size + 8 :]
        if at > last:
            raise FormatError(f"{self._path}: is damaged: it has a state of a position that it has not")
        return [(last, behind[:size]), *([(at, earlier)] if earlier else [])]


@contextmanager
def opened(path: Path, kind: Kind, vocab: int, context: int) -> Iterator[PromptCache]:
    """A prompt cache for a session of this kind and context; errors as of PromptCache. vocab: tokens of the model."""
    try:
        with data.regular(path).open("rb") as f:
            yield PromptCache(path, f, kind, vocab, context)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror or error}") from None
