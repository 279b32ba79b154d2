"""What a node adds to a secure sum: ternary integers and votes on their scales, or values on a noisy grid."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.exchange import ExchangePlan, PublicTernary, Update
from fedpeft.exchange.transforms import RESIDUAL
from fedpeft.privacy.csprng import Randomness, seeded, words
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.rng import stream
from fedpeft.secagg.grid_values import clipped, noisy_grid
from fedpeft_clients.rounds.node_context import NodeContext
from fedpeft_clients.rounds.pipeline_taps import Taps

Integers = NDArray[np.int64]
FloatVector64 = NDArray[np.float64]


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
    codec, privacy = _codec(plan), node.plan.distributed
    if privacy is not None:
        values = clipped(change[codec.support.positions(start.layout)], privacy.clip)
        return noisy_grid(values, privacy, _source(node, start.round, privacy))
    final, _ = plan.run(replace(start, values=change), residuals, taps.update if taps.folder else None)
    intended = final.values + residuals[RESIDUAL] if RESIDUAL in residuals else change
    integers = codec.integers(final.values, start.layout)
    votes = codec.votes(intended, start.layout)
    return np.concatenate([integers, votes]).astype(np.int64)


def summed_gradients(
    node: NodeContext, start: Update, plan: ExchangePlan, gradients: FloatVector64, step: tuple[float, Taps]
) -> Integers:
    """The integers of a round in which records or persons are protected: a step against their gradients.

    Args:
        node: as it was before the round.
        start: the values, with layout and round.
        plan: bound to the message.
        gradients: the clipped sum on the support.
        step: the round's learning rate, which the coordinator multiplies the sum by; and the audit's view, to
            which this node's own step is shown as its update.
    """
    codec, privacy, (lr, taps) = _codec(plan), node.plan.summed, step
    assert privacy is not None
    if taps.folder:
        step_alone = np.zeros(start.layout.size, np.float32)
        step_alone[codec.support.positions(start.layout)] = -lr * gradients / privacy.expected_batch_size
        taps.stage("update", step_alone)
    return noisy_grid(-gradients, privacy, _source(node, start.round, privacy))


def _codec(plan: ExchangePlan) -> PublicTernary:
    if not isinstance(plan.codec, PublicTernary):
        raise TypeError(f"a secure sum needs public scales, the plan ends with {plan.codec.name}")
    return plan.codec


def _source(node: NodeContext, round: int, privacy: PrivacyPlan) -> Randomness:
    """The operating system, unless the run is reproducible and therefore guarantees nothing."""
    if not privacy.reproducible:
        return words
    return seeded(stream(node.home.config.run.seed, round, node.home.name, "noise").bytes(32))
