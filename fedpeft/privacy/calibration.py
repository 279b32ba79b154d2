"""The smallest noise that keeps a run within its epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import COARSE, FINE

if TYPE_CHECKING:
    from fedpeft.privacy.plan import PrivacyPlan

LEAST_NOISE, MOST_NOISE = 0.2, 1e4
MAX_EPSILON = 1e300
"""What stands for an infinite epsilon in the search."""
GRID = 1e-4
"""Noise multipliers are rounded up to this grid, so that they read well in plans and reports."""


@lru_cache(maxsize=64)
def noise_multiplier(plan: PrivacyPlan, target: float) -> float:
    """Smallest multiplier on the grid with which the plan's whole run spends at most ``target``.

    Found by root search at the coarse discretisation and confirmed at the fine one: the returned value
    never exceeds the target, and lies within about 0.2 % of the smallest that would not. The search takes
    seconds, so its results are kept for equal arguments.

    Args:
        plan: everything but the noise, whatever its present noise multiplier is.
        target: epsilon at the plan's delta.

    Returns:
        A multiple of `GRID`. A ``reproducible`` plan gets the noise of its private twin.

    Raises:
        PrivacyError: the target is not above 0, or no multiplier up to 10,000 reaches it.
    """
    if not target > 0:
        raise PrivacyError(f"epsilon {target} must be above 0; raise privacy.epsilon")
    private = replace(plan, reproducible=False)

    def spent(noise: float, interval: float) -> float:
        return private.with_noise(noise).epsilon(interval=interval)

    return smallest_noise(spent, target, f"delta {plan.delta} in {plan.steps} steps")


def smallest_noise(spent: Callable[[float, float], float], target: float, of: str) -> float:
    """Smallest multiple of `GRID` at which ``spent`` is at most ``target``, as `noise_multiplier` finds it.

    Args:
        spent: epsilon of a noise multiplier at a discretisation, which falls with the noise.
        target: epsilon, above 0.
        of: what spends it, for the error.

    Raises:
        PrivacyError: no multiplier up to 10,000 reaches the target.
    """

    def coarse(noise: float) -> float:
        return spent(noise, COARSE)

    if (least := coarse(MOST_NOISE)) > target:
        raise PrivacyError(
            f"epsilon {target} cannot be reached with {of} "
            f"(least: {least:.2g}); raise privacy.epsilon, or train fewer steps"
        )
    noise = _round_up(_crossing(coarse, target))
    while spent(noise, FINE) > target:
        noise = _round_up(noise + GRID)
    return noise


def _crossing(spent: Callable[[float], float], target: float) -> float:
    """Where the decreasing curve of epsilon over noise meets the target, within 0.01 % (or `LEAST_NOISE`)."""
    from scipy.optimize import brentq

    high = 1.0
    while spent(high) > target:
        high = min(2 * high, MOST_NOISE)
    low = high / 2
    while spent(low) <= target:
        if low <= LEAST_NOISE:
            return LEAST_NOISE
        low, high = max(low / 2, LEAST_NOISE), low

    def excess(logarithm: float) -> float:
        return math.log(min(spent(math.exp(logarithm)), MAX_EPSILON) / target)

    root = cast(float, brentq(excess, math.log(low), math.log(high), xtol=1e-4))
    return math.exp(root)


def _round_up(noise: float) -> float:
    return round(math.ceil(noise / GRID - 1e-6) * GRID, 4)
