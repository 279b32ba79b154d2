"""A run's promise is its ceiling: what left of its rounds never exceeds what its plan says.

The plan of a run, which its owner has approved, says rounds and releases per round. The budget of a data set
is shared by all runs, so that without this a coordinator could have round 1 answered from many states, for as
long as the budget lasts. Two limits, both in whole numbers, on the charges of one run on one data set:

* what left, and the reservation asked for, are together no more releases than the plan's;
* what was opened and of which nothing left, because a crash cut it off, is charged to the budget beside the
  promise, at most `Budget.repeats` times.

Of a round at most one reservation has left, the newest that was opened, if it was released. A reservation for
a round is asked for only while no answer of this round is stored, and an answer is stored before it leaves:
whatever was opened for it before was lost, released or not.
"""

from __future__ import annotations

from fedpeft.errors import PrivacyError
from fedpeft.privacy.ledger.chain import Chain, Entry
from fedpeft.privacy.ledger.entry_bodies import Body


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
    left, lost = _spent(chain, run, lineage, body["round"])
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
            "privacy.max_repeats in the policy; nothing was spent, and its data may not be opened"
        )


def _spent(chain: Chain, run: str, lineage: str, round: int) -> tuple[int, int]:
    """Noisy releases of a run before a round, and its opened reservations without a release."""
    mine = {e.seq: e.body for e in chain.entries if _of(e, run, lineage)}
    opened = sorted({e.body["reservation"] for e in chain.entries if e.kind == "started"} & mine.keys())
    released = {e.body["reservation"] for e in chain.entries if e.kind == "released"}
    newest = {mine[seq]["round"]: seq for seq in opened if mine[seq]["round"] != round}
    left = released & set(newest.values())
    return sum(mine[seq]["steps"] for seq in left), len(opened) - len(left)


def _of(entry: Entry, run: str, lineage: str) -> bool:
    return (entry.kind, entry.body.get("run"), entry.body.get("lineage")) == ("reserve", run, lineage)
