"""What a node does when the coordinator speaks: introduce itself, or train one round."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.errors import FederationError
from fedpeft.exchange import Context, FloatVector, Update, open_envelope, seal
from fedpeft.privacy import Head, Ledger, Reservation
from fedpeft.protocol import PROTOCOL, Hello, HelloReply, TrainReply, TrainTask, run_id
from fedpeft.rng import stream
from fedpeft.training import LocalPlan, train_local
from fedpeft.trust import Verifier
from fedpeft_clients.desk import Desk, Held, plans, signer_of, trust
from fedpeft_clients.examples import load_examples
from fedpeft_clients.home import Home
from fedpeft_clients.state import Answer, NodeState, held_rounds, load_state, put_out, save_state, sent
from fedpeft_clients.taps import Taps, Watched


def greet(home: Home, hello: Hello) -> HelloReply:
    """Compute what must agree, from this node's own config and files.

    Raises:
        FederationError: another protocol, or another coordinator than the trusted one.
        FedPeftError: the base or the adapter cannot be made as agreed.
    """
    if hello.protocol != PROTOCOL:
        raise FederationError(f"the coordinator speaks protocol {hello.protocol}, this node {PROTOCOL}")
    trust(home, hello.coordinator)
    desk = Desk.of(home)
    return HelloReply(
        name=home.name,
        run=desk.run,
        base=desk.base.sha256,
        layout=desk.attached.layout.digest,
        state=desk.digest_of(desk.initial()),
        key=signer_of(home).public,
        rank=home.rank,
        versions=held_rounds(home.states),
    )


def train(home: Home, task: TrainTask, blob: bytes) -> tuple[TrainReply, bytes]:
    """Train one round and return the facts and the sealed envelope.

    A repeated order for the same round and state is answered with the stored bytes: nothing is trained or
    spent again. The ledger is written before the records are opened, the answer before it leaves.

    Raises:
        FederationError: the order exceeds what this node agreed to, came too late or does not fit.
        PrivacyError: the budget does not allow the round.
        FedPeftError: anything else that is wrong with base, records, plan or envelope.
    """
    _check_order(home, task)
    answer = _answered(home, task)
    if answer is None:
        desk, before = Desk.of(home), load_state(home.states, task.round - 1)
        state = _work(desk, task, desk.receive(task, blob, before), before)
        save_state(home.states, state)
        answer = state.answer
    put_out(home.outbox, task.round, answer)
    return answer.reply, answer.envelope


def _check_order(home: Home, task: TrainTask) -> None:
    """Refuse what the agreed config does not cover; nothing the coordinator says can widen it."""
    federation = home.config.federation
    if not 1 <= task.round <= federation.rounds:
        raise FederationError(f"round {task.round} is not one of the {federation.rounds} agreed rounds")
    if not 1 <= task.steps <= federation.local_steps:
        raise FederationError(f"{task.steps} steps are asked for, {federation.local_steps} are agreed")
    if not 0 < task.lr <= LocalPlan.of(federation, task.round).lr:
        raise FederationError(f"learning rate {task.lr:g} exceeds the agreed one")
    if task.broadcast not in ("none", "delta", "full"):
        raise FederationError("the broadcast is of an unknown kind")
    if time.time() > task.expires:
        raise FederationError(f"the order for round {task.round} has expired")


def _answered(home: Home, task: TrainTask) -> Answer | None:
    state = load_state(home.states, task.round)
    answer = state.answer if state else sent(home.outbox, task.round)
    return answer if answer is not None and answer.digest == task.state else None


def _work(desk: Desk, task: TrainTask, held: Held, before: NodeState | None) -> NodeState:
    home, ledger = desk.home, _ledger(desk.home)
    reservation = _reserve(home, ledger, task, before)
    start = desk.attached.begin(held, task.round, home.name)
    taps = Taps(home.taps(task.round))
    seconds = _train(desk, task, taps)
    change = desk.attached.get() - start
    taps.stage("update", change)
    residuals: dict[str, Any] = dict(before.residuals) if before else {}
    envelope = _seal(
        desk, Update(desk.attached.layout, change, task.round, task.steps), residuals, task, taps
    )
    head = reservation.head
    if plans(home).privacy is not None:
        head = ledger.released(reservation, hashlib.sha256(envelope).hexdigest())
    reply = TrainReply(
        round=task.round,
        steps=task.steps,
        train_s=seconds,
        epsilon=float(reservation.epsilon) if np.isfinite(reservation.epsilon) else 0.0,
        ledger_entry=head.seq,
        ledger=bytes.fromhex(head.hash),
    )
    answer = Answer(task.state, reply, envelope)
    return NodeState(task.round, _values(held), answer, residuals)


_ledgers: dict[Path, Ledger] = {}


def _ledger(home: Home) -> Ledger:
    """The node's ledger with the organisation's own budget, made once per process."""
    privacy = home.config.privacy
    if home.ledger not in _ledgers or not home.ledger.exists():
        budget = (privacy.budget or privacy.epsilon) if privacy.unit != "none" else None
        _ledgers[home.ledger] = Ledger(home.ledger, budget)
    return _ledgers[home.ledger]


def _reserve(home: Home, ledger: Ledger, task: TrainTask, before: NodeState | None) -> Reservation:
    """Spend the round's privacy before any record is opened; without DP it is written down as not private.

    With DP the ledger must hold the entry that left with the last answer: it was not rolled back.
    """
    privacy = plans(home).privacy
    if before is not None and privacy is not None:
        reply = before.answer.reply
        ledger.verify(Head(reply.ledger_entry, reply.ledger.hex()))
    return ledger.reserve(home.lineage, run_id(home.config).hex(), task.round, privacy, task.steps)


def _train(desk: Desk, task: TrainTask, taps: Taps) -> float:
    """Train in place; the seconds that took."""
    home = desk.home
    examples = Watched(load_examples(home, desk.base))
    plan = replace(LocalPlan.of(home.config.federation, task.round), steps=task.steps, lr=task.lr)
    rng = stream(home.config.run.seed, task.round, home.name, "batches")
    tap = taps.gradient if taps.folder else None
    started = time.monotonic()
    train_local(desk.attached, examples, plan, rng, plans(home).privacy, tap)
    seconds = time.monotonic() - started
    taps.truth(examples.seen)
    return seconds


def _seal(desk: Desk, update: Update, residuals: dict[str, Any], task: TrainTask, taps: Taps) -> bytes:
    """Pass the update through the exchange plan and sign what is left of it."""
    plan, signer = plans(desk.home).up, signer_of(desk.home)
    final, _ = plan.run(update, residuals, taps.update if taps.folder else None)
    context = Context(desk.run, task.round, desk.home.name, task.state, "up")
    envelope = seal(final, plan, context, signer)
    if taps.folder:
        opened = open_envelope(envelope, final.layout, plan.codec, context, Verifier(signer.public))
        taps.stage("envelope", opened)
        taps.finish(task.lr, task.steps)
    return envelope


def _values(held: Held) -> FloatVector:
    return held if isinstance(held, np.ndarray) else held.values
