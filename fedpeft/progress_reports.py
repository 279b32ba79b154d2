"""How far long work is: whoever works says so here, and a command that watches shows it.

The reports go through one logger of the standard library: a loop deep in a computation has no parameter for a
terminal. Unless somebody watches they cost one comparison and go nowhere; they never leave the process. What
is counted is public: rounds, nodes, steps, never records that were drawn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

T = TypeVar("T")

LOG = logging.getLogger("fedpeft.progress")
LOG.propagate = False


@dataclass(frozen=True)
class Work:
    """One kind of work and how far it is.

    Attributes:
        name: what is counted, in the singular, or what is done where nothing is.
        done: how many are finished.
        total: how many there are; 0: nothing is counted.
        first: how many were finished when it was first reported.
        started: when that was, in seconds of a monotonic clock.
    """

    name: str
    done: int
    total: int
    first: int
    started: float

    @property
    def is_over(self) -> bool:
        """Whether all is done, or nothing is counted: then other work takes its place."""
        return self.done >= self.total

    def __str__(self) -> str:
        return f"{self.name} {self.done + 1} of {self.total}" if self.total else self.name


def at(name: str, done: int = 0, total: int = 0) -> None:
    """Report work: ``done`` of ``total`` are finished, or only what is done now where nothing is counted."""
    if LOG.isEnabledFor(logging.DEBUG):
        LOG.debug(name, extra={"done": done, "total": total})


def each(items: Sequence[T], name: str) -> Iterator[T]:
    """Go through items and report each, ``name`` in the singular."""
    for index, item in enumerate(items):
        at(name, index, len(items))
        yield item
    at(name, len(items), len(items))


class Estimate:
    """What is being worked on, from the outermost kind of work to the innermost, and the time left.

    Work that is reported again ends whatever was reported after it: that was a part of it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._works = clock, list[Work]()

    def report(self, name: str, done: int, total: int) -> None:
        """Take a report, as `at` gives it."""
        works = list(self._works)  # a copy: another thread reads the text
        while works and works[-1].is_over and works[-1].name != name:
            works.pop()
        names = [work.name for work in works]
        known = works[names.index(name)] if name in names else Work(name, done, total, done, self._clock())
        outer = works[: names.index(name)] if name in names else works
        work = replace(known, done=done, total=total)
        # A part that is done counts until the whole that it belongs to is reported again.
        self._works = [*outer, work] if outer or not (total and work.is_over) else []

    @property
    def text(self) -> str:
        """One line: what is done now, and how long until the outermost is; empty before the first report."""
        works = tuple(self._works)
        shown = [str(work) for work in works if not (work.total and work.is_over)]
        line, left = " · ".join(shown), self._seconds_left(works)
        if left is None:
            return line
        return f"{line} · about {duration(left)} until the last {_counted(works)[0].name} is done"

    def _seconds_left(self, works: tuple[Work, ...]) -> float | None:
        """Time so far, times what is left over what was done since; None before anything was."""
        counted, share = _counted(works), 0.0
        if not counted:
            return None
        for work in reversed(counted):
            share = (work.done + share) / work.total
        outermost = counted[0]
        done = share - outermost.first / outermost.total
        return (self._clock() - outermost.started) * (1 - share) / done if done > 0 else None


@contextmanager
def watching(estimate: Estimate) -> Generator[None]:
    """Pass all reports of this process to an estimate while the body runs."""
    handler, level = _Handler(estimate), LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)


def duration(seconds: float) -> str:
    """Seconds for people: ``75 -> '1 min 15 s'``, ``4000 -> '1 h 6 min'``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _counted(works: tuple[Work, ...]) -> list[Work]:
    return [work for work in works if work.total]


class _Handler(logging.Handler):
    def __init__(self, estimate: Estimate) -> None:
        super().__init__()
        self._estimate = estimate

    def emit(self, record: logging.LogRecord) -> None:
        facts = vars(record)
        self._estimate.report(record.getMessage(), facts["done"], facts["total"])
