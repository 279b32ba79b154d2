"""How much an attack may do and has done: counted in steps, which are the same on every machine.

Seconds would make an attack weaker on a slow machine, and its silence there worth less than it says. They
remain as a safety stop alone, so that nothing runs for ever; what it ends is not finished, never silent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedpeft.progress_reports import at
from fedpeft_attacks.results.measures import WorkDone

SAFETY = 3600.0
"""Processor seconds after which an attack on one view is given up; its budget of steps takes far less."""


@dataclass(frozen=True)
class Work:
    """What an attack did on one view.

    Attributes:
        steps: iterations of its search; each attack says what one is.
        allowed: its budget of them; None: the search ends by itself.
        is_cut: whether the budget ended the search before it was exhausted.
        is_stopped: whether the safety stop did: then nothing may be concluded from what was not found.
    """

    steps: int = 0
    allowed: int | None = None
    is_cut: bool = False
    is_stopped: bool = False

    def __add__(self, other: Work) -> Work:
        """Of two searches on one view, one after the other."""
        budgets = [part for part in (self.allowed, other.allowed) if part is not None]
        return Work(
            self.steps + other.steps,
            sum(budgets) if budgets else None,
            self.is_cut or other.is_cut,
            self.is_stopped or other.is_stopped,
        )


NOTHING = Work()
"""No step, and none was asked for."""


class Meter:
    """Counts the steps of one attack on one view, and ends it with its budget or by the safety stop."""

    def __init__(self, allowed: int | None = None, seconds: float = SAFETY) -> None:
        self._allowed, self._deadline = allowed, time.process_time() + seconds
        self._steps, self._is_cut, self._is_stopped = 0, False, False

    def step(self) -> bool:
        """Take one step; False where none is left, or the safety stop was reached."""
        if self.is_over:
            return False
        if self._steps == self._allowed:
            self._is_cut = True
        elif time.process_time() > self._deadline:
            self._is_stopped = True
        else:
            at("search step", self._steps, self._allowed or 0)
            self._steps += 1
        return not self.is_over

    def parts(self, total: int, size: int) -> Iterator[slice]:
        """The parts of a long step over so many things; none after the safety stop was reached."""
        for start in range(0, total, size):
            if self._is_stopped or time.process_time() > self._deadline:
                self._is_stopped = True
                return
            at("part of the step", start, total)
            yield slice(start, min(start + size, total))

    @property
    def is_over(self) -> bool:
        """Whether a step was refused."""
        return self._is_cut or self._is_stopped

    @property
    def work(self) -> Work:
        """What was done so far."""
        return Work(self._steps, self._allowed, self._is_cut, self._is_stopped)


def worked(parts: Sequence[Work]) -> WorkDone:
    """The work on several views, at least one, as the report states it."""
    return WorkDone(
        views=len(parts),
        steps=sum(part.steps for part in parts),
        allowed=max((part.allowed for part in parts if part.allowed is not None), default=None),
        cut=sum(part.is_cut for part in parts),
        stopped=sum(part.is_stopped for part in parts),
    )
