"""The tiles of bitnet.cpp's TL1 and TL2 tensors, which were chosen when a file was made and are not written in it.

A tile is (BM, BK, rows of a SIMD step), as pack_tl1 and pack_tl2 of kernels/layout.py take them. The table holds what
bitnet.cpp's own scripts choose for the models that they know; for any other shape the user names the tile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bitgen.errors import BitgenError, UnsupportedError

Tile = tuple[int, int, int]
Tiles = Mapping[tuple[int, int], Tile]
"""(M, K) -> tile."""

SCRIPTS: dict[str, dict[tuple[int, int], tuple[Tile, ...]]] = {
    "TL1": {
        # bitnet_b1_58-large, -3B
        (1536, 4096): ((256, 128, 32),),
        (1536, 1536): ((128, 64, 64),),
        (4096, 1536): ((256, 128, 32),),
        (3200, 8640): ((160, 64, 32),),
        (3200, 3200): ((320, 128, 64),),
        (8640, 3200): ((320, 64, 32),),
        # Llama3-8B-1.58: the preset kernels', then setup_env.py's
        (14336, 4096): ((256, 128, 64), (256, 128, 32)),
        (4096, 14336): ((256, 128, 32), (128, 64, 64)),
        (1024, 4096): ((128, 64, 64), (256, 128, 32)),
        (4096, 4096): ((128, 64, 32), (128, 64, 64)),
    },
    "TL2": {
        (1536, 4096): ((256, 96, 32),),
        (1536, 1536): ((128, 192, 32),),
        (4096, 1536): ((256, 96, 32),),
        (3200, 8640): ((160, 96, 32),),
        (3200, 3200): ((320, 96, 32),),
        (8640, 3200): ((320, 96, 32),),
        (14336, 4096): ((256, 96, 32),),
        (4096, 14336): ((128, 96, 32),),
        (1024, 4096): ((256, 96, 32),),
        (4096, 4096): ((128, 96, 32),),
    },
}
"""Type name -> (M, K) -> the tiles in use: several where bitnet.cpp's scripts contradict each other."""


def parse_tiles(text: str) -> dict[tuple[int, int], Tile]:
    """ "3200x8640=160/64/32,..." (M x K = BM / BK / rows of a step, 32 where left out) as a mapping."""
    tiles: dict[tuple[int, int], Tile] = {}
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"\s*(\d{1,7})x(\d{1,7})=(\d{1,6})/(\d{1,6})(?:/(\d{1,3}))?\s*", part)
        numbers = [int(n or 32) for n in match.groups()] if match else [0]
        if not all(numbers):
            raise BitgenError(f"TL tiles {part!r}: expected MxK=BM/BK/bm, like 3200x8640=160/64/32")
        m, k, bm, bk, rows = numbers
        tiles[m, k] = (bm, bk, rows)
    return tiles


def tile_of(type: str, m: int, k: int, given: Tiles) -> Tile:
    """The tile of a TL1 or TL2 tensor: the given one, else the only known one; UnsupportedError says what to pass."""
    known = SCRIPTS[type].get((m, k), ())
    if (m, k) in given:
        return given[m, k]
    if len(known) == 1:
        return known[0]
    options = " or ".join(f"--tl-tiles {m}x{k}=" + "/".join(map(str, tile)) for tile in known)
    example = options or f"--tl-tiles {m}x{k}=BM/BK/bm with the numbers of the kernel_config.ini it was made with"
    raise UnsupportedError(f"the file does not say the tiles of its {type} tensors of {m} x {k}: pass {example}")
