"""Figures with their 95 % intervals: means, areas under the curve, true positives at few false alarms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from fedpeft_attacks.results.token_scores import wilson

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Estimate = tuple[float, Interval]
"""A value and its 95 % interval."""

_DRAWS = 2000
_Z95 = 1.959964


def mean(values: Sequence[float] | Floats) -> Estimate:
    """Mean with a percentile bootstrap over the values (2,000 draws); reproducible.

    Args:
        values: at least one.
    """
    sample = np.asarray(values, np.float64)
    rng = np.random.Generator(np.random.PCG64(0))
    means = sample[rng.integers(len(sample), size=(_DRAWS, len(sample)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(sample.mean()), (float(low), float(high))


def share(hits: Sequence[bool] | NDArray[np.bool_]) -> Estimate:
    """Share of hits with Wilson's interval.

    Args:
        hits: at least one.
    """
    count = int(np.sum(hits))
    value, (low, high) = count / len(hits), wilson(count, len(hits))
    return value, (min(low, value), max(high, value))  # the formula's rounding may miss 0 and 1


def area(members: Floats, others: Floats) -> Estimate:
    """Area under the curve: how often a member scores above a non-member, ties half.

    The interval is DeLong's (DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988), cut to [0, 1]; where
    one score separates all, its width is 0 and says nothing.

    Args:
        members: scores of records that were trained on, at least two.
        others: scores of records that were not, at least two.
    """
    m, n = len(members), len(others)
    ranks = rankdata(np.concatenate([members, others]))
    above = (ranks[:m] - rankdata(members)) / n
    below = 1 - (ranks[m:] - rankdata(others)) / m
    value = float(above.mean())
    half = _Z95 * float(np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n))
    return value, (max(0.0, value - half), min(1.0, value + half))


def detected(members: Floats, others: Floats, alarms: float) -> Estimate | None:
    """Share of members that a test finds whose false alarms are at most ``alarms``.

    A record is called a member where its conformal p-value against the held-out non-members,
    ``(1 + non-members that score as high) / (1 + non-members)``, is at most ``alarms``: for any score this
    raises false alarms at no higher rate (Bates et al. 2023, section 1). Wilson's interval is over members,
    for this set of non-members.

    Returns:
        None where there are too few non-members for the rate.
    """
    allowed = int(alarms * (1 + len(others)) + 1e-9) - 1
    if allowed < 0:
        return None
    ranked = np.sort(others)[::-1]
    return share(members > (ranked[allowed] if allowed < len(ranked) else -np.inf))
