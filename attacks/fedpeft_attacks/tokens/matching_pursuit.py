"""Sparse recovery: which few atoms explain the update's row space, far beyond its rank.

Source: rank-aware order-recursive matching pursuit (RA-ORMP), Davies and Eldar, IEEE Trans. Inf. Theory
58(2), 2012, section V, here for several dictionaries that share one support.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedpeft_attacks.tokens.blocks import Block, Matrix, Vector, unit_rows
from fedpeft_attacks.work import Meter

_CLOSED = 1e-4
_SPENT = 1e-5  # squared length that rounding leaves of an atom which the chosen ones make up
_TINY = 1e-30


class _Residual:
    """What the chosen atoms leave of one block's row space.

    With P the projection away from the chosen atoms, a token's score is the squared cosine of its atom under
    P with the row space under P. What of it lies in the span of both, less what lies in that of the chosen
    alone, is that cosine times the atom's remaining squared length; a choice adds at most one direction to
    each span. So a step is one product of the dictionary with two directions, and needs no memory but two
    numbers a token.
    """

    def __init__(self, block: Block) -> None:
        self._block = block
        self._space = block.row_space.copy()
        self._chosen = np.zeros((0, block.width))
        self._joint = block.row_space
        self._inside = block.insides(self._joint)
        self._left = (block.lengths > 0).astype(np.float64)
        self._rank = max(len(self._space), 1)

    @property
    def share(self) -> float:
        """Unexplained share of the row space, 1 at the start and 0 when all is explained."""
        return float((self._space**2).sum()) / self._rank

    def scores(self) -> Vector:
        """Squared cosine of each remaining atom with the remaining row space, shape ``(tokens,)``."""
        scores = self._inside / np.maximum(self._left, _SPENT)
        return np.where(self._left > _SPENT, np.maximum(scores, 0.0), 0.0)

    def remove(self, token: int) -> None:
        """Project everything away from this token's atom."""
        atom = unit_rows(self._block.atoms[token : token + 1].astype(np.float64))[0]
        direction, left = _beyond(atom, self._chosen)
        if left**2 <= _SPENT:
            return
        beyond, news = _beyond(atom, self._joint)
        widens = news > _CLOSED * left  # else the row space has it already, and loses a dimension
        along = self._block.cosines(np.stack([direction, beyond][: 1 + widens])).astype(np.float64) ** 2
        self._left -= along[:, 0]
        self._inside -= along[:, 0]
        if widens:
            self._inside += along[:, 1]
            self._joint = np.vstack([self._joint, beyond])
        self._space -= np.outer(self._space @ direction, direction)
        self._chosen = np.vstack([self._chosen, direction])


def _beyond(atom: Vector, basis: Matrix) -> tuple[Vector, float]:
    """The part of an atom outside of a space, as a direction and a length."""
    part = atom
    for _ in range(2):  # twice is enough for orthogonality
        part = part - basis.T @ (basis @ part)
    length = float(np.linalg.norm(part))
    return part / max(length, _TINY), length


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
