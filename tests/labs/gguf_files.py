"""GGUF files made to order, for the tests of what reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitgen.checkpoints import synth
from bitgen.gguf import container, types
from bitgen.gguf.metadata import key_values
from bitgen.gguf.writer import FILE_TYPES, payload, tensor_table
from bitgen.spec import DeltaShape, Hadamard, ModelShape

TINY = ModelShape(
    name="tiny", architecture="bitnet-b1.58", hidden=256, intermediate=512, layers=2,
    heads=4, kv_heads=2, head_dim=64, vocab=300, context=64, rope_theta=10000.0, norm_eps=1e-5,
    activation="relu2", sub_norms=True, tied=True,
)  # fmt: skip
TINY_LLAMA = dataclasses.replace(
    TINY, architecture="llama", activation="silu", sub_norms=False, tied=False, rope_interleaved=True
)
SMALLEST = dataclasses.replace(TINY, hidden=64, intermediate=64, layers=1, heads=2, kv_heads=1, head_dim=32, vocab=40)

SHAPES = {"bitnet-b1.58": TINY, "llama": TINY_LLAMA}
SHAPES["bitnet"] = dataclasses.replace(TINY, architecture="bitnet", activation="silu")
SHAPES["odd heads"] = dataclasses.replace(TINY, head_dim=128)
SHAPES["qwen3"] = dataclasses.replace(TINY_LLAMA, architecture="qwen3", rope_interleaved=False, qk_norm=True)
SHAPES["qwen3 inputs"] = dataclasses.replace(SHAPES["qwen3"], input_norms=True, tied=True)
SHAPES["gemma3"] = dataclasses.replace(
    SHAPES["qwen3"], architecture="gemma3", activation="gelu_tanh", post_norms=True, embedding_scale=16.0, tied=True
)
SHAPES["gemma3 inputs"] = dataclasses.replace(
    SHAPES["gemma3"], input_norms=True, attention_scale=0.1, window=7, window_period=2, window_theta=500.0
)
SHAPES["hunyuan"] = dataclasses.replace(
    SHAPES["qwen3"], architecture="hunyuan-dense", qk_norm_after_rope=True, rope_theta=11158840.0, tied=True
)
SHAPES["minicpm"] = dataclasses.replace(
    TINY_LLAMA, architecture="minicpm", embedding_scale=12.0, residual_scale=0.24748737, logit_divisor=16.0
)
SHAPES["qwen35"] = dataclasses.replace(
    SHAPES["qwen3"], architecture="qwen35", layers=4, attention_gate=True, rope_dims=16, rope_theta=1e7, norm_eps=1e-6,
    delta=DeltaShape(period=4, key_heads=2, value_heads=4, key_dim=32, value_dim=64, taps=4),
)  # fmt: skip
SHAPES["qwen35 rotated"] = dataclasses.replace(SHAPES["qwen35"], hadamard=Hadamard(64, signed=True, regrouped=True))
SHAPES["qwen35 rotated without signs"] = dataclasses.replace(
    SHAPES["qwen35"], tied=True, hadamard=Hadamard(256, signed=False, regrouped=False)
)
"""A shape of every kind of model, by what is special about it."""

Q = "blk.0.attn_q.weight"

Stored = tuple[tuple[int, ...], int, bytes]
"""Shape (rows first), type id, bytes."""


def contents(shape: ModelShape = TINY, type: str = "i2_s") -> tuple[dict[str, Any], dict[str, Stored]]:
    """Metadata and tensors as bitgen writes them, to be changed and then stored."""
    checkpoint = synth.SynthCheckpoint(shape, seed=1)
    tensors: dict[str, Stored] = {}
    scales: dict[str, float] = {}
    for entry in tensor_table(shape, type):
        data = b"".join(piece.tobytes() for piece in payload(checkpoint, entry, scales))
        tensors[entry.name] = (entry.shape, entry.type, data)
    return key_values(checkpoint, FILE_TYPES[type].file_type), tensors


def store(path: Path, metadata: dict[str, Any], tensors: dict[str, Stored], alignment: int = 32) -> Path:
    """Write a file whose tensors need not make sense; only their offsets do."""
    if alignment != 32:
        metadata = metadata | {"general.alignment": alignment}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(container, "ALIGNMENT", alignment)
        sized = [_Sized(name, shape, type, len(data)) for name, (shape, type, data) in tensors.items()]
        raw = container.head(metadata, sized)  # type: ignore[arg-type]
        for _, _, data in tensors.values():
            raw += data.ljust(container.aligned(len(data)), b"\0")
    path.write_bytes(raw)
    return path


def changed(path: Path, change: Callable[[dict[str, Any], dict[str, Stored]], None], **of: Any) -> Path:
    """A file with `change` applied to its metadata and tensors."""
    metadata, tensors = contents(**of)
    change(metadata, tensors)
    return store(path, metadata, tensors)


def floats(values: np.ndarray, type: int) -> Stored:
    """A float tensor in one of the three float types."""
    if type == types.BF16:
        data = (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    else:
        data = values.astype("<f4" if type == types.F32 else "<f2")
    return values.shape, type, data.tobytes()


@dataclasses.dataclass
class _Sized:
    """An Entry whose size is what it is, whatever its type says."""

    name: str
    shape: tuple[int, ...]
    type: int
    nbytes: int


def spoil(name: str, at: slice, data: bytes):
    """A change of some bytes of a tensor."""

    def change(metadata: dict, tensors: dict) -> None:
        shape, type, old = tensors[name]
        new = bytearray(old)
        new[at] = data
        tensors[name] = (shape, type, bytes(new))

    return change
