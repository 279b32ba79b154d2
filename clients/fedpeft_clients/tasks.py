"""What a node does when the coordinator speaks: introduce itself, or train one round."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.errors import FederationError
from fedpeft.exchange import Context, ExchangePlan, FloatVector, Update, open_envelope, seal
from fedpeft.exchange.device import fits_device, run_on_device
from fedpeft.privacy import Head, Ledger, Reservation
from fedpeft.protocol import PROTOCOL, Hello, HelloReply, TrainReply, TrainTask, run_id
from fedpeft.rng import stream
from fedpeft.training import LocalPlan, train_local
from fedpeft.trust import Verifier
from fedpeft_clients.desk import Desk, Held, Received, plans, signer_of, trust
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
        desk = Desk.of(home)
        state = _work(desk, task, desk.receive(task, blob), _newest(home, task.round))
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


def _newest(home: Home, round: int) -> NodeState | None:
    """What this node kept of the last round before this one that it took part in."""
    earlier = [held for held in held_rounds(home.states) if held < round]
    return load_state(home.states, earlier[-1]) if earlier else None


def _work(desk: Desk, task: TrainTask, received: Received, before: NodeState | None) -> NodeState:
    home, ledger = desk.home, _ledger(desk.home)
    reservation = _reserve(home, ledger, task, before)
    start = desk.attached.begin(received.held, task.round, home.name)
    taps = Taps(home.taps(task.round))
    seconds = _train(desk, task, taps)
    residuals: dict[str, Any] = dict(before.residuals) if before else {}
    context = Context(desk.run, task.round, home.name, task.state, "up")
    plan = plans(home).up.at(context, received.released)
    final = _compressed(
        desk, Update(desk.attached.layout, start, task.round, task.steps), plan, residuals, taps
    )
    envelope = _seal(home, final, plan, context, taps)
    taps.finish(task.lr, task.steps)
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
    return NodeState(task.round, _values(received.held), answer, residuals)


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


def _compressed(
    desk: Desk, start: Update, plan: ExchangePlan, residuals: dict[str, Any], taps: Taps
) -> Update:
    """The change since the start, passed through the plan: on the GPU where it can be and nobody taps."""
    attached = desk.attached
    if not taps.folder and fits_device(plan, desk.base.device):
        return run_on_device(plan, attached.moved_from(start.values), start, residuals)
    change = attached.get() - start.values
    taps.stage("update", change)
    final, _ = plan.run(start.with_values(change), residuals, taps.update if taps.folder else None)
    return final


def _seal(home: Home, update: Update, plan: ExchangePlan, context: Context, taps: Taps) -> bytes:
    """Sign what is left of the update; what a reader finds in the envelope is tapped."""
    signer = signer_of(home)
    envelope = seal(update, plan, context, signer)
    if taps.folder:
        opened = open_envelope(envelope, update.layout, plan.codec, context, Verifier(signer.public))
        taps.stage("envelope", opened.dense())
    return envelope


def _values(held: Held) -> FloatVector:
    return held if isinstance(held, np.ndarray) else held.values
