"""Epsilon of one Gaussian release, in closed form."""

from __future__ import annotations

import math
from functools import lru_cache

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr


def delta_of(epsilon: float, separation: float) -> float:
    """Delta of a Gaussian mechanism (Balle and Wang 2018, arXiv:1805.06530, theorem 8).

    Args:
        epsilon: at which delta is read.
        separation: sensitivity over the noise's standard deviation.
    """
    near, far = separation / 2 - epsilon / separation, -separation / 2 - epsilon / separation
    return float(ndtr(near)) - math.exp(epsilon + float(log_ndtr(far)))


@lru_cache(maxsize=256)
def separation(epsilon: float, delta: float) -> float:
    """Sensitivity over noise at which one Gaussian release spends exactly ``epsilon``."""

    def excess(mu: float) -> float:
        return delta_of(epsilon, mu) - delta

    return _root(brentq(excess, 1e-6, 50.0, xtol=1e-12))


@lru_cache(maxsize=4096)
def epsilon_of(separation: float, delta: float) -> float:
    """The inverse of `separation`; 0 where delta alone covers it."""
    if separation <= 0 or delta_of(0.0, separation) <= delta:
        return 0.0

    def excess(epsilon: float) -> float:
        return delta_of(epsilon, separation) - delta

    return _root(brentq(excess, 0.0, 2000.0, xtol=1e-10))


def _root(root: object) -> float:
    return float(root)  # pyright: ignore[reportArgumentType]
