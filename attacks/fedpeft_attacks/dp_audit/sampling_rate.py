"""Whether the node draws as its plan says, seen by many records that share one coordinate.

Canaries with a coordinate each cannot tell Poisson draws from shuffled epochs: each by itself is drawn as
often. Records that share one coordinate show how many were drawn. That number is binomial under Poisson
sampling, and always the same in shuffled batches or batches of fixed size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from fedpeft.privacy.plan import PrivacyPlan
from fedpeft_attacks.dp_audit.synthetic_model import noisy_steps, records

LEAST_VARIANCE, OVER_NOISE, MOST_UNITS = 50.0, 50.0, 20_000


@dataclass(frozen=True)
class Draws:
    """How many of many like units each step drew, as their shared coordinate shows.

    Attributes:
        plan: of records or persons.
        units: number of units that share the coordinate.
        counts: noisy number of drawn units in each step, shape ``(steps,)``.
    """

    plan: PrivacyPlan
    units: int
    counts: NDArray[np.float64]

    @property
    def p_value(self) -> float:
        """Probability of counts as odd as these, in mean or spread, if units are drawn by independent coins.

        Counts are taken as normal: there are so many units that their variance is at least 50.
        """
        rate, variance = self.plan.sampling_probability, spread(self.plan, self.units)
        off = (self.counts - trials(self.plan, self.units) * rate) / math.sqrt(variance)
        mean = 2 * float(norm.sf(abs(off.sum()) / math.sqrt(len(off))))
        square, steps = float(np.sum(off**2)), len(off)
        odd = 2 * min(float(chi2.cdf(square, steps)), float(chi2.sf(square, steps)))
        return min(1.0, 2 * min(mean, odd))


def applies(plan: PrivacyPlan) -> bool:
    """Whether the plan has draws in the node to look at; like records would all be in one group."""
    return plan.unit != "node" and plan.sampling_probability < 1 and plan.groups == 1


def size_of(plan: PrivacyPlan) -> int:
    """Units whose draws vary much more than the noise; at most `MOST_UNITS`."""
    rate = plan.sampling_probability
    wanted = max(LEAST_VARIANCE, OVER_NOISE * plan.noise_multiplier**2) / (rate * (1 - rate))
    return min(MOST_UNITS, math.ceil(wanted))


def spread(plan: PrivacyPlan, units: int) -> float:
    """Variance of a noisy count under Poisson sampling."""
    rate = plan.sampling_probability
    return trials(plan, units) * rate * (1 - rate) + plan.noise_multiplier**2


def trials(plan: PrivacyPlan, units: int) -> int:
    """Coins of a step: one for each unit, or for each eligible record of persons."""
    return units * (plan.records_per_unit if plan.drawn == "record" else 1)


def observe(plan: PrivacyPlan) -> Draws:
    """Run the plan's steps in `fedpeft.training` on many like units, where it `applies`.

    They share a value, which a grid would cut to its limit: that is lifted here.
    """
    units = size_of(plan)
    if plan.grid is not None:
        plan = replace(plan, grid=replace(plan.grid, limit=2**62))
    counts = noisy_steps(plan, records(np.zeros(units, np.int64), plan), 2)[:, 0]
    return Draws(plan, units, counts)


def power(plan: PrivacyPlan, risk: float) -> float:
    """Probability that batches of a fixed size are noticed: their counts vary by the noise alone."""
    least = float(chi2.ppf(risk / 4, plan.steps)) * spread(plan, size_of(plan))
    return float(chi2.cdf(least / plan.noise_multiplier**2, plan.steps))
