"""Who sums with whom: how many nodes, how many of them may collude, and what every opened sum holds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpeft.errors import ConfigError

if TYPE_CHECKING:
    from fedpeft.config.models import Config


@dataclass(frozen=True)
class Cohort:
    """The numbers of a secure sum, which nodes, coordinator and accountant take from here and nowhere else.

    Guarantee: against a coordinator that chooses who advertises, who survives, how often it tries and who is
    asked to open, and with which up to ``colluders`` of the nodes work together,

    * at most one sum of a round is opened. Each takes ``threshold`` nodes' shares, of which the colluders
      give theirs as often as they like and every other node its own once a round: two sums need
      ``2 (threshold - colluders)`` others, and there are only ``nodes - colluders``;
    * that sum holds at least ``honest`` other nodes, as no node opens one of fewer than ``quorum``.

    Attributes:
        nodes: of a round's roster.
        threshold: nodes whose shares open a sum.
        least_nodes: nodes beside the colluders that a sum must hold at least.
        colluders: nodes that may collude with the coordinator.

    Raises:
        ConfigError: numbers with which the guarantee would not hold, or nothing could ever be opened.
    """

    nodes: int
    threshold: int
    least_nodes: int
    colluders: int

    def __post_init__(self) -> None:
        if self.least_nodes < 1 or self.colluders < 0 or 2 * self.threshold <= self.nodes + self.colluders:
            raise ConfigError(
                f"exchange.secure: {self.threshold} of {self.nodes} nodes could open two sums of one round "
                f"if {self.colluders} collude; raise exchange.secure.threshold"
            )
        if self.quorum > self.nodes:
            raise ConfigError(
                f"exchange.secure: a sum needs {self.quorum} nodes (threshold {self.threshold}; min_nodes "
                f"= {self.least_nodes} beside colluders = {self.colluders}), but a round has {self.nodes}: "
                "ask more nodes, or lower exchange.secure.min_nodes or colluders"
            )

    @property
    def quorum(self) -> int:
        """Nodes without which nothing goes on: in every sum, at least."""
        return max(self.threshold, self.least_nodes + self.colluders)

    @property
    def honest(self) -> int:
        """Nodes beside the colluders in every sum, at least: those whose noise counts."""
        return self.quorum - self.colluders

    @property
    def dropouts(self) -> int:
        """Nodes that may fail in a round without costing it its sum."""
        return self.nodes - self.quorum

    @property
    def words(self) -> str:
        """What it comes to, for people."""
        return (
            f"one of {self.nodes} nodes a round, opened with {self.quorum} or more in it; holds against the "
            f"coordinator and {self.colluders} nodes that collude with it, beside {self.honest} that do not"
        )

    @classmethod
    def of(cls, config: Config) -> Cohort:
        """The cohort that a config agrees to; the threshold is raised to what its colluders call for.

        Raises:
            ConfigError: there are too few nodes for it.
        """
        secure, federation = config.exchange.secure, config.federation
        nodes, colluders = share_of(federation.participation, federation.nodes), secure.colluders
        threshold = max(share_of(secure.threshold, nodes), (nodes + colluders) // 2 + 1)
        return cls(nodes, threshold, secure.min_nodes, colluders)


def share_of(share: float, nodes: int) -> int:
    """A share of some nodes, rounded up, at least one."""
    return max(1, math.ceil(share * nodes - 1e-9))


def draw(names: Iterable[str], participation: float, seed: int, round: int) -> list[str]:
    """The share of all nodes that a round asks, in order of name: known to all who know the seed."""
    from fedpeft.rng import stream

    ordered = sorted(names)
    count = share_of(participation, len(ordered))
    if count >= len(ordered):
        return ordered
    chosen = stream(seed, round, "server", "participation").choice(len(ordered), count, replace=False)
    return [ordered[index] for index in sorted(chosen)]
