"""The Walsh-Hadamard rotation: its definition, its inverse, and that folding it into weights changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from bitgen.checkpoints.rotation import hadamard_matrix, regroup, rotate, rotate_back


@pytest.mark.parametrize("block", [4, 16, 1024])
def test_the_matrix_is_sylvesters(block: int) -> None:
    h, i = hadamard_matrix(block), np.arange(block)
    parity = np.array([[bin(a & b).count("1") % 2 for b in i[:64]] for a in i])
    assert np.array_equal(h[:, :64] * block**0.5, 1 - 2 * parity)
    assert np.array_equal(h, h.T) and np.allclose(h @ h, np.eye(block), atol=1e-6)


def test_rotation_and_its_inverse() -> None:
    rng = np.random.default_rng(0)
    x, signs = rng.normal(size=(3, 48)).astype(np.float32), rng.choice(np.array([-1, 1], np.float32), 48)
    y = rotate(x, 16, signs)
    want = [np.concatenate([hadamard_matrix(16) @ (signs * row)[at : at + 16] for at in (0, 16, 32)]) for row in x]
    assert y.dtype == np.float32 and np.allclose(y, want, atol=1e-6)
    assert np.allclose(rotate_back(y, 16, signs), x, atol=1e-6)
    assert np.allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-6)
    assert np.array_equal(rotate(x, 16, None), rotate(x, 16, np.ones(48, np.float32)))


def test_regrouping_value_heads() -> None:
    """Of 2 reps and 3 key heads: head 3 r + g goes to place 2 g + r."""
    x = np.arange(2 * 3 * 5, dtype=np.float32)[None]
    heads = regroup(x, 3, 5).reshape(6, 5)
    assert [int(head[0] // 5) for head in heads] == [0, 3, 1, 4, 2, 5]
    assert (np.diff(heads, axis=1) == 1).all()
