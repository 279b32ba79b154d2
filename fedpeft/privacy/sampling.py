"""Poisson sampling: each unit enters a step independently of all others."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import PrivacyError
from fedpeft.privacy.csprng import Randomness, words


def poisson(n: int, q: float, source: Randomness | None = None) -> NDArray[np.int64]:
    """Indices of the units of one step, ascending; each of ``n`` is in with probability ``q``.

    ``q`` is a public constant of the plan, never derived from ``n``. The result may be empty: such a step
    adds noise only and counts. The exact rate is ``floor(q * 2^64) / 2^64``, never above ``q``.

    Args:
        n: number of units, private.
        q: probability of inclusion.
        source: of the random words; default: the operating system. Any other gives no guarantee.

    Raises:
        PrivacyError: ``q`` is outside (0, 1].
    """
    if not 0 < q <= 1:
        raise PrivacyError(f"sampling probability {q} is not in (0, 1]; set privacy.sampling_probability")
    if q == 1:
        return np.arange(n, dtype=np.int64)
    threshold = np.uint64(int(Fraction(q) * 2**64))
    return np.flatnonzero((source or words)(n) < threshold).astype(np.int64)
