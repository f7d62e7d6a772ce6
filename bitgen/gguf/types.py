"""The tensor types of GGUF files: ids, names and sizes.

An id may stand for several types: bitnet.cpp's TL2 has the id of llama.cpp's MXFP4, Q2_0 has blocks of 64 or of 128
weights, and STQ1_0 has its id in some files. The container then takes the one whose sizes fill the room of the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bitgen.spec import round_up

ALIGNMENT = 32
"""Bytes; tensors begin at multiples of it, unless general.alignment says otherwise."""

F32, F16, Q8_0, Q6_K, BF16, TQ1_0, TQ2_0, I2_S, TL1, TL2, Q1_0, Q2_0 = 0, 1, 8, 14, 30, 34, 35, 36, 38, 39, 41, 42
STQ1_0, PQ2_0, PTQ1_0 = 43, 142, 143
IQ1_BN, IQ2_BN, IQ2_BN_R4 = 134, 135, 335
T5 = 0x62670005
"""bitgen's own type: 'bg' and a number, out of the way of those who count up from 0. Bytes: docs/formats.md."""

Size = Callable[[int, int], "int | None"]
"""(rows, columns) -> bytes of a tensor; None where its rows are not whole blocks, or too short for the type."""


def _blocks(weights: int, nbytes: int, row: int = 0, tail: int = 0, across_rows: bool = False) -> Size:
    """Blocks of `weights` weights in `nbytes` bytes; `row` bytes before each row, `tail` bytes after the last row."""

    def size(rows: int, columns: int) -> int | None:
        if (rows * columns if across_rows else columns) % weights:
            return None
        return rows * row + rows * columns // weights * nbytes + tail

    return size


def _tl2(spare: int = 0) -> Size:
    """What bitnet.cpp allots to TL2, by its formula with its truncations. One of its branches pads what is aligned."""

    def size(rows: int, columns: int) -> int | None:
        used = (columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
        aligned = used % ALIGNMENT == 0
        return None if columns < 256 else round_up(used, ALIGNMENT) + spare * aligned + 32

    return size


def _t5(rows: int, columns: int) -> int:
    """A byte for a column of five rows, and the float32 scale."""
    return round_up(rows, 5) // 5 * columns + 4


@dataclass(frozen=True)
class TensorType:
    """A name and a size: what the container has to know of a type."""

    name: str
    size: Size


TENSOR_TYPES: dict[int, tuple[TensorType, ...]] = {
    F32: (TensorType("F32", _blocks(1, 4)),),
    F16: (TensorType("F16", _blocks(1, 2)),),
    BF16: (TensorType("BF16", _blocks(1, 2)),),
    2: (TensorType("Q4_0", _blocks(32, 18)),),
    3: (TensorType("Q4_1", _blocks(32, 20)),),
    6: (TensorType("Q5_0", _blocks(32, 22)),),
    7: (TensorType("Q5_1", _blocks(32, 24)),),
    Q8_0: (TensorType("Q8_0", _blocks(32, 34)),),
    11: (TensorType("Q3_K", _blocks(256, 110)),),
    12: (TensorType("Q4_K", _blocks(256, 144)),),
    13: (TensorType("Q5_K", _blocks(256, 176)),),
    Q6_K: (TensorType("Q6_K", _blocks(256, 210)),),
    TQ1_0: (TensorType("TQ1_0", _blocks(256, 54)),),
    TQ2_0: (TensorType("TQ2_0", _blocks(256, 66)),),
    I2_S: (TensorType("I2_S", _blocks(4, 1, tail=32, across_rows=True)),),  # the tail: the scale and 28 filler bytes
    TL1: (TensorType("TL1", _blocks(4, 1, tail=32)),),
    TL2: (
        TensorType("TL2", _tl2()),
        TensorType("TL2", _tl2(spare=32)),
        TensorType("MXFP4", _blocks(32, 17)),  # of llama.cpp
    ),
    Q1_0: (TensorType("Q1_0", _blocks(128, 18)),),
    Q2_0: (
        TensorType("Q2_0", _blocks(64, 18)),
        TensorType("Q2_0_G128", _blocks(128, 34)),
        TensorType("STQ1_0", _blocks(256, 42)),
    ),
    STQ1_0: (TensorType("STQ1_0", _blocks(256, 42)),),
    PQ2_0: (TensorType("PQ2_0", _blocks(128, 34)),),
    PTQ1_0: (TensorType("PTQ1_0", _blocks(128, 28)),),
    IQ1_BN: (TensorType("IQ1_BN", _blocks(64, 13, row=2)),),
    IQ2_BN: (TensorType("IQ2_BN", _blocks(64, 16, row=4)),),
    IQ2_BN_R4: (TensorType("IQ2_BN_R4", _blocks(64, 16, row=4)),),
    T5: (TensorType("T5", _t5),),
}
"""Type id -> the types that it stands for."""

CONTESTED = (STQ1_0, PQ2_0, PTQ1_0)
"""Ids of one known type by which other engines have meant, or may mean, another: its sizes must fill the room."""

OTHER_NAMES: dict[int, str] = {
    10: "Q2_K", 15: "Q8_K", 20: "IQ4_NL", 23: "IQ4_XS", 28: "F64", 37: "I8_S", 40: "NVFP4",
}  # fmt: skip
"""Type id -> name, of types whose size is not known here."""


def type_name(type: int) -> str:
    """The name of a tensor type id, known or not; "TL2 or MXFP4" where the id does not tell."""
    names = dict.fromkeys(known.name for known in TENSOR_TYPES.get(type, ()))
    return " or ".join(names) or OTHER_NAMES.get(type, f"type {type}")


def tensor_bytes(type: int, shape: tuple[int, ...], variant: int = 0) -> int | None:
    """Bytes of a tensor [rows, ..., columns] of a type id; None where they are not known or the rows do not fit it.

    variant: which of the id's types.
    """
    size = TENSOR_TYPES[type][variant].size if type in TENSOR_TYPES else None
    return size(math.prod(shape[:-1]), shape[-1]) if size else None
