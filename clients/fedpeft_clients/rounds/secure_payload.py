"""What a node adds to a secure sum: ternary integers and votes on their scales, or a noisy grid."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.exchange import ExchangePlan, FloatVector, PublicTernary, Update
from fedpeft.exchange.transforms import RESIDUAL
from fedpeft.privacy.csprng import Randomness, seeded, words
from fedpeft.privacy.plan import Grid, PrivacyPlan
from fedpeft.rng import stream
from fedpeft.secagg.skellam import share_of_noise, to_grid
from fedpeft_clients.rounds.node_context import NodeContext
from fedpeft_clients.rounds.pipeline_taps import Taps

Integers = NDArray[np.int64]


def summand(
    node: NodeContext, start: Update, plan: ExchangePlan, residuals: MutableMapping[str, Any], taps: Taps
) -> Integers:
    """The integers of this round, int64: of the values on the public support, then one vote per tensor.

    With the nodes' own noise (trust ``distributed``) there are no votes: the grid's step is fixed.

    Args:
        node: the trained adapter.
        start: the values before training, with layout and round.
        plan: bound to the message and its public scales.
        residuals: of error feedback; changed as in `ExchangePlan.run`.
        taps: the audit's view of the update and of each step.
    """
    change = node.attached.get() - start.values
    taps.stage("update", change)
    privacy = node.plan.privacy
    if not isinstance(plan.codec, PublicTernary):
        raise TypeError(f"a secure sum needs public scales, the plan ends with {plan.codec.name}")
    if privacy is not None and privacy.grid is not None:
        chosen = change[plan.codec.support.positions(start.layout)]
        return noisy_grid(chosen, privacy, privacy.grid, _source(node, start.round, privacy))
    final, _ = plan.run(replace(start, values=change), residuals, taps.update if taps.folder else None)
    intended = final.values + residuals[RESIDUAL] if RESIDUAL in residuals else change
    integers = plan.codec.integers(final.values, start.layout)
    votes = plan.codec.votes(intended, start.layout)
    return np.concatenate([integers, votes]).astype(np.int64)


def noisy_grid(values: FloatVector, privacy: PrivacyPlan, grid: Grid, source: Randomness = words) -> Integers:
    """The clipped values in grid steps and this node's share of the Skellam noise, int64, same shape.

    Any ``least_nodes`` shares together have at least the variance that the plan accounts for; so many are in
    every opened sum, whoever colludes.
    """
    variance = (privacy.noise_multiplier * grid.steps_per_clip) ** 2 / grid.least_nodes
    noise = share_of_noise(values.size, variance, source)
    return to_grid(values, privacy.clip, grid.steps_per_clip, source) + noise


def _source(node: NodeContext, round: int, privacy: PrivacyPlan) -> Randomness:
    """The operating system, unless the run is reproducible and therefore guarantees nothing."""
    if not privacy.reproducible:
        return words
    return seeded(stream(node.home.config.run.seed, round, node.home.name, "noise").bytes(32))
