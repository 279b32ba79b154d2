"""What guesses would hit if the noise were so and so: simulated from the plan's formulas before any run.

From it the number of guesses is fixed in advance, and the power of each audit is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.rng import stream
from fedpeft_attacks.dp_audit.canary_rehearsal import Observed, coins, simulated
from fedpeft_attacks.dp_audit.one_run import Bound, Guesses

Score = Callable[[Observed], NDArray[np.float64]]

SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0)
FAMILY_SHARE = 0.6
"""Guesses over canaries for `family_factor`: near its best from epsilon 1 to 8."""

FACTORS = tuple(float(factor) for factor in np.geomspace(0.25, 4.0, 13))
_VALUES, _LEAST, _MOST = 2_400_000, 4_000, 100_000
"""Simulated values per size of the noise, and limits of the number of simulated canaries."""


def accuracy(plan: PrivacyPlan, score: Score, share: float, factor: float = 1.0) -> float:
    """Expected share of hits among guesses on ``share`` of the canaries, under ``factor`` times the noise."""
    truth = _drawn(plan, score, factor)
    half = max(1, round(len(truth) * share / 2))
    return float(truth[-half:].sum() + (~truth[:half]).sum()) / (2 * half)


@lru_cache(maxsize=64)
def _drawn(plan: PrivacyPlan, score: Score, factor: float) -> NDArray[np.bool_]:
    """Coins of many simulated canaries in rising order of score; all factors share their random numbers."""
    rng = stream(0, 0, "", "epsilon forecast")
    members = coins(int(np.clip(_VALUES // plan.steps, _LEAST, _MOST)), rng)
    return members[np.argsort(score(simulated(plan, members, factor, rng)), kind="stable")]


@lru_cache(maxsize=256)
def best_share(plan: PrivacyPlan, score: Score, canaries: int, bound: Bound) -> float:
    """The share of guesses from which the highest bound is expected when the plan is kept."""

    def expected(share: float) -> float:
        made = guesses_of(canaries, share)
        return bound(Guesses(canaries, made, round(made * accuracy(plan, score, share))), plan.delta)

    return max(SHARES, key=expected)


def guesses_of(canaries: int, share: float) -> int:
    """An even number of guesses, at least 2."""
    return max(2, 2 * int(canaries * share / 2))


def power_of_hits(plan: PrivacyPlan, score: Score, share: float, guesses: Guesses) -> float:
    """Probability of at least so many hits under half the noise, rounded down for the simulation's error."""
    return _tail(guesses, _rate(plan, score, share, 0.5, -2.0))


def family_tail(plan: PrivacyPlan, score: Score, guesses: Guesses, factor: float) -> float:
    """Probability of so many hits under ``factor`` times the noise, rounded up for the simulation's error.

    Hits are taken as binomial; ranking makes them vary slightly less.
    """
    return _tail(guesses, _rate(plan, score, guesses.made / guesses.canaries, factor, 2.0))


def _rate(plan: PrivacyPlan, score: Score, share: float, factor: float, errors: float) -> float:
    """The `accuracy` plus so many standard errors of its own."""
    rate, count = accuracy(plan, score, share, factor), share * len(_drawn(plan, score, factor))
    return min(1.0, rate + errors * math.sqrt(rate * (1 - rate) / count))


def _tail(guesses: Guesses, rate: float) -> float:
    return float(binom.sf(guesses.correct - 1, guesses.made, rate))


def family_factor(plan: PrivacyPlan, score: Score, guesses: Guesses, confidence: float = 0.95) -> float:
    """The largest noise, over this plan's, that the hits do not refute; inf where they refute none.

    The family are plans that differ in noise alone: the limit takes the sampler and the clip to be right,
    and the canaries to be independent, as they are under a right implementation.
    """
    tails = np.array([family_tail(plan, score, guesses, factor) for factor in FACTORS])
    refuted = np.flatnonzero(tails <= 1 - confidence)
    if not refuted.size:
        return math.inf
    first = int(refuted[0])
    return FACTORS[0] if first == 0 else _crossing(tails, first, 1 - confidence)


def _crossing(tails: NDArray[np.float64], after: int, risk: float) -> float:
    """The factor where the tail falls to ``risk``; logarithms are taken as linear between two factors."""
    tiny = np.finfo(float).tiny
    (left, right), (a, b) = (
        np.log(FACTORS[after - 1 : after + 1]),
        np.log(tails[after - 1 : after + 1] + tiny),
    )
    return float(np.exp(left + (np.log(risk) - a) / (b - a) * (right - left)))
