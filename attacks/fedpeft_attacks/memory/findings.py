"""What the released adapter gives away: exposure, extraction and membership, each beside its baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedpeft_attacks.memory.statistics import Interval

Kind = Literal["canary-exposure", "prompt-extraction", "membership"]
Unit = Literal["bits", "share", "area"]

_LEAST = 1e-3


@dataclass(frozen=True)
class MemoryFinding:
    """One figure of one attack on the released adapter.

    Attributes:
        attack: the attack's name, as its card is called.
        name: what was measured.
        value: the figure.
        interval: its 95 % interval.
        chance: what guessing gives.
        base: the same attack on the base without the adapter.
        held_out: the same attack on secrets that were not trained on; None for membership, which compares
            the two anyway.
        count: how many secrets or members the figure is of.
        others: how many held-out secrets or non-members it was compared with.
        unit: bits, a share, or an area under the curve.
        method: how it was measured, one plain clause.
    """

    attack: Kind
    name: str
    value: float
    interval: Interval
    chance: float
    base: float
    held_out: float | None
    count: int
    others: int
    unit: Unit
    method: str

    @property
    def best(self) -> float:
        """The highest baseline."""
        return max(self.chance, self.base, self.held_out or 0.0)

    @property
    def stands_out(self) -> bool:
        """Whether the whole interval lies above every baseline, by a thousandth at least."""
        return self.interval[0] > self.best + _LEAST
