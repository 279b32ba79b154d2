"""Sparse recovery: which few atoms explain the update's row space, far beyond its rank.

Source: rank-aware order-recursive matching pursuit (RA-ORMP), Davies and Eldar, IEEE Trans. Inf. Theory
58(2), 2012, section V, here for several dictionaries that share one support.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedpeft_attacks.tokens.blocks import Block, Vector
from fedpeft_attacks.work import Meter

_CLOSED = 1e-4
_SPENT = 1e-6


class _Residual:
    """What the chosen atoms leave of one block's row space.

    With P the projection away from the chosen atoms: ``space`` is the row space under P, ``basis`` the same
    brought back to orthonormal rows, ``overlap`` is atoms P basis' and ``left`` the squared length of each
    atom under P. A step is a few updates of rank one and one product with the dictionary.
    """

    def __init__(self, block: Block) -> None:
        self._atoms = block.unit_atoms
        self._chosen = np.zeros((0, self._atoms.shape[1]))
        self._space = block.row_space.copy()
        self._basis = self._space.copy()
        self._overlap = self._atoms @ self._basis.T
        self._left = np.einsum("ij,ij->i", self._atoms, self._atoms).astype(np.float64)
        self._rank = max(len(self._space), 1)

    @property
    def share(self) -> float:
        """Unexplained share of the row space, 1 at the start and 0 when all is explained."""
        return float((self._space**2).sum()) / self._rank

    def scores(self) -> Vector:
        """Squared cosine of each remaining atom with the remaining row space, shape ``(tokens,)``."""
        inside = np.einsum("vi,vi->v", self._overlap, self._overlap)
        return np.where(self._left > _SPENT, inside / np.maximum(self._left, _SPENT), 0.0)

    def remove(self, token: int) -> None:
        """Project everything away from this token's atom."""
        direction = self._direction(token)
        if direction is None:
            return
        along = self._atoms @ direction
        self._left -= along**2
        self._space -= np.outer(self._space @ direction, direction)
        self._chosen = np.vstack([self._chosen, direction])
        across = self._basis @ direction
        self._overlap -= np.outer(along, across)
        self._basis -= np.outer(across, direction)
        self._straighten(across)

    def _direction(self, token: int) -> Vector | None:
        """The atom under P, of length one; None where the chosen atoms already make it up."""
        direction = self._atoms[token].astype(np.float64)
        for _ in range(2):  # twice is enough for orthogonality
            direction = direction - self._chosen.T @ (self._chosen @ direction)
        length = np.linalg.norm(direction)
        return None if length**2 <= _SPENT else direction / length

    def _straighten(self, across: Vector) -> None:
        """Make the basis orthonormal again: its Gram matrix has become 1 - across across'."""
        length = np.linalg.norm(across)
        if length <= _CLOSED:
            return
        unit, shrunk = across / length, np.sqrt(max(1.0 - float(length) ** 2, 0.0))
        factor = 1.0 / shrunk - 1.0 if shrunk > _CLOSED else -1.0  # a direction that is used up is dropped
        self._overlap += factor * np.outer(self._overlap @ unit, unit)
        self._basis += factor * np.outer(unit, unit @ self._basis)


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


def matching_pursuit(blocks: Sequence[Block], tokens: int, meter: Meter | None = None) -> Pursuit:
    """Choose tokens one by one until the row spaces are explained or the assumed number is reached.

    Args:
        blocks: observations whose tokens are the same.
        tokens: the number of distinct tokens that the attacker assumes.
        meter: counts one step for each choice.
    """
    meter = meter or Meter()
    residuals = [_Residual(block) for block in blocks]
    first = _mean_scores(residuals)
    scores = first.copy()
    chosen: list[int] = []
    while len(chosen) < tokens and _unexplained(residuals) > _CLOSED**2 and meter.step():
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
