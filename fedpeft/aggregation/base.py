"""Aggregation rules: what becomes of the nodes' updates before the server's step.

`fedpeft.plugins.AGGREGATION_RULES` has them by the name of ``federation.robust``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from fedpeft.aggregation.mean import Contribution, mean_step
from fedpeft.aggregation.server_optimisers import Vector
from fedpeft.config.models import FederationConfig


class AggregationRule(ABC):
    """A mean of updates, plain or other. Immutable; what it remembers is part of every checkpoint.

    What a rule does not declare has the value with which it is refused most often.

    Attributes:
        reads_singles: what an update counts depends on itself or on others; such a rule is refused where
            nobody may look at single updates (secure sums, a trusted coordinator's noise).
        compares_values: it compares a value across nodes, so that the value must mean the same on all; it is
            refused for factors.
        needs_dense: it takes a value that a node did not send for 0 and so loses most of sparse updates.
        cuts: it cuts updates to ``federation.norm_bound`` itself, so that none is refused for its length.
    """

    reads_singles: ClassVar[bool] = True
    compares_values: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = True
    cuts: ClassVar[bool] = False

    @classmethod
    def configured(cls, federation: FederationConfig) -> AggregationRule:
        """The rule as the settings have it."""
        return cls()

    @abstractmethod
    def mean(
        self, size: int, contributions: Iterable[Contribution]
    ) -> tuple[Vector, AggregationRule, dict[str, Any]]:
        """The mean, float64, shape ``(size,)``; the rule of the next round; and facts that may be published.

        Contributions come in rising order of node and are read one at a time.

        Raises:
            ExchangeError: nothing to aggregate, a wrong order or a vector that does not fit.
        """

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything a checkpoint needs; by default nothing."""
        return {}

    def restored(self, arrays: Mapping[str, np.ndarray]) -> AggregationRule:
        """The rule that `arrays` was taken from."""
        return self


class PlainMean(AggregationRule):
    """The weighted mean as it is."""

    reads_singles = False
    compares_values = False
    needs_dense = False

    def mean(
        self, size: int, contributions: Iterable[Contribution]
    ) -> tuple[Vector, AggregationRule, dict[str, Any]]:
        """The mean; see `fedpeft.aggregation.mean_step`."""
        return mean_step(size, contributions), self, {}
