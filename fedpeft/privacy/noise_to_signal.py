"""Noise over signal of a plan, before anything runs: whether a private run can learn at all.

The signal is the largest there can be: every clipped gradient, or every node's clipped update, as long as
the clip and all of them aligned. What is above 1 here is worse in truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fedpeft.errors import PrivacyError
from fedpeft.privacy.calibration import noise_multiplier
from fedpeft.privacy.grid import Grid
from fedpeft.privacy.matrix import impulse, last_error, optimised
from fedpeft.privacy.plan import PrivacyPlan

SURVIVORS = 2 / 3
"""Share of the nodes that a distributed run can well ask for in each sum: each share of noise shrinks."""


@dataclass(frozen=True)
class Signal:
    """Length of the noise over that of the largest signal; below 1 the signal stands out.

    Attributes:
        per_release: of one noisy mean of one node, or of one round's mean over nodes.
        whole_run: of the sum of all of them: the signal grows with their number, the noise with its root.
    """

    per_release: float
    whole_run: float


@dataclass(frozen=True)
class Remedy:
    """One changed setting at equal epsilon (unless it is epsilon that changes) and the figure it leads to."""

    change: str
    whole_run: float


def signal(plan: PrivacyPlan, size: int, nodes: int) -> Signal:
    """Noise over signal: ``z sqrt(d) / B`` of one release, over ``sqrt(T)`` of the whole run.

    Trust ``local`` averages ``nodes`` independent noises: over ``sqrt(T N)``. Trust ``distributed`` holds
    the shares of all nodes, which is more than the least that the plan accounts for: times
    ``sqrt(N / least_nodes)``. Where records or persons are the units the nodes share one noise: over ``N``.
    Banded noise cancels over the run in part. A released loss makes all noise larger.

    Args:
        plan: noise multiplier ``z``, expected batch size ``B`` and number of releases ``T``.
        size: number of values ``d`` that get noise: those of the support, not of the layout.
        nodes: nodes ``N`` of the federation.

    Raises:
        PrivacyError: no values or no nodes.
    """
    if size < 1 or nodes < 1:
        raise PrivacyError(f"signal of {size} values and {nodes} nodes: both must be at least 1")
    noise = plan.deviation / plan.clip * math.sqrt(size) / plan.expected_batch_size
    if plan.grid is not None and plan.trust == "distributed":
        noise *= math.sqrt(max(1.0, nodes / plan.grid.least_nodes)) / (1 if plan.unit == "node" else nodes)
    release, run = _growth(plan.bands, plan.steps)
    averaged = math.sqrt(nodes) if plan.trust == "local" else 1.0
    return Signal(noise * release, noise * run / plan.steps / averaged)


def _growth(bands: int, steps: int) -> tuple[float, float]:
    """Deviation of the last release's noise and of the sum of all, in units of one independent noise."""
    column = optimised(bands, steps)
    return float(np.linalg.norm(impulse(column, steps))), last_error(column, steps)


def check_signal(plan: PrivacyPlan, size: int, nodes: int, most: float) -> Signal:
    """Refuse a plan whose noise over the whole run is more than ``most`` times the largest signal.

    Args:
        plan: the plan to check.
        size: number of values that get noise.
        nodes: nodes of the federation.
        most: the limit, ``privacy.max_noise_to_signal``.

    Returns:
        The figures, where they are within the limit.

    Raises:
        PrivacyError: they are not; the message names the settings that would help, best first.
    """
    figures = signal(plan, size, nodes)
    if figures.whole_run <= most:
        return figures
    options = remedies(plan, size, nodes)
    enough = [remedy for remedy in options if remedy.whole_run <= most]
    listed = ", ".join(f"{each.change} ({each.whole_run:.2g})" for each in enough or options[:3])
    advice = f"enough is any of: {listed}" if enough else f"none alone is enough; best are: {listed}"
    raise PrivacyError(
        f"over the whole run the noise is {figures.whole_run:.2g} times the largest possible signal, and "
        f"privacy.max_noise_to_signal = {most:g} allows no more than that; {advice}"
    )


def remedies(plan: PrivacyPlan, size: int, nodes: int) -> list[Remedy]:
    """What each setting alone would lead to, with noise solved for anew at the same epsilon; best first.

    Takes some seconds: one calibration for each changed plan.
    """
    options = [
        Remedy("half the adapter.rank", signal(plan, max(1, size // 2), nodes).whole_run),
        Remedy("noise on 25 % of the values", signal(plan, max(1, size // 4), nodes).whole_run),
        *_other_plans(plan, size, nodes),
    ]
    return sorted(options, key=lambda remedy: remedy.whole_run)


def _other_plans(plan: PrivacyPlan, size: int, nodes: int) -> Iterator[Remedy]:
    target = replace(plan, reproducible=False).epsilon()
    if not math.isfinite(target):
        return

    def remedy(change: str, other: PrivacyPlan, epsilon: float = target, count: int = nodes) -> Remedy:
        calibrated = other.with_noise(noise_multiplier(other, epsilon))
        return Remedy(change, signal(calibrated, size, count).whole_run)

    yield remedy(f"privacy.epsilon = {2 * target:.3g}", plan, 2 * target)
    yield remedy(f"federation.rounds = {4 * plan.rounds}", replace(plan, rounds=4 * plan.rounds))
    batch, rate = plan.expected_batch_size, plan.sampling_probability
    more_nodes = f"federation.nodes = {4 * nodes}"
    grid = plan.grid if plan.trust == "distributed" else None
    if grid is not None and grid.least_nodes < (honest := _honest(grid, nodes)):
        shared = replace(plan, grid=replace(grid, least_nodes=honest))
        yield Remedy(f"exchange.secure.min_nodes = {honest}", signal(shared, size, nodes).whole_run)
    if plan.unit == "node":
        yield remedy(more_nodes, _more_nodes(plan), count=4 * nodes)
        return
    yield Remedy(more_nodes, signal(replace(plan, grid=_more_shares(plan)), size, 4 * nodes).whole_run)
    if rate < 1:
        larger = replace(
            plan, bands=1, expected_batch_size=4 * batch, sampling_probability=min(1.0, 4 * rate)
        )
        yield remedy(f"federation.batch_size = {4 * batch}", _banded(larger, plan.bands))
        yield remedy("4 times the privacy.public_records", replace(plan, sampling_probability=rate / 4))
    if plan.trust == "local" and (bands := _banded(plan, plan.steps_per_round).bands) != plan.bands:
        yield remedy(f"privacy.bands = {bands} with SGD and no momentum", replace(plan, bands=bands))


def _banded(plan: PrivacyPlan, bands: int) -> PrivacyPlan:
    """A plan of a node's own steps with as many bands as it may have, at most so many."""
    steps, rate = plan.steps_per_round, plan.sampling_probability
    possible = plan.loss is None and plan.grid is None and plan.drawn == "unit"
    allowed = (b for b in range(2, bands + 1) if possible and steps % b == 0 and b * rate <= 1)
    return replace(plan, bands=max(allowed, default=1))


def _honest(grid: Grid, nodes: int) -> int:
    """Nodes beside the colluders that sums could hold where `SURVIVORS` of all stay."""
    return math.ceil(SURVIVORS * nodes) - grid.colluders


def _more_nodes(plan: PrivacyPlan) -> PrivacyPlan:
    """Four times the nodes at the same share of participation and of survivors."""
    return replace(plan, expected_batch_size=4 * plan.expected_batch_size, grid=_more_shares(plan))


def _more_shares(plan: PrivacyPlan) -> Grid | None:
    if plan.grid is None or plan.trust == "local":
        return plan.grid
    return replace(plan.grid, least_nodes=4 * plan.grid.least_nodes)
