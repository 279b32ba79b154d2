"""What the coordinator sends in a round: each member's order, with the broadcasts that it lacks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import RecordDict

from fedpeft.aggregation.global_state import GlobalState, Release, digest
from fedpeft.exchange import (
    OVERHEAD_BYTES,
    Decoded,
    Update,
    seal,
)
from fedpeft.privacy import Head
from fedpeft.protocol.encoding import pack
from fedpeft.protocol.messages import NO_STATE, Broadcast, TrainTask
from fedpeft.runstore import write_atomic
from fedpeft.training import LocalPlan
from fedpeft_server.rounds.broadcast_cache import START
from fedpeft_server.rounds.roster import Member
from fedpeft_server.rounds.run_setup import WHOLE, Setup


@dataclass(frozen=True)
class Order:
    """What one member is sent: the kind of broadcast, the round it starts from, and the envelopes."""

    kind: Broadcast
    since: int
    links: list[bytes]


@dataclass
class Orders:
    """Writes each member's order of a round; every envelope is made at most once."""

    setup: Setup
    state: GlobalState
    release: Release
    round: int
    heads: Mapping[str, Head] = field(default_factory=dict[str, Head])
    bytes_down: int = 0
    _made: dict[int, Order] = field(default_factory=dict[int, Order])
    _followed: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        if self.release.kind == "delta" and self.release.update is not None:
            context = self.setup.down_context(self.round, self.release.before)
            data = seal(self.release.update, self.release.plan, context, self.setup.signer)
            self.setup.broadcasts.put(self.round, data)

    def content(self, member: Member, attempt: int = 0, shares: bytes = b"") -> RecordDict:
        """The order for one member: the broadcasts it has missed, or the whole state if that is shorter.

        Args:
            member: who is asked.
            attempt: of the round's secure sum; 0: there is none.
            shares: what other nodes dealt to this one for it.
        """
        order = self._order_of(member)
        if order.kind == "delta":
            self._followed.add(member.name)
        blob = b"".join([*order.links, shares])
        self.bytes_down += len(blob)
        head = self.heads.get(member.name, Head(0, ""))
        task = replace(
            self._task(order),
            ledger_entry=head.seq,
            ledger=bytes.fromhex(head.hash),
            attempt=attempt,
            inbox=len(shares),
        )
        return pack(task, blob)

    def follows(self, members: Iterable[Member]) -> bool:
        """Whether all of these will have read the newest broadcast delta."""
        return self.release.update is not None and all(
            self._order_of(member).kind == "delta" for member in members
        )

    def newest(self) -> Decoded | None:
        """The newest broadcast delta, if there is one."""
        update = self.release.update
        return None if update is None else Decoded(update.layout, update.values)

    def released(self, name: str) -> Decoded | None:
        """The newest broadcast delta, if this member was sent it."""
        return self.newest() if name in self._followed else None

    def _order_of(self, member: Member) -> Order:
        return self._order(max((v for v in member.versions if v < self.round), default=START))

    def _order(self, since: int) -> Order:
        if since not in self._made:
            self._made[since] = self._write(since)
        return self._made[since]

    def _write(self, since: int) -> Order:
        if self.release.kind == "none":
            return Order("none", 0, [])
        whole = OVERHEAD_BYTES + WHOLE.codec.max_bytes(self.state.layout)
        if self.release.kind == "delta":
            links = self.setup.broadcasts.chain(since, self.round, whole)
            if links is not None:
                return Order("delta", since, links)
        return Order("full", 0, [self._whole()])

    def _task(self, order: Order) -> TrainTask:
        federation = self.setup.config.federation
        return TrainTask(
            round=self.round,
            steps=federation.local_steps,
            lr=LocalPlan.of(federation, self.round).lr,
            broadcast=order.kind,
            since=order.since,
            sizes=[len(link) for link in order.links],
            state=digest(self.state),
            ranks=self.state.ranks,
            expires=time.time() + federation.deadline,
        )

    def _whole(self) -> bytes:
        update = Update(self.state.layout, self.state.node_values, self.round, 0)
        data = seal(update, WHOLE, self.setup.down_context(self.round, NO_STATE), self.setup.signer)
        write_atomic(self.setup.broadcasts.whole(self.round), data)
        return data
