"""The round loop: ask, collect until the deadline, check each reply alone, step, checkpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpeft.aggregation.global_state import GlobalState, digest
from fedpeft.errors import FederationError
from fedpeft.privacy import Head
from fedpeft.protocol.encoding import pack
from fedpeft.protocol.messages import LARGEST_TABLE, SECURE, TRAIN, SecureTask
from fedpeft.runstore import RunStore
from fedpeft_server.rounds import checkpoints
from fedpeft_server.rounds.ask_nodes import Question, ask
from fedpeft_server.rounds.checkpoints import Checkpoint, save_arrays
from fedpeft_server.rounds.events import round_event, times
from fedpeft_server.rounds.orders import Orders
from fedpeft_server.rounds.released_loss import is_stuck, loss_event
from fedpeft_server.rounds.replies import Inbox, next_heads
from fedpeft_server.rounds.roster import Roster, sample
from fedpeft_server.rounds.run_setup import Setup, prepare
from fedpeft_server.rounds.run_terms import Enrolled, TermsRound
from fedpeft_server.rounds.update_channel import UpdateChannel, channel_of
from fedpeft_server.rounds.wait_for_nodes import NoWaiting, WaitForNodes, Waiting

Report = Callable[[dict[str, Any]], None]

FRUITLESS_ROUNDS = 3
"""Rounds in a row without a quorum after which a run ends."""


def run_rounds(
    grid: Grid,
    run: Path,
    report: Report = lambda event: None,
    stop: threading.Event | None = None,
    enrolled: Enrolled | None = None,
) -> None:
    """Run a federation from its last checkpoint to its end and write ``RUN/state/final.npz``.

    A deployed run, which has enrolled nodes, waits for nodes that are away as long as it takes.

    Args:
        grid: how nodes are reached.
        run: a run directory with its ``config.toml``.
        report: receives each event that is written to ``metrics.jsonl``.
        stop: ends the run when it is set, also while it waits for nodes.
        enrolled: the nodes and the key of a deployed run; None: a simulation.

    Raises:
        FederationError: too few nodes agree, no quorum in three consecutive rounds, or stopped. In a deployed
            run nodes that are away do not count for the first two.
        FedPeftError: the base, the adapter or the exchange cannot be made as configured.
    """
    store = RunStore.open(run)
    setup = prepare(run, store.config, enrolled.signer if enrolled else None)
    coordinator = _resume(setup, store, report, stop)
    if enrolled is not None:
        coordinator.deploy(enrolled)
    coordinator.run(grid)


def _resume(
    setup: Setup, store: RunStore, report: Report, stop: threading.Event | None = None
) -> Coordinator:
    roster, stop = Roster(setup.agreed), stop or threading.Event()
    channel, waiting = channel_of(setup, store.path), NoWaiting(setup, roster, stop)
    coordinator = Coordinator(setup, store, report, roster, setup.initial, channel, waiting, stop)
    checkpoint = checkpoints.latest(setup.run)
    checkpoints.trim_events(store.metrics, checkpoint.round if checkpoint else 0)
    if checkpoint is not None:
        coordinator.done = checkpoint.round
        coordinator.state = setup.initial.restored(checkpoint.arrays)
        coordinator.roster.keys = {name: bytes.fromhex(key) for name, key in checkpoint.facts["keys"].items()}
        coordinator.heads = {name: Head(*head) for name, head in checkpoint.facts["heads"].items()}
        coordinator.fruitless = int(checkpoint.facts["fruitless"])
        coordinator.channel.restore(checkpoint.facts)
    return coordinator


@dataclass
class Coordinator:
    """One run in progress; all that must survive a kill is in its checkpoints.

    Attributes:
        channel: who may see a single update, and what follows from that.
        waiting: what becomes of a round while nodes are away.
        stop: ends the run when it is set.
        done: the last round that is over.
        heads: newest ledger entries of the nodes.
        fruitless: rounds in a row that did not get the run on.
    """

    setup: Setup
    store: RunStore
    report: Report
    roster: Roster
    state: GlobalState
    channel: UpdateChannel
    waiting: Waiting
    stop: threading.Event
    done: int = 0
    heads: dict[str, Head] = field(default_factory=dict)
    fruitless: int = 0

    def deploy(self, enrolled: Enrolled) -> None:
        """Take enrolled nodes only, after they agreed to the terms, and wait for them while they are away."""
        setup = self.setup
        self.roster.terms = TermsRound(enrolled, setup.config, setup.run, setup.run_id)
        self.waiting = WaitForNodes(setup, self.roster, self.stop, self._emit)

    def run(self, grid: Grid) -> None:
        """All rounds that are left, then the result."""
        rounds = self.setup.config.federation.rounds
        if self.setup.coverage is not None and not any(self.store.events("coverage")):
            self._emit(self.setup.coverage.event)
        if not self._is_over(rounds):
            self._gather(grid)
        while not self._is_over(rounds):
            self._round(grid, self.done + 1)
            self._keep(rounds)
        facts = {"round": self.done, "method": self.state.method}
        save_arrays(self.setup.run / "state" / "final.npz", self.state.result(), facts)
        why = "" if self.done == rounds else f" of {rounds}: the released loss falls no further"
        self._emit({"event": "done", "rounds": self.done, "text": f"{self.done} rounds done{why}"})

    def _is_over(self, rounds: int) -> bool:
        """Whether all rounds are done, or the released loss says that no more are needed."""
        patience = self.setup.config.federation.stop_after
        return self.done >= rounds or (
            patience > 0 and is_stuck(list(self.store.events("training")), patience)
        )

    def _gather(self, grid: Grid) -> None:
        """Wait for the nodes and compare what they computed with what was agreed."""
        refused = self.waiting.gather(grid, self.done)
        self.channel.gathered(self.roster.keys)
        names = sorted(self.roster.members)
        text = f"{len(names)} nodes agree on config, base, layout and starting state"
        self._emit({"event": "hello", "nodes": names, "refused": dict(refused), "text": text})

    def _round(self, grid: Grid, number: int) -> None:
        started = time.monotonic()
        self.waiting.meet(grid, self.done)
        before = self.state, self.channel.facts()
        spent = self.channel.reserve(number)
        chosen = self._sample(number)
        asked = [name for name in chosen if name in self.roster.members]
        context = self.setup.down_context(number, digest(self.state))
        self.state, release = self.state.publish(self.setup.plan.down.at(context), number)
        orders = Orders(self.setup, self.state, release, number, self.heads)
        inbox = Inbox(self.setup, self.state, number, orders.released, self.heads)
        asked = self._open(grid, asked, orders, inbox)
        replies = self._ask(grid, asked, orders, inbox)
        inbox.refused |= {name: "not online" for name in chosen if name not in self.roster.members}
        needed = self._needed(len(chosen))
        members = [self.roster.members[name] for name in asked]
        updates = inbox.updates(members, {name: replies.get(name) for name in asked})
        contributions = self.channel.contributions(updates, orders, inbox, needed)
        self.state, measured = self.channel.absorb(self.state, contributions, inbox, needed)
        self._tap(number, measured.pop("mean", None))
        over = bool(measured) or self.channel.is_spent(number)
        away = not over and self.waiting.lacks_nodes(inbox, needed, len(chosen))
        if away and self.setup.asks_everybody:
            return self._again(*before, inbox)
        self.roster.settle(asked, inbox.accepted, number)
        self.heads, self.done = next_heads(self.heads, inbox.accepted), number
        parallel = not getattr(grid, "sequential", False)
        event = round_event(number, orders, inbox, measured, times(started, inbox, parallel))
        self._emit(self.channel.redacted(event) | spent)
        privacy = self.setup.plan.privacy
        if privacy is not None and privacy.loss is not None and inbox.accepted:
            self._emit(loss_event(number, inbox.accepted, privacy))
        if chosen or self.channel.steps_always:
            self._check_progress(bool(measured), away, inbox, needed)

    def _again(self, before: GlobalState, facts: Mapping[str, Any], inbox: Inbox) -> None:
        """Undo a round and pause; nodes that answered it will send the same bytes."""
        self.state = before
        self.channel.restore(facts)
        self.waiting.back_off(self.done, inbox.refused)

    def _sample(self, number: int) -> list[str]:
        config, names = self.setup.config, self.channel.names(self.roster.keys)
        return sample(names, config.federation, config.run.seed, number, self.channel.coins(number))

    def _needed(self, chosen: int) -> int:
        """Valid replies that a round needs: where draws vary in size, a majority of the draw is enough."""
        least = self.setup.plan.quorum
        return least if self.setup.config.federation.selection == "seeded" else min(least, chosen // 2 + 1)

    def _ask(self, grid: Grid, asked: list[str], orders: Orders, inbox: Inbox) -> Mapping[str, Message]:
        contents = {name: orders.content(self.roster.members[name], *inbox.terms(name)) for name in asked}
        largest = max(map(inbox.limit, asked), default=0)
        return self._put(grid, self._question(TRAIN, orders.round, largest), contents)

    def _question(self, kind: str, round: int, largest: int = LARGEST_TABLE) -> Question:
        deadline = self.setup.config.federation.deadline
        return Question(kind, str(round), deadline, self.stop, largest, self.waiting.grace)

    def _put(
        self, grid: Grid, question: Question, contents: Mapping[str, RecordDict]
    ) -> Mapping[str, Message]:
        """Ask members by name; the replies that came in time, by name."""
        nodes = {name: self.roster.members[name].node for name in contents}
        replies = ask(grid, question, {nodes[name]: content for name, content in contents.items()})
        return {name: replies[node] for name, node in nodes.items() if node in replies}

    def _open(self, grid: Grid, asked: list[str], orders: Orders, inbox: Inbox) -> list[str]:
        """Prepare the round with those that are asked; those that go on to train."""

        def reach(task: SecureTask, blobs: Mapping[str, bytes]) -> Mapping[str, Message]:
            contents = {name: pack(task, blob) for name, blob in blobs.items()}
            return self._put(grid, self._question(SECURE, task.round), contents)

        return self.channel.open(orders, {name: self.roster.members[name] for name in asked}, inbox, reach)

    def _tap(self, number: int, mean: np.ndarray | None) -> None:
        """Write the mean update down for the audit, as every participant can compute it."""
        audit, rounds = self.setup.config.audit, self.setup.config.federation.rounds
        if audit.enabled and mean is not None and audit.taps(number, rounds):
            folder = self.setup.run / "updates" / f"r{number:02d}"
            save_arrays(folder / "aggregate.npz", {"values": mean.astype(np.float32)}, {"round": number})

    def _check_progress(self, applied: bool, away: bool, inbox: Inbox, needed: int) -> None:
        """End a run that gets nowhere; one that waits for nodes pauses instead."""
        if away:
            return self.waiting.back_off(self.done, inbox.refused)
        self.waiting.rest()
        applied, cause = self.channel.progress(applied, inbox, needed, len(self.roster.members))
        self.fruitless = 0 if applied else self.fruitless + 1
        last = self.done == self.setup.config.federation.rounds
        if self.fruitless >= FRUITLESS_ROUNDS or (last and self.fruitless == self.done):
            raise FederationError(f"no quorum in {self.fruitless} consecutive rounds: {cause}")

    def _keep(self, rounds: int) -> None:
        """A checkpoint where one is due; what noise, coins or other nodes have seen is never done again."""
        due = self.done % self.setup.config.run.checkpoint_every == 0 or self.done == rounds
        drawn = self.setup.config.federation.selection == "poisson"
        if self.done and (due or drawn or self.channel.keeps_rounds or self.waiting.keeps_rounds):
            self._checkpoint()

    def _checkpoint(self) -> None:
        keys = {name: key.hex() for name, key in self.roster.keys.items()}
        heads = {name: [head.seq, head.hash] for name, head in self.heads.items()}
        facts = {"keys": keys, "heads": heads, "fruitless": self.fruitless, **self.channel.facts()}
        checkpoints.save(self.setup.run, Checkpoint(self.done, facts, self.state.arrays()))

    def _emit(self, event: dict[str, Any]) -> None:
        self.store.append(event)
        self.report(event)
