"""Joint epsilon of a growing list of events: what was composed before is composed no second time."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from fedpeft.privacy import accounting
from fedpeft.privacy.accounting import (
    COARSE,
    Event,
    GridSteps,
    MixtureSteps,
    Pure,
    Skellam,
    Steps,
    epsilon,
    failure,
    is_vast,
)

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

CACHED = 16
"""Compositions that are kept, those that were used last; each some hundred kilobytes."""

Bag = frozenset[tuple[Event, int]]
"""Events of one repeat each, and how often they happened."""

_known: OrderedDict[Bag, PrivacyLossDistribution] = OrderedDict()


def running_epsilon(events: Iterable[Event], delta: float) -> float:
    """As `epsilon` with the interval `COARSE`, in milliseconds when all but the newest events are known.

    Composition is commutative and every truncation pessimistic, so it is an upper bound in any order.
    """
    counts: Counter[Event] = Counter()
    for event in events:
        counts[event._replace(repeats=1)] += event.repeats
    merged = [event._replace(repeats=count) for event, count in counts.items()]
    composable = bool(merged) and all(_composable(event) for event in merged)
    if not composable or is_vast(merged, delta):
        return epsilon(merged, delta, COARSE)
    return float(_total(counts).get_epsilon_for_delta(delta - failure(merged)))


def _composable(event: Event) -> bool:
    """Whether the event has a privacy loss distribution at all."""
    match event:
        case Steps() | GridSteps() | MixtureSteps():
            return event.noise_multiplier > 0
        case Pure():
            return 0 < event.epsilon < math.inf
        case Skellam():
            return False


def _total(counts: Counter[Event]) -> PrivacyLossDistribution:
    """Compose what is missing onto the largest known part."""
    bag = frozenset(counts.items())
    best, part = _largest_part(counts)
    for event, count in (counts - best).items():
        step = _composed(event._replace(repeats=count))
        part = step if part is None else part.compose(step)
    assert part is not None
    _known[bag] = part
    _known.move_to_end(bag)
    while len(_known) > CACHED:
        _known.popitem(last=False)
    return part


def _largest_part(counts: Counter[Event]) -> tuple[Counter[Event], PrivacyLossDistribution | None]:
    best, distribution = Counter[Event](), None
    for bag, composed in list(_known.items()):
        part = Counter(dict(bag))
        if part <= counts and part.total() >= best.total():
            best, distribution = part, composed
    return best, distribution


@lru_cache(maxsize=128)
def _composed(event: Event) -> PrivacyLossDistribution:
    return accounting.composed(event, COARSE)  # pyright: ignore[reportArgumentType]
