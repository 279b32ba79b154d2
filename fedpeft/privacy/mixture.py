"""A Gaussian release whose sensitivity is drawn: how many of a person's records a step takes.

Where records are drawn one by one at rate ``q`` and at most ``k`` of a person's are eligible, a step's sum
differs by ``i`` clips at most, ``i`` being Binomial(k, q). The pair of ``sum_i P(i) N(i, z^2)`` and ``N(0,
z^2)`` dominates the step, in both directions (Charles et al. 2024, arXiv:2407.07737, theorem 1; vectors:
Choquette-Choo et al. 2024, arXiv:2310.15526, corollary 4.7). Which records are eligible may be drawn anew in
each step without a look at other persons: the bound is one for all such choices, and so for their average, as
hockey-stick divergence is jointly convex.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dp_accounting.pld.pld_pmf import PLDPmf
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Vector = NDArray[np.float64]

TAIL = 1e-22
"""Probability beyond which losses count as infinite, in each step and direction."""
BLOCK = 1 << 13
"""Points that are worked on at once: their working memory stays in a core's cache."""
NODES = 1 << 14
"""Points of the table in which the search for a loss begins."""
NEWTON = 6
"""Steps of that search; each doubles the digits, and the table gives three."""
ORDERS = 128.0
"""Largest order of the Rényi curve."""
POINTS = 1 << 20
"""Most points of the integral behind it: orders that need more, of little noise, count as infinite."""
MOST_RECORDS = 128
"""Of one person in a step."""


@dataclass(frozen=True)
class Mixture:
    """``sum_i P(i) N(i, z^2)`` against ``N(0, z^2)``, ``i`` being Binomial(records, rate).

    Attributes:
        rate: of each record, in (0, 1).
        noise: deviation ``z`` over the clip.
        records: of one person that are eligible in a step.
    """

    rate: float
    noise: float
    records: int

    def log_ratio(self, x: Vector) -> tuple[Vector, Vector]:
        """``L(x) = log(mixture / normal)``, which rises with x, and its slope; shapes as ``x``, 1-D."""
        shifts = np.arange(self.records + 1.0)
        start = self._log_chances - shifts**2 / (2 * self.noise**2)
        value, slope = np.empty_like(x), np.empty_like(x)
        for first in range(0, len(x), BLOCK):
            part = slice(first, first + BLOCK)
            terms = start + x[part, None] * (shifts / self.noise**2)
            most = terms.max(1)
            weights = np.exp(terms - most[:, None])
            total = weights.sum(1)
            value[part] = most + np.log(total)
            slope[part] = weights @ shifts / (total * self.noise**2)
        return value, slope

    def above(self, x: Vector) -> Vector:
        """Probability of the mixture above ``x``."""
        from scipy.special import ndtr

        total = np.zeros_like(x)
        for shift, chance in enumerate(np.exp(self._log_chances)):
            total += chance * ndtr((shift - x) / self.noise)
        return total

    def removed(self, losses: Vector) -> Vector:
        """Hockey-stick divergence of the mixture from the normal at each loss, in rising order."""
        from scipy.special import log_ndtr

        x = self._at(losses)
        with np.errstate(over="ignore"):
            value = self.above(x) - np.exp(losses + log_ndtr(-x / self.noise))
        return np.where(losses <= self.least, -np.expm1(losses), np.clip(value, 0, 1))

    def added(self, losses: Vector) -> Vector:
        """Hockey-stick divergence of the normal from the mixture at each loss, in rising order."""
        from scipy.special import log_ndtr, logsumexp

        x = self._at(-losses[::-1])[::-1]
        below = np.empty_like(x)
        for first in range(0, len(x), BLOCK):
            part = slice(first, first + BLOCK)
            logs = log_ndtr((x[part, None] - np.arange(self.records + 1.0)) / self.noise)
            below[part] = logsumexp(logs + self._log_chances, axis=1)
        value = np.exp(log_ndtr(x / self.noise)) - np.exp(losses + below)
        return np.where(-losses <= self.least, 0.0, np.clip(value, 0, 1))

    @property
    def least(self) -> float:
        """What `log_ratio` tends to: the logarithm of the chance that no record is drawn."""
        return float(self._log_chances[0])

    def range(self) -> tuple[float, float]:
        """Where all but `TAIL` of both laws lies."""
        from scipy.optimize import brentq
        from scipy.special import ndtri

        low = self.noise * float(ndtri(TAIL))

        def excess(x: float) -> float:
            return float(self.above(np.array([x]))[0]) - TAIL

        return low, cast(float, brentq(excess, -low * 0.999, self.records - low))

    @property
    def _log_chances(self) -> Vector:
        return _log_binomial(self.records, self.rate)

    def _at(self, losses: Vector) -> Vector:
        """Where the ratio has each loss, for losses in rising order; any place where it never does.

        A place that is off lowers a divergence by the square of its distance alone.
        """
        low, high = self.range()
        table = np.linspace(2 * low, 2 * high, NODES)
        known = self.log_ratio(table)[0]
        place = np.interp(losses, known, table)
        cell = table[1] - table[0]
        first, last = np.maximum(place - cell, table[0]), np.minimum(place + cell, table[-1])
        for _ in range(NEWTON):
            value, slope = self.log_ratio(place)
            place = np.clip(place - (value - losses) / np.maximum(slope, 1e-300), first, last)
        return place


@lru_cache(maxsize=64)
def _log_binomial(records: int, rate: float) -> Vector:
    from scipy.stats import binom

    return np.asarray(binom.logpmf(np.arange(records + 1), records, rate), np.float64)


def usual_records(records: int, rate: float, chance: float) -> int:
    """The least number, from 1, that a step's drawn records of a person pass with at most this chance."""
    from scipy.stats import binom

    return max(1, int(binom.isf(chance, records, rate)))


def distribution(mixture: Mixture, interval: float) -> PrivacyLossDistribution:
    """Loss distribution of one step, pessimistic, in both directions.

    Connect-the-dots of the exact divergences (Doroshenko et al. 2022, arXiv:2207.04380): at every epsilon the
    result is at least the true divergence. The same as dp-accounting's mixture of Gaussians, whose search
    for each loss takes seconds.

    Args:
        mixture: of the step.
        interval: between the losses.
    """
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    low, high = mixture.range()
    ends = mixture.log_ratio(np.array([low, -low, high]))[0]
    least, usual, largest = (float(end) for end in ends)
    remove = _dots(mixture.removed, (least, largest), interval)
    return PrivacyLossDistribution(remove, _dots(mixture.added, (-usual, -least), interval))


def _dots(divergence: Callable[[Vector], Vector], ends: tuple[float, float], interval: float) -> PLDPmf:
    from dp_accounting.pld.pld_pmf import create_pmf_pessimistic_connect_dots_fixed_gap

    first, last = math.floor(ends[0] / interval), math.ceil(ends[1] / interval)
    losses = np.arange(first, last + 1).astype(np.float64) * interval
    deltas = np.minimum.accumulate(divergence(losses))
    return create_pmf_pessimistic_connect_dots_fixed_gap(interval, first, last, deltas)


def renyi_curve(mixture: Mixture, orders: Vector) -> Vector:
    """Rényi divergence in the worse direction at each order; inf above `ORDERS`, and from `POINTS` on.

    Noise so small that it needs more points protects nothing, and who proposes it must not fill a memory.

    The integral of an entire function under a normal law, by the trapezoidal rule at an eighth of a
    deviation, which errs by a factor of ``exp(-2 pi^2 64)``: nothing.
    """
    step, reach = mixture.noise / 8, 12 * mixture.noise
    affordable = (POINTS * step / 2 - reach) / mixture.records
    most = min(ORDERS, float(orders.max()), affordable)
    curve = np.full(len(orders), np.inf)
    if most <= 1:
        return curve
    x = np.arange(-reach - (most - 1) * mixture.records, most * mixture.records + reach, step)
    ratio, base = mixture.log_ratio(x)[0], -((x / mixture.noise) ** 2) / 2
    base += math.log(step / mixture.noise / math.sqrt(2 * math.pi))
    for place in np.flatnonzero(orders <= most):
        order = orders[place]
        both = [_log_sum(power * ratio + base) for power in (order, 1 - order)]
        curve[place] = max(0.0, *both) / (order - 1)
    return curve


def _log_sum(logs: Vector) -> float:
    most = float(logs.max())
    return most + math.log(float(np.exp(logs - most).sum()))
