"""Epsilon by privacy loss distributions (PLD, connect-the-dots), add-or-remove-one adjacency.

PLD is the tightest valid upper bound at hand (Doroshenko et al. 2022, arXiv:2207.04380); every
discretisation is pessimistic, so a coarse one is safe and a fine one only tighter. GDP is not offered:
it underestimates by up to a quarter. Skellam noise, of ledgers of earlier versions, has no PLD here; where it
takes part, everything is composed by Rényi DP, which is valid and looser.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedpeft.errors import PrivacyError
from fedpeft.privacy import mixture, renyi
from fedpeft.privacy.mixture import MOST_RECORDS, Mixture

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

COARSE = 1e-3
"""Discretisation while a run goes on: some milliseconds, within 0.1 % of `FINE`."""

FINE = 1e-4
"""Discretisation of calibration, refusals and final figures."""


VAST = 100.0
"""Beyond this epsilon nothing is protected, and the looser RDP figure is returned: PLD would take minutes."""


def _same(event: tuple[float, ...], other: object) -> bool:
    """Whether two events are of one kind, with equal values: tuples alone would compare without the kind."""
    return type(event) is type(other) and tuple.__eq__(event, other)


def _differs(event: tuple[float, ...], other: object) -> bool:
    return not _same(event, other)


class Steps(NamedTuple):
    """Poisson-sampled Gaussian releases of one rate and one noise multiplier; no sampling is rate 1."""

    sampling_probability: float
    noise_multiplier: float
    repeats: int
    __eq__, __ne__, __hash__ = _same, _differs, tuple.__hash__


class GridSteps(NamedTuple):
    """Poisson-sampled releases of integer sums with discrete Gaussian noise, accounted for as `Steps`.

    Attributes:
        sampling_probability: of a unit in each release; no sampling is rate 1.
        l2: sensitivity of the sum in L2, in grid steps.
        deviation: of the Gaussian that the noise hides a unit as well as, in grid steps.
        failure: probability that rounding passes the sensitivity, in each release; delta pays for it.
        repeats: number of releases.
    """

    sampling_probability: float
    l2: float
    deviation: float
    failure: float
    repeats: int
    __eq__, __ne__, __hash__ = _same, _differs, tuple.__hash__

    @property
    def noise_multiplier(self) -> float:
        """Deviation over sensitivity."""
        return self.deviation / self.l2


class MixtureSteps(NamedTuple):
    """Releases that draw single records, of which at most so many are of one person: for that person.

    Attributes:
        sampling_probability: of each record in each release, in (0, 1].
        noise_multiplier: noise over the clip of one record; on a grid over that of its integers.
        records: of one person that may be drawn in a release; 1 is as `Steps`.
        failure: probability that rounding passes the sensitivity, in each release; delta pays for it.
        repeats: number of releases.
    """

    sampling_probability: float
    noise_multiplier: float
    records: int
    failure: float
    repeats: int
    __eq__, __ne__, __hash__ = _same, _differs, tuple.__hash__

    @property
    def of_one_record(self) -> GridSteps:
        """What the same releases are for one eligible record."""
        return GridSteps(self.sampling_probability, 1.0, self.noise_multiplier, self.failure, self.repeats)


class Skellam(NamedTuple):
    """Releases of a sum of integer vectors with Skellam noise; no plan of this version has any.

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
    __eq__, __ne__, __hash__ = _same, _differs, tuple.__hash__


class Pure(NamedTuple):
    """Releases that are ``epsilon``-differentially private, delta 0: noisy counts and the like."""

    epsilon: float
    repeats: int
    __eq__, __ne__, __hash__ = _same, _differs, tuple.__hash__


Event = Steps | GridSteps | MixtureSteps | Skellam | Pure
"""What can be composed; anything else is refused."""


def epsilon(events: Iterable[Event], delta: float, interval: float = FINE) -> float:
    """Joint epsilon of all releases on one data set; 0 without releases; inf without noise.

    Equal releases are merged, so the order does not matter, and repeated calls are cached. An
    upper bound always: by PLD, or, as soon as one event is a `Skellam`, by RDP for all of them.

    Args:
        events: what was released, of any mix of kinds.
        delta: at which epsilon is read, in (0, 1); what may fail of the releases is taken off it.
        interval: discretisation of the PLD, `COARSE` or `FINE`.

    Raises:
        PrivacyError: an event of no known kind, or with parameters that no mechanism has.
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta {delta} must be in (0, 1), best below 1 / units")
    merged: Counter[Event] = Counter()
    for event in events:
        _check(event)
        merged[event._replace(repeats=0)] += event.repeats
    merged_events = [event._replace(repeats=repeats) for event, repeats in merged.items() if repeats > 0]
    return _epsilon(tuple(sorted(merged_events)), delta, interval)


def failure(events: Iterable[Event]) -> float:
    """Probability that any of these releases passes the sensitivity that it is accounted with."""
    rounded = [event for event in events if isinstance(event, GridSteps | MixtureSteps)]
    return math.fsum(event.failure * event.repeats for event in rounded)


def renyi_epsilon(events: Iterable[Event], delta: float) -> float:
    """The same by RDP alone: for comparison, and an upper bound too."""
    total, listed = np.zeros_like(renyi.ORDERS), list(events)
    for event in listed:
        _check(event)
        if not _noisy(event):
            return math.inf
        total = total + event.repeats * _curve(event)
    left = delta - failure(listed)
    return renyi.epsilon(total, left) if left > 0 else math.inf


def is_vast(events: Iterable[Event], delta: float) -> bool:
    """Whether epsilon is beyond `VAST` as far as RDP can tell; it promises nothing, and PLD is right for all.

    All of a person's records at once are so bad for RDP that it misses what PLD sees: that they hardly ever
    are drawn together. So the records count that are, all but once in a thousand times delta.
    """
    listed = list(events)
    return renyi_epsilon(listed, delta) > VAST < renyi_epsilon([_usual(e, delta) for e in listed], delta)


def _usual(event: Event, delta: float) -> Event:
    if not isinstance(event, MixtureSteps) or event.sampling_probability == 1:
        return event
    chance = 1e-3 * delta / max(1, event.repeats)
    return event._replace(records=mixture.usual_records(event.records, event.sampling_probability, chance))


@lru_cache(maxsize=512)
def _epsilon(events: tuple[Event, ...], delta: float, interval: float) -> float:
    if not events:
        return 0.0
    left = delta - failure(events)
    if left <= 0 or not all(_noisy(event) for event in events):
        return math.inf
    smooth = [event for event in events if not isinstance(event, Skellam)]
    if len(smooth) < len(events) or is_vast(events, delta):
        return renyi_epsilon(events, delta)
    total, *others = [composed(event, interval) for event in smooth]
    for other in others:
        total = total.compose(other)
    return float(total.get_epsilon_for_delta(left))


def _check(event: Event) -> None:
    """Refuse what is no event, so that no release is ever left out of the sum."""
    if not isinstance(event, Event):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PrivacyError(
            f"an event of type {type(event).__name__} cannot be accounted for; "
            "its run counts as not private: use Steps, GridSteps, MixtureSteps, Skellam or Pure"
        )
    match event:
        case Steps():
            sound = 0 < event.sampling_probability <= 1
        case GridSteps():
            sound = 0 < event.sampling_probability <= 1 and 0 < event.l2 < math.inf and 0 <= event.failure < 1
        case MixtureSteps():
            rate, sound = event.sampling_probability, 1 <= event.records <= MOST_RECORDS
            sound = sound and 0 < rate <= 1 and 0 <= event.failure < 1
        case Skellam():
            sound = 0 <= event.l1 < math.inf and 0 <= event.l2 < math.inf
        case Pure():
            sound = True
    if not sound or event.repeats < 0 or any(math.isnan(value) for value in event):
        raise PrivacyError(
            f"{event} is no release: rates are in (0, 1], sensitivities and repeats at least 0"
        )


def _noisy(event: Event) -> bool:
    """Whether the event guarantees anything at all."""
    match event:
        case Steps() | GridSteps() | MixtureSteps():
            return event.noise_multiplier > 0
        case Skellam():
            return event.variance > 0
        case Pure():
            return 0 <= event.epsilon < math.inf


def _curve(event: Event) -> renyi.Curve:
    match event:
        case Steps() | GridSteps() | MixtureSteps():
            rate, noise, records = _shape(event)
            return renyi.gaussian(rate, noise) if records == 1 else _mixture_curve(rate, noise, records)
        case Skellam():
            return renyi.skellam(event.l1, event.l2, event.variance)
        case Pure():
            return renyi.pure(event.epsilon)


def composed(event: Steps | GridSteps | MixtureSteps | Pure, interval: float) -> PrivacyLossDistribution:
    """The loss distribution of all repeats of an event; single releases are cached."""
    if isinstance(event, Pure):
        return _one_pure(event.epsilon, interval).self_compose(event.repeats)
    return _one_step(*_shape(event), interval).self_compose(event.repeats)


def _shape(event: Steps | GridSteps | MixtureSteps) -> tuple[float, float, int]:
    """Rate, noise multiplier and records of a unit that are drawn one by one; without coins they are one."""
    rate, noise = event.sampling_probability, event.noise_multiplier
    records = event.records if isinstance(event, MixtureSteps) else 1
    return (rate, noise, records) if rate < 1 else (rate, noise / records, 1)


@lru_cache(maxsize=128)
def _mixture_curve(rate: float, noise: float, records: int) -> renyi.Curve:
    curve = mixture.renyi_curve(Mixture(rate, noise, records), renyi.ORDERS)
    curve.setflags(write=False)
    return curve


@lru_cache(maxsize=128)
def _one_step(rate: float, noise: float, records: int, interval: float) -> PrivacyLossDistribution:
    if records > 1:
        return mixture.distribution(Mixture(rate, noise, records), interval)
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=interval)


@lru_cache(maxsize=32)
def _one_pure(bound: float, interval: float) -> PrivacyLossDistribution:
    """The pair that dominates every mechanism with this bound: randomised response."""
    from dp_accounting.pld.common import DifferentialPrivacyParameters
    from dp_accounting.pld.privacy_loss_distribution import from_privacy_parameters

    return from_privacy_parameters(DifferentialPrivacyParameters(bound, 0), interval)
