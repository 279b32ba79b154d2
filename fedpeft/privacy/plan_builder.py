"""From a configuration to its privacy plan."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from fedpeft.cohort import Cohort
from fedpeft.errors import PrivacyError
from fedpeft.privacy.calibration import noise_multiplier
from fedpeft.privacy.plan import AdaptiveClip, Grid, PrivacyPlan

if TYPE_CHECKING:
    from fedpeft.config.models import Config

COUNT_NOISE_SHARE = 1 / 20
"""Noise of an adaptive clip's count over the expected nodes (Andrew et al. 2021, section 3.1), at least."""

COUNT_NOISE_OVER_SUM = 2.0
"""And over the noise multiplier, at least: among few nodes the count then costs the sum 3 % more noise."""

STEPS_PER_ROOT = {16: 4.0, 32: 16.0}
"""Grid steps per clip over ``sqrt(size)``: rounding adds 25 % to the sensitivity in 16 bits, 6 % in 32."""

WRAP = 1e-12
"""Largest probability that any sum of a run leaves its integers."""


def plan_from_config(config: Config, size: int = 0) -> PrivacyPlan | None:
    """The privacy plan that a configuration asks for; None where it asks for no DP.

    With ``privacy.epsilon`` the noise multiplier is solved for, so that the whole run never exceeds it.

    Args:
        config: the settings.
        size: number of exchanged values; only trust ``distributed`` depends on it, and needs it.

    Raises:
        PrivacyError: noise and epsilon both or neither given, no public sampling rate, nonsense values, an
            epsilon out of reach, or integers of too few bits for the sum.
    """
    privacy = config.privacy
    if privacy.unit == "none":
        return None
    if (privacy.epsilon is None) == (privacy.noise_multiplier is None):
        raise PrivacyError("set exactly one of privacy.epsilon and privacy.noise_multiplier")
    shape = _of_nodes(config, size) if privacy.unit == "node" else _of_records(config)
    noise = privacy.noise_multiplier or noise_multiplier(shape, privacy.epsilon or 0.0)
    plan = _adaptive(config, shape.with_noise(noise))
    if plan.grid is not None:
        _check_bits(config, plan)
    return plan


def bits_needed(plan: PrivacyPlan, nodes: int) -> int:
    """Bits of a signed integer that holds the sum of all nodes, but for a probability of `WRAP` in a run.

    Signal: every node's whole norm in one value, rounded up. Noise: that of ``nodes`` shares, by Bernstein's
    inequality for Skellam noise of variance ``v``, ``P(|X| >= t) <= 2 exp(-t^2 / (2 v + 2 t / 3))``, over
    all values and releases. A wrap would spoil the sum, never the privacy.

    Args:
        plan: of trust ``distributed``.
        nodes: of the roster.

    Raises:
        PrivacyError: the plan has no grid.
    """
    if (grid := plan.grid) is None:
        raise PrivacyError(f"trust {plan.trust} sums no integers; bits are for trust distributed")
    variance = (plan.noise_multiplier * grid.steps_per_clip) ** 2 * max(1.0, nodes / grid.least_nodes)
    rarity = math.log(2 * grid.size * plan.steps / WRAP)
    tail = rarity / 3 + math.sqrt((rarity / 3) ** 2 + 2 * variance * rarity)
    return math.ceil(math.log2(nodes * (grid.steps_per_clip + 1) + tail)) + 1


def _check_bits(config: Config, plan: PrivacyPlan) -> None:
    bits, needed = config.exchange.secure.bits, bits_needed(plan, config.federation.nodes)
    if needed > bits:
        raise PrivacyError(
            f"exchange.secure.bits = {bits}, but the sum of {config.federation.nodes} nodes and this noise "
            f"needs {needed} bits; set exchange.secure.bits = 32, or exchange fewer values"
        )


def _adaptive(config: Config, plan: PrivacyPlan) -> PrivacyPlan:
    """The plan with an adaptive clip, where the config asks for one; its epsilon stays the same."""
    privacy = config.privacy
    if privacy.unit != "node" or not privacy.adaptive_clip:
        return plan
    share, over_sum = COUNT_NOISE_SHARE * plan.expected_batch_size, COUNT_NOISE_OVER_SUM
    count_noise = max(share, over_sum * plan.noise_multiplier)
    return replace(plan, adaptive=AdaptiveClip(privacy.clip_quantile, privacy.clip_lr, count_noise))


def _of_records(config: Config) -> PrivacyPlan:
    privacy, federation = config.privacy, config.federation
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
        reproducible=privacy.randomness == "seeded",
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
    """A grid so fine that rounding costs little; the bits that it needs are checked with the noise.

    The noise counts on the shares alone that every sum holds whoever colludes, which every node enforces.
    """
    secure = config.exchange.secure
    if size < 1:
        raise PrivacyError("privacy.trust = 'distributed' depends on the number of values: give the size")
    steps_per_clip = STEPS_PER_ROOT.get(secure.bits, 1.0) * math.sqrt(size)
    cohort = Cohort.of(config)
    return Grid(size, steps_per_clip, cohort.honest, cohort.colluders)


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
