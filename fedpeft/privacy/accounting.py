"""Epsilon by privacy loss distributions (PLD, connect-the-dots), add-or-remove-one adjacency.

PLD is the tightest valid upper bound at hand (Doroshenko et al. 2022, arXiv:2207.04380); every
discretisation is pessimistic, so a coarse one is safe and a fine one only tighter. GDP is not offered:
it underestimates by up to a quarter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

COARSE = 1e-3
"""Discretisation while a run goes on: some milliseconds, within 0.1 % of `FINE`."""

FINE = 1e-4
"""Discretisation of calibration, refusals and final figures."""


class Steps(NamedTuple):
    """A number of Poisson-sampled Gaussian steps with one rate and one noise multiplier."""

    sampling_probability: float
    noise_multiplier: float
    repeats: int


def epsilon(steps: Iterable[Steps], delta: float, interval: float = FINE) -> float:
    """Joint epsilon of all steps on one data set; 0 without steps; inf without noise.

    Steps of equal rate and noise are merged, so the order does not matter and calls are cached.
    """
    merged: Counter[tuple[float, float]] = Counter()
    for rate, noise, repeats in steps:
        merged[rate, noise] += repeats
    events = tuple(sorted(Steps(*key, repeats) for key, repeats in merged.items() if repeats > 0))
    return _epsilon(events, delta, interval)


@lru_cache(maxsize=512)
def _epsilon(events: tuple[Steps, ...], delta: float, interval: float) -> float:
    if not events:
        return 0.0
    if any(event.noise_multiplier <= 0 for event in events):
        return math.inf
    total, *others = [_composed(event, interval) for event in events]
    for other in others:
        total = total.compose(other)
    return float(total.get_epsilon_for_delta(delta))


def _composed(event: Steps, interval: float) -> PrivacyLossDistribution:
    return _one_step(event.sampling_probability, event.noise_multiplier, interval).self_compose(event.repeats)


@lru_cache(maxsize=32)
def _one_step(rate: float, noise: float, interval: float) -> PrivacyLossDistribution:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=interval)
