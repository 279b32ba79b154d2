"""Noise in what a run really computed: the noisy gradients that its audit taps, whatever the data were.

Normal noise around any signal lies within ``c`` deviations of zero at most as often as noise alone (Anderson
1955). So the number of values near zero has a binomial bound that needs nothing of the signal: too many say
that the noise is too small. The same holds for the difference of two gradients, whose noise has twice the
variance, unless it is shared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import beta, binom, norm

from fedpeft.exchange.layout import FloatVector
from fedpeft.privacy.plan import PrivacyPlan

MEDIAN = float(ndtri(0.75))
"""Half of all standard normal values lie within it."""


@dataclass(frozen=True)
class Near:
    """How many values lie within the median of the noise that there should be.

    Attributes:
        values: how many there are.
        inside: how many lie within.
        signal: variance of what is not noise over that of the noise, as estimated.
    """

    values: int
    inside: int
    signal: float

    @classmethod
    def of(cls, values: NDArray[np.floating], deviation: float) -> Near:
        """Count values whose noise should have this deviation."""
        scaled = values / deviation
        signal = max(0.0, float(np.mean(scaled**2)) - 1) if scaled.size else 0.0
        return cls(scaled.size, int((np.abs(scaled) <= MEDIAN).sum()), signal)

    def refutes(self, risk: float) -> bool:
        """Whether so many are near zero that the noise must be smaller than it should be."""
        return bool(binom.sf(self.inside - 1, self.values, 0.5) <= risk)

    def most(self, confidence: float = 0.95) -> float:
        """Upper limit of the noise over what it should be; inf where the signal hides it."""
        share = beta.ppf(1 - confidence, self.inside, self.values - self.inside + 1) if self.inside else 0.0
        return MEDIAN / float(ndtri((1 + share) / 2)) if share > 0 else math.inf

    def power(self, factor: float, risk: float) -> float:
        """Probability that noise of ``factor`` times its size is refuted beside a signal of this variance."""
        rate = 2 * float(norm.cdf(MEDIAN / math.sqrt(factor**2 + self.signal + 1e-12))) - 1
        return float(binom.sf(binom.isf(risk, self.values, 0.5), self.values, rate))


def deviation(plan: PrivacyPlan) -> float:
    """Standard deviation of the noise in each value of a noisy gradient."""
    return plan.deviation / plan.expected_batch_size


def own_noise(gradients: Mapping[str, FloatVector], plan: PrivacyPlan) -> list[Near]:
    """The noise of each gradient; values of exactly zero lie off the public support and bear none."""
    return [Near.of(values[values != 0], deviation(plan)) for values in gradients.values()]


def shared_noise(gradients: Mapping[str, FloatVector], plan: PrivacyPlan) -> list[Near]:
    """The noise that is left in the difference of any two gradients, of two nodes or of two rounds."""
    scale, differences = math.sqrt(2) * deviation(plan), list[Near]()
    for gradient, other in combinations(gradients.values(), 2):
        if gradient.shape == other.shape:
            both = (gradient != 0) & (other != 0)
            differences.append(Near.of(gradient[both].astype(np.float64) - other[both], scale))
    return differences
