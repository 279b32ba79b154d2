"""The integers of a secure sum that bears noise of all its nodes, and how well that noise hides a unit.

Each node rounds its values to whole grid steps and adds discrete Gaussian noise of variance ``s^2``; the sum
leaves. For two neighbours let the uniform words of the rounding be equal. Then

1. *the sum differs by an integer vector* ``v``. Rounding with equal words is ``floor(x + u)`` in each value.
   So ``v`` rounds the difference ``g`` of the exact values at random: ``|v - g| < sqrt(size)`` always, and
   ``|v|^2 <= |g|^2 + size / 4 + sqrt(2 log(1 / b)) (|g| + sqrt(size) / 2)`` but for a probability ``b``
   (Hoeffding over ``v_i^2``; Kairouz et al. 2021, arXiv:2102.06387, section 4.1). The words do not depend on
   the data, so the few bad ones cost ``b`` of delta.
2. *the noise of* ``n`` *nodes is as good as one discrete Gaussian of variance* ``n s^2``: with ``s >= 3`` the
   probabilities of each value differ by a factor within ``1 +- 10 n exp(-pi^2 s^2)``, 1e-37 n (section 3
   there). Nodes that collude, and their noise, are left out; what others add is a function of nothing
   private.
3. *a discrete Gaussian hides an integer shift as a continuous one does.* Let ``x`` be Gaussian of variance
   ``n s^2 - 9`` around ``v`` and let ``k`` be drawn with a chance in proportion to ``exp(-(k - x)^2 / 18)``.
   By Poisson's formula the sum of these weights is the same for all ``x`` up to ``exp(-18 pi^2)``, so ``k``
   is a discrete Gaussian of variance ``n s^2`` around ``v`` up to a factor of ``1 +- 1e-76``. So the
   released sum is a function of a Gaussian release of variance ``n s^2 - 9`` and sensitivity ``|v|``,
   Poisson-sampled where the units are, and the accountant of those holds for it. The factors of 2 and 3 are
   far below its rounding.

Where the records of a person are drawn one by one, the integers differ by a ``v`` of whichever ``i`` records
are drawn, at most ``i`` times as long as for one clip: ``(i s)^2 + size / 4 + c (i s + r)`` is at most
``i^2 (s^2 + size / 4 + c (s + r))``. So a mixture of Gaussians with these lengths dominates, for words that
are good for all ``2^k`` choices among ``k`` records: the others cost ``2^k b`` of delta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import GridSteps, MixtureSteps

MOST_VARIANCE = 1e10
"""Of one node's noise, in grid steps squared: its table is no longer than a million entries."""

SMOOTH = 3.0
"""Least deviation of one node's noise, in grid steps, with which anything is claimed."""

FAILURE = 1e-20
"""Probability that rounding passes the sensitivity, in each release."""


@dataclass(frozen=True)
class Grid:
    """The integers that encode values in a secure sum.

    Attributes:
        size: number of values, which the rounding error depends on.
        steps_per_clip: grid steps in one clip norm; the finer, the less rounding adds to the sensitivity.
        least_nodes: nodes whose noise a released sum holds at least, those that collude not counted; each
            adds that share of the variance.
        colluders: nodes that may collude with the coordinator; both come from one `fedpeft.cohort.Cohort`.
        limit: a node's values are cut to so many grid steps, so that no sum leaves its integers.

    Raises:
        PrivacyError: a grid without values, steps, nodes or limit.
    """

    size: int
    steps_per_clip: float
    least_nodes: int
    colluders: int = 0
    limit: int = 2**31

    def __post_init__(self) -> None:
        if min(self.size, self.least_nodes, self.limit) < 1 or not 0 < self.steps_per_clip < math.inf:
            raise PrivacyError(
                f"{self} needs at least 1 value, step, node and limit; give the adapter's size"
            )

    @property
    def l2(self) -> float:
        """Length of what one clip norm is rounded to, in grid steps, at most, but for `failure`."""
        return min(self._always, self._mostly)

    @property
    def failure(self) -> float:
        """Probability that `l2` does not hold for a release."""
        return FAILURE if self._mostly < self._always else 0.0

    @property
    def _always(self) -> float:
        return self.steps_per_clip + math.sqrt(self.size)

    @property
    def _mostly(self) -> float:
        root = math.sqrt(self.size)
        spread = math.sqrt(-2 * math.log(FAILURE)) * (self.steps_per_clip + root / 2)
        return math.sqrt(self.steps_per_clip**2 + self.size / 4 + spread)

    def share(self, noise_multiplier: float) -> float:
        """Variance of one node's noise, in grid steps squared."""
        return (noise_multiplier * self.steps_per_clip) ** 2 / self.least_nodes

    def event(self, sampling_probability: float, noise_multiplier: float, repeats: int) -> GridSteps:
        """What the accountant composes: the Gaussian that the least noise of a sum is as good as, or none."""
        variance = self.share(noise_multiplier)
        deviation = math.sqrt(self.least_nodes * variance - SMOOTH**2) if variance >= SMOOTH**2 else 0.0
        return GridSteps(sampling_probability, self.l2, deviation, self.failure, repeats)

    def mixture_event(self, event: GridSteps, records: int) -> MixtureSteps:
        """The same releases where single records are drawn, for a person with so many eligible ones."""
        failure = min(2.0**records * event.failure, 0.5)
        rate, noise = event.sampling_probability, event.noise_multiplier
        return MixtureSteps(rate, noise, records, failure, event.repeats)
