"""From a configuration to its privacy plan."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from fedpeft.cohort import Cohort
from fedpeft.errors import PrivacyError
from fedpeft.privacy.calibration import noise_multiplier
from fedpeft.privacy.grid import MOST_VARIANCE, Grid
from fedpeft.privacy.loss_share import LossShare
from fedpeft.privacy.plan import AdaptiveClip, PrivacyPlan

if TYPE_CHECKING:
    from fedpeft.config.models import Config

COUNT_NOISE_SHARE = 1 / 20
"""Noise of an adaptive clip's count over the expected nodes (Andrew et al. 2021, section 3.1), at least."""

COUNT_NOISE_OVER_SUM = 2.0
"""And over the noise multiplier, at least: among few nodes the count then costs the sum 3 % more noise."""

FINENESS = (16.0, 8.0, 4.0, 2.0, 1.0)
"""Grid steps per clip over ``sqrt(size)`` that are tried: rounding adds 0.2 to 12 % to the sensitivity."""

LIMIT = {"record": 4.0, "person": 4.0, "node": 1.0}
"""Clips that one value of a node must hold. A sum of clipped gradients has no other bound: what is above its
limit is cut, which costs accuracy alone. A whole node's update is no longer than its clip."""

OWN_FINENESS = (64.0, *FINENESS)
"""The same where no integers of a few bits must hold a sum: a node's own discrete noise."""

OWN_LIMIT = 2**50
"""Grid steps that one value of a node's own sum may hold: float64 holds them exactly, and the noise too."""

WRAP = 1e-12
"""Largest probability that any sum of a run leaves its integers."""


def plan_from_config(config: Config, size: int = 0) -> PrivacyPlan | None:
    """The privacy plan that a configuration asks for; None where it asks for no DP.

    With ``privacy.epsilon`` the noise multiplier is solved for, so that the whole run never exceeds it.

    Args:
        config: the settings.
        size: number of values that bear noise; only discrete noise depends on it, and needs it.

    Raises:
        PrivacyError: noise and epsilon both or neither given, no public sampling rate, nonsense values, an
            epsilon out of reach, or integers of too few bits for the sum.
    """
    privacy = config.privacy
    if privacy.unit == "none":
        return None
    if (privacy.epsilon is None) == (privacy.noise_multiplier is None):
        raise PrivacyError("set exactly one of privacy.epsilon and privacy.noise_multiplier")
    shape = _of_nodes(config, size) if privacy.unit == "node" else _of_records(config, size)
    plan = _calibrated(config, shape)
    return _adaptive(config, plan) if plan.grid is None else _fitting(config, plan, plan.grid)


def _calibrated(config: Config, shape: PrivacyPlan) -> PrivacyPlan:
    privacy, shape = config.privacy, shape.with_noise(1.0)  # one shape, whatever its noise, is solved once
    return shape.with_noise(privacy.noise_multiplier or noise_multiplier(shape, privacy.epsilon or 0.0))


def limit_of(plan: PrivacyPlan, grid: Grid, nodes: int, bits: int) -> int:
    """Grid steps that one value of a node may hold so that a sum leaves its integers once in 10^12 runs.

    The noise of ``nodes`` shares is subgaussian, ``P(|X| >= t) <= 2 exp(-t^2 / (2 v))`` (Canonne et al. 2020,
    arXiv:2004.00010, corollary 17), over all values and releases. A wrap would spoil the sum, never the
    privacy. Negative where the noise alone is too large.

    Args:
        plan: of trust ``distributed``.
        grid: its integers.
        nodes: of the roster.
        bits: of a signed integer.
    """
    variance = grid.share(plan.noise_multiplier) * nodes
    tail = math.sqrt(2 * variance * math.log(2 * grid.size * plan.steps / WRAP))
    return math.floor((2 ** (bits - 1) - 1 - tail) / nodes)


def _fitting(config: Config, finest: PrivacyPlan, grid: Grid) -> PrivacyPlan:
    """The plan on the finest grid whose sums fit the integers.

    Raises:
        PrivacyError: they fit on none.
    """
    if finest.trust == "local":
        return _own_grid(config, finest, grid)
    nodes, bits, root = config.federation.nodes, config.exchange.secure.bits, math.sqrt(grid.size)
    for fineness in FINENESS:
        other = replace(grid, steps_per_clip=fineness * root)
        plan = replace(finest, grid=other)
        if config.privacy.noise_multiplier is None:  # the noise of a coarser grid, nearly
            plan = plan.with_noise(
                finest.noise_multiplier * other.l2 / grid.l2 * grid.steps_per_clip / other.steps_per_clip
            )
        fits = limit_of(plan, other, nodes, bits) > LIMIT[plan.unit] * other.steps_per_clip
        if fits and other.share(plan.noise_multiplier) < 0.99 * MOST_VARIANCE:
            plan = _calibrated(config, plan)
            return replace(plan, grid=replace(other, limit=limit_of(plan, other, nodes, bits)))
    raise PrivacyError(
        f"exchange.secure.bits = {bits} do not hold the sum of {nodes} nodes and this noise; set "
        "exchange.secure.bits = 32, or exchange fewer values (exchange.secure.share)"
    )


def _own_grid(config: Config, finest: PrivacyPlan, grid: Grid) -> PrivacyPlan:
    """The plan on the finest grid on which one node's noise can be drawn; its integers have no other end.

    Raises:
        PrivacyError: there is none.
    """
    root = math.sqrt(grid.size)
    for fineness in OWN_FINENESS:
        plan = _calibrated(config, replace(finest, grid=replace(grid, steps_per_clip=fineness * root)))
        assert plan.grid is not None
        if plan.grid.share(plan.noise_multiplier) <= MOST_VARIANCE:
            return plan
    raise PrivacyError(
        f"privacy.noise = 'discrete' has no table of so much noise (multiplier {finest.noise_multiplier:g} "
        f"over {grid.size} values); set privacy.noise = 'gaussian', or train fewer values"
    )


def _adaptive(config: Config, plan: PrivacyPlan) -> PrivacyPlan:
    """The plan with an adaptive clip, where the config asks for one; its epsilon stays the same."""
    privacy = config.privacy
    if privacy.unit != "node" or not privacy.adaptive_clip:
        return plan
    share, over_sum = COUNT_NOISE_SHARE * plan.expected_batch_size, COUNT_NOISE_OVER_SUM
    count_noise = max(share, over_sum * plan.noise_multiplier)
    return replace(plan, adaptive=AdaptiveClip(privacy.clip_quantile, privacy.clip_lr, count_noise))


def _of_records(config: Config, size: int) -> PrivacyPlan:
    privacy, federation = config.privacy, config.federation
    discrete = privacy.trust == "distributed" or privacy.noise == "discrete"
    return PrivacyPlan(
        sampling_probability=sampling_probability(config),
        noise_multiplier=1.0,
        clip=privacy.clip,
        expected_batch_size=federation.batch_size,
        steps_per_round=federation.local_steps,
        rounds=federation.rounds,
        delta=privacy.delta,
        unit="person" if privacy.unit == "person" else "record",
        trust=privacy.trust,
        records_per_unit=privacy.records_per_person if privacy.unit == "person" else 1,
        bands=privacy.bands,
        grid=_grid(config, size) if discrete else None,
        reproducible=privacy.randomness == "seeded",
        loss=LossShare(privacy.loss_share, privacy.loss_cap) if privacy.loss_share else None,
        drawn="record" if privacy.unit == "person" and privacy.sampling == "record" else "unit",
    )


def _of_nodes(config: Config, size: int) -> PrivacyPlan:
    privacy, federation = config.privacy, config.federation
    expected = max(1, round(federation.participation * federation.nodes))
    secret_coins = federation.selection == "poisson" and privacy.trust == "central"
    return PrivacyPlan(
        sampling_probability=federation.participation if secret_coins else 1.0,
        noise_multiplier=1.0,
        clip=privacy.clip,
        expected_batch_size=expected,
        steps_per_round=1,
        rounds=federation.rounds,
        delta=privacy.delta,
        unit="node",
        trust=privacy.trust,
        separation=period(federation.participation) if federation.selection == "cyclic" else 1,
        bands=privacy.bands,
        grid=_grid(config, size) if privacy.trust == "distributed" else None,
        reproducible=privacy.randomness == "seeded",
    )


def _grid(config: Config, size: int) -> Grid:
    """The finest grid that is tried.

    The noise counts on the shares alone that every sum holds whoever colludes, which every node enforces.
    """
    if size < 1:
        raise PrivacyError(
            "discrete noise (privacy.trust = 'distributed' or privacy.noise = 'discrete') depends on the "
            "number of values: give the size"
        )
    if config.privacy.trust == "local":
        size += bool(config.privacy.loss_share)
        return Grid(size, OWN_FINENESS[0] * math.sqrt(size), least_nodes=1, limit=OWN_LIMIT)
    cohort = Cohort.of(config)
    return Grid(size, FINENESS[0] * math.sqrt(size), cohort.honest, cohort.colluders)


def period(participation: float) -> int:
    """Rounds from one turn of a node to its next, where nodes take turns."""
    return int(1 / participation + 1e-9)


def sampling_probability(config: Config) -> float:
    """The public Poisson rate: as given, or batch size over a public record count; never from private data.

    The embedded federation's ``data.samples`` is a public constant and serves as that count.

    Raises:
        PrivacyError: no public figure is configured, or it is below the batch size.
    """
    privacy, batch = config.privacy, config.federation.batch_size
    if privacy.sampling_probability is not None:
        return privacy.sampling_probability
    records = privacy.public_records
    if records is None and config.data.source == "embedded":
        records = config.data.samples
    if records is None:
        raise PrivacyError(
            "the sampling rate must be public, not derived from the private number of records: set "
            "privacy.sampling_probability, or privacy.public_records to a public lower bound"
        )
    if batch > records:
        raise PrivacyError(f"federation.batch_size {batch} is above the {records} public records; lower it")
    return batch / records
