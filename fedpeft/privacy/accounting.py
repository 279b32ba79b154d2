"""Epsilon by privacy loss distributions (PLD, connect-the-dots), add-or-remove-one adjacency.

PLD is the tightest valid upper bound at hand (Doroshenko et al. 2022, arXiv:2207.04380); every
discretisation is pessimistic, so a coarse one is safe and a fine one only tighter. GDP is not offered:
it underestimates by up to a quarter. Skellam noise has no PLD here; where it takes part, everything is
composed by Rényi DP, which is valid and looser.
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
    """Poisson-sampled Gaussian releases of one rate and one noise multiplier; no sampling is rate 1."""

    sampling_probability: float
    noise_multiplier: float
    repeats: int


class Skellam(NamedTuple):
    """Releases of a sum of integer vectors with Skellam noise.

    Attributes:
        l1: sensitivity of the sum in L1, in grid steps.
        l2: sensitivity of the sum in L2, in grid steps.
        variance: of the noise in each value of the sum, in grid steps squared.
        repeats: number of releases.
    """

    l1: float
    l2: float
    variance: float
    repeats: int


class Pure(NamedTuple):
    """Releases that are ``epsilon``-differentially private, delta 0: noisy counts and the like."""

    epsilon: float
    repeats: int


Event = Steps | Skellam | Pure


def epsilon(events: Iterable[Event], delta: float, interval: float = FINE) -> float:
    """Joint epsilon of all releases on one data set; 0 without releases; inf without noise.

    Equal releases are merged, so the order does not matter and calls are cached.
    """
    merged: Counter[tuple[float, float]] = Counter()
    for event in events:
        if not isinstance(event, Steps):
            raise NotImplementedError(type(event).__name__)
        rate, noise, repeats = event
        merged[rate, noise] += repeats
    merged_events = tuple(sorted(Steps(*key, repeats) for key, repeats in merged.items() if repeats > 0))
    return _epsilon(merged_events, delta, interval)


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
