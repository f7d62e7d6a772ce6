"""How many columns of a row share a scale in a file, and whether its weights are binary, as its matrices show."""

from __future__ import annotations

from itertools import islice

import numpy as np
import numpy.typing as npt

from bitgen.checkpoints.groups import coarsest_group, has_several
from bitgen.checkpoints.tensors import MATRICES, is_beyond, is_ternary
from bitgen.errors import FormatError, UnsupportedError
from bitgen.gguf.blocks import Scaled
from bitgen.gguf.container import Container
from bitgen.gguf.file import Tensor
from bitgen.gguf.tensors import TERNARY, VECTORS, Reading

SCALED_BLOCKS: dict[str, tuple[int, int, int]] = {
    "Q1_0": (128, 18, 0),
    "Q2_0": (64, 18, 0),
    "Q2_0_G128": (128, 34, 0),
    "PQ2_0": (128, 34, 0),
    "PTQ1_0": (128, 28, 26),
    "TQ1_0": (256, 54, 52),
    "TQ2_0": (256, 66, 64),
    "STQ1_0": (256, 42, 40),
}
"""Type name -> weights and bytes of a block, and where its float16 scale begins."""

ENDS = ("token_embd.weight", "output.weight")
FIRST_LAYER = tuple(f"blk.0.{matrix}.weight" for matrix in MATRICES)

SAMPLE_ROWS = 64
"""Rows of a matrix of floats that show whether it has several scales. Else it is refused when it is read."""


def scale_group(container: Container, reading: Reading, layers: int) -> int:
    """Columns of a row that share a scale, by the matrix that has the most scales; 0 where each matrix has one.

    layers: how many are read; matrices of others do not count.

    0 also where the file is not complete, since no weights are read then.

    Of types with scales in their blocks all matrices count. Of floats, whose weights must be read for it, the first
    rows of those of the first layer do.
    FormatError, UnsupportedError: a matrix that was read for it is not ternary; both name the file and the tensor.
    """
    return _Groups(container, reading, layers).finest() if container.complete else 0


def has_groups(tensor: Tensor | None, group: int) -> bool:
    """Whether an embedding or head is of a ternary type whose blocks have scales for whole groups of a model."""
    return tensor is not None and group > 0 and SCALED_BLOCKS.get(tensor.type_name, (1,))[0] % group == 0


def is_binary(container: Container, group: int, layers: int) -> bool:
    """Whether the weights of every ternary matrix are -1 and +1 alone, since its type, Q1_0, has no 0.

    A block whose scale is 0 holds zeros. A model with groups may have such; in one with one scale for each matrix they
    are weights of a third value. Where the file is not complete, the types decide. An embedding and a head with such
    groups are multiplied as the matrices are, and count.
    """
    ends = (container.tensors.get(name) for name in ENDS)
    matrices = _matrices(container, layers) + [t for t in ends if t is not None and has_groups(t, group)]
    if not matrices or any(t.type_name != "Q1_0" for t in matrices):
        return False
    return bool(group) or not container.complete or all(_scales(t, container).all() for t in matrices)


def _matrices(container: Container, layers: int) -> list[Tensor]:
    matrices = (t for t in container.tensors.values() if is_ternary(t.name) and len(t.shape) == 2)
    return [t for t in matrices if not is_beyond(t.name, layers)]


class _Groups:
    """The ternary matrices of a file, and the scales that each has."""

    def __init__(self, container: Container, reading: Reading, layers: int) -> None:
        self.container, self.reading = container, reading
        self.matrices = _matrices(container, layers)

    def finest(self) -> int:
        blocks = sorted((t for t in self.matrices if t.type_name in SCALED_BLOCKS), key=self._block)
        groups = [self._block(t) for t in islice(filter(self._has_several, blocks), 1)]
        first = [t for t in self.matrices if t.name in FIRST_LAYER]
        floats = [t for t in first if t.type_name in VECTORS and self._has_several(t)]
        return min(groups + [self._of_floats(t, {t.shape[1] for t in first}) for t in floats], default=0)

    def _block(self, tensor: Tensor) -> int:
        return SCALED_BLOCKS[tensor.type_name][0]

    def _has_several(self, tensor: Tensor) -> bool:
        """Whether a matrix has more than one scale. Its weights are read only where the scales of blocks differ."""
        if tensor.type_name in SCALED_BLOCKS and not blocks_differ(tensor, self.container):
            return False
        return has_several(*self._scaled(tensor))

    def _of_floats(self, tensor: Tensor, widths: set[int]) -> int:
        codes, scales = self._scaled(tensor)
        try:
            return coarsest_group(codes, scales, widths)
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.container.path}: tensor {tensor.name}: {error}") from None

    def _scaled(self, tensor: Tensor) -> Scaled:
        """Codes and scales of a matrix; of floats those of its first rows."""
        m, k = tensor.shape
        rows = min(m, SAMPLE_ROWS) if tensor.type_name in VECTORS else m
        raw = self.container.bytes_of(tensor)
        try:
            with np.errstate(invalid="ignore", over="ignore"):
                return TERNARY[tensor.type_name](raw[: len(raw) // m * rows], rows, k, self.reading)
        except (FormatError, UnsupportedError) as error:
            raise type(error)(f"{self.container.path}: tensor {tensor.name}: {error}") from None


def blocks_differ(tensor: Tensor, container: Container) -> bool:
    """Whether blocks of a tensor of SCALED_BLOCKS have different scales, of either sign, other than 0."""
    scales = np.abs(_scales(tensor, container))
    used = scales[scales > 0]
    return bool(used.size and used.min() != used.max())


def _scales(tensor: Tensor, container: Container) -> npt.NDArray[np.float16]:
    """The scale of every block of a tensor of SCALED_BLOCKS."""
    _, nbytes, at = SCALED_BLOCKS[tensor.type_name]
    scales: npt.NDArray[np.float16] = container.bytes_of(tensor).reshape(-1, nbytes)[:, at : at + 2].copy().view("<f2")
    return scales
