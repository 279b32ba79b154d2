"""What a data set has spent: joint epsilon under each promise that was made of it, against a budget.

A promise is a unit and a trust model. Each that was ever made of a data set is an account of its own, and a
charge must fit into all of them. Into the account of its own unit it goes as it is. Into that of a finer unit
(record < person < node) it goes by group privacy: a record more or less in a person's data changes that
person, which is one person removed and another added, so two steps of the coarser guarantee. Where a round
draws the records of persons one by one, that record may displace one eligible record and no more, which is
one removed and another added: two steps of what the round is for one eligible record. Into that of a
coarser unit it does not go: how many records a person has is not known for certain, so epsilon is infinite.
Noise that is added closer to the data also protects against whoever comes later (central < distributed <
local); the reverse is infinite again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import FINE, Event, MixtureSteps, epsilon
from fedpeft.privacy.ledger.chain import Entry
from fedpeft.privacy.ledger.composition_cache import running_epsilon

UNITS = ("record", "person", "node")
"""Units from fine to coarse."""
TRUSTS = ("central", "distributed", "local")
"""Trust models from weak to strong."""
YEAR = 365 * 86400.0
"""Seconds of a yearly budget."""
DELTA = 1e-5
"""Where epsilon is read while nothing private was recorded."""
HALVINGS = 60
"""How often the delta of one step of group privacy is lowered before epsilon counts as infinite."""
LARGEST = 500.0
"""Of an epsilon whose exponential is taken."""


@dataclass(frozen=True)
class Budget:
    """The owner's limits on a data set; None: no limit.

    Attributes:
        total: joint epsilon over its whole life.
        yearly: joint epsilon over the last 365 days.
        delta: where both are read, whatever a run asks for; None: at the delta of the newest round.
        repeats: how many rounds of one run may be charged again because a crash cut them off, beside what
            the run promised; None: runs are not held to their promise (`fedpeft.privacy.ledger.promise`).

    Raises:
        PrivacyError: a limit that is not finite or not above 0, or a delta outside (0, 0.1).
    """

    total: float | None = None
    yearly: float | None = None
    delta: float | None = None
    repeats: int | None = None

    def __post_init__(self) -> None:
        for limit in (self.total, self.yearly):
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise PrivacyError(f"privacy budget {limit} must be finite and above 0")
        if self.delta is not None and not 0 < self.delta < 0.1:
            raise PrivacyError(f"the budget's delta {self.delta} must be in (0, 0.1), best below 1 / units")
        if self.repeats is not None and self.repeats < 0:
            raise PrivacyError(f"a run cannot repeat {self.repeats} rounds; give 0 or more")


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

    def steps_to(self, asked: Claim) -> int | None:
        """Steps of this guarantee between two neighbours of another; None: no number of them is known.

        1 for the same unit, 2 for a finer one, as `fedpeft.privacy.ledger.budget` says.
        """
        finer = UNITS.index(self.unit) < UNITS.index(asked.unit)
        if finer or TRUSTS.index(self.trust) < TRUSTS.index(asked.trust):
            return None
        return 1 if self.unit == asked.unit else 2


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
    """All that was spent on a data set, started or not.

    Raises:
        PrivacyError: this version does not know an entry, its event, unit or trust.
    """
    listed = list(entries)
    opened = {e.body.get("reservation"): e.time for e in listed if e.kind == "started"}
    charged = [_charge(entry, opened.get(entry.seq, 0.0)) for entry in listed if entry.concerns(lineage)]
    set_anew = [(entry.seq, entry.time) for entry in listed if entry.kind == "clock"]
    return [charge._replace(moment=_not_after(charge, set_anew)) for charge in charged]


def _not_after(charge: Charge, set_anew: list[tuple[int, float]]) -> float:
    """When a charge was made: not after a time that the owner later confirmed."""
    return min([charge.moment, *(time for seq, time in set_anew if seq > charge.seq)])


def lineages(entries: Iterable[Entry]) -> list[str]:
    """Privacy-budget ids of all data sets in order of appearance."""
    return list(dict.fromkeys(e.body["lineage"] for e in entries if "lineage" in e.body))


def claim_of(spent: Iterable[Charge]) -> Claim:
    """What the newest private round protects; without one, what the newest private output does."""
    private = [charge for charge in spent if charge.claim is not None]
    newest = ([charge for charge in private if charge.trains] or private)[-1:]
    return next((charge.claim for charge in newest if charge.claim), Claim("record", "local"))


def promised(spent: Iterable[Charge]) -> list[Claim]:
    """All promises that were made of a data set; without any, what is read by default."""
    claims = [charge.claim for charge in spent if charge.claim is not None]
    return list(dict.fromkeys(claims)) or [claim_of([])]


def delta_of(spent: Iterable[Charge]) -> float:
    """The delta of the newest private round; without one, of the newest private output."""
    private = [charge for charge in spent if charge.delta is not None]
    newest = ([charge for charge in private if charge.trains] or private)[-1:]
    return next((charge.delta for charge in newest if charge.delta), DELTA)


def joint(spent: Iterable[Charge], delta: float, claim: Claim, interval: float | None = FINE) -> float:
    """Joint epsilon under a claim; 0 without charges, inf if one of them guarantees nothing for it.

    Args:
        spent: charges on one data set.
        delta: where epsilon is read.
        claim: unit and trust.
        interval: of the PLD; None: coarse, and quick when all but the newest charges are known.
    """
    groups: dict[int, list[Event]] = {}
    for charge in spent:
        steps = None if charge.claim is None else charge.claim.steps_to(claim)
        if steps is None:
            return math.inf
        groups.setdefault(steps, []).append(charge.event if steps == 1 else _of_a_part(charge.event))
    if set(groups) <= {1}:
        return _read(groups.get(1, []), delta, interval)
    return _stepped(groups, delta, interval)


def _of_a_part(event: Event) -> Event:
    """What a release is in each of two steps of group privacy."""
    return event.of_one_record if isinstance(event, MixtureSteps) else event


def _read(events: list[Event], delta: float, interval: float | None) -> float:
    return running_epsilon(events, delta) if interval is None else epsilon(events, delta, interval)


def _stepped(groups: dict[int, list[Event]], delta: float, interval: float | None) -> float:
    """Joint epsilon over several steps of group privacy.

    Between two neighbours lies a chain of data sets in which each step changes what one group of releases
    reads. If step ``i`` is ``(e_i, d)``-private, the ends are ``(sum e_i, d sum_i exp(e_1 + ... + e_(i-1)))``
    (triangle inequality of the hockey-stick divergence; Dwork and Roth 2014, theorem 2.2, is the case of
    equal steps). ``d`` is lowered until that is within ``delta``.
    """
    each = delta
    for _ in range(HALVINGS):
        steps = sorted(_read(events, each, interval) for n, events in groups.items() for _ in range(n))
        if sum(steps) > LARGEST:
            return math.inf
        needed = each * sum(math.exp(before) for before in accumulate(steps[:-1], initial=0.0))
        if needed <= delta:
            return sum(steps)
        each *= min(0.5, delta / needed)
    return math.inf


def allowed(lineage: str, spent: list[Charge], budget: Budget, now: float) -> float:
    """The joint epsilon that the last charge leads to, under its own promise, if the budget allows it.

    Every promise that was made of the data set must stay within the budget. The coarse bound may accept, only
    the fine one refuses.

    Raises:
        PrivacyError: the budget would be exceeded.
    """
    newest, delta = claim_of(spent), budget.delta or delta_of(spent)
    others = [claim for claim in promised(spent) if claim != newest]
    for claim in others if (budget.total, budget.yearly) != (None, None) else []:
        _within_all(lineage, spent, budget, now, (delta, claim))
    reached = _within_all(lineage, spent, budget, now, (delta, newest))
    last_delta = delta_of(spent)
    return reached if last_delta == delta else joint(spent, last_delta, newest, None)


def _within_all(
    lineage: str, spent: list[Charge], budget: Budget, now: float, at: tuple[float, Claim]
) -> float:
    """Joint epsilon under one claim, if total and year allow it."""
    total = joint(spent, *at, None)
    if budget.total is not None and total > budget.total:
        total = _within(budget.total, "", lineage, spent, at)
    recent = [charge for charge in spent if charge.moment >= now - YEAR]
    yearly = total if len(recent) == len(spent) else joint(recent, *at, None)
    if budget.yearly is not None and yearly > budget.yearly:
        _within(budget.yearly, "yearly ", lineage, recent, at)
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


def _charge(entry: Entry, started: float) -> Charge:
    body, event = entry.body, entry.event
    try:
        claim = None if body["unit"] is None else Claim(body["unit"], body["trust"]).check()
        delta = None if body["delta"] is None else float(body["delta"])
        moment = max(float(body["time"]), started)
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
        if charge.claim.steps_to(claim) is None:
            return f", because {where} protects per {charge.claim.unit} with trust {charge.claim.trust} only"
    return ""
