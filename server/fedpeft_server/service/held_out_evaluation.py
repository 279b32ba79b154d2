"""Held-out figures of a deployed run on records of the coordinator's own, worked out beside its rounds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fedpeft.errors import FedPeftError
from fedpeft.runstore import RunStore
from fedpeft_server.rounds.checkpoints import newest_round

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.aggregation import FactorState
    from fedpeft.config import Config
    from fedpeft.evaluation.held_out import HeldOut
    from fedpeft.exchange.layout import FloatVector

    Load = Callable[[RunStore, Attached], FloatVector | FactorState]

POLL_SECONDS = 1.0
FAREWELL_SECONDS = 5.0
FEDERATED = "federated"


@dataclass
class HeldOutEvaluation:
    """Evaluates the base, each `federation.evaluate_every`-th round and the result.

    It sees what the coordinator holds anyway, and records that no organisation gave: no privacy is spent. A
    round that is done while another is being evaluated may be passed over. A failure is logged and
    never ends the run.

    Attributes:
        store: the run directory; without ``data/test.jsonl`` nothing is evaluated.
    """

    store: RunStore
    _begun: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)

    def report(self, event: dict[str, Any]) -> None:
        """Take in an event: from the first on, ``metrics.jsonl`` is only appended to."""
        self._begun.set()

    @contextmanager
    def beside(self) -> Generator[None]:
        """Evaluate rounds as long as the block lasts, and the result if it ends well."""
        if not self.store.test.exists():
            yield
            return
        thread = threading.Thread(target=self._follow, daemon=True, name="fedpeft-evaluation")
        thread.start()
        try:
            yield
        except BaseException:
            self._over.set()
            thread.join(FAREWELL_SECONDS)
            raise
        self._over.set()
        thread.join()
        self._conclude()

    def _follow(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            if self._begun.is_set():
                self.catch_up()

    def catch_up(self) -> None:
        """Evaluate the base if that was not done yet, and the newest checkpoint if it is due."""
        from fedpeft_server.rounds.final_adapter import load_checkpoint

        if 0 not in self._evaluated:
            self._evaluate("base", 0)
        federation, newest = self._config.federation, newest_round(self.store.path)
        every, last = federation.evaluate_every, max(self._evaluated)
        if every and newest // every > last // every and newest < federation.rounds:
            self._evaluate(FEDERATED, newest, load_checkpoint)

    def _conclude(self) -> None:
        from fedpeft_server.rounds.final_adapter import final_round, load_final

        if (last := final_round(self.store)) not in self._evaluated:
            self._evaluate(FEDERATED, last, load_final)

    @cached_property
    def _config(self) -> Config:
        return self.store.config

    @cached_property
    def _evaluated(self) -> set[int]:
        """Rounds that have been evaluated, or could not be."""
        return {event["round"] for event in self.store.events("evaluation")}

    def _evaluate(self, name: str, round: int, load: Load | None = None) -> None:
        """Append one evaluation; what prevents it is one line of the log, without a word of the records."""
        from fedpeft.evaluation.held_out import evaluation_event

        self._evaluated.add(round)
        try:
            held_out, attached = self._loaded
            if load is not None:
                attached.begin(load(self.store, attached))
            self.store.append(evaluation_event(name, round, held_out.score(attached)))
        except Exception as error:
            cause = str(error) if isinstance(error, FedPeftError) else type(error).__name__
            print(f"round {round} is not evaluated: {cause}", file=sys.stderr)

    @cached_property
    def _loaded(self) -> tuple[HeldOut, Attached]:
        from fedpeft.adapters import attach
        from fedpeft.evaluation.held_out import HeldOut

        held_out = HeldOut.of(self.store)
        return held_out, attach(held_out.base, self._config.adapter, self._config.run.seed)
