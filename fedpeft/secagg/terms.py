"""A node holds a sum to what it agreed to: its roster, its numbers, and one set of terms a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedpeft.secagg.context import SecureContext
from fedpeft.secagg.errors import TermsRefused
from fedpeft.secagg.state import Member


def accept(context: SecureContext, member: Member) -> None:
    """Take the terms of an attempt, on disk before anything of it leaves.

    A round has one roster, one threshold and one state to train from: attempts differ in their number alone.
    So the nodes that a sum may be opened with are fixed before the coordinator has seen any of them answer.

    Raises:
        TermsRefused: rule ``roster``, ``threshold`` or ``round``.
    """
    check_roster(context.keys, member)
    if context.cohort != member.cohort:
        raise TermsRefused("threshold", f"the sum has {context.cohort}, agreed is {member.cohort}")
    member.store.once(replace(context, attempt=0), "accepted", b"")


def check_roster(roster: Mapping[str, bytes], member: Member) -> None:
    """Refuse every roster but the agreed one, with the pinned keys.

    Raises:
        TermsRefused: rule ``roster``.
    """
    pinned, nodes = member.roster, member.cohort.nodes
    if len(pinned) != nodes:
        raise TermsRefused("roster", f"{len(pinned)} nodes are pinned for a sum of {nodes}")
    if pinned.get(member.name) != member.signer.public:
        raise TermsRefused("roster", f"the pinned roster does not hold {member.name!r} with this node's key")
    for name, key in sorted(roster.items()):
        if pinned.get(name) != key:
            raise TermsRefused("roster", f"the roster holds {name!r} with a key that is not pinned here")
    if missing := sorted(set(pinned) - set(roster)):
        raise TermsRefused(
            "roster", f"the roster has {len(roster)} of {nodes} nodes: {missing[0]!r} is not in it"
        )
