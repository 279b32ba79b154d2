"""The coordinator's side of one round's messages: orders out, envelopes in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from fedpeft.errors import FederationError, FedPeftError
from fedpeft.exchange import (
    OVERHEAD_BYTES,
    Context,
    FloatVector,
    Update,
    codec_named,
    entropy_bits,
    open_envelope,
    seal,
)
from fedpeft.protocol import COORDINATOR, NO_STATE, TrainReply, TrainTask, pack, unpack
from fedpeft.runstore import write_atomic
from fedpeft.training import LocalPlan
from fedpeft.trust import Verifier
from fedpeft_server.roster import Member
from fedpeft_server.setup import WHOLE, Setup
from fedpeft_server.state import GlobalState, Release, digest


@dataclass
class Orders:
    """Writes each member's order of a round; every envelope is made at most once."""

    setup: Setup
    state: GlobalState
    release: Release
    round: int
    bytes_down: int = 0
    _made: dict[str, bytes] = field(default_factory=dict)

    def content(self, member: Member) -> RecordDict:
        """The order for one member: a delta if it holds the round before, else the whole state."""
        kind = self.release.kind
        if kind == "delta" and self.round - 1 not in member.versions:
            kind = "full"
        if kind not in self._made:
            self._made[kind] = self._envelope(kind)
        blob = self._made[kind]
        self.bytes_down += len(blob)
        return pack(self._task(kind), blob)

    def _task(self, kind: str) -> TrainTask:
        federation = self.setup.config.federation
        return TrainTask(
            round=self.round,
            steps=federation.local_steps,
            lr=LocalPlan.of(federation, self.round).lr,
            broadcast=kind,
            before=self.release.before if kind == "delta" else NO_STATE,
            state=digest(self.state),
            ranks=self.state.ranks,
            expires=time.time() + federation.deadline,
        )

    def _envelope(self, kind: str) -> bytes:
        if kind == "none" or self.release.update is None:
            return b""
        plan, update, before = self.setup.down, self.release.update, self.release.before
        if kind == "full":
            plan, before = WHOLE, NO_STATE
            update = Update(self.state.layout, self.state.held, self.round, 0)
        context = Context(self.setup.run_id, self.round, COORDINATOR, before, "down")
        data = seal(update, plan, context, self.setup.signer)
        name = "broadcast" if kind == self.release.kind else "broadcast-full"
        write_atomic(self.setup.run / "updates" / f"r{self.round:02d}" / f"{name}.fpd", data)
        return data


@dataclass
class Inbox:
    """Judges the replies of a round one by one; whatever is wrong with one stays with that one."""

    setup: Setup
    state: GlobalState
    round: int
    entries: dict[str, int]
    accepted: dict[str, TrainReply] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    kept: int = 0
    values: int = 0
    entropy: float = 0.0

    def open(self, member: Member, message: Message | None) -> FloatVector | None:
        """The values of one member's update, or None with the cause in ``refused``."""
        if message is None:
            self.refused[member.name] = "no reply before the deadline"
            return None
        return self._isolated(member.name, lambda: self._open(member, message))

    def _isolated(self, name: str, work: Callable[[], FloatVector]) -> FloatVector | None:
        try:
            return work()
        except FedPeftError as error:
            self.refused[name] = str(error)
        except Exception as error:
            self.refused[name] = f"unreadable reply ({type(error).__name__})"
        return None

    def _open(self, member: Member, message: Message) -> FloatVector:
        layout = self.state.node_layout(member.name)
        limit = OVERHEAD_BYTES + codec_named(self.setup.up).max_bytes(layout)
        reply, blob = unpack(message, TrainReply, limit)
        self.bytes_up += len(blob)
        self._check(reply, member.name)
        context = Context(self.setup.run_id, self.round, member.name, digest(self.state), "up")
        values = open_envelope(blob, layout, self.setup.up, context, Verifier(member.key))
        folder = self.setup.run / "updates" / f"r{self.round:02d}"
        write_atomic(folder / f"{member.name}.fpd", blob)
        self._measure(values, layout)
        self.accepted[member.name] = reply
        return values

    def _check(self, reply: TrainReply, name: str) -> None:
        if reply.round != self.round:
            raise FederationError(f"its reply is for round {reply.round}")
        if not 1 <= reply.steps <= self.setup.config.federation.local_steps:
            raise FederationError(f"it reports {reply.steps} local steps")
        if len(reply.ledger) != 32 or reply.ledger_entry <= self.entries.get(name, 0):
            raise FederationError("its privacy ledger went back: it was rolled back or replaced")

    def _measure(self, values: FloatVector, layout: Any) -> None:
        self.values += values.size
        self.kept += int(np.count_nonzero(values))
        if self.setup.up == "ternary":
            self.entropy += entropy_bits(values, layout)


def next_entries(entries: dict[str, int], accepted: dict[str, TrainReply]) -> dict[str, int]:
    """The newest ledger entry seen of each node."""
    return {**entries, **{name: reply.ledger_entry for name, reply in accepted.items()}}
