"""A node's part in secure aggregation: one phase per message, its secrets in its home between them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.cohort import Cohort, draw
from fedpeft.errors import FederationError
from fedpeft.exchange import ExchangePlan, FloatVector, Layout, public_support
from fedpeft.protocol.encoding import pack_table, unpack_table
from fedpeft.protocol.messages import SecureReply, SecureTask
from fedpeft.runstore import write_atomic
from fedpeft.secagg import (
    Member,
    NodeSecrets,
    ReleaseStore,
    SecureContext,
    TermsRefused,
    advertise,
    agree,
    check_inbox,
    check_roster,
    from_residues,
    mask,
    reveal,
    share,
    to_residues,
)
from fedpeft_clients.governance.policy import PolicyError
from fedpeft_clients.rounds.node_context import NodeContext
from fedpeft_clients.rounds.run_home import Home

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Session:
    """One attempt of a round's secure sum, as it lies in the home.

    Attributes:
        task: the coordinator's terms.
        secrets: what this node keeps to itself.
    """

    task: SecureTask
    secrets: NodeSecrets

    def save(self, home: Home) -> None:
        """Write it; atomic files are for their owner's eyes only (mode 0600)."""
        facts = {**vars(self.task), "state": self.task.state.hex()}
        content = json.dumps({"task": facts, "secrets": self.secrets.to_bytes().decode()})
        write_atomic(_file(home, self.task.round, self.task.attempt), content.encode())

    @classmethod
    def load(cls, home: Home, round: int, attempt: int) -> Session:
        """Read it back.

        Raises:
            FederationError: this node has no part in that attempt.
        """
        try:
            content = json.loads(_file(home, round, attempt).read_bytes())
        except FileNotFoundError:
            raise FederationError(f"round {round}: this node has no part in secure sum {attempt}") from None
        facts: dict[str, Any] = content["task"]
        facts["state"] = bytes.fromhex(facts["state"])
        return cls(SecureTask(**facts), NodeSecrets.from_bytes(content["secrets"].encode()))

    def check(self, plan: ExchangePlan, layout: Layout, noisy: bool, inbox: bytes) -> None:
        """Refuse a sum that this node could not answer, before anything is trained and charged for it.

        Args:
            plan: bound to the round and its public scales.
            layout: of the trained values.
            noisy: whether nodes add noise, on a grid of fixed step: then there are no scales and no votes.
            inbox: the shares that were dealt to this node.

        Raises:
            FederationError: size or scales are not those of the plan, or the inbox is no table.
            SecureAggregationError: a share that does not open, or too few of them.
        """
        votes = 0 if noisy else len(layout.names)
        support = public_support(plan.codec)
        size = votes + (layout.size if support is None else support.positions(layout).size)
        announced = (self.task.size, len(self.task.scales))
        if announced != (size, votes):
            raise FederationError(
                f"round {self.task.round}: the secure sum is of {announced[0]} integers with {announced[1]} "
                f"scales, this run's are of {size} with {votes}"
            )
        check_inbox(self.secrets, unpack_table(inbox))

    def masked(self, node: NodeContext, integers: NDArray[np.int64], inbox: bytes) -> bytes:
        """The masked integers and the receipt that goes with them; the session is saved first.

        Integers beyond their declared bound are refused, except those with noise, which may wrap.

        Raises:
            SecureAggregationError: too few nodes dealt shares, or this attempt masked other values before.
        """
        bits = self.secrets.context.bits
        bound = 1 if self.task.scales else None
        values = to_residues(integers, bits, bound)
        secrets, hidden, receipt = mask(
            self.secrets, _member(node, self.task.round), values, unpack_table(inbox)
        )
        Session(self.task, secrets).save(node.home)
        return hidden.tobytes() + receipt

    def meaning(self, payload: bytes, size: int) -> FloatVector:
        """What somebody who takes the masked bytes for values would read, float32, shape ``(size,)``."""
        context = self.secrets.context
        read = np.frombuffer(payload, context.dtype, min(size, context.size))
        values = np.zeros(size, np.float32)
        values[: read.size] = from_residues(read, context.bits)
        return values


def answer(node: NodeContext, task: SecureTask, blob: bytes) -> tuple[SecureReply, bytes]:
    """Answer one phase.

    Raises:
        FederationError: secure aggregation was not agreed on, or the phase is unknown or out of turn.
        PolicyError: rule ``roster``, ``threshold`` or ``round``: the terms are not those that were agreed on.
        SecureAggregationError: a coordinator that asks too much.
    """
    if not node.home.config.exchange.secure.enabled:
        raise FederationError("this node did not agree to secure aggregation")
    reply, table = SecureReply(task.phase, task.round), unpack_table(blob)
    try:
        if task.phase == "keys":
            return reply, _keys(node, task, table)
        if (phase := _PHASES.get(task.phase)) is None:
            raise FederationError("the phase of secure aggregation is unknown")
        return reply, phase(node, Session.load(node.home, task.round, task.attempt), table)
    except TermsRefused as refusal:
        raise PolicyError(refusal.rule, refusal.sentence) from None


def _keys(node: NodeContext, task: SecureTask, roster: Mapping[str, bytes]) -> bytes:
    home, member = node.home, _member(node, task.round)
    secure = home.config.exchange.secure
    check_roster(roster, member)
    noise = node.plan.distributed
    context = SecureContext(
        run=node.run,
        round=task.round,
        attempt=task.attempt,
        state=task.state,
        roster=tuple(sorted(roster.items())),
        threshold=task.threshold,
        least_nodes=secure.min_nodes,
        size=task.size,
        bits=secure.bits,
        public=task.public if noise is None else noise.bound_to(task.public),
        colluders=secure.colluders,
    )
    _forget(home, task.round)
    secrets, message = advertise(context, member)
    Session(task, secrets).save(home)
    return message


def _shares(node: NodeContext, session: Session, advertisements: Mapping[str, bytes]) -> bytes:
    secrets, messages = share(session.secrets, advertisements)
    Session(session.task, secrets).save(node.home)
    return pack_table(messages)


def _agree(node: NodeContext, session: Session, receipts: Mapping[str, bytes]) -> bytes:
    secrets, signature = agree(session.secrets, _member(node, session.task.round), receipts)
    Session(session.task, secrets).save(node.home)
    return signature


def _reveal(node: NodeContext, session: Session, signatures: Mapping[str, bytes]) -> bytes:
    return reveal(session.secrets, _member(node, session.task.round), signatures)


_Phase = Callable[[NodeContext, Session, Mapping[str, bytes]], bytes]
_PHASES: dict[str, _Phase] = {"shares": _shares, "agree": _agree, "reveal": _reveal}


def _member(node: NodeContext, round: int) -> Member:
    """This node, with the roster of a round: the pinned nodes, or those of them that the round draws."""
    home = node.home
    config, store = home.config, ReleaseStore(home.secure / "released")
    asked = draw(home.roster, config.federation.participation, config.run.seed, round)
    roster = {name: bytes.fromhex(home.roster[name]) for name in asked}
    return Member(home.name, node.signer, store, roster, Cohort.of(config))


def _file(home: Home, round: int, attempt: int) -> Path:
    return home.secure / f"r{round:04d}-{attempt}.json"


def _forget(home: Home, round: int) -> None:
    """Remove the secrets of earlier rounds: nobody can make this node open their sums any more."""
    for path in home.secure.glob("r*-*.json"):
        if int(path.stem[1:].partition("-")[0]) < round:
            os.unlink(path)
