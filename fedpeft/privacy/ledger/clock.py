"""The time of a ledger: it never goes back, and leaps only when the owner says so.

A yearly budget is as good as the clock of its machine. A clock that is set back does not make old entries
young or new ones old: an entry is dated no earlier than the newest before it. A clock that leaps ahead would
let a year's spending fall out of the year, and then date everything in the future: such an entry is refused
before anything is written, until the owner confirms the time (`Ledger.confirm_clock`). What remains: whoever
moves the clock by less than `LEAP` between two entries, again and again, ages the year; the budget for life
does not depend on any clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from fedpeft.errors import PrivacyError
from fedpeft.privacy.ledger.chain import Entry

LEAP = 31 * 86400.0
"""Seconds from one entry to the next that need no confirmation."""


def latest(entries: Iterable[Entry]) -> float:
    """The newest time that a ledger has seen since it was last confirmed; 0 for an empty one."""
    seen = 0.0
    for entry in entries:
        seen = entry.time if entry.kind == "clock" else max(seen, entry.time)
    return seen


def present(entries: Iterable[Entry], clock: float, strict: bool) -> float:
    """The time of the next entry.

    Args:
        entries: of the ledger.
        clock: what the machine's clock says.
        strict: refuse a leap; where nobody who writes here has a yearly budget no time matters.

    Raises:
        PrivacyError: the clock is more than `LEAP` ahead of the newest entry.
    """
    seen = latest(entries)
    if strict and seen and clock > seen + LEAP:
        raise PrivacyError(
            f"the clock says {_day(clock)}, the newest entry of the ledger is of {_day(seen)}: nothing is "
            "spent on a clock that may have leapt; set the clock, or if it is right and the node was idle, "
            "run 'fedpeft node ledger clock --confirm'"
        )
    return max(seen, clock)


def _day(moment: float) -> str:
    try:
        return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{moment:g} s after 1970"
