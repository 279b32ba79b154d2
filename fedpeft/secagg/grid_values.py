"""Values as whole grid steps, rounded at random, with a node's share of the noise."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedpeft.privacy.csprng import Randomness, words
from fedpeft.privacy.noise import uniform
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.secagg.discrete_gaussian import share_of_noise

MARGIN = 2.0**-30
"""Values are so much shorter before they are rounded: more than all floating-point errors add."""


def noisy_grid(
    values: NDArray[np.float64], plan: PrivacyPlan, source: Randomness = words
) -> NDArray[np.int64]:
    """What a node adds to a secure sum: grid steps and its share of the noise; int64, same shape.

    Guarantee: where one unit more or less changes the values by a clip at most, any ``least_nodes`` such
    shares together are the release that ``plan.event`` accounts for; so many are in every opened sum,
    whoever colludes.

    Args:
        values: private; a clipped sum or a clipped update.
        plan: with a grid.
        source: anything but the default guarantees no privacy.
    """
    assert plan.grid is not None
    grid = plan.grid
    noise = share_of_noise(values.size, grid.share(plan.noise_multiplier), source)
    return to_grid(values, plan.joint_clip / grid.steps_per_clip, grid.limit, source) + noise


def to_grid(
    values: NDArray[np.floating], step: float, limit: int, source: Randomness = words
) -> NDArray[np.int64]:
    """Scale, cut and round to whole grid steps; int64, shape kept.

    Values over ``step`` are cut to ``limit`` each and rounded up with the probability of their fraction, so
    that the mean is the value. What is not finite becomes 0: a refusal would tell of it.

    Sensitivity: of two vectors that differ by ``g``, rounded with equal words, the results differ by an
    integer vector ``v`` with ``|v_i| < |g_i| / step + 1``, which rounds ``h / step`` at random for an ``h``
    with ``|h_i| <= |g_i|``: cutting brings values no farther apart, and rounding is ``floor(x + u)``. What
    follows of its norm: `fedpeft.privacy.grid`.

    Args:
        values: of any float type.
        step: length of a grid step, above 0.
        limit: largest absolute value, in grid steps.
        source: of uniform 64-bit words.
    """
    exact = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    with np.errstate(over="ignore"):
        scaled = np.clip(exact * (1 - MARGIN) / step, -limit, limit)
    whole = np.floor(scaled)
    rounded_up = uniform(source(scaled.size)).reshape(scaled.shape) <= scaled - whole
    return whole.astype(np.int64) + rounded_up


def from_grid(total: NDArray[np.int64], step: float) -> NDArray[np.float64]:
    """Grid steps as values, float64, shape kept."""
    return total.astype(np.float64) * step


def clipped(values: NDArray[np.floating], clip: float) -> NDArray[np.float64]:
    """Values of L2 norm ``clip`` at most, float64, shape kept.

    What is not finite becomes 0, and all become 0 when the norm overflows: a refusal would tell of them.
    """
    exact = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    with np.errstate(over="ignore"):
        norm = float(np.sqrt(np.sum(exact * exact)))
    if not math.isfinite(norm):
        return np.zeros(values.shape, np.float64)
    return exact * min(1.0, clip / max(norm, clip))
