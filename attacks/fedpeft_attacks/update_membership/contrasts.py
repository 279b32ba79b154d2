"""From scores and the truth to figures: members against others, pooled over nodes and rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

from fedpeft_attacks.memory.statistics import Floats, area, detected
from fedpeft_attacks.results.measures import MEMBERS, Baselines, Measure

FALSE_ALARMS = (0.01, 0.001)
"""Rates of false alarms at which members are counted."""

RISK = 0.01
"""Probability at most at which members that are found at few false alarms count as a leak by chance."""

Pair = tuple[Floats, Floats]
"""Scores of members and of others."""


@dataclass(frozen=True)
class Contrast:
    """Scores of members and of others in one view, and the same against data that are not theirs.

    Attributes:
        scores: of members, shape ``(m,)``, and of others, shape ``(n,)``.
        control: the same records against another node's update, or an earlier round's mean; None: none.
    """

    scores: Pair
    control: Pair | None = None


@dataclass(frozen=True)
class Pooled:
    """Members against others of several views, each in standard deviations of all candidates of its view."""

    scores: Pair
    control: Pair | None

    def area(self, name: str) -> Measure:
        """How often a member scores above another record."""
        value, interval = area(*self.scores)
        control = None if self.control is None else area(*self.control)[0]
        baselines = Baselines(chance=0.5, control=control)
        count = len(self.scores[0])
        return Measure(
            name=name, unit="auc", value=value, interval=interval, baselines=baselines, count=count
        )

    def detected(self, rate: float) -> Measure | None:
        """Members that are found at a rate of false alarms; None with too few others."""
        estimate = detected(*self.scores, rate)
        if estimate is None:
            return None
        control = None if self.control is None else detected(*self.control, rate)
        baselines = Baselines(chance=rate, control=None if control is None else control[0])
        value, interval = estimate
        name = MEMBERS if rate == FALSE_ALARMS[0] else f"members at {100 * rate:g} % false alarms"
        count = len(self.scores[0])
        return Measure(
            name=name, unit="share", value=value, interval=interval, baselines=baselines, count=count
        )

    def finds_members(self) -> bool:
        """Whether more members are found at 1 % false alarms than chance or the control explains.

        The interval of the share takes the threshold as fixed, but few others set it. So beside the interval
        the count has to pass an exact test: were members and others alike, the number of members above the
        threshold would be negative hypergeometric.
        """
        measure = self.detected(FALSE_ALARMS[0])
        if measure is None or measure.interval[0] <= measure.baselines.best:
            return False
        return chance_of(round(measure.value * measure.count), measure.count, len(self.scores[1])) <= RISK


def chance_of(hits: int, members: int, others: int) -> float:
    """Probability that so many members or more are found at 1 % false alarms where all records are alike.

    >>> round(chance_of(1, 10, 99), 4)  # a member is the highest of all
    0.0917
    """
    allowed = int(FALSE_ALARMS[0] * (1 + others) + 1e-9) - 1
    return float(hypergeom.cdf(allowed, members + others, others, hits + allowed))


def pooled(contrasts: Sequence[Contrast]) -> Pooled | None:
    """All views together; None with fewer than two members or others.

    The control is over the views that have one; None where none has.
    """
    views = [view for view in contrasts if min(map(len, view.scores)) > 0]
    if not _are_enough([view.scores for view in views]):
        return None
    controls = [view.control for view in views if view.control is not None]
    return Pooled(_pool([view.scores for view in views]), _pool(controls) if _are_enough(controls) else None)


def linked(views: Sequence[Contrast]) -> Contrast | None:
    """Several rounds of one node, the same records in the same order: sums of their standard scores."""
    if not views:
        return None
    controls = [view.control for view in views if view.control is not None]
    control = _sum(controls) if len(controls) == len(views) else None
    return Contrast(_sum([view.scores for view in views]), control)


def _are_enough(pairs: Sequence[Pair]) -> bool:
    """Whether there are two members and two others, so that their scores have a spread."""
    return min(sum(len(pair[side]) for pair in pairs) for side in (0, 1)) > 1


def _pool(pairs: Sequence[Pair]) -> Pair:
    members, others = zip(*map(_standard, pairs), strict=True)
    return np.concatenate(members), np.concatenate(others)


def _sum(pairs: Sequence[Pair]) -> Pair:
    members, others = zip(*map(_standard, pairs), strict=True)
    return np.sum(members, axis=0), np.sum(others, axis=0)


def _standard(pair: Pair) -> Pair:
    """Scores in standard deviations of all candidates: a scale that needs no knowledge of who is a member."""
    everything = np.concatenate(pair)
    mean, spread = everything.mean(), max(float(everything.std()), 1e-12)
    return (pair[0] - mean) / spread, (pair[1] - mean) / spread
