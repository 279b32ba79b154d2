"""What a lineage has spent: joint epsilon under one unit and one trust model, against a budget.

A guarantee for a coarser unit also covers a finer one, never the reverse: record < person < node. Noise that
is added closer to the data also protects against whoever comes later: central < distributed < local. Asked
for one unit and trust, an event of a finer unit or a weaker trust guarantees nothing: epsilon is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import FINE, Event, epsilon
from fedpeft.privacy.ledger.chain import Entry
from fedpeft.privacy.ledger.running import running_epsilon

UNITS = ("record", "person", "node")
"""Units from fine to coarse."""
TRUSTS = ("central", "distributed", "local")
"""Trust models from weak to strong."""
YEAR = 365 * 86400.0
"""Seconds of a yearly budget."""
DELTA = 1e-5
"""Where epsilon is read while nothing private was recorded."""


@dataclass(frozen=True)
class Budget:
    """The owner's limits on the joint epsilon of a lineage; None: no limit.

    Attributes:
        total: over its whole life.
        yearly: over the last 365 days.

    Raises:
        PrivacyError: a limit that is not finite or not above 0.
    """

    total: float | None = None
    yearly: float | None = None

    def __post_init__(self) -> None:
        for limit in (self.total, self.yearly):
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise PrivacyError(f"privacy budget {limit} must be finite and above 0")


class Claim(NamedTuple):
    """Whom a guarantee protects, and from whom."""

    unit: str
    trust: str

    def check(self) -> Claim:
        """This claim.

        Raises:
            PrivacyError: its unit or trust is unknown.
        """
        if self.unit not in UNITS or self.trust not in TRUSTS:
            raise PrivacyError(
                f"unit {self.unit!r} with trust {self.trust!r} is unknown: "
                f"units are {', '.join(UNITS)}, trusts {', '.join(TRUSTS)}"
            )
        return self

    def covers(self, asked: Claim) -> bool:
        """Whether a release with this claim guarantees anything for the one that is asked for."""
        coarse = UNITS.index(self.unit) >= UNITS.index(asked.unit)
        return coarse and TRUSTS.index(self.trust) >= TRUSTS.index(asked.trust)


class Charge(NamedTuple):
    """One entry that spent privacy.

    Attributes:
        seq: its position, 0 before it is written.
        moment: when it was reserved, or later started; seconds since 1970, UTC.
        event: what the accountant composes.
        claim: what it protects; None: nothing, it is not private.
        delta: where its epsilon is to be read; None: not private.
        trains: whether it is a round of training.
    """

    seq: int
    moment: float
    event: Event
    claim: Claim | None
    delta: float | None
    trains: bool


def charges(entries: Iterable[Entry], lineage: str) -> list[Charge]:
    """All that was spent on a lineage, started or not.

    Raises:
        PrivacyError: this version does not know an entry, its event, unit or trust.
    """
    listed = list(entries)
    opened = {e.body.get("reservation"): e.body.get("time") for e in listed if e.kind == "started"}
    return [_charge(entry, opened.get(entry.seq)) for entry in listed if entry.concerns(lineage)]


def lineages(entries: Iterable[Entry]) -> list[str]:
    """Names of all lineages in order of appearance."""
    return list(dict.fromkeys(e.body["lineage"] for e in entries if "lineage" in e.body))


def claim_of(spent: Iterable[Charge]) -> Claim:
    """What the newest private round protects; without one, what the newest private output does."""
    private = [charge for charge in spent if charge.claim is not None]
    newest = ([charge for charge in private if charge.trains] or private)[-1:]
    return next((charge.claim for charge in newest if charge.claim), Claim("record", "local"))


def delta_of(spent: Iterable[Charge]) -> float:
    """The smallest delta that was ever asked for: the strictest reading."""
    return min((charge.delta for charge in spent if charge.delta is not None), default=DELTA)


def joint(spent: Iterable[Charge], delta: float, claim: Claim, interval: float | None = FINE) -> float:
    """Joint epsilon under a claim; 0 without charges, inf if one of them guarantees nothing for it.

    Args:
        spent: charges on one lineage.
        delta: where epsilon is read.
        claim: unit and trust.
        interval: of the PLD; None: coarse, and quick when all but the newest charges are known.
    """
    events: list[Event] = []
    for charge in spent:
        if charge.claim is None or not charge.claim.covers(claim):
            return math.inf
        events.append(charge.event)
    return running_epsilon(events, delta) if interval is None else epsilon(events, delta, interval)


def allowed(lineage: str, spent: list[Charge], budget: Budget, now: float) -> float:
    """The joint epsilon that the last charge leads to, if the budget allows it.

    The coarse bound may accept, only the fine one refuses.

    Raises:
        PrivacyError: the budget would be exceeded.
    """
    claim, delta = claim_of(spent), delta_of(spent)
    total = joint(spent, delta, claim, None)
    if budget.total is not None and total > budget.total:
        total = _within(budget.total, "", lineage, spent, (delta, claim))
    recent = [charge for charge in spent if charge.moment >= now - YEAR]
    yearly = total if len(recent) == len(spent) else joint(recent, delta, claim, None)
    if budget.yearly is not None and yearly > budget.yearly:
        _within(budget.yearly, "yearly ", lineage, recent, (delta, claim))
    return total


def _within(limit: float, name: str, lineage: str, spent: list[Charge], at: tuple[float, Claim]) -> float:
    """The fine epsilon, if it is within the limit."""
    delta, claim = at
    if (reached := joint(spent, delta, claim, FINE)) <= limit:
        return reached
    raise PrivacyError(
        f"data set {lineage!r}: this would spend epsilon {reached:.4g} of a {name}budget of {limit:.4g} "
        f"(per {claim.unit}, trust {claim.trust}, delta {delta:g}){_cause(spent, claim)}; "
        "nothing was spent, and its data may not be opened"
    )


def _charge(entry: Entry, started: float | None) -> Charge:
    body, event = entry.body, entry.event
    try:
        claim = None if body["unit"] is None else Claim(body["unit"], body["trust"]).check()
        delta = None if body["delta"] is None else float(body["delta"])
        moment = max(float(body["time"]), float(started or 0.0))
    except (KeyError, TypeError, ValueError, PrivacyError) as error:
        raise PrivacyError(
            f"ledger entry {entry.seq} is unknown to this version ({error}); "
            "nothing more can be spent: use the version that wrote it"
        ) from None
    return Charge(entry.seq, moment, event, claim, delta, entry.kind == "reserve")


def _cause(spent: Iterable[Charge], claim: Claim) -> str:
    """Which charge makes epsilon infinite, for the message."""
    for charge in spent:
        where = f"entry {charge.seq}" if charge.seq else "it"
        if charge.claim is None:
            return f", because {where} is not private"
        if not charge.claim.covers(claim):
            return f", because {where} protects per {charge.claim.unit} with trust {charge.claim.trust} only"
    return ""
