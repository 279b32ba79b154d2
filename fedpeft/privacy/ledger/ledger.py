"""The ledger itself: reserve, start, release, spend; see `Ledger`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import FINE, Event
from fedpeft.privacy.event_json import event_from_json
from fedpeft.privacy.ledger import clock, entry_bodies, store
from fedpeft.privacy.ledger.budget import (
    Budget,
    Charge,
    Claim,
    allowed,
    charges,
    claim_of,
    delta_of,
    joint,
)
from fedpeft.privacy.ledger.chain import Chain, Entry, Head
from fedpeft.privacy.ledger.entry_bodies import Body
from fedpeft.privacy.ledger.promise import require_promised
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.trust.keys import Signer

TRIES = 3
"""How often a price is worked out without the write lock; after that with it, so that everyone gets on."""
ROUND = ("round", "run", "lineage", "kind")
"""What names a round, of which there may be several attempts."""


@dataclass(frozen=True)
class Reservation:
    """A round that may now open its data; its cost is spent, whatever happens next.

    Attributes:
        head: the entry of the reservation.
        attempt: 1-based number of reservations of this run and round.
        epsilon: joint epsilon of the data set including this reservation, an upper bound.
        delta: the delta at which it holds.
    """

    head: Head
    attempt: int
    epsilon: float
    delta: float


@dataclass(frozen=True)
class _Quote:
    """What a charge would cost, worked out on one state of the chain."""

    body: Body
    again: Entry | None
    epsilon: float
    delta: float


@dataclass
class _Page:
    """The ledger under the write lock."""

    db: Connection
    chain: Chain
    signer: Signer | None
    now: float

    def take(self, quote: _Quote) -> Head:
        """Write a charge, unless it was written before."""
        if quote.again is not None:
            return Head(quote.again.seq, quote.again.hash)
        return self.append(quote.body)

    def append(self, body: Body) -> Head:
        """Write an entry; the first that is signed comes after one that names the key."""
        public = self.signer.public if self.signer else None
        if self.chain.key != public:
            if self.chain.key is not None or public is None:
                signer = (self.chain.key or b"").hex()
                raise PrivacyError(f"the ledger is signed by key {signer}: open it with that key to write")
            self._put(entry_bodies.key(public))
        return self._put(body)

    def _put(self, body: Body) -> Head:
        row = self.chain.next_row(entry_bodies.stamped(body, self.now), self.signer)
        self.chain = self.chain.extended([row])
        store.insert(self.db, row)
        return self.chain.head


class Ledger:
    """An append-only SQLite file (WAL, synchronous=FULL) in which each entry holds the hash of the last.

    Several processes may share a file: entries are serialised by SQLite's write lock, and a price is only
    good for the chain that it was worked out on, so that no race exceeds the budget. ``lineage`` is the
    privacy-budget id of a data set: its owner assigns it for life, edited and extended data keep it, and all
    coordinators share it.

    A round goes ``reserve`` (spent from then on), ``started`` (its data are opened), ``released``. A
    reservation that was never started is handed out again instead of charged twice; ``started`` succeeds once
    per reservation, so that two processes never train under the same one.

    Args:
        path: the file; made with its folder where missing.
        budget: the owner's limits; a number is a total; None: record only.
        signer: signs every entry from now on; needed to write into a ledger that is signed. Without it
            somebody with the file could write the whole chain anew.
        clock: seconds since 1970, UTC.
        strict: refuse a clock that leapt even where this budget counts no year: somebody else's does, and an
            entry of any data set that is dated in the future dates all that follow.

    Raises:
        PrivacyError: a nonsense budget, or the file cannot be made or is something else.
    """

    def __init__(
        self,
        path: Path,
        budget: Budget | float | None = None,
        signer: Signer | None = None,
        clock: Callable[[], float] = time.time,
        strict: bool = False,
    ) -> None:
        self.path, self.signer, self.clock, self.strict = Path(path), signer, clock, strict
        self.budget = budget if isinstance(budget, Budget) else Budget(budget)
        self._chain = Chain()
        store.create(self.path)

    def reserve(
        self,
        lineage: str,
        run: str,
        round: int,
        plan: PrivacyPlan | None,
        steps: int,
        content: str | None = None,
    ) -> Reservation:
        """Spend a round's steps, durably, before its data are opened.

        The same round with the same plan is charged again only after the first reservation was started.
        Without a plan, or with a reproducible one, the round is recorded as not private: epsilon of the
        lineage is infinite from then on. The budget is read at the owner's delta (`Budget.delta`), the
        reservation's epsilon at the plan's.

        Args:
            lineage: the data set's name for life.
            run: of the federation.
            round: 1-based.
            plan: what is guaranteed, if anything.
            steps: noisy releases of this round.
            content: hash of the data file, for audits only: edited data keep the same budget.

        Raises:
            PrivacyError: the budget or the run's promise would be exceeded, the clock has leapt, the disk is
                full (nothing is spent then), the data set has an entry that this version does not know, or
                the ledger is damaged.
        """
        quote, head = self._charge(
            entry_bodies.reserve(lineage, run, round, plan, steps) | {"content": content}
        )
        return Reservation(head, quote.body["attempt"], quote.epsilon, quote.delta)

    def spend(
        self,
        lineage: str,
        purpose: str,
        event: Event,
        delta: float,
        unit: str = "record",
        trust: str = "local",
    ) -> Head:
        """Spend privacy for an output other than a round: noisy counts, metrics, audits on real data.

        Raises:
            PrivacyError: as `reserve`.
        """
        return self._charge(entry_bodies.spend(lineage, purpose, event, delta, Claim(unit, trust)))[1]

    def started(self, reservation: Reservation) -> Head:
        """Record that the data of a reservation are opened now; once only. Call it right before.

        Raises:
            PrivacyError: it was started before, perhaps by another process, or is not of this ledger.
        """
        seq = reservation.head.seq
        with store.session(self.path) as db, self._page(db) as page:
            _require_reservation(page.chain, reservation)
            if any(_about(entry, seq) for entry in page.chain.entries[seq:]):
                raise PrivacyError(
                    f"reservation {seq} was started before: its data may not be opened again; reserve anew"
                )
            return page.append(entry_bodies.started(seq))

    def released(self, reservation: Reservation, digest: str) -> Head:
        """Record the SHA-256 (hex) of the bytes that left under a reservation; spends nothing.

        Once per reservation; the same digest again changes nothing.

        Raises:
            PrivacyError: other bytes left under this reservation before, or it is not of this ledger.
        """
        seq, body = reservation.head.seq, entry_bodies.released(reservation.head.seq, digest)
        with store.session(self.path) as db, self._page(db) as page:
            _require_reservation(page.chain, reservation)
            for entry in page.chain.entries[seq:]:
                if _about(entry, seq) and entry.kind == "released":
                    if entry.body["sha256"] == digest:
                        return Head(entry.seq, entry.hash)
                    raise PrivacyError(
                        f"other bytes left under reservation {seq} before: send those again, or reserve anew"
                    )
            return page.append(body)

    def require_affordable(self, lineage: str, plan: PrivacyPlan) -> None:
        """Refuse a run that the budget cannot bear to its end; nothing is written.

        Raises:
            PrivacyError: it cannot, or the clock has leapt.
        """
        chain = self.chain()
        now, spent = self._now(chain), charges(chain.entries, lineage)
        spent.append(Charge(0, now, plan.event(), Claim(plan.unit, plan.trust), plan.delta, True))
        allowed(lineage, spent, self.budget, now)

    def confirm_clock(self) -> Head:
        """Write down that the owner holds the clock to be right, though it leapt or was set back.

        What was dated later than now counts as of now.

        Raises:
            PrivacyError: the ledger cannot be written.
        """
        with store.session(self.path) as db, self._page(db, leaping=True) as page:
            return page.append(entry_bodies.clock())

    def declare(self, charges: Iterable[tuple[Body, str | None]], body: Body) -> Head:
        """Write charges anew that this ledger lost, and the owner's word on it, in one commit.

        No budget refuses them, and they count as of now for the year.

        Args:
            charges: as `bodies.charged`, each with the SHA-256 of the bytes that left under it.
            body: as `bodies.declared`.

        Raises:
            PrivacyError: the ledger cannot be written, or the clock has leapt; nothing was then.
        """
        with store.session(self.path) as db, self._page(db) as page:
            for charge, digest in charges:
                seq = page.append(charge | {"kind": "reserve"}).seq
                page.append(entry_bodies.started(seq))
                if digest is not None:
                    page.append(entry_bodies.released(seq, digest))
            return page.append(body)

    def spent(
        self,
        lineage: str,
        delta: float | None = None,
        unit: str | None = None,
        trust: str | None = None,
        since: float | None = None,
    ) -> float:
        """Joint epsilon of a data set over all its runs and coordinators; 0 if nothing was spent.

        Args:
            lineage: the data set's name for life.
            delta: where to read epsilon; default: the budget's, else that of the newest private reservation.
            unit: whom it protects; an entry of a finer unit makes it infinite, one of a coarser unit counts
                twice. Default: the unit of the newest private reservation.
            trust: from whom; an entry of a weaker trust makes it infinite. Default: as for ``unit``.
            since: count entries from this time on only, seconds since 1970, UTC.

        Raises:
            PrivacyError: the data set has an entry that this version does not know, or as `entries`.
        """
        spent = charges(self.entries(), lineage)
        newest = claim_of(spent)
        claim = Claim(unit or newest.unit, trust or newest.trust).check()
        counted = [charge for charge in spent if since is None or charge.moment >= since]
        return joint(counted, delta or self.budget.delta or delta_of(spent), claim, FINE)

    def entries(self) -> list[Entry]:
        """All entries in order, after chain and signatures were checked.

        Raises:
            PrivacyError: an entry was changed, removed or put in, or the file cannot be read.
        """
        return list(self.chain().entries)

    def head(self) -> Head:
        """The newest entry; sequence 0 and a hash of zeros for an empty ledger."""
        return self.chain().head

    def verify(self, known: Head | None = None, key: bytes | None = None) -> Head:
        """Check the whole ledger and return its head.

        Args:
            known: a head that was seen before, which it must extend.
            key: the public key that must have signed it, 32 bytes.

        Raises:
            PrivacyError: the ledger was changed, rolled back behind ``known``, or is not signed by ``key``.
        """
        return self.chain().require(known, key)

    def chain(self) -> Chain:
        """The verified entries as they are stored, to export them."""
        with store.session(self.path) as db:
            return self._seen(db)

    def _seen(self, db: Connection) -> Chain:
        self._chain = store.read(db, self._chain)
        return self._chain

    def _charge(self, body: Body) -> tuple[_Quote, Head]:
        """Work out the price without the write lock, and write it if the ledger did not move meanwhile."""
        with store.session(self.path) as db:
            for _ in range(TRIES):
                chain = self._seen(db)
                quote = self._quote(chain, body)
                with self._page(db) as page:
                    if page.chain.head == chain.head:
                        return quote, page.take(quote)
            with self._page(db) as page:
                quote = self._quote(page.chain, body)
                return quote, page.take(quote)

    def _quote(self, chain: Chain, body: Body) -> _Quote:
        """The price of a charge; an open reservation of the same round costs nothing more."""
        now, training = self._now(chain), body["kind"] == "reserve"
        attempts = [e for e in chain.entries if _same(e, body, ROUND)] if training else []
        again = _never_started(chain, [e for e in attempts if _same(e, body, entry_bodies.SAME)])
        if training:
            require_promised(chain, body, self.budget.repeats)
        spent = charges(chain.entries, body["lineage"])
        if again is None:
            claim = None if body["unit"] is None else Claim(body["unit"], body["trust"])
            spent.append(Charge(0, now, event_from_json(body["event"]), claim, body["delta"], training))
        else:
            spent = [c._replace(moment=now) if c.seq == again.seq else c for c in spent]
        reached = allowed(body["lineage"], spent, self.budget, now)
        if again is not None:
            return _Quote(again.body, again, reached, delta_of(spent))
        written = body | {"epsilon": reached if math.isfinite(reached) else None}
        if training:
            written["attempt"] = 1 + len(attempts)
        return _Quote(written, None, reached, delta_of(spent))

    def _now(self, chain: Chain) -> float:
        """The time of the next entry; where a year counts, for whomever, it does not leap."""
        strict = self.strict or self.budget.yearly is not None
        return clock.present(chain.entries, self.clock(), strict)

    @contextmanager
    def _page(self, db: Connection, leaping: bool = False) -> Generator[_Page]:
        """The ledger under the write lock; what is appended counts after the commit only."""
        with store.transaction(db):
            chain = self._seen(db)
            page = _Page(db, chain, self.signer, self.clock() if leaping else self._now(chain))
            yield page
        self._chain = page.chain


def _never_started(chain: Chain, reservations: list[Entry]) -> Entry | None:
    """The newest reservation whose data were never opened."""
    if not reservations:
        return None
    used = {entry.body.get("reservation") for entry in chain.entries if entry.kind in ("started", "released")}
    return next((entry for entry in reversed(reservations) if entry.seq not in used), None)


def _same(entry: Entry, body: Body, names: tuple[str, ...]) -> bool:
    return all(entry.body.get(name) == body[name] for name in names)


def _require_reservation(chain: Chain, reservation: Reservation) -> None:
    head = reservation.head
    if chain.at(head.seq) != head or chain.entries[head.seq - 1].kind != "reserve":
        raise PrivacyError(
            f"entry {head.seq} is no reservation of this ledger: it was rolled back or replaced"
        )


def _about(entry: Entry, seq: int) -> bool:
    return entry.kind in ("started", "released") and entry.body.get("reservation") == seq
