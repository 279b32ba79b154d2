"""Whether a run waits for its nodes: a deployed one does as long as they are away, however long that is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from flwr.serverapp import Grid

from fedpeft.errors import FederationError
from fedpeft_server.rounds.ask_nodes import STOPPED
from fedpeft_server.rounds.replies import Inbox
from fedpeft_server.rounds.roster import Roster
from fedpeft_server.rounds.run_setup import Setup

ATTEMPT_SECONDS = 120.0
"""How long a run waits for all its nodes before it makes do with a quorum."""
LOOK_SECONDS = 0.5
FIRST_SECONDS, LONGEST_SECONDS = 1.0, 60.0
"""Pauses between attempts of a round that nodes did not answer; each is twice the last."""


GATHER_SECONDS = 120.0
"""How long a simulation waits for the configured number of nodes before it starts with a quorum."""
GREETING_SECONDS = 10.0


class Waiting(Protocol):
    """What becomes of a round while nodes are away.

    Attributes:
        keeps_rounds: whether a run may be taken up after days: each round is a checkpoint.
    """

    keeps_rounds: bool

    @property
    def grace(self) -> float:
        """Seconds after a quorum of replies in which others may still come."""
        ...

    def gather(self, grid: Grid, done: int) -> Mapping[str, str]:
        """Wait for the nodes before the first round of a process; why others do not take part, by name.

        Raises:
            FederationError: there is no quorum and will be none, or the run was stopped.
        """
        ...

    def meet(self, grid: Grid, done: int) -> None:
        """Greet who is new before a round.

        Raises:
            FederationError: the run was stopped.
        """
        ...

    def lacks_nodes(self, inbox: Inbox, needed: int, chosen: int) -> bool:
        """Whether a round failed because nodes were away, so that it is worth a pause and another try."""
        ...

    def back_off(self, done: int, refused: Mapping[str, str]) -> None:
        """Emit that a round went unanswered, and pause.

        Raises:
            FederationError: the run was stopped.
        """
        ...

    def rest(self) -> None:
        """A round was answered: the next pause is short again."""
        ...


@dataclass
class NoWaiting:
    """A simulation: its nodes are there when it starts, and those that fail later count as failed.

    Attributes:
        setup: of the run.
        roster: who is there.
        stop: ends the waiting when it is set.
    """

    setup: Setup
    roster: Roster
    stop: threading.Event
    grace = 0.0
    keeps_rounds = False

    def gather(self, grid: Grid, done: int) -> Mapping[str, str]:
        """Return when all nodes are online, or a while later; without a quorum the run is over."""
        federation, quorum = self.setup.config.federation, self.setup.plan.quorum
        end = time.monotonic() + min(GATHER_SECONDS, federation.deadline)
        while len(list(grid.get_node_ids())) < federation.nodes and time.monotonic() < end:
            self.stop.wait(0.05)
        self.roster.refresh(grid, federation.deadline, self.stop)
        refused = dict(self.roster.refused)
        if (here := len(self.roster.members)) < quorum:
            raise FederationError(
                f"{here} of {federation.nodes} nodes agree, {quorum} are needed"
                + "".join(f"; {name}: {cause}" for name, cause in sorted(refused.items()))
            )
        return refused

    def meet(self, grid: Grid, done: int) -> None:
        """Greet who is new."""
        self.roster.refresh(grid, _greeting(self.setup), self.stop)

    def lacks_nodes(self, inbox: Inbox, needed: int, chosen: int) -> bool:
        """No round is worth a pause."""
        return False

    def back_off(self, done: int, refused: Mapping[str, str]) -> None:
        """There are no pauses."""

    def rest(self) -> None:
        """There are no pauses."""


@dataclass
class WaitForNodes:
    """A deployed run: waits until a quorum agrees, and emits once per change who is missing and why.

    Attributes:
        setup: of the run.
        roster: who is there.
        stop: ends the waiting when it is set.
        emit: receives the events.
    """

    setup: Setup
    roster: Roster
    stop: threading.Event
    emit: Callable[[dict[str, Any]], None]
    keeps_rounds = True
    _emitted: dict[str, str] = field(default_factory=dict[str, str])
    _attempts: int = 0

    @property
    def grace(self) -> float:
        """As configured."""
        return self.setup.config.federation.grace

    def gather(self, grid: Grid, done: int) -> Mapping[str, str]:
        """Return when all nodes agree that did not refuse, or a quorum of them after an attempt's time."""
        federation = self.setup.config.federation
        longest = min(ATTEMPT_SECONDS, federation.deadline)
        while True:
            end = time.monotonic() + longest
            self.roster.refresh(grid, longest, self.stop)
            while self.roster.open_seats(federation.nodes) and time.monotonic() < end:
                self._emit_shortage(done)
                self._pause(LOOK_SECONDS)
                self.roster.refresh(grid, longest, self.stop)
            if len(self.roster.members) >= self.setup.plan.quorum:
                self._emitted = {}
                return self.roster.missing
            self._emit_shortage(done)
            self._pause(LOOK_SECONDS)

    def meet(self, grid: Grid, done: int) -> None:
        """Greet who is new before a round; without a quorum, wait for one."""
        self.roster.refresh(grid, _greeting(self.setup), self.stop)
        if len(self.roster.members) < self.setup.plan.quorum:
            self.gather(grid, done)

    def lacks_nodes(self, inbox: Inbox, needed: int, chosen: int) -> bool:
        """Whether too few nodes answered, rather than too few sent good updates.

        So it is too where those who did not answer could have made up for those who sent bad ones.
        """
        if self.setup.asks_everybody:
            chosen = len(self.roster.members) + self.roster.open_seats(self.setup.config.federation.nodes)
        silent = chosen - len(inbox.answered)
        return len(inbox.answered) < needed or len(inbox.accepted) + silent >= needed

    def back_off(self, done: int, refused: Mapping[str, str]) -> None:
        """Emit that a round went unanswered, and pause.

        Raises:
            FederationError: the run was stopped.
        """
        self._emit_missing(done, refused)
        self._attempts += 1
        self._pause(min(FIRST_SECONDS * 2 ** (self._attempts - 1), LONGEST_SECONDS))

    def rest(self) -> None:
        """A round was answered: the next pause is short again."""
        self._attempts, self._emitted = 0, {}

    def _emit_shortage(self, done: int) -> None:
        if len(self.roster.members) < self.setup.plan.quorum:
            self._emit_missing(done, self.roster.missing)

    def _emit_missing(self, done: int, missing: Mapping[str, str]) -> None:
        if dict(missing) == self._emitted:
            return
        self._emitted, here = dict(missing), sorted(self.roster.members)
        causes = "".join(f"; {name}: {cause}" for name, cause in sorted(missing.items()))
        text = f"waiting for nodes: {len(here)} agree, {self.setup.plan.quorum} are needed{causes}"
        self.emit({"event": "waiting", "round": done, "nodes": here, "missing": self._emitted, "text": text})

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise FederationError(STOPPED)


def _greeting(setup: Setup) -> float:
    """Seconds that new nodes have for their greeting."""
    return min(GREETING_SECONDS, setup.config.federation.deadline)
