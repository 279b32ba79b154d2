"""Skellam noise and the integer grid: what each node adds to its values before a secure sum.

Skellam noise of variance v is the difference of two Poisson variables of mean v/2. Sums of independent
Skellam variables are Skellam again, so N shares of variance v/N give exactly the noise of variance v that the
accountant assumes (Agarwal et al. 2021, arXiv:2110.04995).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedpeft.privacy.csprng import words
from fedpeft.privacy.noise import BLOCK, uniform
from fedpeft.secagg.errors import SecureAggregationError

Words = Callable[[int], NDArray[np.uint64]]

LEAST_VARIANCE, MOST_VARIANCE = 1e-6, 1e10
UNIT = 2.0**63
"""Counts of the table per unit of probability of the absolute value."""


def share_of_noise(size: int, variance: float, source: Words = words) -> NDArray[np.int64]:
    """One node's share of the noise: independent Skellam values, int64, shape ``(size,)``.

    Law: table inversion with one 64-bit word for each value: 63 bits choose the absolute value, one the sign.
    The table holds the probability of each absolute value k as a whole number of 2^-63, cut off where
    it falls below (at 8 standard deviations and more), the remainder given to 0. So each probability is off
    by at most 2^-63, and by a factor of at most 1 +- 8 (k + 1) 2^-53 from floating point, k being the largest
    value. Over ``size`` values this adds in the worst case size (k + 2) 2^-62 (1 + e^epsilon) to delta and
    16 size (k + 1) 2^-53 to epsilon: for a million values of variance 1e7 some 6e-9 (1 + e^epsilon) and 5e-5.

    Args:
        size: number of values.
        variance: of this node's share: that of the whole sum / the least number of nodes in it.
        source: of uniform 64-bit words.

    Raises:
        SecureAggregationError: the variance is not between 1e-6 and 1e10.
    """
    if not LEAST_VARIANCE <= variance <= MOST_VARIANCE:
        allowed = f"between {LEAST_VARIANCE:g} and {MOST_VARIANCE:g}"
        raise SecureAggregationError(f"noise variance {variance:g} must be {allowed}; change steps_per_clip")
    table, noise = _table(variance), np.empty(size, np.int64)
    for start in range(0, size, BLOCK):
        drawn = source(min(BLOCK, size - start))
        absolute = np.searchsorted(table, drawn >> np.uint64(1), side="right")
        np.negative(absolute, out=absolute, where=(drawn & np.uint64(1)).astype(np.bool_))
        noise[start : start + len(drawn)] = absolute
    return noise


def largest(steps_per_clip: float, variance: float) -> int:
    """The largest absolute value that one node can send: grid steps of one value plus its share of noise.

    Certain, not likely: a sum of N nodes stays within N times this, and in `bits_for` that it never wraps.

    Args:
        steps_per_clip: grid steps in one clip norm.
        variance: of one node's share of the noise.
    """
    return math.ceil(steps_per_clip) + len(_table(variance)) - 1


def to_grid(
    values: NDArray[np.floating], clip: float, steps_per_clip: float, source: Words = words
) -> NDArray[np.int64]:
    """Clip, scale and round to whole grid steps; int64, shape kept.

    Values are clipped to L2 norm ``clip``, multiplied by ``steps_per_clip / clip`` and rounded up with the
    probability of their fraction, so that the mean is the scaled value.

    L2 bound: the result r of the scaled values x has norm below ``steps_per_clip + sqrt(size)``, whatever
    the words are. Proof: each r_i is floor(x_i) or, if x_i is not whole, floor(x_i) + 1; hence
    |r_i - x_i| < 1 and |r - x| < sqrt(size). |x| <= steps_per_clip, as the factor is 2^-40 smaller than it
    could be, which is more than all rounding of the norm and the products. The triangle inequality does the
    rest.

    Non-finite values become 0, and all become 0 when the norm overflows: a refusal would tell of them.
    """
    exact = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    with np.errstate(over="ignore"):
        norm = float(np.sqrt(np.sum(exact * exact)))
    if not math.isfinite(norm):
        return np.zeros(values.shape, np.int64)
    scaled = exact * (steps_per_clip / max(norm, clip) * (1 - 2.0**-40))
    whole = np.floor(scaled)
    rounded_up = uniform(source(scaled.size)).reshape(scaled.shape) <= scaled - whole
    return whole.astype(np.int64) + rounded_up


def from_grid(total: NDArray[np.int64], clip: float, steps_per_clip: float) -> NDArray[np.float64]:
    """Grid steps as values, float64, shape kept."""
    return total.astype(np.float64) * (clip / steps_per_clip)


@lru_cache(maxsize=4)
def _table(variance: float) -> NDArray[np.uint64]:
    """Cumulative counts of |X| = 0, 1, ...; the last one is 2^63."""
    probabilities = _probabilities(variance)
    counts = np.floor(probabilities * UNIT).astype(np.uint64)
    counts = counts[: int(np.flatnonzero(counts)[-1]) + 1]
    counts[0] = np.uint64(2**63 - int(counts[1:].sum()))
    return np.cumsum(counts, dtype=np.uint64)


def _probabilities(variance: float) -> NDArray[np.float64]:
    """P(|X| = k) for k = 0, 1, ... up to where it is far below 2^-63.

    P(X = k) = exp(-v) I_k(v), whose ratios r_k = I_{k+1}(v) / I_k(v) obey r_{k-1} = 1 / (2 k / v + r_k).
    Downwards this forgets its start and loses no digits (Amos 1974); products of ratios give the rest up to a
    factor, and the sum over all k is 1.
    """
    most = math.ceil(14 * math.sqrt(variance)) + 40
    ratio, ratios = 0.0, np.empty(most)
    for k in range(most, 0, -1):
        ratio = 1.0 / (2.0 * k / variance + ratio)
        ratios[k - 1] = ratio
    relative = np.concatenate([[0.5], np.cumprod(ratios)])
    return relative / relative.sum()
