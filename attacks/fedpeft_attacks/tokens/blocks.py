"""What an update shows of the tokens behind it: observed rows beside the atoms they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.floating]
Vector = NDArray[np.floating]

_FLOAT32_NOISE = 2e-7
_MANY = 64
_AT_ONCE = 128  # directions whose products with a whole vocabulary are in memory together
_TINY = 1e-30


@dataclass(frozen=True)
class Block:
    """Rows that are combinations of a few atoms out of a known dictionary.

    Attributes:
        rows: shape ``(rows, width)``; each row is a sum of the atoms of the tokens in the batch.
        atoms: shape ``(tokens, width)``; the atom of each token of the vocabulary, any length.
    """

    rows: Matrix
    atoms: Matrix

    @cached_property
    def lengths(self) -> Vector:
        """Length of each atom, shape ``(tokens,)``, in the atoms' dtype."""
        return np.sqrt(np.einsum("vi,vi->v", self.atoms, self.atoms))

    def cosines(self, directions: Matrix) -> Matrix:
        """Of each atom with directions of length one, shape ``(tokens, directions)``; 0 for a zero atom.

        The atoms are never copied: a real vocabulary's take a gigabyte.
        """
        along = self.atoms @ directions.T.astype(self.atoms.dtype)
        np.divide(along, self.lengths[:, None], out=along, where=self.lengths[:, None] > _TINY)
        return along

    def insides(self, basis: Matrix) -> Vector:
        """Squared cosine of each atom with a space, float64, shape ``(tokens,)``.

        Args:
            basis: orthonormal, shape ``(rank, width)``; of other rows the squared products are summed.
        """
        total = np.zeros(len(self.atoms))
        for start in range(0, len(basis), _AT_ONCE):
            along = self.cosines(basis[start : start + _AT_ONCE])
            total += np.einsum("vr,vr->v", along, along)
        return total

    @cached_property
    def row_space(self) -> Matrix:
        """Orthonormal basis of the span of the rows, shape ``(rank, width)``, float64."""
        return row_space(self.rows)

    @property
    def width(self) -> int:
        """Number of coordinates of a row."""
        return self.rows.shape[1]

    @property
    def is_full(self) -> bool:
        """Whether the rows span the whole space, so that their span tells no token from another."""
        return len(self.row_space) == self.width


def unit_rows(matrix: Matrix) -> Matrix:
    """Scale each row to length one; rows of zeros stay zero."""
    lengths = np.sqrt(np.einsum("ij,ij->i", matrix, matrix))[:, None]
    return np.divide(matrix, lengths, out=np.zeros_like(matrix), where=lengths > _TINY)


def row_space(rows: Matrix) -> Matrix:
    """Orthonormal basis of the span of float32 rows, shape ``(rank, width)``.

    Rows are brought to length one first, so that a module with small gradients counts as much as one with
    large ones. Directions below the rounding noise of float32 do not count to the rank.
    """
    scaled = unit_rows(np.asarray(rows, np.float64))
    scaled = scaled[np.any(scaled != 0, axis=1)]
    if not len(scaled):
        return np.zeros((0, rows.shape[1]))
    noise = max(scaled.shape) * _FLOAT32_NOISE
    if len(scaled) >= _MANY:  # few tokens: half of the rows already span what the others do
        half = scaled[::2]
        basis = _basis(half, noise)
        if len(basis) < len(half) and np.linalg.norm(scaled - (scaled @ basis.T) @ basis) <= noise:
            return basis
    return _basis(scaled, noise)


def _basis(rows: Matrix, noise: float) -> Matrix:
    """Right singular vectors whose values exceed the noise, relative to the largest."""
    if 2 * len(rows) > rows.shape[1]:  # the Gram matrix is several times faster and exact enough for float32
        powers, vectors = np.linalg.eigh(rows.T @ rows)
        strengths, basis = np.sqrt(np.clip(powers[::-1], 0.0, None)), vectors[:, ::-1].T
    else:
        _, strengths, basis = np.linalg.svd(rows, full_matrices=False)
    return basis[strengths > strengths[0] * noise]


def energies(blocks: Sequence[Block]) -> Vector:
    """Share of each atom's direction in the observed energy, mean over blocks, shape ``(tokens,)``.

    It ranks tokens where the row space is full and says nothing.
    """
    total = np.zeros(len(blocks[0].atoms))
    for block in blocks:
        rows = unit_rows(np.asarray(block.rows, np.float64))
        total += block.insides(root(rows)) / max(float((rows**2).sum()), _TINY)
    return total / len(blocks)


def root(rows: Matrix) -> Matrix:
    """At most as many rows as a row is wide, with the same second moment."""
    if len(rows) <= rows.shape[1]:
        return rows
    powers, vectors = np.linalg.eigh(rows.T @ rows)
    return np.sqrt(np.clip(powers, 0.0, None))[:, None] * vectors.T
