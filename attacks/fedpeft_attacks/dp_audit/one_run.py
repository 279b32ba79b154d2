"""Lower bounds of epsilon from one run with many canaries, each of which was in or out by a coin.

The auditor guesses some coins, and abstains on the rest. How often a private mechanism lets him be right is
bounded, whatever ties the canaries together: Steinke, Nasr and Jagielski 2023 (arXiv:2305.08846) for
(epsilon, delta), Mahloujifar, Melis and Chaudhuri 2024 (arXiv:2410.22235) for a whole trade-off curve.
How many guesses are made must not depend on the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from fedpeft.errors import AuditError
from fedpeft_attacks.dp_audit.gaussian import epsilon_of

MAX_SEPARATION, MAX_EPSILON = 40.0, 200.0
HALVINGS = 40


@dataclass(frozen=True)
class Guesses:
    """What the auditor guessed.

    Attributes:
        canaries: number of coins.
        made: guesses; on all others he abstains.
        correct: guesses that hit.

    Raises:
        AuditError: more hits than guesses, or more guesses than canaries.
    """

    canaries: int
    made: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.made <= self.canaries or self.made < 1:
            raise AuditError(f"{self} needs 0 <= correct <= made <= canaries and a guess; check the scores")


Refutes = Callable[[Guesses, float, float, float], bool]
"""``(guesses, parameter, delta, risk)``: whether a claim is refuted, wrongly with probability ``risk``."""


class Bound(Protocol):
    """``bound(guesses, delta, confidence)``: a lower bound of epsilon."""

    def __call__(self, guesses: Guesses, delta: float, confidence: float = 0.95) -> float:
        """The bound, 0 where nothing is shown."""
        ...


def guess(scores: NDArray[np.floating], members: NDArray[np.bool_], made: int) -> Guesses:
    """Take the ``made // 2`` highest scores for members and as many lowest for others.

    Args:
        scores: the higher, the likelier a member, shape ``(m,)``.
        members: the coins, shape ``(m,)``.
        made: number of guesses, even, fixed without looking at the scores.

    Raises:
        AuditError: scores and coins do not fit, or are not finite.
    """
    if scores.shape != members.shape or scores.ndim != 1 or not np.isfinite(scores).all():
        raise AuditError(f"scores of shape {scores.shape} need one finite value per coin {members.shape}")
    order, half = np.argsort(scores, kind="stable"), made // 2
    hits = int(members[order[len(order) - half :]].sum()) + int((~members[order[:half]]).sum())
    return Guesses(len(scores), 2 * half, hits)


def steinke_refutes(guesses: Guesses, epsilon: float, delta: float, risk: float) -> bool:
    """Whether so many hits refute (epsilon, delta)-DP (Steinke et al. 2023, approximate DP with abstentions).

    Under pure DP hits are at most binomial with rate ``e^eps / (1 + e^eps)``; delta adds
    ``2 m delta max_i P[v - i <= W < v] / i`` to the probability of ``v`` hits.
    """
    rate, hits = 1 / (1 + math.exp(-epsilon)), guesses.correct
    tail = float(binom.sf(hits - 1, guesses.made, rate))
    back = np.arange(1, hits + 1)
    below = (binom.sf(hits - back - 1, guesses.made, rate) - tail) / back
    return tail + 2 * guesses.canaries * delta * float(np.max(below, initial=0.0)) <= risk


def curve_refutes(guesses: Guesses, separation: float, delta: float, risk: float) -> bool:
    """Whether so many hits refute a Gaussian trade-off curve (Mahloujifar et al. 2024, algorithm 3).

    The curve is that of two unit normals at distance ``separation``, less ``delta``: this covers every
    mechanism whose ``delta(epsilon)`` exceeds the Gaussian one by ``delta`` at most, as sampled Gaussian
    steps do far out in the tail. Algorithm 3 walks from ``correct`` hits down to none with the least
    probabilities of being right (``right``) and wrong (``wrong``) on one guess that the curve allows, and
    refutes it when they exceed the share of canaries that were guessed.
    """
    made, count = guesses.made, guesses.canaries
    right, wrong = risk * guesses.correct / count, risk * (made - guesses.correct) / count
    for hits in range(guesses.correct - 1, -1, -1):
        least = float(ndtr(ndtri(max(right - delta, 0.0)) - separation))
        if least > wrong:
            right, wrong = min(right + hits / (made - hits) * (least - wrong), 1.0), least
    return right + wrong > made / count


def steinke_bound(guesses: Guesses, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that the hits refute; 0 where they refute none. It assumes nothing else."""
    return _largest_refuted(steinke_refutes, guesses, delta, confidence, MAX_EPSILON)


def curve_bound(guesses: Guesses, delta: float, confidence: float = 0.95) -> float:
    """Epsilon of the largest separation that the hits refute; 0 where they refute none.

    It holds for mechanisms whose trade-off lies above a Gaussian curve of the same epsilon at ``delta``.
    """
    separation = _largest_refuted(curve_refutes, guesses, delta, confidence, MAX_SEPARATION)
    return epsilon_of(separation, delta)


@lru_cache(maxsize=4096)
def _largest_refuted(
    refutes: Refutes, guesses: Guesses, delta: float, confidence: float, most: float
) -> float:
    """By halving: what is refuted at some privacy is refuted at every stricter one."""
    low, high = 0.0, most
    if not refutes(guesses, low, delta, 1 - confidence):
        return 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if refutes(guesses, middle, delta, 1 - confidence) else (low, middle)
    return low


def fewest_hits(refutes: Callable[[Guesses], bool], canaries: int, made: int) -> int:
    """The fewest hits of ``made`` guesses that refute a claim; ``made + 1`` where not even all do."""
    low, high = 0, made + 1
    while low < high:
        middle = (low + high) // 2
        if refutes(Guesses(canaries, made, middle)):
            high = middle
        else:
            low = middle + 1
    return low
