"""How far the state of a round may lie from the agreed start: as far as training as agreed can take it.

The bound follows from the terms of a run and from nothing that a coordinator or another node says: what one
node's local training can change in a round, the mean of such changes, and the server's optimiser. It is
computed as if values were exchanged exactly. A codec with error feedback may send late and then more at once,
and a hostile node may send anything: the coordinator therefore cuts what it publishes to the bound
(`DriftBound.within`), and a node refuses a state beyond it (`DriftBound.excess`). So no node refuses an
honest coordinator, whatever its codecs and rules are and whoever takes part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.aggregation.central_dp import sum_multiplier
from fedpeft.config.models import ServerOptimiserConfig
from fedpeft.exchange.layout import FloatVector
from fedpeft.privacy.matrix import impulse, optimised
from fedpeft.privacy.noise import SUPPORT
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.training.plan import ADAMW_BETAS, LocalPlan

if TYPE_CHECKING:
    from fedpeft.run_plan import RunPlan

TOLERANCE = 1e-3
"""Share by which a state may pass its bound: float32 arithmetic, which differs between machines."""
_ROUNDING = 2.0**-23  # of one float32 operation, relative to the largest value; a sum takes two at most


@dataclass(frozen=True)
class Drift:
    """A bound on a change.

    Attributes:
        peak: largest magnitude of a value.
        norm: L2 norm of all values.
    """

    peak: float = math.inf
    norm: float = math.inf

    def __add__(self, other: Drift) -> Drift:
        return Drift(self.peak + other.peak, self.norm + other.norm)

    def __mul__(self, factor: float) -> Drift:
        return Drift(factor * self.peak, factor * self.norm)

    def least(self, other: Drift) -> Drift:
        """The bound that follows from both."""
        return Drift(min(self.peak, other.peak), min(self.norm, other.norm))

    def of(self, size: int) -> Drift:
        """The same, where each of the two also bounds the other, for ``size`` values."""
        return self.least(Drift(self.norm, math.sqrt(size) * self.peak))


NONE = Drift(0.0, 0.0)


@dataclass(frozen=True)
class DriftBound:
    """The bound of every round of a run.

    Attributes:
        start: the agreed values before round 1, float32, shape ``(size,)``.
        drifts: by round, of the state that nodes train from less the start.
        operations: float32 operations on a value in one round, at most.
    """

    start: FloatVector
    drifts: tuple[Drift, ...]
    operations: int

    @classmethod
    def of(cls, plan: RunPlan, start: FloatVector) -> DriftBound:
        """The bound of a run that averages flat vectors; factors (stack, reproject) have none."""
        return cls(start, drifts(plan, start.size), plan.config.federation.local_steps + 4)

    def excess(self, round: int, values: FloatVector) -> str:
        """What a state has too much, in a sentence; empty where it is within the bound of a 1-based round."""
        change = values.astype(np.float64) - self.start
        peak, norm = float(np.abs(change).max(initial=0.0)), float(np.linalg.norm(change))
        limit = self._limit(round)
        allowed = "from the agreed start; training as agreed reaches"
        if not peak <= limit.peak:
            return f"a value of the state of round {round} lies {peak:.4g} {allowed} {limit.peak:.4g}"
        if not norm <= limit.norm:
            return f"the state of round {round} lies {norm:.4g} in L2 norm {allowed} {limit.norm:.4g}"
        return ""

    def within(self, round: int, values: FloatVector) -> FloatVector:
        """The values themselves where they are within the bound, else cut to it: by value, then in length."""
        if not self.excess(round, values):
            return values
        drift, change = self.drifts[round - 1], values.astype(np.float64) - self.start
        change = np.clip(np.nan_to_num(change), -drift.peak, drift.peak)
        norm = float(np.linalg.norm(change))
        return (self.start + change * min(1.0, drift.norm / max(norm, 1e-300))).astype(np.float32)

    def _limit(self, round: int) -> Drift:
        """The bound with what float32 adds."""
        drift = self.drifts[round - 1] * (1 + TOLERANCE)
        largest_value = float(np.abs(self.start).max(initial=0.0)) + drift.peak
        error = _ROUNDING * self.operations * round * largest_value if math.isfinite(drift.peak) else 0.0
        return drift + Drift(error, math.sqrt(self.start.size) * error)


def drifts(plan: RunPlan, size: int) -> tuple[Drift, ...]:
    """By 1-based round, how far the state may lie from the start; the first is 0.

    Args:
        plan: of the run, which averages flat vectors.
        size: number of values.
    """
    federation = plan.config.federation
    means = [_mean(plan, LocalPlan.of(federation, round), size) for round in range(1, federation.rounds)]
    steps = [step.of(size) for step in _server_steps(federation.server, means)]
    return tuple(accumulate(steps, initial=NONE))


def _mean(plan: RunPlan, local: LocalPlan, size: int) -> Drift:
    if plan.summed is not None:
        return gradient_drift(local, plan.summed, size)
    return _noisy(plan, _clipped(plan, node_drift(local, plan.local, size)), size)


def gradient_drift(plan: LocalPlan, privacy: PrivacyPlan, size: int) -> Drift:
    """What a round's noisy mean of clipped gradients can change, as in `node_drift`.

    The noise of ``n`` nodes over ``n`` is largest where they are as few as the plan's least.
    """
    assert privacy.grid is not None
    deviation = (
        privacy.noise_multiplier * privacy.clip / privacy.expected_batch_size / privacy.grid.least_nodes
    )
    noise = Drift(SUPPORT, math.sqrt(size) + SUPPORT) * deviation
    return (Drift(privacy.clip, privacy.clip) + noise).of(size) * plan.lr


def node_drift(plan: LocalPlan, privacy: PrivacyPlan | None, size: int) -> Drift:
    """What one node's training can change in a round.

    AdamW: step ``k`` moves a value by at most ``lr * adam_step(k)``, whatever the gradients are, noise
    included. SGD: the clipped gradients add up through the momentum. Under DP in the node those are the clip
    and the noise: a value of it has an end (`fedpeft.privacy.noise.SUPPORT`), and its norm is above
    ``sqrt(size) + SUPPORT`` deviations with a probability below 1e-15; with bands both are as much larger as
    the last row's noise may be. A step that draws more units than
    expected may pass this; the coordinator then cuts.
    """
    if plan.optimiser == "adamw":
        return Drift(plan.lr * sum(adam_step(*ADAMW_BETAS, k) for k in range(1, plan.steps + 1))).of(size)
    gradient = Drift(norm=plan.max_grad_norm)
    if privacy is not None:
        deviation = privacy.deviation / privacy.expected_batch_size
        growth = impulse(optimised(privacy.bands, privacy.steps), privacy.steps)
        peak, norm = float(np.abs(growth).sum()), float(np.linalg.norm(growth))
        noise = Drift(SUPPORT * peak, (math.sqrt(size) + SUPPORT) * norm) * deviation
        gradient = Drift(privacy.clip, privacy.clip) + noise
    velocities = accumulate(range(plan.steps), lambda velocity, _: plan.momentum * velocity + 1, initial=0.0)
    return gradient.of(size) * (plan.lr * sum(velocities))


def adam_step(beta1: float, beta2: float, step: int) -> float:
    """The largest ``|m / sqrt(v)|`` of Adam with bias correction in a 1-based step, over all gradients.

    By the Cauchy-Schwarz inequality over ``beta1^(k-i) g_i = (beta1/sqrt(beta2))^(k-i) * sqrt(beta2)^(k-i)
    g_i``; gradients in proportion to ``(beta1/beta2)^(k-i)`` reach it.
    """
    if step == 1 or beta1 == 0:
        return math.sqrt((1 - beta2**step) / (1 - beta2))
    if beta2 == 0:
        return math.inf
    ages = sum((beta1 * beta1 / beta2) ** age for age in range(step))
    return (1 - beta1) / (1 - beta1**step) * math.sqrt((1 - beta2**step) / (1 - beta2) * ages)


def _clipped(plan: RunPlan, drift: Drift) -> Drift:
    """What counts of a node's change where whole nodes are protected: no more than the clip."""
    privacy = plan.privacy
    if privacy is None or privacy.unit != "node" or privacy.adaptive is not None:
        return drift
    return drift.least(Drift(privacy.clip, privacy.clip))


def _noisy(plan: RunPlan, drift: Drift, size: int) -> Drift:
    """The mean of such changes: as far as one of them, and what noise of the whole adds."""
    nodes = plan.config.federation.nodes
    if (privacy := plan.central) is not None:
        expected = privacy.expected_batch_size
        deviation = sum_multiplier(privacy) * privacy.clip / expected
        growth = impulse(optimised(privacy.bands, privacy.steps), privacy.steps)
        noise = Drift(SUPPORT * deviation * float(np.abs(growth).sum()))
        return (drift * max(1.0, nodes / expected) + noise.of(size)).of(size)
    if (privacy := plan.distributed) is not None and (grid := privacy.grid) is not None:
        deviation = math.sqrt(nodes / grid.least_nodes) * privacy.noise_multiplier * privacy.clip
        expected = privacy.expected_batch_size
        noise = Drift(SUPPORT, math.sqrt(size) + SUPPORT) * (deviation / expected)
        return (drift * max(1.0, nodes / expected) + noise.of(size)).of(size)
    return drift


def _server_steps(server: ServerOptimiserConfig, means: list[Drift]) -> list[Drift]:
    """The steps of the server's optimiser along means within these bounds."""
    if server.name == "mean":
        return [mean * server.lr for mean in means]
    if server.name == "momentum":
        velocities = accumulate(means, lambda velocity, mean: velocity * server.momentum + mean)
        return [velocity * server.lr for velocity in velocities]
    steps, peak, longest = list[Drift](), 0.0, NONE
    for count, mean in enumerate(means, 1):
        longest = Drift(max(longest.peak, mean.peak), max(longest.norm, mean.norm))
        peak = max(peak, adam_step(server.momentum, server.beta2, count))
        steps.append(Drift(peak * server.lr).least(longest * (server.lr / server.epsilon)))
    return steps
