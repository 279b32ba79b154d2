"""Rényi divergence curves (RDP) of the three kinds of release, at integer orders, add-or-remove-one."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

ORDERS = np.array([*range(2, 129), 160, 192, 256, 384, 512, 768, 1024], np.float64)
"""Orders at which curves are read; the Skellam bound is proven for integers only."""

Curve = NDArray[np.float64]
"""Divergence at each of `ORDERS`, in nats."""


def epsilon(curve: Curve, delta: float) -> float:
    """Epsilon of a composed curve (Canonne, Kamath, Steinke 2020, arXiv:2004.00010, proposition 12)."""
    from dp_accounting.rdp import compute_epsilon

    return float(compute_epsilon(ORDERS.tolist(), curve.tolist(), delta)[0])


@lru_cache(maxsize=128)
def gaussian(rate: float, noise: float) -> Curve:
    """One Poisson-sampled Gaussian release (Mironov et al. 2019, arXiv:1908.10530, section 3.3).

    ``D(a) = log sum_k C(a, k) (1 - rate)^(a - k) rate^k exp(k (k - 1) / (2 noise^2)) / (a - 1)``: exact.
    """
    if rate == 1:
        return ORDERS / (2 * noise**2)
    return np.array([_sampled(int(order), rate, noise) for order in ORDERS])


def _sampled(order: int, rate: float, noise: float) -> float:
    from scipy.special import gammaln, logsumexp

    k = np.arange(order + 1)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    chance = (order - k) * np.log1p(-rate) + k * np.log(rate)
    return cast(float, logsumexp(binomial + chance + k * (k - 1) / (2 * noise**2))) / (order - 1)


def skellam(l1: float, l2: float, variance: float) -> Curve:
    """One sum of integers with Skellam noise (Agarwal et al. 2021, arXiv:2110.04995, corollary 3.6).

    ``D(a) <= a l2^2 / (2 v) + min(((2 a - 1) l2^2 + 6 l1) / (4 v^2), 3 l1 / (2 v))`` at integer ``a``, with
    sensitivities in grid steps and the noise's variance ``v``; the first term is the Gaussian's.
    """
    excess = ((2 * ORDERS - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    return ORDERS * l2**2 / (2 * variance) + np.minimum(excess, 3 * l1 / (2 * variance))


def pure(epsilon: float) -> Curve:
    """One ``epsilon``-DP release: the divergence of randomised response, which is the worst of its kind.

    ``D(a) = log(p^a (1 - p)^(1 - a) + (1 - p)^a p^(1 - a)) / (a - 1)`` with ``p = e^eps / (1 + e^eps)``
    (Mironov 2017, arXiv:1702.07476, proposition 5; worst by Kairouz, Oh, Viswanath 2015).
    """
    yes, no = -np.logaddexp(0, -epsilon), -np.logaddexp(0, epsilon)
    likely, unlikely = ORDERS * yes + (1 - ORDERS) * no, ORDERS * no + (1 - ORDERS) * yes
    return np.maximum(np.logaddexp(likely, unlikely), 0) / (ORDERS - 1)
