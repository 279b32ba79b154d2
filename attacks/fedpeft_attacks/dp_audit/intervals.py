"""Lower bounds of epsilon from scores of members and others that are independent of one another.

Canaries that share one run of an unknown program are not independent; for them there is `one_run`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

from fedpeft_attacks.dp_audit.gaussian import epsilon_of

Wide = NDArray[np.float64]


def gaussian_bound(members: Wide, others: Wide, delta: float, confidence: float = 0.95) -> float:
    """Lower bound that takes the scores to be Gaussian with one spread, and estimates their separation.

    The estimate, a difference of means over the pooled deviation, is nearly normal with variance
    ``1/m + 1/n + mu^2 / (2 (m + n - 2))`` (Hedges and Olkin 1985, section 5).

    Args:
        members: scores where the unit was in, shape ``(m,)``.
        others: scores where it was not, shape ``(n,)``.
        delta: at which epsilon is read.
        confidence: one-sided.
    """
    m, n = len(members), len(others)
    pooled = math.sqrt((members.var(ddof=1) * (m - 1) + others.var(ddof=1) * (n - 1)) / (m + n - 2))
    estimate = float(members.mean() - others.mean()) / pooled
    error = math.sqrt(1 / m + 1 / n + estimate**2 / (2 * (m + n - 2)))
    return epsilon_of(estimate - float(norm.ppf(confidence)) * error, delta)


def counting_bound(
    members: Wide, others: Wide, threshold: float, delta: float, confidence: float = 0.95
) -> float:
    """Lower bound by the rates above a threshold, ``log((TPR - delta) / FPR)``, both at their worst.

    It takes nothing to be Gaussian (Clopper and Pearson 1934 for both rates, which share the error).

    Args:
        members: scores where the unit was in, shape ``(m,)``.
        others: scores where it was not, shape ``(n,)``.
        threshold: chosen without looking at these scores.
        delta: at which epsilon is read.
        confidence: of both rates together.
    """
    hits, alarms = int((members > threshold).sum()), int((others > threshold).sum())
    low, high = lowest(hits, len(members), confidence), highest(alarms, len(others), confidence)
    return rate_ratio(low, high, delta)


def best_threshold(multiplier: float, count: int, delta: float, confidence: float = 0.95) -> float:
    """The threshold from which theory expects the highest `counting_bound`; it depends on no drawn value.

    Args:
        multiplier: noise over sensitivity; scores are in units of the sensitivity.
        count: number of members, and about that of others.
        delta: at which epsilon is read.
        confidence: of both rates together.
    """
    grid = np.linspace(0.5, 1 + 5 * multiplier, 200)
    hits, alarms = (count * norm.sf((grid - mean) / multiplier) for mean in (1.0, 0.0))
    expected = [
        rate_ratio(lowest(hit, count, confidence), highest(alarm, count, confidence), delta)
        for hit, alarm in zip(hits, alarms, strict=True)
    ]
    return float(grid[int(np.argmax(expected))])


def rate_ratio(hit_rate: float, alarm_rate: float, delta: float) -> float:
    """The epsilon that a true and a false positive rate imply; 0 where they imply none."""
    return math.log((hit_rate - delta) / alarm_rate) if hit_rate - delta > alarm_rate else 0.0


def lowest(hits: float, count: int, confidence: float) -> float:
    """Clopper-Pearson lower limit of a two-sided interval."""
    return float(beta.ppf((1 - confidence) / 2, hits, count - hits + 1)) if hits > 0 else 0.0


def highest(hits: float, count: int, confidence: float) -> float:
    """Clopper-Pearson upper limit of a two-sided interval."""
    return float(beta.ppf((1 + confidence) / 2, hits + 1, count - hits)) if hits < count else 1.0
