"""The node's own record of privacy spent: append-only, hash-chained, written before data are opened."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft._version import __version__
from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import COARSE, FINE, Steps, epsilon
from fedpeft.privacy.plan import PrivacyPlan

GENESIS = "0" * 64
PATIENCE = 60.0
"""Seconds to wait for another process that is writing."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY, body TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL UNIQUE);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


@dataclass(frozen=True)
class Head:
    """Position and hash of the newest entry; travels with each update so that a roll-back is noticed."""

    seq: int
    hash: str


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    seq: int
    body: dict[str, Any]
    hash: str

    def concerns(self, lineage: str) -> bool:
        """Whether this entry spends privacy of a lineage."""
        return self.body["kind"] == "reserve" and self.body["lineage"] == lineage

    @property
    def steps(self) -> Steps:
        """What the accountant composes; without a plan the entry is not private at all."""
        if (plan := self.body["plan"]) is None:
            return Steps(1.0, 0.0, self.body["steps"])
        return Steps(plan["sampling_probability"], plan["noise_multiplier"], self.body["steps"])


@dataclass(frozen=True)
class Reservation:
    """A round that may now open its data; its cost is spent, whatever happens next.

    Attributes:
        head: the ledger's newest entry, the reservation itself.
        attempt: 1-based number of reservations of this run and round.
        epsilon: joint epsilon of the lineage including this reservation, an upper bound.
        delta: the delta at which it holds.
    """

    head: Head
    attempt: int
    epsilon: float
    delta: float


class Ledger:
    """An append-only SQLite file (WAL, synchronous=FULL) in which each entry holds the hash of the last.

    Several processes may share a file: reservations are serialised by SQLite's write lock, so that no race
    exceeds the budget. A lineage names a data set for life, through edits and
    additions; its owner assigns it.

    Args:
        path: the file; made with its folder where missing.
        budget: largest joint epsilon of a lineage that a reservation may reach; None: record only.
    """

    def __init__(self, path: Path, budget: float | None = None) -> None:
        self.path, self.budget = Path(path), budget
        if budget is not None and not (math.isfinite(budget) and budget > 0):
            raise PrivacyError(f"privacy budget {budget} must be finite and above 0")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _create(self.path)

    def reserve(
        self, lineage: str, run: str, round: int, plan: PrivacyPlan | None, steps: int
    ) -> Reservation:
        """Spend a round's steps, durably, before its data are opened.

        A repeated call for the same round is charged again: a retry must re-send the stored bytes instead.
        Without a plan the round is recorded as not private: epsilon of the lineage is infinite from then on.

        Raises:
            PrivacyError: the budget would be exceeded (nothing is spent then), or the ledger is damaged.
        """
        body = _reservation(lineage, run, round, plan, steps)
        with self._write() as db:
            entries = _checked(db)
            mine = [entry for entry in entries if entry.concerns(lineage)]
            body["attempt"] = 1 + sum((e.body["run"], e.body["round"]) == (run, round) for e in mine)
            candidate = Entry(0, body, "")
            delta = _delta([*mine, candidate])
            spent = self._allowed([entry.steps for entry in [*mine, candidate]], delta, lineage)
            head = _append(db, entries, body)
        return Reservation(head, body["attempt"], spent, delta)

    def released(self, reservation: Reservation, digest: str) -> Head:
        """Record the SHA-256 (hex) of the bytes that left under a reservation; spends nothing."""
        body = {
            "kind": "released",
            "reservation": reservation.head.seq,
            "sha256": digest,
            "time": time.time(),
        }
        with self._write() as db:
            return _append(db, _checked(db), body)

    def spent(self, lineage: str, delta: float | None = None) -> float:
        """Joint epsilon of all reservations of a lineage, finished or not; 0 if there are none.

        Args:
            lineage: the data set's name for life.
            delta: where to read epsilon; default: the smallest delta among the reservations.
        """
        mine = [entry for entry in self.entries() if entry.concerns(lineage)]
        return epsilon([e.steps for e in mine], delta or _delta(mine), FINE) if mine else 0.0

    def entries(self) -> list[Entry]:
        """All entries in order, after the chain was checked.

        Raises:
            PrivacyError: an entry was changed, removed or put in.
        """
        with _connect(self.path) as db:
            return _checked(db)

    def head(self) -> Head:
        """The newest entry; sequence 0 and a hash of zeros for an empty ledger."""
        return _head(self.entries())

    def verify(self, known: Head | None = None) -> Head:
        """Check the whole chain, and that it extends a head that was seen before; return the head.

        Raises:
            PrivacyError: the ledger was changed, or rolled back behind ``known``.
        """
        entries = self.entries()
        seen = [Head(0, GENESIS), *(Head(entry.seq, entry.hash) for entry in entries)]
        if known is not None and known not in seen:
            raise PrivacyError(
                f"ledger {self.path.name} does not extend its known entry {known.seq}: it was rolled back or "
                "replaced; restore the newest copy before any further training"
            )
        return seen[-1]

    def _allowed(self, steps: list[Steps], delta: float, lineage: str) -> float:
        """The epsilon to be reached; the coarse bound may accept, only the fine one refuses."""
        spent = epsilon(steps, delta, COARSE)
        if self.budget is None or spent <= self.budget:
            return spent
        if (spent := epsilon(steps, delta, FINE)) > self.budget:
            raise PrivacyError(
                f"data set {lineage!r}: this round would spend epsilon {spent:.4g} of a budget of "
                f"{self.budget:.4g} (delta {delta:g}); nothing was spent, and no further round is allowed"
            )
        return spent

    @contextmanager
    def _write(self) -> Generator[sqlite3.Connection]:
        with _connect(self.path) as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                db.rollback()
                raise


def _reservation(lineage: str, run: str, round: int, plan: PrivacyPlan | None, steps: int) -> dict[str, Any]:
    if steps < 1:
        raise PrivacyError(f"a reservation needs at least 1 step, got {steps}")
    if plan is not None and steps > plan.steps_per_round:
        raise PrivacyError(f"the plan allows {plan.steps_per_round} steps per round, asked for {steps}")
    return {
        "kind": "reserve",
        "lineage": lineage,
        "run": run,
        "round": round,
        "steps": steps,
        "plan": None if plan is None else vars(plan),
        "version": __version__,
        "time": time.time(),
    }


def _delta(entries: list[Entry]) -> float:
    """The smallest delta of the entries' plans: the strictest reading."""
    return min((e.body["plan"]["delta"] for e in entries if e.body["plan"] is not None), default=1e-5)


def _create(path: Path) -> None:
    """Make the table once; two processes may try at the same time."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with _connect(path) as db:
                db.execute("PRAGMA journal_mode=WAL")
                db.executescript(SCHEMA)
            return _sync_folder(path.parent)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise PrivacyError(f"ledger {path} cannot be opened: {error}") from error
            time.sleep(0.02)
        except sqlite3.DatabaseError as error:
            raise PrivacyError(f"ledger {path} is not a readable ledger; restore it from a copy") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _connect(path: Path) -> Generator[sqlite3.Connection]:
    db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
    try:
        db.execute("PRAGMA synchronous=FULL")
        yield db
    finally:
        db.close()


def _checked(db: sqlite3.Connection) -> list[Entry]:
    entries: list[Entry] = []
    for seq, text, previous, digest in db.execute(
        "SELECT seq, body, previous, hash FROM entries ORDER BY seq"
    ):
        head = _head(entries)
        if (seq, previous) != (head.seq + 1, head.hash) or digest != _hash(seq, text, previous):
            raise PrivacyError(
                f"the ledger was changed at entry {seq}: its chain does not hold; "
                "restore the newest copy before any further training"
            )
        entries.append(Entry(seq, json.loads(text), digest))
    return entries


def _head(entries: list[Entry]) -> Head:
    return Head(entries[-1].seq, entries[-1].hash) if entries else Head(0, GENESIS)


def _append(db: sqlite3.Connection, entries: list[Entry], body: dict[str, Any]) -> Head:
    previous = _head(entries)
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    head = Head(previous.seq + 1, _hash(previous.seq + 1, text, previous.hash))
    db.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (head.seq, text, previous.hash, head.hash))
    return head


def _hash(seq: int, text: str, previous: str) -> str:
    return hashlib.sha256(f"fedpeft-ledger-1\0{seq}\0{previous}\0{text}".encode()).hexdigest()
