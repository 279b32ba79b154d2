"""A rehearsal of a run's privacy plan: canaries with made-up gradients go through the platform's own code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedpeft.aggregation.central_dp import CentralNoise, randomness, sum_multiplier
from fedpeft.exchange.decoded import Decoded
from fedpeft.exchange.layout import Layout
from fedpeft.privacy.matrix import correlated, optimised
from fedpeft.privacy.mixture import Mixture
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.privacy.sampling import poisson
from fedpeft.privacy.step_matrix import StepMatrix
from fedpeft.secagg.grid_values import clipped, to_grid
from fedpeft.training.privacy_units import identities, units_of
from fedpeft_attacks.dp_audit.synthetic_model import EXCESS, noisy_steps, records, shared_noise

Wide = NDArray[np.float64]
Coins = NDArray[np.bool_]


@dataclass(frozen=True)
class Observed:
    """What an adversary sees of the canaries of one run, and the truth.

    Attributes:
        plan: the privacy plan that was rehearsed; public.
        values: each canary's own coordinate of each noisy sum over the clip, shape ``(steps, canaries)``.
        members: the coins: which canaries were units of the data, shape ``(canaries,)``.
        groups: trust ``local`` with bands: the group of each canary, int64, shape ``(canaries,)``; the
            guarantee does not rest on their being unknown. None: there are none.
    """

    plan: PrivacyPlan
    values: Wide
    members: Coins
    groups: NDArray[np.int64] | None = None

    @property
    def asked(self) -> Coins:
        """Which canaries may be drawn in which step, shape ``(steps, canaries)``."""
        if self.groups is None:
            return turns(self.plan, len(self.members))
        return np.arange(self.plan.steps)[:, None] % self.plan.groups == self.groups


def rehearse(plan: PrivacyPlan, members: Coins) -> Observed:
    """Run all steps of a plan on canaries alone, each a unit with a coordinate of its own.

    Trust ``local``: `fedpeft.training.train_local` on a made-up model: drawing, gradients per unit, clip,
    sum, noise and divisor are the node's. ``central``: `CentralNoise.mean` over canaries as nodes, drawn as
    the coordinator draws. ``distributed``: shares of noise of the fewest nodes that a sum may hold, and
    canaries rounded to the grid, added as integers, as nodes or as records of one node (`gradient_sum`);
    masks are left out, as they cancel.

    Args:
        plan: any plan with a guarantee.
        members: the coins, shape ``(canaries,)``.
    """
    if plan.groups > 1:
        return _grouped(plan, members)
    makers = {"local": _local, "central": _central, "distributed": _distributed}
    return Observed(plan, makers[plan.trust](plan, members), members)


def turns(plan: PrivacyPlan, canaries: int) -> Coins:
    """Which canaries may be asked in which step, shape ``(steps, canaries)``: all, or whose turn it is."""
    steps, places = np.arange(plan.steps)[:, None], np.arange(canaries)[None]
    return (steps + places) % plan.separation == 0


def _local(plan: PrivacyPlan, members: Coins) -> Wide:
    return noisy_steps(plan, records(np.flatnonzero(members), plan), len(members))


def _grouped(plan: PrivacyPlan, members: Coins) -> Observed:
    """Steps with bands, whose groups are read off the key as the node works them out."""
    matrix, everyone = StepMatrix.begin(plan), records(np.arange(len(members)), plan)
    units = units_of(everyone, plan)
    pools = replace(matrix).pools(identities(everyone, units, plan))
    groups = np.zeros(len(members), np.int64)
    for group, pool in enumerate(pools):
        groups[pool] = group
    inside = [record for record in everyone if members[record.ids[0]]]
    values = noisy_steps(plan, inside, len(members), matrix)
    return Observed(plan, values, members, groups)


def _central(plan: PrivacyPlan, members: Coins) -> Wide:
    """An adaptive clip is held at its start: thousands of canaries would drive it away."""
    state, rows, inside = CentralNoise.of(plan), list[Wide](), np.flatnonzero(members)
    for step, asked in enumerate(turns(plan, len(members)), 1):
        drawn = inside[poisson(len(inside), plan.sampling_probability, randomness(plan, 0, step, "draw"))]
        updates = _updates(drawn[asked[drawn]], len(members), EXCESS * plan.clip)
        mean, after, _ = state.mean(len(members), updates)
        state = after if plan.adaptive is None else state
        rows.append(mean * (plan.expected_batch_size / plan.clip))
    return np.stack(rows)


def _updates(nodes: NDArray[np.integer], size: int, length: float) -> Iterator[tuple[str, float, Decoded]]:
    """One update of one coordinate for each node, in rising order of its name."""
    layout, number = Layout(("table",), ((size,),)), np.array([length], np.float32)
    for node in nodes:
        yield f"{node:09d}", 1.0, Decoded(layout, number, np.array([node]))


def _distributed(plan: PrivacyPlan, members: Coins) -> Wide:
    if plan.unit != "node":
        return _local(plan, members)
    return np.stack([_integers(plan, members) for _ in range(plan.steps)])


def _integers(plan: PrivacyPlan, members: Coins) -> Wide:
    """One secure sum of nodes' updates over the grid's steps per clip: as few shares of noise as may be."""
    assert plan.grid is not None
    size, step = len(members), plan.clip / plan.grid.steps_per_clip
    total = shared_noise(plan, size, plan.grid.least_nodes)
    for place in np.flatnonzero(members):
        update = np.zeros(size, np.float32)
        update[place] = EXCESS * plan.clip
        total += to_grid(clipped(update, plan.clip), step, plan.grid.limit)
    return total / plan.grid.steps_per_clip


def likelihood(observed: Observed) -> Wide:
    """Log likelihood ratio of in against out of each canary, shape ``(canaries,)``: the best score there is.

    With ``u`` what a draw in a step would leave in the whitened rows, along their column of ``C``, and ``s``
    that column's square: ``sum log(1 - q + q exp((2 u - s) / (2 z^2)))`` over the steps that may draw it,
    whose columns share no row. Independent noise: ``C`` is the identity. The records of one person that are
    drawn one by one have a likelihood of their own.
    """
    plan = observed.plan
    noise, rate = sum_multiplier(plan), plan.step_rate
    if plan.drawn == "record" and rate < 1:
        mixture = Mixture(rate, noise, plan.records_per_unit)
        return mixture.log_ratio(observed.values.ravel())[0].reshape(observed.values.shape).sum(0)
    clips = plan.records_per_unit if plan.drawn == "record" else 1.0
    column, white = optimised(plan.bands, plan.steps), whitened(observed.values, plan)
    along, squares = np.zeros_like(white), np.zeros((len(white), 1))
    for back, part in enumerate(column):
        along[: len(white) - back] += clips * part * white[back:]
        squares[: len(white) - back] += (clips * part) ** 2
    with np.errstate(divide="ignore"):
        absent = np.log1p(-rate)
    ratios = np.logaddexp(absent, math.log(rate) + (2 * along - squares) / (2 * noise**2))
    return (observed.asked * ratios).sum(0)


def total(observed: Observed) -> Wide:
    """Sum of each canary's coordinate over its steps, shape ``(canaries,)``: what only the end shows."""
    return (observed.values * observed.asked).sum(0)


def whitened(values: Wide, plan: PrivacyPlan) -> Wide:
    """``C`` times the rows: noise ``C^-1 Z`` of the banded mechanism becomes independent again."""
    column = optimised(plan.bands, plan.steps)
    fresh = column[0] * values
    for back in range(1, min(len(column), len(values))):
        fresh[back:] += column[back] * values[:-back]
    return fresh


def coins(canaries: int, rng: np.random.Generator) -> Coins:
    """One fair coin per canary."""
    return rng.random(canaries) < 0.5


def simulated(plan: PrivacyPlan, members: Coins, factor: float, rng: np.random.Generator) -> Observed:
    """The same rehearsal by the plan's formulas alone, with noise times ``factor``; power is read from it."""
    groups = np.arange(len(members)) % plan.groups if plan.groups > 1 else None
    empty = Observed(plan, np.zeros((plan.steps, len(members))), members, groups)
    records = plan.records_per_unit if plan.drawn == "record" else 1
    coins_up = sum(rng.random(empty.values.shape) < plan.step_rate for _ in range(records))
    drawn = (empty.asked & members) * np.asarray(coins_up, np.float64)
    fresh = factor * sum_multiplier(plan) * rng.standard_normal(drawn.shape)
    return replace(empty, values=drawn + _correlated(fresh, plan))


def _correlated(fresh: Wide, plan: PrivacyPlan) -> Wide:
    """``C^-1`` times the rows: the inverse of `whitened`."""
    rows, history = list[Wide](), np.zeros((0, fresh.shape[1]))
    for noise in fresh:
        row, history = correlated(optimised(plan.bands, plan.steps), noise, history)
        rows.append(row)
    return np.stack(rows)
