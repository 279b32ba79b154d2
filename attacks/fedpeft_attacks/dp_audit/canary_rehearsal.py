"""A rehearsal of a run's privacy plan: canaries with made-up gradients go through the platform's own code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpeft.aggregation.central_dp import CentralNoise, randomness, sum_multiplier
from fedpeft.exchange.decoded import Decoded
from fedpeft.exchange.layout import Layout
from fedpeft.privacy.matrix import correlated, square_root
from fedpeft.privacy.mixture import Mixture
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.privacy.sampling import poisson
from fedpeft.secagg.grid_values import clipped, to_grid
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
    """

    plan: PrivacyPlan
    values: Wide
    members: Coins


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
    makers = {"local": _local, "central": _central, "distributed": _distributed}
    return Observed(plan, makers[plan.trust](plan, members), members)


def turns(plan: PrivacyPlan, canaries: int) -> Coins:
    """Which canaries may be asked in which step, shape ``(steps, canaries)``: all, or whose turn it is."""
    steps, places = np.arange(plan.steps)[:, None], np.arange(canaries)[None]
    return (steps + places) % plan.separation == 0


def _local(plan: PrivacyPlan, members: Coins) -> Wide:
    return noisy_steps(plan, records(np.flatnonzero(members), plan), len(members))


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

    Sampled Gaussian steps: ``sum_t log(1 - q + q exp((2 y - 1) / (2 z^2)))``, or that of the records of one
    person, which are drawn one by one. Without sampling, and with
    noise that is correlated over rounds, the noise is whitened first and the ratio is linear.
    """
    plan = observed.plan
    noise, rate = sum_multiplier(plan), plan.sampling_probability
    if plan.drawn == "record" and rate < 1:
        mixture = Mixture(rate, noise, plan.records_per_unit)
        return mixture.log_ratio(observed.values.ravel())[0].reshape(observed.values.shape).sum(0)
    if rate < 1:
        ratio = (2 * observed.values - 1) / (2 * noise**2)
        return np.logaddexp(math.log1p(-rate), math.log(rate) + ratio).sum(0)
    clips = plan.records_per_unit if plan.drawn == "record" else 1.0
    signal = clips * whitened(turns(plan, len(observed.members)).astype(np.float64), plan.bands)
    values = whitened(observed.values, plan.bands)
    return (signal * (values - signal / 2)).sum(0) / noise**2


def total(observed: Observed) -> Wide:
    """Sum of each canary's coordinate over its steps, shape ``(canaries,)``: what only the end shows."""
    return (observed.values * turns(observed.plan, len(observed.members))).sum(0)


def whitened(values: Wide, bands: int) -> Wide:
    """``C`` times the rows: noise ``C^-1 Z`` of the banded mechanism becomes independent again."""
    column = square_root(bands)
    fresh = column[0] * values
    for back in range(1, min(bands, len(values))):
        fresh[back:] += column[back] * values[:-back]
    return fresh


def coins(canaries: int, rng: np.random.Generator) -> Coins:
    """One fair coin per canary."""
    return rng.random(canaries) < 0.5


def simulated(plan: PrivacyPlan, members: Coins, factor: float, rng: np.random.Generator) -> Observed:
    """The same rehearsal by the plan's formulas alone, with noise times ``factor``; power is read from it."""
    asked = turns(plan, len(members)) & members
    records = plan.records_per_unit if plan.drawn == "record" else 1
    coins_up = sum(rng.random(asked.shape) < plan.sampling_probability for _ in range(records))
    drawn = asked * np.asarray(coins_up, np.float64)
    fresh = factor * sum_multiplier(plan) * rng.standard_normal(asked.shape)
    return Observed(plan, drawn + _correlated(fresh, plan.bands), members)


def _correlated(fresh: Wide, bands: int) -> Wide:
    """``C^-1`` times the rows: the inverse of `whitened`."""
    rows, history, column = list[Wide](), np.zeros((0, fresh.shape[1])), square_root(bands)
    for noise in fresh:
        row, history = correlated(column, noise, history)
        rows.append(row)
    return np.stack(rows)
