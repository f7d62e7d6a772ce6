"""Models of a given shape with random ternary or binary weights, for tuning and benchmarking without a download.

Everything follows from the seed and the tensor's name by the raw bits of one generator and integer arithmetic, so that
a seed gives the same file on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bitgen.checkpoints.checkpoint import ALL, Scale
from bitgen.checkpoints.tensors import SIGNS, is_ternary, part_of, sign_shapes, tensor_shapes, ternary_ends
from bitgen.errors import FormatError
from bitgen.spec import ModelShape
from bitgen.text.tokenizer import BYTE_ALPHABET

MINUS, ZERO, PLUS = 77, 107, 72
"""How many of 256 weights are -1, 0 and +1: 30, 42 and 28 %, about as in trained models."""

_CHUNK = 1 << 24
"""Floats that are generated at a time."""
_CODES = 1 << 19
"""Codes that are generated at a time: their bytes stay in the cache."""

LOGIT_SPREAD = 2.0
"""Standard deviation of the logits, about a trained model's."""

RANGES: dict[str, tuple[float, float]] = {"ssm_a": (-2.0, -0.05), "ssm_dt": (-4.0, -1.0)}
"""Vectors of layers with Gated DeltaNet -> least and greatest value: a state's heads forget within 2 to 1000 tokens."""
SPREADS = {"ssm_alpha": 0.5, "ssm_beta": 1.0}
"""Float matrices of those layers -> standard deviation of what they make of normed states."""

_NORMAL, _CONTROL = 1, 3
_SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>")


class SynthCheckpoint:
    """A Checkpoint of random weights. A tensor is generated when it is read."""

    def __init__(self, shape: ModelShape, seed: int = 0) -> None:
        self._shape, self._seed = shape, seed
        self._tensors = tensor_shapes(shape) | sign_shapes(shape)
        self._reading: dict[str, tuple[int, np.random.SFC64]] = {}  # name -> draws made, its generator after them

    @property
    def shape(self) -> ModelShape:
        """The shape it was made for."""
        return self._shape

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """A name and a byte-level vocabulary."""
        return {"general.name": self._shape.name, **vocabulary(self._shape.vocab)}

    def ternary(self, name: str) -> tuple[npt.NDArray[np.int8], Scale]:
        """Random codes int8 [M, K] and a scale that keeps the size of activations within a tenth.

        A row sums K products of which a fraction p is not 0, so the gain is scale * sqrt(p K). Where the shape has a
        group, scales float32 [M, K / group] that float16 holds, each 0.5 to 1.5 times that scale.
        """
        m, k = self._dims(name, 2)
        codes = np.empty(m * k, np.int8)
        bits = self._bits(name)
        for at in range(0, codes.size, _CODES):
            piece = codes[at : at + _CODES]
            self._draw_codes(_bytes(bits, piece.size), piece)
        usual = np.float32((self._filled * k) ** 0.5)
        if not self._shape.group:
            return codes.reshape(m, k), float(np.float32(0.9 + 0.2 * self._uniform(f"{name} scale")) / usual)
        groups = k // self._shape.group
        noise = _bytes(self._bits(f"{name} scale"), m * groups)[: m * groups].reshape(m, groups)
        scales = (np.float32(0.5) + noise.astype(np.float32) / np.float32(255)) / usual
        return codes.reshape(m, k), scales.astype(np.float16).astype(np.float32)

    def ternary_rows(self, name: str, rows: slice) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """Random codes int8 [n, hidden], and scales float32 [n, hidden / group] that float16 holds, each 0.5 to 1.5
        times the one that gives logits LOGIT_SPREAD."""
        (vocab, k), group = self._dims(name), self._shape.group
        start, stop, _ = rows.indices(vocab)
        n, groups = stop - start, k // group
        codes = np.empty((n, k), np.int8)
        self._draw_codes(self._noise(f"{name} codes", start * k // 2, n * k // 2).view(np.uint8), codes.reshape(-1))
        noise = self._noise(f"{name} scale", start * groups, n * groups).reshape(n, groups)
        usual = np.float32(LOGIT_SPREAD / (self._filled * k) ** 0.5)
        scales = (1 + noise.astype(np.float32) / np.float32(65536)) * usual
        return codes, scales.astype(np.float16).astype(np.float32)

    def dense(self, name: str, rows: slice = ALL) -> npt.NDArray[np.floating[Any]]:
        """Norms: float32 [n] in 1 ± 0.1. Embedding and head: rows of float16 [vocab, hidden], uniform around 0, or
        those of `ternary_rows`.

        Of Gated DeltaNet vectors of RANGES, float16 matrices for SPREADS, and a convolution [channels, taps] that keeps
        the size of its input; of a rotation signs, float32 [width].
        """
        dims, part = self._dims(name), part_of(name)
        start, stop, _ = rows.indices(dims[0])
        if name in ternary_ends(self._shape):
            codes, scales = self.ternary_rows(name, slice(start, stop))
            halves = np.repeat(scales, self._shape.group, axis=1).astype(np.float16)
            return np.multiply(codes, halves, dtype=np.float16)
        if name.startswith(SIGNS):
            odd = _bytes(self._bits(name), dims[0])[start:stop] & 1
            return 1 - 2 * odd.astype(np.float32)
        if len(dims) == 1:
            noise = _bytes(self._bits(name), 2 * dims[0]).view("<i2")[start:stop].astype(np.float32)
            if part not in RANGES:
                return (1 + noise / np.float32(327680)).astype(np.float32)
            low, high = RANGES[part]
            return (np.float32((low + high) / 2) + noise * np.float32((high - low) / 65536)).astype(np.float32)
        of_input = SPREADS.get(part, LOGIT_SPREAD) if part != "ssm_conv1d" else 1.0
        spread = np.float32(of_input * (3 / dims[1]) ** 0.5 / 32768)
        values = np.empty((stop - start) * dims[1], np.float16)
        for at in range(0, values.size, _CHUNK):
            piece = values[at : at + _CHUNK]
            piece[:] = self._noise(name, start * dims[1] + at, piece.size) * spread
        return values.reshape(-1, dims[1])

    @property
    def _filled(self) -> float:
        """The share of weights that are not 0."""
        return 1.0 if self._shape.binary else 1 - ZERO / 256

    def _draw_codes(self, noise: npt.NDArray[np.uint8], out: npt.NDArray[np.int8]) -> None:
        """Codes of random bytes: -1 below MINUS, +1 from MINUS + ZERO on; of binary weights half are each."""
        minus, plus = (128, 128) if self._shape.binary else (MINUS, MINUS + ZERO)
        np.subtract((noise >= plus).view(np.int8), (noise < minus).view(np.int8), out=out)

    def _dims(self, name: str, axes: int | None = None) -> tuple[int, ...]:
        if name not in self._tensors or (axes and not is_ternary(name)):
            raise FormatError(f"a synthetic {self._shape.name} has no such tensor: {name}")
        return self._tensors[name]

    def _bits(self, name: str) -> np.random.SFC64:
        digest = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        return np.random.SFC64(int.from_bytes(digest[:16], "little"))

    def _noise(self, name: str, start: int, count: int) -> npt.NDArray[np.int16]:
        """Elements `start` to `start + count` of a tensor's random int16, four to a draw.

        Reading on where the last call ended draws nothing twice.
        """
        first, last = start // 4, -(-(start + count) // 4)
        drawn, bits = self._reading.get(name, (1, None))
        if bits is None or drawn > first:
            drawn, bits = 0, self._bits(name)
        bits.random_raw(first - drawn, output=False)
        raw = _bytes(bits, 8 * (last - first)).view("<i2")
        self._reading[name] = last, bits
        return raw[start % 4 :][:count]

    def _uniform(self, name: str) -> float:
        """A number in [0, 1)."""
        return float(self._bits(name).random_raw() >> 11) / (1 << 53)


def vocabulary(size: int) -> dict[str, Any]:
    """GGUF tokenizer keys for `size` tokens: the 256 bytes, fillers, begin and end of text. There are no merges.

    A vocabulary that is too small for them holds as many of the bytes as fit, printable characters first.
    """
    fillers = size - len(BYTE_ALPHABET) - len(_SPECIALS)
    tokens = list(BYTE_ALPHABET)[:size]
    types = np.full(len(tokens), _NORMAL, np.int32)
    special: dict[str, Any] = {"tokenizer.ggml.add_bos_token": False}
    if fillers >= 0:
        tokens += [f"Ġ#{i}" for i in range(fillers)] + list(_SPECIALS)
        types = np.repeat(np.array([_NORMAL, _CONTROL], np.int32), [size - len(_SPECIALS), len(_SPECIALS)])
        special = {
            "tokenizer.ggml.bos_token_id": size - 2,
            "tokenizer.ggml.eos_token_id": size - 1,
            "tokenizer.ggml.add_bos_token": True,
        }
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [],
        **special,
    }


def _bytes(bits: np.random.SFC64, count: int) -> npt.NDArray[np.uint8]:
    """The next `count` random bytes, rounded up to whole 8-byte draws."""
    return bits.random_raw(-(-count // 8)).astype("<u8", copy=False).view(np.uint8)[:count]
