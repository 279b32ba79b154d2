"""Epsilon as it is written down, sent and shown: a number, or that there is no bound.

JSON has no infinity, and neither 0 nor null may represent it: the first is perfect privacy, the second says
that nobody promised anything or knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

UNBOUNDED: Final = "unbounded"
Epsilon = float | Literal["unbounded"]
"""A finite number of at least 0, or ``"unbounded"``."""


def written(epsilon: float) -> Epsilon:
    """An epsilon as it goes into JSON; what is infinite or no number has no bound."""
    return float(epsilon) if math.isfinite(epsilon) else UNBOUNDED


def is_epsilon(value: object) -> bool:
    """Whether a value from elsewhere is an epsilon."""
    return value == UNBOUNDED or (type(value) is float and math.isfinite(value) and value >= 0)


def worst(epsilons: Iterable[Epsilon | None]) -> Epsilon | None:
    """The largest, of which one without a bound is; None where there is none, or None alone."""
    known = [epsilon for epsilon in epsilons if epsilon is not None]
    if UNBOUNDED in known:
        return UNBOUNDED
    return max((epsilon for epsilon in known if not isinstance(epsilon, str)), default=None)


def spent_in(event: Mapping[str, Any]) -> Epsilon | None:
    """What a round's event of ``metrics.jsonl`` says was spent, by the worst node or the coordinator."""
    return worst([*event.get("epsilon", {}).values(), event.get("spent", {}).get("epsilon")])


def shown(epsilon: Epsilon | None, spec: str = ".3g", none: str = "-") -> str:
    """An epsilon for people; ``none`` where there is none."""
    if epsilon is None:
        return none
    return UNBOUNDED if epsilon == UNBOUNDED else format(epsilon, spec)
