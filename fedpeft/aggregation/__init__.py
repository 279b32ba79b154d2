"""From the updates of a round to the next global state."""

from fedpeft.aggregation.lora_factors import FactorAggregator, FactorState
from fedpeft.aggregation.mean import Contribution, mean_step, naive_warning, product_error, weighted_sum

__all__ = [
    "Contribution",
    "FactorAggregator",
    "FactorState",
    "mean_step",
    "naive_warning",
    "product_error",
    "weighted_sum",
]
