"""The change that one node made in one round."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedpeft.errors import ExchangeError
from fedpeft.exchange.decoded import Positions
from fedpeft.exchange.layout import FloatVector, Layout


@dataclass(frozen=True)
class Update:
    """``trained - received`` of one node in one round, as a flat vector in the agreed layout.

    Attributes:
        layout: names and shapes of the tensors.
        values: float32, shape ``(layout.size,)``.
        round: 1-based round number.
        steps: number of local optimiser steps.
        weight: public weight of this node in the mean; not a sample count unless that is public.
        support: increasing positions outside of which all values are zero, where a step has found them.
    """

    layout: Layout
    values: FloatVector
    round: int
    steps: int
    weight: float = 1.0
    support: Positions | None = None

    def __post_init__(self) -> None:
        if self.values.shape != (self.layout.size,):
            raise ExchangeError(f"an update needs {self.layout.size} values, got shape {self.values.shape}")

    def with_values(self, values: FloatVector, support: Positions | None = None) -> Update:
        """The same update with other values."""
        return replace(self, values=values, support=support)

    def tensors(self) -> dict[str, FloatVector]:
        """Views of the values by tensor name, in their shapes."""
        return self.layout.split(self.values)
