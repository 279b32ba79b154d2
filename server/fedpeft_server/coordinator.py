"""The round loop: ask, collect until the deadline, judge each reply alone, step, checkpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fedpeft.adapters import Contribution, naive_warning, product_error
from fedpeft.errors import FederationError
from fedpeft.protocol import TRAIN
from fedpeft.runstore import RunStore
from fedpeft_server import checkpoints
from fedpeft_server.checkpoints import Checkpoint, save_arrays
from fedpeft_server.collect import Question, ask
from fedpeft_server.messages import Inbox, Orders, next_entries
from fedpeft_server.roster import Roster, sample
from fedpeft_server.setup import Setup, prepare
from fedpeft_server.state import GlobalState, digest

Report = Callable[[dict[str, Any]], None]

GATHER_SECONDS = 120.0
"""How long the coordinator waits for the configured number of nodes before it starts with a quorum."""
GREETING_SECONDS = 10.0
FRUITLESS_ROUNDS = 3
"""Rounds in a row without a quorum after which a run ends."""


def run_rounds(
    grid: Grid, run: Path, report: Report = lambda event: None, stop: threading.Event | None = None
) -> None:
    """Run a federation from its last checkpoint to its end and write ``RUN/state/final.npz``.

    Args:
        grid: how nodes are reached.
        run: a run directory with its ``config.toml``.
        report: receives each event that is written to ``metrics.jsonl``.
        stop: ends the run when it is set, also while it waits for nodes.

    Raises:
        FederationError: too few nodes agree, no quorum in three rounds running, or stopped.
        FedPeftError: the base, the adapter or the exchange cannot be made as configured.
    """
    store = RunStore.open(run)
    setup = prepare(run, store.config)
    coordinator = _resume(setup, store, report)
    coordinator.stop = stop or threading.Event()
    coordinator.run(grid)


def _resume(setup: Setup, store: RunStore, report: Report) -> Coordinator:
    coordinator = Coordinator(setup, store, report, Roster(setup.agreed), setup.initial)
    found = checkpoints.latest(setup.run)
    checkpoints.trim_events(store.metrics, found.round if found else 0)
    if found is not None:
        coordinator.done = found.round
        coordinator.state = setup.initial.restored(found.arrays)
        coordinator.roster.keys = {name: bytes.fromhex(key) for name, key in found.facts["keys"].items()}
        coordinator.entries = dict(found.facts["entries"])
        coordinator.fruitless = int(found.facts["fruitless"])
    return coordinator


@dataclass
class Coordinator:
    """One run in progress; all that must survive a kill is in its checkpoints."""

    setup: Setup
    store: RunStore
    report: Report
    roster: Roster
    state: GlobalState
    done: int = 0
    entries: dict[str, int] = field(default_factory=dict)
    fruitless: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, grid: Grid) -> None:
        """All rounds that are left, then the result."""
        rounds = self.setup.config.federation.rounds
        if self.done < rounds:
            self._gather(grid)
        for number in range(self.done + 1, rounds + 1):
            self._round(grid, number)
            every = self.setup.config.run.checkpoint_every
            if number % every == 0 or number == rounds:
                self._checkpoint()
        facts = {"round": self.done, "method": self.state.method}
        save_arrays(self.setup.run / "state" / "final.npz", self.state.result(), facts)
        self._tell({"event": "done", "rounds": self.done, "text": f"{self.done} rounds done"})

    def _gather(self, grid: Grid) -> None:
        """Wait for the nodes and compare what they computed with what was agreed."""
        federation = self.setup.config.federation
        end = time.monotonic() + min(GATHER_SECONDS, federation.deadline)
        while len(list(grid.get_node_ids())) < federation.nodes and time.monotonic() < end:
            self.stop.wait(0.05)
        self.roster.refresh(grid, federation.deadline, self.stop)
        names, refused = sorted(self.roster.members), dict(self.roster.refused)
        if len(names) < self.setup.quorum:
            raise FederationError(
                f"{len(names)} of {federation.nodes} nodes agree, {self.setup.quorum} are needed"
                + "".join(f"; {name}: {cause}" for name, cause in sorted(refused.items()))
            )
        text = f"{len(names)} nodes agree on config, base, layout and starting state"
        self._tell({"event": "hello", "nodes": names, "refused": refused, "text": text})

    def _round(self, grid: Grid, number: int) -> None:
        started = time.monotonic()
        self.roster.refresh(grid, min(GREETING_SECONDS, self.setup.config.federation.deadline), self.stop)
        chosen = sample(
            self.roster.keys, self.setup.config.federation.participation, self.setup.config.run.seed, number
        )
        asked = [name for name in chosen if name in self.roster.members]
        context = self.setup.down_context(number, digest(self.state))
        self.state, release = self.state.publish(self.setup.down.at(context), number)
        orders = Orders(self.setup, self.state, release, number)
        replies = self._ask(grid, asked, orders)
        inbox = Inbox(self.setup, self.state, number, orders.released, self.entries)
        inbox.refused |= {name: "not online" for name in chosen if name not in self.roster.members}
        measured = self._absorb(asked, replies, inbox)
        self.roster.settle(asked, inbox.accepted, number)
        self.entries, self.done = next_entries(self.entries, inbox.accepted), number
        parallel = not getattr(grid, "sequential", False)
        self._tell(_event(number, orders, inbox, measured, _times(started, inbox, parallel)))
        self._judge_progress(bool(measured), inbox)

    def _ask(self, grid: Grid, asked: list[str], orders: Orders) -> dict[str, Message]:
        members = {name: self.roster.members[name] for name in asked}
        contents = {member.node: orders.content(member) for member in members.values()}
        question = Question(TRAIN, str(orders.round), self.setup.config.federation.deadline, self.stop)
        replies = ask(grid, question, contents)
        return {name: replies[member.node] for name, member in members.items() if member.node in replies}

    def _absorb(self, asked: list[str], replies: Mapping[str, Message], inbox: Inbox) -> dict[str, Any]:
        """Step along the valid updates, decoded one at a time; nothing is measured without a quorum."""
        updates = self._updates(asked, replies, inbox)
        first = next(updates, None)
        if first is None:
            return {}
        contributions: Any = _chain(first, updates)
        adapter = self.setup.config.adapter
        warning: dict[str, Any] = {}
        if adapter.method == "lora" and adapter.aggregation == "naive":
            contributions = list(contributions)
            error = product_error(self.state.layout, self.state.held, contributions)
            warning = {"naive_error": error, "warning": naive_warning(error)}
        state, measured = self.state.absorb(inbox.round, contributions)
        if len(inbox.accepted) < self.setup.quorum:
            return {}
        self.state = state
        self._tap(inbox.round, measured.pop("mean", None))
        return {"applied": True, **measured, **warning}

    def _updates(
        self, asked: list[str], replies: Mapping[str, Message], inbox: Inbox
    ) -> Iterator[Contribution]:
        for name in asked:
            values = inbox.open(self.roster.members[name], replies.get(name))
            if values is not None:
                yield name, 1.0, values

    def _tap(self, number: int, mean: np.ndarray | None) -> None:
        """Write the mean update down for the audit, as every participant can compute it."""
        audit, rounds = self.setup.config.audit, self.setup.config.federation.rounds
        if audit.enabled and mean is not None and audit.taps(number, rounds):
            folder = self.setup.run / "updates" / f"r{number:02d}"
            save_arrays(folder / "aggregate.npz", {"values": mean.astype(np.float32)}, {"round": number})

    def _judge_progress(self, applied: bool, inbox: Inbox) -> None:
        self.fruitless = 0 if applied else self.fruitless + 1
        last = self.done == self.setup.config.federation.rounds
        if self.fruitless >= FRUITLESS_ROUNDS or (last and self.fruitless == self.done):
            causes = "".join(f"; {name}: {cause}" for name, cause in sorted(inbox.refused.items()))
            raise FederationError(
                f"no quorum in {self.fruitless} rounds running: {len(inbox.accepted)} valid updates in round "
                f"{self.done}, {self.setup.quorum} are needed{causes}"
            )

    def _checkpoint(self) -> None:
        keys = {name: key.hex() for name, key in self.roster.keys.items()}
        facts = {"keys": keys, "entries": self.entries, "fruitless": self.fruitless}
        checkpoints.save(self.setup.run, Checkpoint(self.done, facts, self.state.arrays()))

    def _tell(self, event: dict[str, Any]) -> None:
        self.store.append(event)
        self.report(event)


def _chain(first: Contribution, rest: Iterator[Contribution]) -> Iterator[Contribution]:
    yield first
    yield from rest


def _times(started: float, inbox: Inbox, parallel: bool) -> dict[str, float]:
    """Seconds of the round that nodes spent training, and all others.

    Nodes that take turns add up; of nodes that work side by side only the slowest counts.
    """
    total = time.monotonic() - started
    seconds = [reply.train_s for reply in inbox.accepted.values()]
    train = min(max(seconds, default=0.0) if parallel else sum(seconds), total)
    return {"train_s": train, "overhead_s": total - train, "total_s": total}


def _event(
    number: int, orders: Orders, inbox: Inbox, measured: Mapping[str, Any], times: Mapping[str, float]
) -> dict[str, Any]:
    accepted = inbox.accepted
    return {
        "event": "round",
        "round": number,
        "applied": False,
        "replies": len(accepted),
        "refused": dict(sorted(inbox.refused.items())),
        "codecs": dict(sorted(inbox.codecs.items())),
        "bytes_up": inbox.bytes_up,
        "bytes_down": orders.bytes_down,
        "values_up": inbox.values,
        "density": inbox.kept / max(inbox.values, 1),
        "entropy_bits": inbox.entropy,
        "epsilon": {name: reply.epsilon or None for name, reply in accepted.items()},
        "ledger": {name: [reply.ledger_entry, reply.ledger.hex()] for name, reply in accepted.items()},
        **times,
        **measured,
    }
