"""Settings that contradict each other, found before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedpeft.cohort import Cohort
from fedpeft.config.models import EMBEDDED, Config
from fedpeft.errors import ConfigError
from fedpeft.plugins import ADAPTER_METHODS, AGGREGATION_RULES, AUTO, CODECS

_DOUBLED = re.compile(r"\{\{([^{}]+)\}\}")
MOST_SECURE_NODES = 127
"""A sum of 127 ternary values still fits 8 bits."""


def check(config: Config) -> None:
    """Refuse a config whose settings contradict each other.

    Raises:
        ConfigError: the first contradiction, with what to change.
    """
    for problems in (_adapter, _trained_parts, _exchange, _federation, _privacy, _secure):
        for problem in problems(config):
            raise ConfigError(problem)


def check_new(config: Config) -> None:
    """Refuse what a new run shall not have, though an older one, or a node's copy of the base, may.

    Raises:
        ConfigError: a text is empty; ``data.prompt`` is ``data.completion``; ``data.template`` doubles the
            braces of a column; ``audit.rounds`` names 0, or a round beyond ``federation.rounds``; or
            ``base.revision`` stands beside a folder, of which there are no revisions.
    """
    for name in _empty_texts(config.model_dump()):
        raise ConfigError(f"{name} is empty: leave it out, or give a text")
    if config.data.prompt == config.data.completion:
        raise ConfigError(
            f"data.prompt and data.completion are both {config.data.prompt!r}: a prompt would hold its answer"
        )
    if doubled := _DOUBLED.search(config.data.template):
        raise ConfigError(
            f"data.template has {doubled[0]!r}: write a column in single braces, as {{{doubled[1].strip()}}}"
        )
    base, last = config.base, config.federation.rounds
    if base.revision is not None and (base.model == EMBEDDED or Path(base.model).expanduser().exists()):
        raise ConfigError(
            f"base.revision = {base.revision!r} is for a Hugging Face id, but base.model = {base.model!r} is "
            "on this machine: leave base.revision out, or set base.sha256"
        )
    for entry in config.audit.rounds:
        if entry != "middle" and not 1 <= abs(entry) <= last:
            raise ConfigError(
                f"audit.rounds names {entry}, but federation.rounds = {last}: name 1 to {last}, 'middle', or "
                f"-1 (the last) to -{last}"
            )


def _empty_texts(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _empty_texts(value, f"{prefix}{name}.")
        elif isinstance(value, str) and not value.strip():
            yield f"{prefix}{name}"


def _adapter(config: Config) -> Iterator[str]:
    adapter, up, down = config.adapter, config.exchange.up, config.exchange.down
    method = ADAPTER_METHODS[adapter.key]
    if adapter.ranks and not method.sends_factors:
        yield (
            "adapter.ranks needs adapter.aggregation = 'stack' or 'reproject'; "
            f"{adapter.method} with {adapter.aggregation!r} has one rank for all nodes"
        )
    if method.sends_factors and not CODECS[down.codec].exact:
        yield (
            f"adapter.aggregation = {adapter.aggregation!r} sends whole factors down: "
            f"set exchange.down.codec = 'dense-fp32' (given: {down.codec!r})"
        )
    if method.renews_factors and up.error_feedback:
        yield (
            f"adapter.aggregation = {adapter.aggregation!r} starts new factors each round, so a residual has "
            "no meaning: set exchange.up.error_feedback = false"
        )


def _trained_parts(config: Config) -> Iterator[str]:
    """What is trained beside the adapter: where a base has it, and where updates have a place for it."""
    adapter = config.adapter
    if adapter.train_head and config.base.task != "sequence-classification":
        yield (
            f"adapter.train_head trains the head of a classifier, which base.task = {config.base.task!r} has "
            "not: set base.task = 'sequence-classification', or leave adapter.train_head out"
        )
    takes = ADAPTER_METHODS[adapter.key].takes
    for setting in ("train_head", "experts", "trainable_tokens", "output_tokens"):
        if getattr(adapter, setting) and setting not in takes:
            mode = "frozen_b" if setting == "output_tokens" else "frozen_a"
            yield (
                f"adapter.{setting} is not possible with {adapter.key!r}: set adapter.method = 'lora' and "
                f"adapter.aggregation = '{mode}'"
            )


def _exchange(config: Config) -> Iterator[str]:
    for way, direction in (("up", config.exchange.up), ("down", config.exchange.down)):
        if direction.error_feedback and not CODECS[direction.codec].error_feedback:
            yield (
                f"exchange.{way}.codec = {direction.codec!r} is right on average and keeps no residual: "
                f"set exchange.{way}.error_feedback = false"
            )
    up = config.exchange.up.codec
    if config.privacy.unit == "node" and CODECS[up].rounds_at_random:
        yield (
            f"exchange.up.codec = {up!r} rounds at random, after the node's clip and before the noise, so "
            "that an update may be longer than privacy.clip: set exchange.up.codec = 'ternary'"
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
    yield from _robust(config)


def _robust(config: Config) -> Iterator[str]:
    federation, asked = config.federation, config.federation.robust
    rule = None if asked == AUTO else AGGREGATION_RULES[asked]
    reads = rule is not None and rule.reads_singles
    setting = f"federation.robust = {asked!r}" if reads else "federation.norm_bound"
    if reads or federation.norm_bound:
        yield from _looks_at_singles(config, setting)
    if rule is None:
        return
    if rule.compares_values and ADAPTER_METHODS[config.adapter.key].sends_factors:
        yield (
            f"{setting} compares values of one meaning, which factors do not have: set adapter.aggregation = "
            f"'frozen_a' (given: {config.adapter.aggregation!r})"
        )
    yield from _dense_enough(config, rule.needs_dense)


def _looks_at_singles(config: Config, setting: str) -> Iterator[str]:
    if config.exchange.secure.enabled:
        yield f"{setting} looks at single updates, which exchange.secure hides: leave one of them out"
    if config.privacy.unit == "node" and config.privacy.trust == "central":
        yield (
            f"{setting} compares nodes with one another, which privacy.trust = 'central' excludes; that cuts "
            "every update to privacy.clip already: leave it out"
        )


def _dense_enough(config: Config, needs_dense: bool) -> Iterator[str]:
    """A value that most nodes do not send has the median 0, and so nearly has its trimmed mean."""
    federation, up = config.federation, config.exchange.up
    sparse = not CODECS[up.codec].same_values and up.density <= 0.5
    if sparse and needs_dense:
        yield (
            f"federation.robust = {federation.robust!r} takes a value that a node did not send for 0 and so "
            f"loses most of updates of exchange.up.density = {up.density:g}: set exchange.up.codec = 'int8', "
            "another dense one, or federation.robust = 'norm-clip'"
        )


def _privacy(config: Config) -> Iterator[str]:
    privacy = config.privacy
    if config.federation.stop_after and not privacy.loss_share:
        yield (
            f"federation.stop_after = {config.federation.stop_after} follows the released loss, and none "
            "leaves the nodes: set privacy.loss_share, such as 0.2, or leave federation.stop_after out"
        )
    if privacy.unit == "none" and privacy.loss_share:
        yield "privacy.loss_share needs privacy.unit = 'record' or 'person' (given: 'none')"
    knobs = (privacy.epsilon, privacy.noise_multiplier)
    if privacy.unit == "none":
        if any(knob is not None for knob in knobs):
            yield "privacy.epsilon or noise_multiplier needs privacy.unit = 'record' (given: 'none')"
        return
    if sum(knob is not None for knob in knobs) != 1:
        yield (
            f"privacy.unit = {privacy.unit!r} needs exactly one of privacy.epsilon and "
            "privacy.noise_multiplier"
        )
    yield from _delta(config)
    if privacy.loss_share and (privacy.unit == "node" or privacy.trust != "local"):
        yield (
            "privacy.loss_share releases a loss with noise of the node's own: set privacy.unit = 'record' or "
            f"'person' and privacy.trust = 'local' (given: {privacy.unit!r}, {privacy.trust!r}: a secure sum "
            "and the coordinator's noise hold updates alone), or leave it out"
        )
    yield from _draws_and_noise(config)
    if config.audit.outbox == "refuse":
        yield (
            "audit.outbox = 'refuse' lets a missing update reveal the data, and no privacy plan covers that: "
            f"set audit.outbox = 'report' with privacy.unit = {privacy.unit!r}"
        )
    yield from _nodes_unit(config) if privacy.unit == "node" else _records_unit(config)


def _draws_and_noise(config: Config) -> Iterator[str]:
    privacy = config.privacy
    if privacy.sampling == "record" and privacy.unit != "person":
        yield (
            f"privacy.sampling = 'record' draws the records of persons one by one, but privacy.unit = "
            f"{privacy.unit!r}: set privacy.unit = 'person', or leave privacy.sampling out"
        )
    if privacy.noise == "discrete" and privacy.trust == "central":
        yield (
            "privacy.noise = 'discrete' is noise of the nodes, and with privacy.trust = 'central' the "
            "coordinator adds it: leave privacy.noise out"
        )


def _delta(config: Config) -> Iterator[str]:
    """At a delta of one in the number of units, to publish one of them whole would pass for private."""
    privacy, units = config.privacy, "nodes"
    count: float | None = config.federation.nodes
    if privacy.unit != "node":
        rate, units = privacy.sampling_probability, "records"
        count = privacy.public_records or (config.federation.batch_size / rate if rate else None)
        count = count or (config.data.samples if config.data.source == EMBEDDED else None)
        if privacy.trust == "distributed":  # the sums are of all nodes' records
            count = count and count * config.federation.nodes
    if count and privacy.delta > 1 / count * (1 + 1e-9):
        yield (
            f"privacy.delta = {privacy.delta:g} is above 1 / {count:g}, one in the number of {units}, so "
            f"that one of them could be published whole: set privacy.delta to less than 1 / {count:g}"
        )


def _records_unit(config: Config) -> Iterator[str]:
    privacy = config.privacy
    if privacy.trust == "central":
        yield (
            "privacy.trust = 'central' protects whole nodes: set privacy.unit = 'node', or privacy.trust = "
            f"'local' or 'distributed' (given unit: {privacy.unit!r})"
        )
    if privacy.trust == "distributed":
        yield from _gradient_sums(config)
    public = config.data.source == EMBEDDED or privacy.sampling_probability or privacy.public_records
    if not public:
        yield (
            f"privacy.unit = {privacy.unit!r} needs privacy.sampling_probability or privacy.public_records "
            "(public constants: never derived from the private record count)"
        )
    adapter = config.adapter
    looped = ADAPTER_METHODS[adapter.key].traits.dp == "loop" or adapter.experts or adapter.trainable_tokens
    if config.run.engine in ("batched", "opacus") and looped:
        yield (
            f"run.engine = {config.run.engine!r} reads gradients of plain layers, and this adapter trains "
            f"others ({adapter.key}, adapter.experts or adapter.trainable_tokens): set 'auto' or 'loop'"
        )
    if privacy.trust == "local" and privacy.bands > 1:
        yield from _step_bands(config)
    if privacy.unit == "person" and config.data.person is None:
        yield "privacy.unit = 'person' needs data.person: the column that says whose record it is"


def _step_bands(config: Config) -> Iterator[str]:
    bands, federation = config.privacy.bands, config.federation
    if federation.local_steps % bands:
        yield (
            f"privacy.bands = {bands} must divide federation.local_steps = {federation.local_steps}: each "
            "round is charged whole cycles of groups"
        )
    if federation.optimiser != "sgd" or federation.momentum:
        yield (
            f"privacy.bands = {bands} lets the noise of later steps cancel that of earlier ones, and "
            "momentum or AdamW weigh them apart: set federation.optimiser = 'sgd' and federation.momentum = 0"
        )
    if config.privacy.noise == "discrete" or config.privacy.sampling == "record":
        yield (
            f"privacy.bands = {bands} is for continuous noise and units that are drawn whole: leave "
            "privacy.noise and privacy.sampling out"
        )
    if config.privacy.loss_share:
        yield (
            f"privacy.bands = {bands} correlates the noise of successive losses, which early stopping takes "
            "for independent: set privacy.loss_share = 0"
        )


def _nodes_unit(config: Config) -> Iterator[str]:
    privacy, federation = config.privacy, config.federation
    if privacy.trust == "local":
        yield (
            "privacy.unit = 'node' needs privacy.trust = 'central' or 'distributed': noise that hides a node "
            "by itself also hides what it learned"
        )
    if ADAPTER_METHODS[config.adapter.key].sends_factors:
        yield (
            f"privacy.unit = 'node' needs a plain mean: adapter.aggregation = "
            f"{config.adapter.aggregation!r} mixes factors; set 'frozen_a'"
        )
    if config.exchange.up.error_feedback:
        yield (
            "privacy.unit = 'node' needs exchange.up.error_feedback = false: a residual would carry a node's "
            "data past the clip"
        )
    if federation.selection == "seeded" and federation.participation < 1:
        yield (
            "privacy.unit = 'node' with federation.participation < 1 needs federation.selection = 'poisson' "
            "or 'cyclic': everybody knows whom a known seed draws"
        )
    if privacy.trust == "distributed":
        yield from _distributed(config)
    if privacy.bands > 1 and federation.selection != "cyclic":
        yield f"privacy.bands = {privacy.bands} needs federation.selection = 'cyclic'"
    period = int(1 / federation.participation + 1e-9)
    if privacy.bands > period:
        yield (
            f"privacy.bands = {privacy.bands}, but a node takes part every {period} rounds "
            f"(federation.participation = {federation.participation}); allowed are 1 to {period}"
        )


def _gradient_sums(config: Config) -> Iterator[str]:
    """Of records or persons: a secure sum is one release, and what a node sends is no step of its own."""
    federation, up = config.federation, config.exchange.up
    if federation.local_steps != 1 or federation.optimiser != "sgd":
        yield (
            f"privacy.unit = {config.privacy.unit!r} with privacy.trust = 'distributed' sums one gradient "
            "of each node a round, and the server takes the step: set federation.local_steps = 1 and "
            "federation.optimiser = 'sgd'; federation.server.name = 'adam' is the usual server optimiser"
        )
    if up.error_feedback:
        yield (
            "privacy.trust = 'distributed' sends gradients, which leave no residual: set "
            "exchange.up.error_feedback = false"
        )
    yield from _distributed(config)


def _distributed(config: Config) -> Iterator[str]:
    secure = config.exchange.secure
    if not secure.enabled or secure.bits == 8:
        yield (
            "privacy.trust = 'distributed' adds noise inside secure aggregation: set "
            "exchange.secure.enabled = true and exchange.secure.bits = 16 or 32"
        )
    if config.privacy.adaptive_clip or config.privacy.bands > 1:
        yield (
            "privacy.trust = 'distributed' has a fixed clip and independent noise: a node that drops out "
            "takes its rows with it, so that later rounds could not subtract them; leave "
            "privacy.adaptive_clip and privacy.bands out"
        )


def _secure(config: Config) -> Iterator[str]:
    secure, federation = config.exchange.secure, config.federation
    if not secure.enabled:
        return
    if not 2 <= federation.nodes <= MOST_SECURE_NODES:
        yield (
            f"exchange.secure works for 2 to {MOST_SECURE_NODES} nodes; federation.nodes = {federation.nodes}"
        )
    method = ADAPTER_METHODS[config.adapter.key]
    if method.sends_factors or not method.traits.linear:
        yield (
            "exchange.secure shows the sum alone, which has to be exact: set adapter.aggregation = "
            f"'frozen_a' (given: {method.name!r})"
        )
    if config.privacy.unit == "node" and config.privacy.trust == "central":
        yield (
            "exchange.secure hides the updates that privacy.trust = 'central' has to clip: "
            "set privacy.trust = 'distributed', or exchange.secure.enabled = false"
        )
    if CODECS[config.exchange.up.codec].summed(config.exchange) is None:
        yield (
            "exchange.secure sums ternary values on a public support (exchange.secure.share): set "
            f"exchange.up.codec = 'ternary' or 'sign' (given: {config.exchange.up.codec!r})"
        )
    try:
        Cohort.of(config)
    except ConfigError as error:
        yield str(error)
    if secure.bits != 8 and config.privacy.trust != "distributed":
        yield "exchange.secure.bits above 8 is for privacy.trust = 'distributed'; ternary sums fit 8 bits"
    if federation.selection != "seeded":
        yield "exchange.secure needs a roster that all nodes know: set federation.selection = 'seeded'"
