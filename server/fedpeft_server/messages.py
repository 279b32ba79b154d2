"""The coordinator's side of one round's messages: orders out, envelopes in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message, RecordDict

from fedpeft.errors import FederationError, FedPeftError
from fedpeft.exchange import (
    OVERHEAD_BYTES,
    Context,
    Decoded,
    Layout,
    Update,
    bound,
    codec_of,
    entropy_bits,
    open_envelope,
    open_payload,
    seal,
)
from fedpeft.privacy import Head
from fedpeft.protocol import NO_STATE, Broadcast, TrainReply, TrainTask, pack, unpack
from fedpeft.runstore import write_atomic
from fedpeft.training import LocalPlan
from fedpeft.trust import Verifier
from fedpeft_server.broadcasts import START
from fedpeft_server.roster import Member
from fedpeft_server.secure import SecureSum
from fedpeft_server.setup import WHOLE, Setup
from fedpeft_server.state import GlobalState, Release, digest


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
        path = self.setup.run / "updates" / f"r{self.round:02d}" / "broadcast-full.fpd"
        update = Update(self.state.layout, self.state.held, self.round, 0)
        data = seal(update, WHOLE, self.setup.down_context(self.round, NO_STATE), self.setup.signer)
        write_atomic(path, data)
        return data


@dataclass
class Inbox:
    """Judges the replies of a round one by one; whatever is wrong with one stays with that one."""

    setup: Setup
    state: GlobalState
    round: int
    released: Callable[[str], Decoded | None]
    heads: Mapping[str, Head]
    secure: SecureSum | None = None
    accepted: dict[str, TrainReply] = field(default_factory=dict)
    codecs: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    kept: int = 0
    values: int = 0
    entropy: float = 0.0

    def open(self, member: Member, message: Message | None) -> Decoded | None:
        """The values of one member's update; None with the cause in ``refused``, or where they are masked."""
        if message is None:
            self.refused[member.name] = "no reply before the deadline"
            return None
        return self._isolated(member.name, lambda: self._open(member, message))

    def _isolated(self, name: str, work: Callable[[], Decoded | None]) -> Decoded | None:
        try:
            return work()
        except FedPeftError as error:
            self.refused[name] = str(error)
        except Exception as error:
            self.refused[name] = f"unreadable reply ({type(error).__name__})"
        return None

    def _open(self, member: Member, message: Message) -> Decoded | None:
        layout = self.state.node_layout(member.name)
        reply, blob = unpack(message, TrainReply, self._limit(layout))
        self.bytes_up += len(blob)
        self._check(reply, member.name)
        context = Context(self.setup.run_id, self.round, member.name, digest(self.state), "up")
        read = self._decoded if self.secure is None else self._masked
        values = read(member, blob, layout, context)
        folder = self.setup.run / "updates" / f"r{self.round:02d}"
        write_atomic(folder / f"{member.name}.fpd", blob)
        self.accepted[member.name] = reply
        return values

    def _limit(self, layout: Layout) -> int:
        payload = self.setup.up.max_bytes(layout) if self.secure is None else self.secure.payload_bytes
        return OVERHEAD_BYTES + payload

    def _decoded(self, member: Member, blob: bytes, layout: Layout, context: Context) -> Decoded:
        codec = bound(self.setup.up, context, self.released(member.name))
        values = open_envelope(blob, layout, codec, context, Verifier(member.key))
        self._measure(values)
        self.codecs[member.name] = codec_of(blob, codec)
        return values

    def _masked(self, member: Member, blob: bytes, layout: Layout, context: Context) -> None:
        """Add a masked update to the secure sum; by itself it has no values."""
        assert self.secure is not None
        verifier = Verifier(member.key)
        payload = open_payload(blob, self.secure.payload_bytes, layout, context, verifier)
        self.secure.add(member.name, payload)
        self.values += layout.size

    def _check(self, reply: TrainReply, name: str) -> None:
        if reply.round != self.round:
            raise FederationError(f"its reply is for round {reply.round}")
        if not 1 <= reply.steps <= self.setup.config.federation.local_steps:
            raise FederationError(f"it reports {reply.steps} local steps")
        seen = self.heads.get(name)
        if len(reply.ledger) != 32 or reply.ledger_entry <= (seen.seq if seen else 0):
            raise FederationError("its privacy ledger went back: it was rolled back or replaced")

    def _measure(self, values: Decoded) -> None:
        self.values += values.layout.size
        self.kept += values.nonzero
        if self.setup.up.name == "ternary":
            self.entropy += entropy_bits(values, values.layout)


def next_heads(heads: Mapping[str, Head], accepted: Mapping[str, TrainReply]) -> dict[str, Head]:
    """The newest ledger entry seen of each node: its copy, against which the node checks its own ledger."""
    seen = {name: Head(reply.ledger_entry, reply.ledger.hex()) for name, reply in accepted.items()}
    return {**heads, **seen}
