"""Sparse recovery: which few atoms explain the update's row space, far beyond its rank.

Source: rank-aware order-recursive matching pursuit (RA-ORMP), Davies and Eldar, IEEE Trans. Inf. Theory
58(2), 2012, section V, here for several dictionaries that share one support.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedpeft_attacks.blocks import Block, Matrix, Vector

_CLOSED = 1e-4
_SPENT = 1e-6


class _Residual:
    """What the chosen atoms leave of one block's row space, kept in row-space coordinates.

    With P the projection away from the chosen atoms: ``space`` is Q P, ``overlap`` is atoms P Q' and ``left``
    is the squared length of each atom under P. A step costs one product with the dictionary.
    """

    def __init__(self, block: Block) -> None:
        self._atoms = block.unit_atoms
        self._chosen = np.zeros((0, self._atoms.shape[1]))
        self._space = block.row_space.copy()
        self._overlap = self._atoms @ self._space.T
        self._left = np.einsum("ij,ij->i", self._atoms, self._atoms).astype(np.float64)
        self._rank = max(len(self._space), 1)

    @property
    def share(self) -> float:
        """Unexplained share of the row space, 1 at the start and 0 when all is explained."""
        return float((self._space**2).sum()) / self._rank

    def scores(self) -> Vector:
        """Squared cosine of each remaining atom with the remaining row space, shape ``(tokens,)``."""
        whitening = _pseudo_inverse(self._space @ self._space.T)
        inside = np.einsum("vi,vi->v", self._overlap @ whitening, self._overlap)
        return np.where(self._left > _SPENT, inside / np.maximum(self._left, _SPENT), 0.0)

    def remove(self, token: int) -> None:
        """Project everything away from this token's atom."""
        direction = self._atoms[token].astype(np.float64)
        for _ in range(2):  # twice is enough for orthogonality
            direction = direction - self._chosen.T @ (self._chosen @ direction)
        length = np.linalg.norm(direction)
        if length**2 <= _SPENT:
            return
        direction /= length
        along, across = self._atoms @ direction, self._space @ direction
        self._overlap -= np.outer(along, across)
        self._left -= along**2
        self._space -= np.outer(across, direction)
        self._chosen = np.vstack([self._chosen, direction])


def _pseudo_inverse(gram: Matrix) -> Matrix:
    if not gram.size:
        return gram
    values, vectors = np.linalg.eigh(gram)
    keep = values > _CLOSED**2
    return (vectors[:, keep] / values[keep]) @ vectors[:, keep].T


@dataclass(frozen=True)
class Pursuit:
    """What a pursuit found.

    Attributes:
        chosen: token ids in the order in which they were chosen.
        ranking: the chosen tokens, then all others by their first score.
        unexplained: share of the row spaces that the chosen tokens leave, 0 when they explain all.
    """

    chosen: list[int]
    ranking: list[int]
    unexplained: float


def matching_pursuit(blocks: Sequence[Block], tokens: int) -> Pursuit:
    """Choose tokens one by one until the row spaces are explained or the assumed number is reached.

    Args:
        blocks: observations whose tokens are the same.
        tokens: the number of distinct tokens that the attacker assumes.
    """
    residuals = [_Residual(block) for block in blocks]
    first = _mean_scores(residuals)
    scores = first.copy()
    chosen: list[int] = []
    while len(chosen) < tokens and _unexplained(residuals) > _CLOSED**2:
        scores[chosen] = -1.0
        token = int(scores.argmax())
        if scores[token] <= 0.0:
            break
        chosen.append(token)
        for residual in residuals:
            residual.remove(token)
        scores = _mean_scores(residuals)
    taken = set(chosen)
    rest = [int(token) for token in np.argsort(-first, kind="stable")]
    ranking = chosen + [token for token in rest if token not in taken]
    return Pursuit(chosen, ranking, _unexplained(residuals))


def _mean_scores(residuals: Sequence[_Residual]) -> Vector:
    return np.mean([residual.scores() for residual in residuals], axis=0)


def _unexplained(residuals: Sequence[_Residual]) -> float:
    return max(residual.share for residual in residuals)
