"""One round in the node: reserve, train, compress, seal.

The order is the guarantee: the ledger is written before the records are opened, and again before bytes leave.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.bases import Base
from fedpeft.data import Example, read_records, tokenise
from fedpeft.epsilons import written
from fedpeft.errors import DataError
from fedpeft.exchange import (
    Context,
    Decoded,
    ExchangePlan,
    FloatVector,
    Update,
    open_envelope,
    public_support,
    seal,
    seal_payload,
)
from fedpeft.exchange.gpu_plan import fits_device, run_on_device
from fedpeft.privacy import Head, Reservation
from fedpeft.privacy.step_matrix import StepMatrix
from fedpeft.protocol.messages import TrainReply, TrainTask
from fedpeft.rng import stream
from fedpeft.runstore.files import append_whole
from fedpeft.training import (
    Extras,
    LocalPlan,
    PerformanceFlags,
    TrainResult,
    gradient_sum,
    train_local,
)
from fedpeft.trust import Verifier
from fedpeft_clients.governance.policy import PolicyError
from fedpeft_clients.rounds import ledger_view, step_noise
from fedpeft_clients.rounds.leak_check import Behind, look
from fedpeft_clients.rounds.node_context import NodeContext, Received, SentState
from fedpeft_clients.rounds.node_state import Answer, NodeState, held_rounds, load_state
from fedpeft_clients.rounds.pipeline_taps import Taps
from fedpeft_clients.rounds.run_home import Home
from fedpeft_clients.rounds.secure_aggregation import Session
from fedpeft_clients.rounds.secure_payload import Integers, summand, summed_gradients

LOG = logging.getLogger("fedpeft.node")
INTEGERS = "integers"
"""Beside the residuals of a secure round: what was masked, for another attempt of the same sum."""


def work(node: NodeContext, task: TrainTask, received: Received, inbox: bytes) -> NodeState:
    """Do the round; what it returns must be stored before its answer leaves.

    Raises:
        FedPeftError: the budget does not allow the round, or base, records, plan or secure sum do not fit.
    """
    home, session = node.home, session_of(node, task)
    ledger, before = node.ledger, _newest(home, task.round)
    for number, digest in _seen(task, before):
        ledger_view.require(ledger, node.run.hex(), number, digest)
    plan = _plan(node, task, received.released, session)
    if session is not None:
        session.check(plan, node.attached.layout, node.plan.distributed is not None, inbox)
    reservation = _reserve(node, task)
    start = node.attached.begin(received.state, task.round, home.name)
    taps = Taps(home.taps(task.round))
    taps.start(start)
    matrix = step_noise.matrix_of(node, reservation, task.round)
    ledger.started(reservation)
    trained = _train(node, task, taps, plan, matrix)
    step_noise.store(node, reservation, matrix, task.round)
    residuals: dict[str, Any] = dict(before.residuals) if before else {}
    update = Update(node.attached.layout, start, task.round, task.steps)
    if session is None:
        envelope = content = _sealed(node, task, update, plan, residuals, taps)
        _look(node, task, plan, envelope, (trained.drawn, trained.examples))
    else:
        gradients = trained.gradients
        residuals[INTEGERS] = (
            summand(node, update, plan, residuals, taps)
            if gradients is None
            else summed_gradients(node, update, plan, gradients, (task.lr, taps))
        )
        content = residuals[INTEGERS].tobytes()
        envelope = hidden(node, task, session, residuals[INTEGERS], inbox, taps)
    taps.finish(task.lr, task.steps)
    spent = ledger_view.epsilon(ledger, home.lineage, node.run.hex())  # slow, so before: see `promise`
    head = ledger.released(reservation, hashlib.sha256(content).hexdigest())
    head = Head(ledger_view.place(ledger, node.run.hex(), head), head.hash)
    reply = _reply(node, task, spent, head, trained)
    answer = Answer(task.state, reply, envelope, task.attempt)
    return NodeState(task.round, _values(received.state), answer, residuals)


def session_of(node: NodeContext, task: TrainTask) -> Session | None:
    """The secure sum that a round is part of.

    Raises:
        PolicyError: it has none although this node agreed to send no update by itself, or the reverse, or the
            sum was opened for another state: nodes that train from different ones must not share masks.
    """
    if node.home.config.exchange.secure.enabled != bool(task.attempt):
        raise PolicyError("secure", f"round {task.round}: secure aggregation is not as agreed")
    session = Session.load(node.home, task.round, task.attempt) if task.attempt else None
    if session is not None and session.task.state != task.state:
        raise PolicyError("secure", f"round {task.round}: its secure sum was opened for another state")
    return session


def hidden(
    node: NodeContext,
    task: TrainTask,
    session: Session,
    integers: Integers,
    inbox: bytes,
    taps: Taps | None = None,
) -> bytes:
    """The envelope of the masked integers."""
    payload = session.masked(node, integers, inbox)
    layout, context = node.attached.layout, _context(node, task)
    if taps is not None and taps.folder:
        taps.stage("envelope", session.meaning(payload, layout.size))
    return seal_payload(payload, layout, context, node.signer)


def _newest(home: Home, round: int) -> NodeState | None:
    """What this node kept of the last round before this one that it took part in."""
    earlier = [number for number in held_rounds(home.states) if number < round]
    return load_state(home.states, earlier[-1]) if earlier else None


def _context(node: NodeContext, task: TrainTask) -> Context:
    return Context(node.run, task.round, node.home.name, task.state, "up")


def _plan(
    node: NodeContext, task: TrainTask, released: Decoded | None, session: Session | None
) -> ExchangePlan:
    """The exchange plan of this message: its support, and the public scales of its secure sum.

    Raises:
        PolicyError: the sum's support follows a broadcast that this node has not read, so it would put its
            values elsewhere than the others do.
    """
    up, context = node.plan.up, _context(node, task)
    if session is None:
        return up.at(context, released)
    if session.task.follows and released is None:
        raise PolicyError("secure", f"round {task.round}: the support follows a broadcast that was not sent")
    plan = up.at(context, released if session.task.follows else None)
    return plan.at_scales(session.task.scales) if session.task.scales else plan


def _seen(task: TrainTask, before: NodeState | None) -> Iterator[tuple[int, str]]:
    """Entries that the ledger must still hold: what the coordinator has seen last, and this node itself."""
    if task.ledger_entry:
        yield task.ledger_entry, task.ledger.hex()
    if before is not None:
        yield before.answer.reply.ledger_entry, before.answer.reply.ledger.hex()


def _reserve(node: NodeContext, task: TrainTask) -> Reservation:
    """Spend the round's privacy before any record is opened; without DP it is written down as not private.

    Where the coordinator adds the noise and draws nodes, this node knows of each round that it is in: that
    round is charged without amplification, and a round that it is not in costs nothing.
    """
    privacy = node.plan.privacy
    if privacy is not None and privacy.trust == "central":
        privacy = replace(privacy, sampling_probability=1.0, separation=1, bands=1)
    releases = 1 if privacy is not None and privacy.unit == "node" else task.steps
    return node.ledger.reserve(node.home.lineage, node.run.hex(), task.round, privacy, releases)


@dataclass(frozen=True)
class _Trained:
    """A round's training.

    Attributes:
        notes: seconds, and the loss where it may be known.
        examples: all that the node has.
        drawn: those of them that batches were drawn of.
        gradients: the clipped sum of one draw on the support, float64, where that is what is sent; the values
            were not trained then.
        loss: the noisy loss that leaves, if the privacy plan releases one.
    """

    notes: dict[str, float]
    examples: list[Example]
    drawn: list[Example]
    gradients: NDArray[np.float64] | None
    loss: float | None = None


def _train(
    node: NodeContext, task: TrainTask, taps: Taps, exchange: ExchangePlan, matrix: StepMatrix | None
) -> _Trained:
    """Train in place, or sum gradients. Under DP in the node only a public support moves and bears noise."""
    home, support = node.home, public_support(exchange.codec)
    examples = load_examples(node)
    plan = replace(LocalPlan.of(home.config.federation, task.round), steps=task.steps, lr=task.lr)
    extras = Extras(
        on_first_gradient=taps.gradient if taps.folder else None,
        flags=PerformanceFlags.of(home.config.run),
        support=None if support is None else np.asarray(support.positions(node.attached.layout), np.int64),
        longest=home.config.data.max_length,
        on_draw=taps.draw,
        matrix=matrix,
    )
    started = time.monotonic()
    batches, result, gradients = _batches(home, task.round), None, None
    if (summed := node.plan.summed) is not None:
        gradients = gradient_sum(node.attached, examples, plan, batches, summed, extras)
    else:
        result = _trained(node, examples, plan, batches, extras)
    notes = {"train_s": time.monotonic() - started}
    if result is not None and result.loss_last is not None and math.isfinite(result.loss_last):
        notes["loss"] = result.loss_last
    seen = [examples[place] for place in sorted({place for step in taps.draws for place in step})]
    taps.truth(seen)
    return _Trained(notes, examples, seen, gradients, result and result.loss_released)


def load_examples(node: NodeContext) -> list[Example]:
    """The node's tokenised training records; the files are only opened when this is called.

    Kept for the next round while all nodes' examples of this process fit in 64 MiB; the least recently
    used go first. A changed file is read again.

    Where nothing but the update may tell of a record (`Home.discreet`), one that cannot be used is left out,
    which is what a gradient of zero comes to, and the node's own log says so.

    Raises:
        DataError: a record cannot be used and nothing forbids to say so; names its line, never its text. Or
            the file as a whole is not what it should be.
    """
    home, base = node.home, node.base
    stat = home.train.stat()
    faults: list[str] | None = [] if home.discreet else None
    file = (home.train, stat.st_mtime_ns, stat.st_size, home.data)
    key = (*file, home.config.data, base.sha256, home.classes, home.discreet)
    if (cached := node.cache.examples(key)) is not None:
        return cached
    records = read_records(home.train, home.data, faults)
    examples = tokenise(records, base.tokenizer, home.config.data, base.task, home.classes, faults)
    examples = _known(examples, base, faults)
    if faults:
        LOG.warning(
            "%d of %d records of %s cannot be used and count as nothing; the first: %s",
            *(len(faults), len(examples) + len(faults), home.train.name, faults[0]),
        )
    node.cache.keep_examples(key, examples)
    return examples


def _known(examples: Sequence[Example], base: Base, faults: list[str] | None) -> list[Example]:
    """The examples of tokens that the base has; others would end a GPU's use, not only a step."""
    most = base.model.get_input_embeddings().weight.shape[0]
    known = [example for example in examples if int(example.ids.max(initial=0)) < most]
    cause = f"a record has a token beyond the base's {most}; tokenizer and base do not belong together"
    if len(known) < len(examples):
        if faults is None:
            raise DataError(cause)
        faults += [cause] * (len(examples) - len(known))
    return known


def _trained(
    node: NodeContext, examples: Sequence[Example], plan: LocalPlan, rng: np.random.Generator, extras: Extras
) -> TrainResult | None:
    """Train in place; what that says of itself, None where it failed unseen.

    Where other nodes' noise or masks hide an update, one that fails is an update of zeros. So is one whose
    norm float32 cannot hold: a later step would refuse it, and that would tell. With noise of the node's own
    no step fails because of a record, and an update without noise would tell.
    """
    attached, dpsgd, start = node.attached, node.plan.local, node.attached.get()
    hidden_elsewhere, result = dpsgd is None and node.home.discreet, None
    try:
        result = train_local(attached, examples, plan, rng, dpsgd, extras)
    except Exception as error:
        if not hidden_elsewhere:
            raise
        LOG.warning("training failed (%s); the update is zero", type(error).__name__)
        attached.load(start)
    if hidden_elsewhere and not _measurable(attached.get(), start):
        LOG.warning("training left values that are not finite; the update is zero")
        attached.load(start)
    return result


def _measurable(values: FloatVector, start: FloatVector) -> bool:
    """Whether the change has a finite norm in float32; one without holds NaN, infinity or values near it."""
    with np.errstate(over="ignore", invalid="ignore"):
        change = values - start
        return bool(np.isfinite(np.dot(change, change)))


def _batches(home: Home, round: int) -> np.random.Generator:
    """What draws a round's batches: the system's entropy, as known batches would help an attack."""
    if home.reproducible:
        return stream(home.config.run.seed, round, home.name, "batches")
    return np.random.default_rng(int.from_bytes(os.urandom(32)))


def _sealed(
    node: NodeContext,
    task: TrainTask,
    start: Update,
    plan: ExchangePlan,
    residuals: dict[str, Any],
    taps: Taps,
) -> bytes:
    """The signed envelope of the compressed change; what a reader finds in it is tapped."""
    update = _compressed(node, start, plan, residuals, taps)
    envelope = seal(update, plan, _context(node, task), node.signer)
    if taps.folder:
        taps.stage("envelope", _decoded(node, task, plan, envelope))
    return envelope


def _decoded(node: NodeContext, task: TrainTask, plan: ExchangePlan, envelope: bytes) -> FloatVector:
    """What the coordinator reads in an envelope."""
    verifier, layout = Verifier(node.signer.public), node.attached.layout
    return open_envelope(envelope, layout, plan.codec, _context(node, task), verifier).dense()


def _look(node: NodeContext, task: TrainTask, plan: ExchangePlan, envelope: bytes, examples: Behind) -> None:
    """The node's own audit of the envelope, if it is configured; it may refuse to send it."""
    if node.home.audit.outbox == "off":
        return
    values = _decoded(node, task, plan, envelope)
    try:
        look(node, task.round, task.lr, values, examples)
    except Exception as error:
        if not node.home.discreet:
            raise
        LOG.warning("the node's own audit failed (%s); the update leaves unseen", type(error).__name__)


def _compressed(
    node: NodeContext, start: Update, plan: ExchangePlan, residuals: dict[str, Any], taps: Taps
) -> Update:
    """The change since the start, passed through the plan: on the GPU where it can be and nobody taps."""
    attached = node.attached
    if not taps.folder and fits_device(plan, node.base.device):
        return run_on_device(plan, attached.moved_from(start.values), start, residuals)
    change = attached.get() - start.values
    taps.stage("update", change)
    final, _ = plan.run(replace(start, values=change), residuals, taps.update if taps.folder else None)
    return final


def _reply(node: NodeContext, task: TrainTask, spent: float, head: Head, trained: _Trained) -> TrainReply:
    """What the coordinator gets, of its own run alone; without seconds where they would reveal records.

    The true loss stays in the node's own file always; under DP in the node there is none. A noisy one leaves
    where the run's privacy plan says so.
    """
    notes = trained.notes
    line = json.dumps({"round": task.round, **notes}) + "\n"
    append_whole(node.home.times, line.encode(), 0o600)
    return TrainReply(
        round=task.round,
        steps=task.steps,
        train_s=0.0 if node.home.discreet else notes["train_s"],
        epsilon=written(spent),
        ledger_entry=head.seq,
        ledger=bytes.fromhex(head.hash),
        loss=[] if trained.loss is None else [trained.loss],
    )


def _values(state: SentState) -> FloatVector:
    return state if isinstance(state, np.ndarray) else state.values
