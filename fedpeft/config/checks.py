"""Settings that contradict each other, found before anything runs."""

from __future__ import annotations

from collections.abc import Iterator

from fedpeft.config.models import EMBEDDED, Config
from fedpeft.errors import ConfigError


def check(config: Config) -> None:
    """Refuse a config whose settings contradict each other.

    Raises:
        ConfigError: the first contradiction, with what to change.
    """
    for problem in _problems(config):
        raise ConfigError(problem)


def _problems(config: Config) -> Iterator[str]:
    yield from _adapter(config)
    yield from _exchange(config)
    yield from _federation(config)
    yield from _privacy(config)


def _adapter(config: Config) -> Iterator[str]:
    adapter, up, down = config.adapter, config.exchange.up, config.exchange.down
    factors = adapter.method == "lora" and adapter.aggregation in ("stack", "reproject")
    if adapter.ranks and not factors:
        yield (
            "adapter.ranks needs adapter.aggregation = 'stack' or 'reproject'; "
            f"{adapter.method} with {adapter.aggregation!r} has one rank for all nodes"
        )
    if factors and down.codec != "dense-fp32":
        yield (
            f"adapter.aggregation = {adapter.aggregation!r} sends whole factors down: "
            f"set exchange.down.codec = 'dense-fp32' (given: {down.codec!r})"
        )
    if adapter.aggregation == "stack" and adapter.method == "lora" and up.error_feedback:
        yield (
            "adapter.aggregation = 'stack' starts new factors each round, so a residual has no meaning: "
            "set exchange.up.error_feedback = false"
        )


def _exchange(config: Config) -> Iterator[str]:
    for way, direction in (("up", config.exchange.up), ("down", config.exchange.down)):
        if direction.codec == "stochastic-ternary" and direction.error_feedback:
            yield (
                f"exchange.{way}.codec = 'stochastic-ternary' is right on average and keeps no residual: "
                f"set exchange.{way}.error_feedback = false"
            )
    if config.exchange.down.support != "seed":
        yield (
            "a broadcast cannot take its support from a broadcast that its readers may have missed: "
            f"set exchange.down.support = 'seed' (given: {config.exchange.down.support!r})"
        )


def _federation(config: Config) -> Iterator[str]:
    federation = config.federation
    if federation.quorum > federation.nodes:
        yield f"federation.quorum = {federation.quorum} exceeds federation.nodes = {federation.nodes}"
    if config.data.partition in ("natural", "pathological", "dirichlet") and not config.data.partition_column:
        yield f"data.partition = {config.data.partition!r} needs data.partition_column"


def _privacy(config: Config) -> Iterator[str]:
    privacy = config.privacy
    knobs = (privacy.epsilon, privacy.noise_multiplier)
    if privacy.unit == "none" and any(knob is not None for knob in knobs):
        yield "privacy.epsilon or noise_multiplier needs privacy.unit = 'record' (given: 'none')"
    if privacy.unit == "record" and sum(knob is not None for knob in knobs) != 1:
        yield "privacy.unit = 'record' needs exactly one of privacy.epsilon and privacy.noise_multiplier"
    public = config.data.source == EMBEDDED or privacy.sampling_probability or privacy.public_records
    if privacy.unit == "record" and not public:
        yield (
            "privacy.unit = 'record' needs privacy.sampling_probability or privacy.public_records "
            "(public constants: never derived from the private record count)"
        )
