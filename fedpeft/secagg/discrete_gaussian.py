"""Discrete Gaussian noise: what each node adds to its integers before a secure sum.

``P(X = k)`` is in proportion to ``exp(-k^2 / (2 v))`` on the whole numbers (Canonne, Kamath, Steinke 2020,
arXiv:2004.00010). What sums of such shares hide: `fedpeft.privacy.grid`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from fedpeft.privacy.csprng import words
from fedpeft.privacy.grid import MOST_VARIANCE
from fedpeft.privacy.noise import BLOCK
from fedpeft.secagg.errors import SecureAggregationError

Words = Callable[[int], NDArray[np.uint64]]

DIGITS = 127
"""Binary digits to which probabilities of absolute values are kept: 63 of the first word, 64 of a second."""

_END = 13.4
"""Deviations at which an absolute value has a probability below 2^-127."""


def share_of_noise(size: int, variance: float, source: Words = words) -> NDArray[np.int64]:
    """One node's share of the noise: independent discrete Gaussian values, int64, shape ``(size,)``.

    Law: inversion of the table of absolute values, whose probabilities are whole numbers of 2^-127. One
    64-bit word gives 63 binary digits and the sign; where those leave two values open, which happens about
    once in 2^63 / variance^0.5 draws, a second word decides. Each probability is off by at most 2^-127 and
    by a factor of at most 1 +- 2^-37 from floating point: over ``size`` values this adds at most ``size
    2^-36`` to epsilon and ``size (k + 2) 2^-126 (1 + e^epsilon)`` to delta, ``k`` being the largest value.
    For a million values of variance 1e7 that is 2e-5 and 5e-28 (1 + e^epsilon).

    Args:
        size: number of values.
        variance: of this node's share: that of the whole sum / the least number of nodes in it. 0: no noise.
        source: of uniform 64-bit words.

    Raises:
        SecureAggregationError: the variance is not between 0 and 1e10.
    """
    if not 0 <= variance <= MOST_VARIANCE:
        raise SecureAggregationError(
            f"noise variance {variance:g} must be between 0 and {MOST_VARIANCE:g} steps squared"
        )
    (first, second), noise = _table(variance), np.empty(size, np.int64)
    for start in range(0, size, BLOCK):
        drawn = source(min(BLOCK, size - start))
        digits = drawn >> np.uint64(1)
        absolute = np.searchsorted(first, digits, side="left")
        for place in np.flatnonzero(first[absolute] == digits):
            low, high = absolute[place], np.searchsorted(first, digits[place], side="right")
            absolute[place] = low + np.searchsorted(second[low:high], source(1)[0], side="right")
        np.negative(absolute, out=absolute, where=(drawn & np.uint64(1)).astype(np.bool_))
        noise[start : start + len(drawn)] = absolute
    return noise


def largest(variance: float) -> int:
    """The largest absolute value that there is; certain, not likely."""
    return len(_table(variance)[0]) - 1


@lru_cache(maxsize=4)
def _table(variance: float) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Cumulative probabilities of |X| = 0, 1, ... in 2^-127: the first 63 digits (or 2^63), and the rest."""
    counts = [int(chance) for chance in np.ldexp(_probabilities(variance), DIGITS).tolist()]
    counts = counts[: max(place for place, count in enumerate(counts) if count) + 1]
    counts[0] = 2**DIGITS - sum(counts[1:])
    total = list(accumulate(counts))
    return (
        np.array([count >> 64 for count in total], np.uint64),
        np.array([count & (2**64 - 1) for count in total], np.uint64),
    )


def _probabilities(variance: float) -> NDArray[np.float64]:
    """P(|X| = k) for k = 0, 1, ... up to where it is below 2^-127."""
    k = np.arange(math.ceil(_END * math.sqrt(variance)) + 2, dtype=np.float64)
    weights = np.exp(-k * k / (2 * variance)) if variance else (k == 0).astype(np.float64)
    weights[0] /= 2
    return weights / weights.sum()
