"""A run's promise is its ceiling: what left of its rounds never exceeds what its plan says.

The plan of a run, which its owner has approved, says rounds and releases per round. The lineage's budget is
shared by all runs, so that without this a coordinator could have round 1 answered from many states, for as
long as the budget lasts. Two limits, both in whole numbers, on the charges of one run on one lineage:

* what was released, and the reservation asked for, are together no more releases than the plan's;
* what was opened and never released (a crash cut it off, nothing of it left) is charged to the budget beside
  the promise, at most `Budget.repeats` times.
"""

from __future__ import annotations

from fedpeft.errors import PrivacyError
from fedpeft.privacy.ledger.bodies import Body
from fedpeft.privacy.ledger.chain import Chain, Entry


def require_promised(chain: Chain, body: Body, repeats: int | None) -> None:
    """Refuse a reservation with which the run would exceed its plan.

    Args:
        chain: the ledger.
        body: of the reservation; one without a promise is not held to it.
        repeats: as `Budget.repeats`.

    Raises:
        PrivacyError: it would.
    """
    plan = body["plan"]
    if repeats is None or body["unit"] is None:
        return
    run, lineage, most = body["run"], body["lineage"], plan["rounds"] * plan["steps_per_round"]
    left, lost = _spent(chain, run, lineage)
    if left + body["steps"] > most:
        raise PrivacyError(
            f"run {run[:12]} promised {most} noisy releases of data set {lineage!r}, and {left} have left: "
            f"{body['steps']} more would exceed the epsilon that was approved; nothing was spent, and its "
            "data may not be opened"
        )
    if lost > repeats:
        raise PrivacyError(
            f"run {run[:12]}: {lost} rounds were cut off with the data of {lineage!r} open, each charged "
            f"beside its promise, allowed are {repeats}: find out what ends this node, or raise "
            "privacy.most_repeats in the policy; nothing was spent, and its data may not be opened"
        )


def _spent(chain: Chain, run: str, lineage: str) -> tuple[int, int]:
    """Noisy releases of a run that left, and rounds of it that were opened in vain."""
    mine = {e.seq: e for e in chain.entries if _of(e, run, lineage)}
    opened = {e.body["reservation"] for e in chain.entries if e.kind == "started"} & mine.keys()
    released = {e.body["reservation"] for e in chain.entries if e.kind == "released"} & mine.keys()
    return sum(mine[seq].body["steps"] for seq in released), len(opened - released)


def _of(entry: Entry, run: str, lineage: str) -> bool:
    return (entry.kind, entry.body.get("run"), entry.body.get("lineage")) == ("reserve", run, lineage)
