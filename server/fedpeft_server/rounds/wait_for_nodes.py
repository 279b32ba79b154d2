"""How a deployed run waits for its nodes: as long as they are away, however long that is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.serverapp import Grid

from fedpeft.errors import FederationError
from fedpeft_server.rounds.ask_nodes import STOPPED
from fedpeft_server.rounds.roster import Roster
from fedpeft_server.rounds.run_setup import Setup

ATTEMPT_SECONDS = 120.0
"""How long a run waits for all its nodes before it makes do with a quorum."""
LOOK_SECONDS = 0.5
FIRST_SECONDS, LONGEST_SECONDS = 1.0, 60.0
"""Pauses between attempts of a round that nodes did not answer; each is twice the last."""


@dataclass
class Patience:
    """Waits until a quorum agrees, and tells once per change who is missing and why.

    Attributes:
        setup: of the run.
        roster: who is there.
        stop: ends the waiting when it is set.
        tell: receives the events.
    """

    setup: Setup
    roster: Roster
    stop: threading.Event
    tell: Callable[[dict[str, Any]], None]
    _told: dict[str, str] = field(default_factory=dict[str, str])
    _attempts: int = 0

    def gather(self, grid: Grid, done: int) -> None:
        """Return when all nodes agree that did not refuse, or a quorum of them after an attempt's time.

        Raises:
            FederationError: the run was stopped.
        """
        federation = self.setup.config.federation
        longest = min(ATTEMPT_SECONDS, federation.deadline)
        while True:
            end = time.monotonic() + longest
            self.roster.refresh(grid, longest, self.stop)
            while self.roster.open_seats(federation.nodes) and time.monotonic() < end:
                self._tell_missing(done)
                self._pause(LOOK_SECONDS)
                self.roster.refresh(grid, longest, self.stop)
            if len(self.roster.members) >= self.setup.plan.quorum:
                self._told = {}
                return
            self._tell_missing(done)
            self._pause(LOOK_SECONDS)

    def meet(self, grid: Grid, seconds: float, done: int) -> None:
        """Greet who is new before a round; without a quorum, wait for one.

        Raises:
            FederationError: the run was stopped.
        """
        self.roster.refresh(grid, seconds, self.stop)
        if len(self.roster.members) < self.setup.plan.quorum:
            self.gather(grid, done)

    def back_off(self, done: int, refused: Mapping[str, str]) -> None:
        """Tell that a round went unanswered, and pause.

        Raises:
            FederationError: the run was stopped.
        """
        self._tell(done, refused)
        self._attempts += 1
        self._pause(min(FIRST_SECONDS * 2 ** (self._attempts - 1), LONGEST_SECONDS))

    def rest(self) -> None:
        """A round was answered: the next pause is short again."""
        self._attempts, self._told = 0, {}

    def _tell_missing(self, done: int) -> None:
        if len(self.roster.members) < self.setup.plan.quorum:
            self._tell(done, self.roster.missing)

    def _tell(self, done: int, missing: Mapping[str, str]) -> None:
        if dict(missing) == self._told:
            return
        self._told, here = dict(missing), sorted(self.roster.members)
        causes = "".join(f"; {name}: {cause}" for name, cause in sorted(missing.items()))
        text = f"waiting for nodes: {len(here)} agree, {self.setup.plan.quorum} are needed{causes}"
        self.tell({"event": "waiting", "round": done, "nodes": here, "missing": self._told, "text": text})

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise FederationError(STOPPED)
