"""The step that the coordinator takes along the nodes' mean update; pure functions over float64 vectors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedpeft.config.models import ServerOptimiserConfig

Vector = NDArray[np.float64]
Moments = dict[str, Vector]


def step(
    config: ServerOptimiserConfig, mean: Vector, moments: Mapping[str, Vector]
) -> tuple[Vector, Moments]:
    """The change of the global values for one round's mean update.

    Args:
        config: name and constants of the optimiser.
        mean: mean of the nodes' updates, float64, shape ``(values,)``; a direction of descent already.
        moments: what the optimiser remembers; empty before the first round.

    Returns:
        The change to add and the new moments. Source: FedAvg (arXiv 1602.05629), FedAvgM
        (arXiv 1909.06335), FedAdam with bias correction (arXiv 2003.00295, algorithm 2).
    """
    return _STEPS[config.name](config, mean, moments)


def _mean(
    config: ServerOptimiserConfig, mean: Vector, moments: Mapping[str, Vector]
) -> tuple[Vector, Moments]:
    return config.lr * mean, {}


def _momentum(
    config: ServerOptimiserConfig, mean: Vector, moments: Mapping[str, Vector]
) -> tuple[Vector, Moments]:
    first = config.momentum * moments.get("first", np.zeros_like(mean)) + mean
    return config.lr * first, {"first": first}


def _adam(
    config: ServerOptimiserConfig, mean: Vector, moments: Mapping[str, Vector]
) -> tuple[Vector, Moments]:
    count = moments.get("count", np.zeros(1)) + 1.0
    zeros = np.zeros_like(mean)
    first = config.momentum * moments.get("first", zeros) + (1.0 - config.momentum) * mean
    second = config.beta2 * moments.get("second", zeros) + (1.0 - config.beta2) * mean * mean
    unbiased = first / (1.0 - config.momentum ** count[0])
    scale = np.sqrt(second / (1.0 - config.beta2 ** count[0])) + config.epsilon
    return config.lr * unbiased / scale, {"first": first, "second": second, "count": count}


_STEPS = {"mean": _mean, "momentum": _momentum, "adam": _adam}
