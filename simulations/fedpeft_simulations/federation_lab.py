"""A federation in one loop, in which both directions of the exchange can be replaced.

Everything else is the platform's own: base, adapter, records, batches, local training, aggregation, server
optimiser and evaluation. With the platform's rules in both directions the loop gives the platform's final
values bit for bit (``tests/simulations/test_bench_federation.py``), so a rule that it does not offer
can be compared with those that it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedpeft.adapters import Attached, attach
from fedpeft.aggregation import Contribution
from fedpeft.aggregation.drift_bound import DriftBound
from fedpeft.aggregation.global_state import VectorState
from fedpeft.aggregation.server_optimisers import Vector
from fedpeft.config import Config
from fedpeft.data import Example
from fedpeft.errors import ConfigError
from fedpeft.evaluation.held_out import HeldOut, classes, load_run_base, tokens
from fedpeft.exchange import Decoded, FloatVector, Layout
from fedpeft.rng import stream
from fedpeft.run_plan import RunPlan
from fedpeft.training import LocalPlan, train_local
from fedpeft_server.rounds.roster import sample
from fedpeft_simulations.organisations import load_federation

if TYPE_CHECKING:
    from fedpeft.evaluation.metrics import Evaluation

Up = Callable[[str, FloatVector], tuple[FloatVector, int]]
"""A node's name and its change, float32, to what the server decodes and how many bytes it was sent."""


@dataclass(frozen=True)
class Broadcast:
    """What a broadcast leaves behind.

    Attributes:
        exact: the server's values, float64; a server that forgets what it could not send changes them.
        node_values: the nodes' values, float32.
        size: bytes sent to each node.
    """

    exact: Vector
    node_values: FloatVector
    size: int


Down = Callable[[Vector, FloatVector], Broadcast]
"""The server's values, float64, and those that nodes hold, float32, to both after the broadcast."""


class Coder(Protocol):
    """Values to bytes and back."""

    def encode(self, values: FloatVector, layout: Layout) -> bytes:
        """The bytes."""
        ...

    def decode(self, data: bytes, layout: Layout, /) -> FloatVector:
        """float32, shape ``(layout.size,)``."""
        ...


@dataclass(frozen=True)
class FederationLab:
    """One federation of averaged vectors, ready to be run again and again.

    Attributes:
        config: its settings; those of the exchange and of privacy are not used.
        attached: the adapter on the base.
        held_out: the global test.
        nodes: training examples by organisation.
    """

    config: Config
    attached: Attached
    held_out: HeldOut
    nodes: Mapping[str, Sequence[Example]]

    @classmethod
    def of(cls, config: Config) -> FederationLab:
        """Load base and records.

        Raises:
            ConfigError: the adapter's factors are not averaged as one vector.
            FedPeftError: base, records or settings cannot be used.
        """
        federation = load_federation(config)
        records = [record for part in federation.organisations for record in part.train]
        labels = classes([*records, *federation.test], config.base.task)
        base = load_run_base(config, labels)
        attached = attach(base, config.adapter, config.run.seed)
        if attached.aggregator is not None:
            raise ConfigError(f"aggregation {config.adapter.aggregation!r} has no one vector; use 'frozen_a'")
        nodes = {part.name: tokens(part.train, base, config, labels) for part in federation.organisations}
        held_out = HeldOut(base, config, tokens(federation.test, base, config, labels), labels)
        return cls(config, attached, held_out, nodes)

    @property
    def layout(self) -> Layout:
        """Names and shapes of the exchanged tensors."""
        return self.attached.layout

    def run(self, up: Up, down: Down) -> Result:
        """All rounds of the federation with these two directions."""
        federation, initial = self.config.federation, self.attached.initial()
        state = VectorState(self.layout, federation.server, initial.astype(np.float64), initial)
        bound = DriftBound.of(RunPlan.from_config(self.config, initial.size), initial)
        sent: list[int] = []
        received: list[int] = []
        for round in range(1, federation.rounds + 1):
            if round > 1:
                broadcast = down(state.exact, state.node_values)
                if (values := bound.within(round, broadcast.node_values)) is not broadcast.node_values:
                    forgets = broadcast.exact is not state.exact
                    exact = values.astype(np.float64) if forgets else state.exact
                    broadcast = Broadcast(exact, values, values.nbytes)  # the whole state, cut
                state = replace(state, exact=broadcast.exact, node_values=broadcast.node_values)
                received.append(broadcast.size)
            state, _ = state.absorb(round, self._contributions(round, state.node_values, up, sent))
        values = state.result()["values"]
        return Result(values, self.score(values), float(np.mean(sent)), float(np.mean(received or [0])))

    def score(self, values: FloatVector) -> Evaluation:
        """Held-out loss and accuracy of these values."""
        self.attached.begin(values)
        return self.held_out.score(self.attached)

    def change(self, node: str, round: int, state: FloatVector) -> FloatVector:
        """What a round of local training changes, float32."""
        config = self.config
        start = self.attached.begin(state, round, node)
        batches = stream(config.run.seed, round, node, "batches")
        train_local(self.attached, self.nodes[node], LocalPlan.of(config.federation, round), batches)
        return self.attached.get() - start

    def _contributions(
        self, round: int, state: FloatVector, up: Up, sent: list[int]
    ) -> Iterator[Contribution]:
        config = self.config
        for name in sample(self.nodes, config.federation, config.run.seed, round):
            values, size = up(name, self.change(name, round, state))
            sent.append(size)
            yield name, 1.0, Decoded(self.layout, values)


@dataclass(frozen=True)
class Result:
    """What a federation has come to.

    Attributes:
        values: the server's final values, float32.
        score: of these values.
        up: bytes of one update, mean over rounds and nodes.
        down: bytes of one broadcast, mean over the rounds that have one.
    """

    values: FloatVector
    score: Evaluation
    up: float
    down: float


def dense_up(node: str, change: FloatVector) -> tuple[FloatVector, int]:
    """All values, as they are."""
    return change, change.nbytes


def dense_down(exact: Vector, state: FloatVector) -> Broadcast:
    """The whole difference, rounded to float32 as in an envelope."""
    missing = (exact - state).astype(np.float32)
    return Broadcast(exact, state + missing, missing.nbytes)


def coded_up(coder: Coder, layout: Layout, *, feedback: bool) -> Up:
    """An uplink through any coder; with feedback what a node could not send is added to its next update."""
    residuals: dict[str, FloatVector] = {}

    def up(node: str, change: FloatVector) -> tuple[FloatVector, int]:
        values = change + residuals[node] if feedback and node in residuals else change
        data = coder.encode(values, layout)
        decoded = coder.decode(data, layout)
        residuals[node] = values - decoded
        return decoded, len(data)

    return up


def coded_down(coder: Coder, layout: Layout, *, feedback: bool) -> Down:
    """A broadcast of the difference; without feedback the server, too, drops what was not sent."""

    def down(exact: Vector, state: FloatVector) -> Broadcast:
        data = coder.encode((exact - state).astype(np.float32), layout)
        state = state + coder.decode(data, layout)
        return Broadcast(exact if feedback else state.astype(np.float64), state, len(data))

    return down


def sparse_state(coder: Coder, layout: Layout) -> Down:
    """FLASC's broadcast: the largest values of the state itself; nodes start from zero everywhere else.

    The server keeps all values. Source: Kuo et al. 2024, arXiv 2406.05233, algorithm 1.
    """

    def down(exact: Vector, state: FloatVector) -> Broadcast:
        data = coder.encode(exact.astype(np.float32), layout)
        return Broadcast(exact, coder.decode(data, layout), len(data))

    return down
