"""What one coordinator learns of a ledger that other runs and coordinators write into as well.

Numbers and sums are those of its own run: how much others train on the same data is none of its business.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft.errors import PrivacyError
from fedpeft.privacy import Head, Ledger
from fedpeft.privacy.ledger import budget
from fedpeft.privacy.ledger.chain import Entry


def of_run(entries: Sequence[Entry], run: str) -> list[Entry]:
    """The entries of a run in order: its reservations, and what was started and released under them."""
    reservations = {
        entry.seq for entry in entries if entry.kind == "reserve" and entry.body.get("run") == run
    }
    return [
        entry
        for entry in entries
        if entry.seq in reservations or entry.body.get("reservation") in reservations
    ]


def place(ledger: Ledger, run: str, head: Head) -> int:
    """The number of an entry among those of its run, from 1."""
    return sum(entry.seq <= head.seq for entry in of_run(ledger.entries(), run))


def reserved_before(ledger: Ledger, run: str, lineage: str, seq: int) -> str | None:
    """Hash, hexadecimal, of a run's newest reservation on a data set before entry ``seq``, if it has one."""
    entries = [entry for entry in of_run(ledger.entries(), run) if entry.kind == "reserve"]
    before = [entry.hash for entry in entries if entry.seq < seq and entry.concerns(lineage)]
    return before[-1] if before else None


def require(ledger: Ledger, run: str, number: int, digest: str) -> None:
    """Check that the ledger still holds the entry that was reported; each entry's hash covers all before it.

    Args:
        ledger: of this node.
        run: 32 hexadecimal digits.
        number: of the entry among those of the run.
        digest: its hash, hexadecimal.

    Raises:
        PrivacyError: it does not.
    """
    entries = of_run(ledger.entries(), run)
    if len(entries) < number or entries[number - 1].hash != digest:
        raise PrivacyError(
            f"the ledger does not hold entry {number} of this run as it was reported: it was rolled back or "
            "replaced; restore the newest copy, or ask the coordinator's operator"
        )


def epsilon(ledger: Ledger, lineage: str, run: str) -> float:
    """What a run by itself has spent of a privacy-budget id; inf where something of it is not private."""
    charges = budget.charges(of_run(ledger.entries(), run), lineage)
    return budget.joint(charges, budget.delta_of(charges), budget.claim_of(charges), None)
