"""From a configuration to its privacy plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.errors import PrivacyError
from fedpeft.privacy.calibration import noise_multiplier
from fedpeft.privacy.plan import AdaptiveClip, Grid, PrivacyPlan

if TYPE_CHECKING:
    from fedpeft.config.models import Config

COUNT_NOISE_SHARE = 1 / 20
"""Noise of an adaptive clip's count over the expected nodes (Andrew et al. 2021, section 3.1)."""


def plan_from_config(config: Config, size: int = 0) -> PrivacyPlan | None:
    """The privacy plan that a configuration asks for; None where it asks for no DP.

    With ``privacy.epsilon`` the noise multiplier is solved for, so that the whole run never exceeds it.

    Args:
        config: the settings.
        size: number of exchanged values; only trust ``distributed`` depends on it.

    Raises:
        PrivacyError: noise and epsilon both or neither given, no public sampling rate, or nonsense values.
    """
    privacy = config.privacy
    if privacy.unit == "none":
        return None
    if (privacy.epsilon is None) == (privacy.noise_multiplier is None):
        raise PrivacyError("set exactly one of privacy.epsilon and privacy.noise_multiplier")
    shape = _of_nodes(config, size) if privacy.unit == "node" else _of_records(config)
    if privacy.noise_multiplier is not None:
        return shape.with_noise(privacy.noise_multiplier)
    return shape.with_noise(noise_multiplier(shape, privacy.epsilon or 0.0))


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
    adaptive = AdaptiveClip(privacy.clip_quantile, privacy.clip_lr, COUNT_NOISE_SHARE * expected)
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
        bands=privacy.bands,
        adaptive=adaptive if privacy.adaptive_clip else None,
        grid=_grid(config, size) if privacy.trust == "distributed" else None,
        reproducible=privacy.randomness == "seeded",
    )


def _grid(config: Config, size: int) -> Grid:
    """Grid steps of about one per value of a clipped update: rounding then adds an eighth of noise."""
    return Grid(size, max(1.0, size) ** 0.5, config.exchange.secure.least_nodes)


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
