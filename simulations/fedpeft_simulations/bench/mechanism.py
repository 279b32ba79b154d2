"""A statistical audit of the noise itself: a million independent Gaussian mechanisms in one release."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpeft.privacy import noise

CONFIDENCE = 0.95
DELTA = 1e-5
CLIP = 0.7

Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Audit:
    """What one noisy sum shows of its own epsilon; bounds hold with 95 % probability, each by itself.

    Attributes:
        claimed: epsilon of one release with this noise, exact.
        gaussian: lower bound that takes the noise to be Gaussian, and estimates its size.
        counting: lower bound that takes nothing (Clopper-Pearson at a threshold fixed beforehand).
    """

    claimed: float
    gaussian: float
    counting: float


def audit(epsilon: float, coordinates: int = 1_000_000, noise_scale: float = 1.0) -> Audit:
    """Add noise for ``epsilon`` to canaries, as the private mechanisms do, and read epsilon back.

    Every coordinate is a Gaussian mechanism of its own: in a random half of them a unit adds a whole clip.

    Args:
        epsilon: that a right implementation has at delta = 1e-5.
        coordinates: number of canaries.
        noise_scale: what the noise is multiplied with; below 1 it is too weak, and must be caught.
    """
    multiplier = 1 / separation(epsilon, DELTA)
    inside = np.random.default_rng(0).random(coordinates) < 0.5
    total = np.where(inside, CLIP, 0.0)
    total += noise_scale * multiplier * CLIP * noise.gaussian(coordinates)
    members, others = total[inside] / CLIP, total[~inside] / CLIP
    counted = _by_counting(members, others, _threshold(multiplier, len(members)))
    return Audit(epsilon, _by_moments(members, others), counted)


def delta_of(epsilon: float, separation: float) -> float:
    """Delta of a Gaussian mechanism (Balle and Wang 2018, arXiv:1805.06530, theorem 8).

    Args:
        epsilon: at which delta is read.
        separation: sensitivity over the noise's standard deviation.
    """
    from scipy.stats import norm

    near, far = separation / 2 - epsilon / separation, -separation / 2 - epsilon / separation
    return float(norm.cdf(near) - np.exp(epsilon + norm.logcdf(far)))


def separation(epsilon: float, delta: float) -> float:
    """Sensitivity over noise at which one Gaussian release spends exactly ``epsilon``."""
    from scipy.optimize import brentq

    def excess(mu: float) -> float:
        return delta_of(epsilon, mu) - delta

    return _root(brentq(excess, 1e-6, 50.0, xtol=1e-12))


def epsilon_of(separation: float, delta: float) -> float:
    """The inverse of `separation`; 0 where delta alone covers it."""
    from scipy.optimize import brentq

    if separation <= 0 or delta_of(0.0, separation) <= delta:
        return 0.0

    def excess(epsilon: float) -> float:
        return delta_of(epsilon, separation) - delta

    return _root(brentq(excess, 0.0, 2000.0, xtol=1e-10))


def _by_moments(members: Wide, others: Wide) -> float:
    """Lower bound by the difference of means over the pooled deviation, whose estimate is nearly normal."""
    from scipy.stats import norm

    m, n = len(members), len(others)
    pooled = math.sqrt((members.var(ddof=1) * (m - 1) + others.var(ddof=1) * (n - 1)) / (m + n - 2))
    estimate = float(members.mean() - others.mean()) / pooled
    error = math.sqrt(1 / m + 1 / n + estimate**2 / (2 * (m + n - 2)))
    return epsilon_of(estimate - float(norm.ppf(CONFIDENCE)) * error, DELTA)


def _by_counting(members: Wide, others: Wide, threshold: float) -> float:
    """Lower bound by the rates above a threshold, ``log((TPR - delta) / FPR)``, both at their worst."""
    hits, alarms = int((members > threshold).sum()), int((others > threshold).sum())
    return _ratio(_lowest(hits, len(members)), _highest(alarms, len(others)))


def _threshold(multiplier: float, count: int) -> float:
    """The threshold from which theory expects the highest bound; it depends on no drawn value."""
    from scipy.stats import norm

    grid = np.linspace(0.5, 1 + 5 * multiplier, 200)
    hits, alarms = (count * norm.sf((grid - mean) / multiplier) for mean in (1.0, 0.0))
    expected = [
        _ratio(_lowest(hit, count), _highest(alarm, count)) for hit, alarm in zip(hits, alarms, strict=True)
    ]
    return float(grid[int(np.argmax(expected))])


def _ratio(hit_rate: float, alarm_rate: float) -> float:
    return math.log((hit_rate - DELTA) / alarm_rate) if hit_rate - DELTA > alarm_rate else 0.0


def _lowest(found: float, count: int) -> float:
    """Clopper-Pearson lower limit; both limits share the allowed error."""
    from scipy.stats import beta

    return float(beta.ppf((1 - CONFIDENCE) / 2, found, count - found + 1)) if found > 0 else 0.0


def _highest(found: float, count: int) -> float:
    from scipy.stats import beta

    return float(beta.ppf((1 + CONFIDENCE) / 2, found + 1, count - found)) if found < count else 1.0


def _root(found: object) -> float:
    return float(found)  # pyright: ignore[reportArgumentType]
