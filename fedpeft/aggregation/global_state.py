"""What the coordinator steps forward round by round: a flat vector, or low-rank factors.

Both are immutable. ``publish`` makes what nodes hold follow the exact state, ``absorb`` takes one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from fedpeft.aggregation import Contribution, FactorAggregator, FactorState
from fedpeft.aggregation.base import AggregationRule, PlainMean
from fedpeft.aggregation.drift_bound import DriftBound
from fedpeft.aggregation.server_optimisers import Moments, Vector, step
from fedpeft.config.models import Config, ServerOptimiserConfig
from fedpeft.errors import ConfigError
from fedpeft.exchange import ExchangePlan, FloatVector, Layout, Update
from fedpeft.protocol.messages import Broadcast, state_digest


@dataclass(frozen=True)
class Release:
    """How the state that nodes hold changes in a round.

    Attributes:
        kind: not at all (the agreed starting state), by a delta, or as a whole.
        update: the delta or the whole, as the codec carries it; None for the starting state.
        plan: what a delta has passed.
        before: digest of the state that a delta applies to.
    """

    kind: Broadcast
    update: Update | None
    plan: ExchangePlan
    before: bytes


class GlobalState(Protocol):
    """The federation's state at the coordinator."""

    @property
    def layout(self) -> Layout:
        """Layout of what nodes hold."""
        ...

    @property
    def node_values(self) -> FloatVector:
        """What nodes hold, float32, shape ``(layout.size,)``."""
        ...

    @property
    def ranks(self) -> list[int]:
        """Rank of each module of a factor state; empty for a vector."""
        ...

    @property
    def method(self) -> str:
        """Kind of aggregation: mean, stack or reproject."""
        ...

    def node_layout(self, node: str) -> Layout:
        """Layout of what a node sends."""
        ...

    def publish(self, plan: ExchangePlan, round: int) -> tuple[GlobalState, Release]:
        """Bring what nodes hold up to the exact state, as far as the plan (of this round) carries it."""
        ...

    def absorb(self, round: int, contributions: Iterable[Contribution]) -> tuple[GlobalState, dict[str, Any]]:
        """One step along the contributions, in rising order of node; and what was measured."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything a checkpoint needs."""
        ...

    def restored(self, arrays: Mapping[str, np.ndarray]) -> GlobalState:
        """The state that `arrays` was taken from."""
        ...

    def result(self) -> dict[str, np.ndarray]:
        """The final values: one vector ``values``, or the factors by name."""
        ...


def digest(state: GlobalState) -> bytes:
    """Digest of what nodes hold, 32 bytes."""
    return state_digest(state.layout, state.node_values)


@dataclass(frozen=True)
class VectorState:
    """Values that are averaged: the exact ones and those that nodes hold.

    The broadcast is what the plan carries of ``exact - node_values``; what it does not carry stays in the
    difference and is sent later: error feedback without a residual of its own. Without feedback it is lost.

    Attributes:
        layout: the exchanged tensors.
        optimiser: the server's step.
        exact: float64, shape ``(layout.size,)``.
        node_values: float32, same shape.
        moments: what the optimiser remembers.
        feedback: whether what a broadcast does not carry is sent later.
        rule: how updates become the mean.
        bound: how far from the start nodes follow; None: whatever is published.
    """

    layout: Layout
    optimiser: ServerOptimiserConfig
    exact: Vector
    node_values: FloatVector
    moments: Moments = field(default_factory=Moments)
    feedback: bool = True
    rule: AggregationRule = field(default_factory=PlainMean)
    bound: DriftBound | None = None

    @property
    def ranks(self) -> list[int]:
        """None: a vector has no ranks."""
        return []

    @property
    def method(self) -> str:
        """The plain mean."""
        return "mean"

    def node_layout(self, node: str) -> Layout:
        """The same for every node."""
        return self.layout

    def publish(self, plan: ExchangePlan, round: int) -> tuple[VectorState, Release]:
        """A delta from the second round on; the whole state where a delta would pass the bound."""
        before = digest(self)
        if round == 1:
            return self, Release("none", None, plan, before)
        missing = (self.exact - self.node_values).astype(np.float32)
        update, _ = plan.run(Update(self.layout, missing, round, 0), {})
        reached = self.node_values + update.values
        node_values = reached if self.bound is None else self.bound.within(round, reached)
        exact = self.exact if self.feedback else node_values.astype(np.float64)
        after = replace(self, node_values=node_values, exact=exact)
        if node_values is not reached:
            return after, Release("full", Update(self.layout, node_values, round, 0), plan, before)
        return after, Release("delta", update, plan, before)

    def absorb(self, round: int, contributions: Iterable[Contribution]) -> tuple[VectorState, dict[str, Any]]:
        """The optimiser's step along the rule's mean."""
        mean, rule, facts = self.rule.mean(self.layout.size, contributions)
        change, moments = step(self.optimiser, mean, self.moments)
        return replace(self, exact=self.exact + change, moments=moments, rule=rule), {"mean": mean, **facts}

    def arrays(self) -> dict[str, np.ndarray]:
        """Exact and sent values, moments and the state of the rule."""
        moments, rule = _under("moment", self.moments), _under("law", self.rule.arrays())
        return {"exact": self.exact, "held": self.node_values, **moments, **rule}

    def restored(self, arrays: Mapping[str, np.ndarray]) -> VectorState:
        """The inverse of `arrays`."""
        moments, rule = _part(arrays, "moment"), self.rule.restored(_part(arrays, "law"))
        return replace(self, exact=arrays["exact"], node_values=arrays["held"], moments=moments, rule=rule)

    def result(self) -> dict[str, np.ndarray]:
        """The exact values as float32."""
        return {"values": self.exact.astype(np.float32)}


@dataclass(frozen=True)
class FactorsState:
    """Low-rank factors (stack, reproject), sent whole in each round.

    Attributes:
        aggregator: shapes, ranks and aggregation.
        state: the factors.
        lr: server learning rate.
    """

    aggregator: FactorAggregator
    state: FactorState
    lr: float

    @property
    def layout(self) -> Layout:
        """Layout of the factors; grows and shrinks with their ranks."""
        return self.state.layout

    @property
    def node_values(self) -> FloatVector:
        """The factors themselves: nothing is lost on the way down."""
        return self.state.values

    @property
    def ranks(self) -> list[int]:
        """Rank of each module in order of name."""
        return [self.state.factors[module][0].shape[0] for module, _ in self.aggregator.shapes]

    @property
    def method(self) -> str:
        """Stack or reproject."""
        return self.aggregator.kind

    def node_layout(self, node: str) -> Layout:
        """Layout at the node's own rank."""
        return self.aggregator.layout(node)

    def publish(self, plan: ExchangePlan, round: int) -> tuple[FactorsState, Release]:
        """The factors as they are, once there are some."""
        if not any(self.ranks):
            return self, Release("none", None, plan, digest(self))
        return self, Release("full", Update(self.layout, self.node_values, round, 0), plan, digest(self))

    def absorb(
        self, round: int, contributions: Iterable[Contribution]
    ) -> tuple[FactorsState, dict[str, Any]]:
        """The aggregator's step."""
        state = self.aggregator.step(self.state, round, contributions, self.lr)
        return replace(self, state=state), {"rank": state.rank, "discarded": state.discarded}

    def arrays(self) -> dict[str, np.ndarray]:
        """The factors by name."""
        return dict(self.state.tensors())

    def restored(self, arrays: Mapping[str, np.ndarray]) -> FactorsState:
        """The inverse of `arrays`."""
        return replace(self, state=self.aggregator.from_tensors(arrays))

    def result(self) -> dict[str, np.ndarray]:
        """The factors by name."""
        return self.arrays()


def _under(folder: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{folder}/{name}": values for name, values in arrays.items()}


def _part(arrays: Mapping[str, np.ndarray], folder: str) -> dict[str, np.ndarray]:
    prefix = f"{folder}/"
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}


def initial_state(
    config: Config,
    aggregator: FactorAggregator | None,
    layout: Layout,
    values: FloatVector,
    mean: AggregationRule | None = None,
    bound: DriftBound | None = None,
) -> GlobalState:
    """The state before round 1.

    Args:
        config: optimiser and feedback.
        aggregator: of methods that exchange factors; None: a flat vector.
        layout: the exchanged tensors.
        values: the agreed starting values.
        mean: how a flat vector's updates are averaged; default: plainly.
        bound: of a flat vector's states; None: there is none.

    Raises:
        ConfigError: an optimiser with moments was asked for factors, which have no fixed coordinates.
    """
    optimiser, feedback = config.federation.server, config.exchange.down.error_feedback
    if aggregator is None:
        exact, averaged = values.astype(np.float64), mean or PlainMean()
        return VectorState(layout, optimiser, exact, values, feedback=feedback, rule=averaged, bound=bound)
    if optimiser.name != "mean":
        raise ConfigError(
            f"federation.server.name = {optimiser.name!r} needs a fixed vector; with adapter.aggregation = "
            f"{aggregator.kind!r} only 'mean' is possible"
        )
    return FactorsState(aggregator, aggregator.initial(), optimiser.lr)
