"""The round loop: ask, collect until the deadline, judge each reply alone, step, checkpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpeft.aggregation import Contribution, naive_warning, product_error
from fedpeft.aggregation.central_dp import Account, randomness
from fedpeft.aggregation.global_state import GlobalState, digest
from fedpeft.epsilons import written
from fedpeft.errors import FederationError
from fedpeft.privacy import Head, Ledger
from fedpeft.privacy.csprng import words
from fedpeft.protocol.messages import LARGEST_TABLE, SECURE, TRAIN, SecureTask, pack
from fedpeft.runstore import RunStore
from fedpeft.secagg import SecureAggregationError
from fedpeft_server.rounds import checkpoints
from fedpeft_server.rounds.ask_nodes import Question, ask
from fedpeft_server.rounds.checkpoints import Checkpoint, save_arrays
from fedpeft_server.rounds.events import round_event, times
from fedpeft_server.rounds.orders import Orders
from fedpeft_server.rounds.replies import Inbox, next_heads
from fedpeft_server.rounds.roster import Roster, sample
from fedpeft_server.rounds.run_setup import Setup, prepare
from fedpeft_server.rounds.run_terms import Enrolled, TermsRound
from fedpeft_server.rounds.secure_aggregation import SecureSums
from fedpeft_server.rounds.wait_for_nodes import Patience

Report = Callable[[dict[str, Any]], None]

GATHER_SECONDS = 120.0
"""How long the coordinator waits for the configured number of nodes before it starts with a quorum."""
GREETING_SECONDS = 10.0
FRUITLESS_ROUNDS = 3
"""Rounds in a row without a quorum after which a run ends."""
LEDGER = "ledger.sqlite"
MEASURED = ("codecs", "density", "entropy_bits")
"""What an event tells of the updates as they came; under the coordinator's noise it does not."""


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
    coordinator = _resume(setup, store, report)
    coordinator.stop = stop or threading.Event()
    if enrolled is not None:
        coordinator.deploy(enrolled)
    coordinator.run(grid)


def _resume(setup: Setup, store: RunStore, report: Report) -> Coordinator:
    account = _account(setup, store)
    parts = (Roster(setup.agreed), setup.initial, account, SecureSums.of(setup))
    coordinator = Coordinator(setup, store, report, *parts)
    found = checkpoints.latest(setup.run)
    checkpoints.trim_events(store.metrics, found.round if found else 0)
    if found is not None:
        coordinator.done = found.round
        coordinator.state = setup.initial.restored(found.arrays)
        coordinator.roster.keys = {name: bytes.fromhex(key) for name, key in found.facts["keys"].items()}
        coordinator.heads = {name: Head(*head) for name, head in found.facts["heads"].items()}
        coordinator.fruitless = int(found.facts["fruitless"])
        if coordinator.sums is not None:
            coordinator.sums.exponents = list(found.facts["exponents"])
    return coordinator


def _account(setup: Setup, store: RunStore) -> Account | None:
    """The coordinator's own ledger, where it adds the noise."""
    if setup.plan.central is None:
        return None
    privacy = setup.config.privacy
    ledger = Ledger(store.path / LEDGER, privacy.budget or privacy.epsilon)
    return Account(ledger, setup.config.run.name, setup.run_id.hex(), setup.plan.central)


@dataclass
class Coordinator:
    """One run in progress; all that must survive a kill is in its checkpoints."""

    setup: Setup
    store: RunStore
    report: Report
    roster: Roster
    state: GlobalState
    account: Account | None = None
    sums: SecureSums | None = None
    done: int = 0
    heads: dict[str, Head] = field(default_factory=dict)
    fruitless: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    patience: Patience | None = None

    def deploy(self, enrolled: Enrolled) -> None:
        """Take enrolled nodes only, after they agreed to the terms, and wait for them while they are away."""
        setup = self.setup
        self.roster.terms = TermsRound(enrolled, setup.config, setup.run, setup.run_id)
        self.patience = Patience(setup, self.roster, self.stop, self._tell)

    def run(self, grid: Grid) -> None:
        """All rounds that are left, then the result."""
        rounds = self.setup.config.federation.rounds
        if self.done < rounds:
            self._gather(grid)
        while self.done < rounds:
            self._round(grid, self.done + 1)
            self._keep(rounds)
        facts = {"round": self.done, "method": self.state.method}
        save_arrays(self.setup.run / "state" / "final.npz", self.state.result(), facts)
        self._tell({"event": "done", "rounds": self.done, "text": f"{self.done} rounds done"})

    def _gather(self, grid: Grid) -> None:
        """Wait for the nodes and compare what they computed with what was agreed."""
        if self.patience is not None:
            self.patience.gather(grid, self.done)
            return self._tell_agreed(self.roster.missing)
        federation = self.setup.config.federation
        end = time.monotonic() + min(GATHER_SECONDS, federation.deadline)
        while len(list(grid.get_node_ids())) < federation.nodes and time.monotonic() < end:
            self.stop.wait(0.05)
        self.roster.refresh(grid, federation.deadline, self.stop)
        names, refused = sorted(self.roster.members), dict(self.roster.refused)
        if len(names) < self.setup.plan.quorum:
            raise FederationError(
                f"{len(names)} of {federation.nodes} nodes agree, {self.setup.plan.quorum} are needed"
                + "".join(f"; {name}: {cause}" for name, cause in sorted(refused.items()))
            )
        if self.sums is not None:
            self.sums.gathered(self.roster.keys)
        self._tell_agreed(refused)

    def _tell_agreed(self, refused: Mapping[str, str]) -> None:
        names = sorted(self.roster.members)
        text = f"{len(names)} nodes agree on config, base, layout and starting state"
        self._tell({"event": "hello", "nodes": names, "refused": dict(refused), "text": text})

    def _round(self, grid: Grid, number: int) -> None:
        started = time.monotonic()
        self._meet(grid)
        before, exponents = self.state, list(self.sums.exponents) if self.sums else []
        spent = self._reserve(number)
        chosen = self._sample(number)
        asked = [name for name in chosen if name in self.roster.members]
        context = self.setup.down_context(number, digest(self.state))
        self.state, release = self.state.publish(self.setup.plan.down.at(context), number)
        orders = Orders(self.setup, self.state, release, number, self.heads)
        inbox = Inbox(self.setup, self.state, number, orders.released, self.heads)
        asked = self._open_sum(grid, asked, orders, inbox)
        replies = self._ask(grid, asked, orders, inbox)
        inbox.refused |= {name: "not online" for name in chosen if name not in self.roster.members}
        needed = self._needed(len(chosen))
        members = [self.roster.members[name] for name in asked]
        updates = inbox.updates(members, {name: replies.get(name) for name in asked})
        measured = self._absorb(self._summed(updates, orders, inbox, needed), inbox, needed)
        spent_sum = self.sums is not None and self.sums.spent(number)
        away = not (measured or spent_sum) and self._away(inbox, needed, len(chosen))
        if away and self._everybody_is_asked:
            return self._again(before, exponents, inbox)
        self.roster.settle(asked, inbox.accepted, number)
        self.heads, self.done = next_heads(self.heads, inbox.accepted), number
        parallel = not getattr(grid, "sequential", False)
        event = round_event(number, orders, inbox, measured, times(started, inbox, parallel))
        self._tell(self._discreet(event) | spent)
        if chosen or self.account:
            self._judge_progress(bool(measured), away, inbox, needed)

    def _meet(self, grid: Grid) -> None:
        """Greet who is new; in a deployed run, wait until there is a quorum."""
        seconds = min(GREETING_SECONDS, self.setup.config.federation.deadline)
        if self.patience is not None:
            self.patience.meet(grid, seconds, self.done)
        else:
            self.roster.refresh(grid, seconds, self.stop)

    def _away(self, inbox: Inbox, needed: int, chosen: int) -> bool:
        """Whether a deployed run had too few nodes, rather than too few that sent good updates.

        So it is too where those who did not answer could have made up for those who sent bad ones.
        """
        if self._everybody_is_asked:
            chosen = len(self.roster.members) + self.roster.open_seats(self.setup.config.federation.nodes)
        silent = chosen - len(inbox.answered)
        few = len(inbox.answered) < needed or len(inbox.accepted) + silent >= needed
        return self.patience is not None and few

    @property
    def _everybody_is_asked(self) -> bool:
        """Whether a round that is repeated waits for no node in particular."""
        federation = self.setup.config.federation
        return federation.selection == "seeded" and federation.participation == 1

    def _again(self, before: GlobalState, exponents: list[int], inbox: Inbox) -> None:
        """Undo a round and pause; nodes that answered it will send the same bytes."""
        assert self.patience is not None
        self.state = before
        if self.sums is not None:
            self.sums.exponents = exponents
        self.patience.back_off(self.done, inbox.refused)

    def _reserve(self, number: int) -> dict[str, Any]:
        """Spend a round's privacy before anybody is asked for it; and what has been spent with it."""
        if self.account is None:
            return {}
        reservation = self.account.reserve(number)
        return {"spent": {"epsilon": written(reservation.epsilon), "delta": reservation.delta}}

    def _sample(self, number: int) -> list[str]:
        config, plan = self.setup.config, self.setup.plan.central
        coins = randomness(plan, config.run.seed, number, "participation") if plan else words
        names = self.sums.roster if self.sums is not None else self.roster.keys
        return sample(names, config.federation, config.run.seed, number, coins)

    def _needed(self, chosen: int) -> int:
        """Valid replies that a round needs: where draws vary in size, a majority of the draw is enough."""
        least = self.setup.plan.quorum
        return least if self.setup.config.federation.selection == "seeded" else min(least, chosen // 2 + 1)

    def _ask(self, grid: Grid, asked: list[str], orders: Orders, inbox: Inbox) -> Mapping[str, Message]:
        contents: dict[str, RecordDict] = {}
        secure = inbox.secure
        for name in asked:
            terms = (secure.task.attempt, secure.shares_for(name)) if secure else (0, b"")
            contents[name] = orders.content(self.roster.members[name], *terms)
        largest = max(map(inbox.limit, asked), default=0)
        return self._put(grid, self._question(TRAIN, orders.round, largest), contents)

    def _question(self, kind: str, round: int, largest: int = LARGEST_TABLE) -> Question:
        federation = self.setup.config.federation
        grace = federation.grace if self.patience is not None else 0.0
        return Question(kind, str(round), federation.deadline, self.stop, largest, grace)

    def _put(
        self, grid: Grid, question: Question, contents: Mapping[str, RecordDict]
    ) -> Mapping[str, Message]:
        """Ask members by name; the replies that came in time, by name."""
        nodes = {name: self.roster.members[name].node for name in contents}
        replies = ask(grid, question, {nodes[name]: content for name, content in contents.items()})
        return {name: replies[node] for name, node in nodes.items() if node in replies}

    def _open_sum(self, grid: Grid, asked: list[str], orders: Orders, inbox: Inbox) -> list[str]:
        """Let the nodes begin a secure sum, where it was agreed on; those that go on to train."""
        if self.sums is None:
            return asked

        def reach(task: SecureTask, blobs: Mapping[str, bytes]) -> Mapping[str, Message]:
            contents = {name: pack(task, blob) for name, blob in blobs.items()}
            return self._put(grid, self._question(SECURE, task.round), contents)

        try:
            inbox.secure = self.sums.open(orders, {name: self.roster.members[name] for name in asked}, reach)
        except SecureAggregationError as error:
            inbox.refused |= dict.fromkeys(asked, str(error))
            return []
        inbox.refused |= inbox.secure.refused
        return list(inbox.secure.participants)

    def _summed(
        self, updates: Iterator[Contribution], orders: Orders, inbox: Inbox, needed: int
    ) -> Iterator[Contribution]:
        """The updates, or the one mean that a secure sum shows of them, opened where it will be applied."""
        yield from updates
        if self.sums is None or inbox.secure is None or len(inbox.accepted) < needed:
            return
        try:
            yield "secure sum", 1.0, self.sums.mean(inbox.secure, orders)
        except SecureAggregationError as error:
            inbox.refused["secure sum"] = str(error)
        inbox.refused |= inbox.secure.refused

    def _absorb(self, updates: Iterator[Contribution], inbox: Inbox, needed: int) -> dict[str, Any]:
        """Step along the valid updates, decoded one at a time; nothing is measured without a quorum."""
        if self.account is not None:
            return self._release(self.account, updates, inbox.round)
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
        if len(inbox.accepted) < needed:
            return {}
        self.state = state
        self._tap(inbox.round, measured.pop("mean", None))
        return {"applied": True, **measured, **warning}

    def _release(self, account: Account, updates: Iterator[Contribution], number: int) -> dict[str, Any]:
        """Step along the noisy mean, however few updates came: a step left out would tell how many."""
        self.state, measured = self.state.absorb(number, updates)
        mean = measured.pop("mean")
        account.released(number, mean)
        self._tap(number, mean)
        return {"applied": True, **measured}

    def _tap(self, number: int, mean: np.ndarray | None) -> None:
        """Write the mean update down for the audit, as every participant can compute it."""
        audit, rounds = self.setup.config.audit, self.setup.config.federation.rounds
        if audit.enabled and mean is not None and audit.taps(number, rounds):
            folder = self.setup.run / "updates" / f"r{number:02d}"
            save_arrays(folder / "aggregate.npz", {"values": mean.astype(np.float32)}, {"round": number})

    def _discreet(self, event: dict[str, Any]) -> dict[str, Any]:
        """An event without what the noise is to hide: figures of updates, and names where coins are secret.

        Numbers of replies and bytes stay: ``metrics.jsonl`` is the coordinator's own.
        """
        if self.account is None:
            return event
        told = {key: value for key, value in event.items() if key not in MEASURED}
        if self.setup.config.federation.selection != "poisson":
            return told
        causes = enumerate(sorted(event["refused"].values()), 1)
        return told | {"refused": {f"node {n}": cause for n, cause in causes}, "epsilon": {}, "ledger": {}}

    def _judge_progress(self, applied: bool, away: bool, inbox: Inbox, needed: int) -> None:
        """End a run that gets nowhere; under noise all that counts is how many nodes are online.

        A deployed run does not end because nodes are away: it pauses.
        """
        if away and self.patience is not None:
            return self.patience.back_off(self.done, inbox.refused)
        if self.patience is not None:
            self.patience.rest()
        causes = "".join(f"; {name}: {cause}" for name, cause in sorted(inbox.refused.items()))
        found = f"{len(inbox.accepted)} valid updates in round {self.done}, {needed} are needed{causes}"
        if self.account is not None:
            online, least = len(self.roster.members), self.setup.plan.quorum
            applied, found = online >= least, f"{online} nodes are online, {least} are needed"
        self.fruitless = 0 if applied else self.fruitless + 1
        last = self.done == self.setup.config.federation.rounds
        if self.fruitless >= FRUITLESS_ROUNDS or (last and self.fruitless == self.done):
            raise FederationError(f"no quorum in {self.fruitless} consecutive rounds: {found}")

    def _keep(self, rounds: int) -> None:
        """A checkpoint where one is due; what noise, coins or other nodes have seen is never done again."""
        due = self.done % self.setup.config.run.checkpoint_every == 0 or self.done == rounds
        drawn = self.setup.config.federation.selection == "poisson"
        if self.done and (due or drawn or self.account or self.sums or self.patience):
            self._checkpoint()

    def _checkpoint(self) -> None:
        keys = {name: key.hex() for name, key in self.roster.keys.items()}
        heads = {name: [head.seq, head.hash] for name, head in self.heads.items()}
        facts: dict[str, Any] = {"keys": keys, "heads": heads, "fruitless": self.fruitless}
        if self.sums is not None:
            facts["exponents"] = self.sums.exponents
        checkpoints.save(self.setup.run, Checkpoint(self.done, facts, self.state.arrays()))

    def _tell(self, event: dict[str, Any]) -> None:
        self.store.append(event)
        self.report(event)


def _chain(first: Contribution, rest: Iterator[Contribution]) -> Iterator[Contribution]:
    yield first
    yield from rest
