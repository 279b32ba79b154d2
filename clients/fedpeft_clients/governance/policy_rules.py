"""A run checked against the organisation's policy: one function per table, the first broken rule refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from fedpeft.adapters.trained_parts import REVEALED
from fedpeft.bases import base_folder, content_hash
from fedpeft.bases.files import read_model_config, weight_files
from fedpeft.cohort import Cohort
from fedpeft.config import Config
from fedpeft.config.models import EMBEDDED, RunConfig
from fedpeft.errors import FedPeftError
from fedpeft.plugins import ADAPTER_METHODS, CODECS
from fedpeft.privacy import plan_from_config
from fedpeft.protocol.messages import run_id
from fedpeft.run_plan import quorum
from fedpeft_clients.governance.policy import Policy, PolicyError, within_hours

Problems = Iterator[tuple[str, str]]
"""Names of broken rules, each with a sentence for the operator."""

BYTES = {"none": 4.0, "int8": 1.03, "nf4": 0.53}
"""Bytes per parameter of a loaded base; 16-bit weights stay 16 bits on a GPU and become 32 on a CPU."""

USUAL = RunConfig().tokens_at_once
"""Tokens of one pass that any run may ask for: larger batches are cut."""

_PARTS = (
    ("train_head", "head"),
    ("experts", "experts"),
    ("trainable_tokens", "embeddings"),
    ("output_tokens", "answers"),
)
"""Settings that add parts of the base to an adapter, each with the rule that refuses it."""

SHARE = 0.6
"""Of the memory that a base may take; the rest is activations, optimiser and the process itself."""


@dataclass(frozen=True)
class ProposedRun:
    """A run as this organisation is offered it.

    Attributes:
        config: of the run.
        name: of the organisation in the federation.
        coordinator: fingerprint of the coordinator's key.
    """

    config: Config
    name: str
    coordinator: str

    @cached_property
    def run(self) -> bytes:
        """Its 16 bytes."""
        return run_id(self.config)

    @property
    def rank(self) -> int:
        """Of this organisation's adapter."""
        return self.config.adapter.ranks.get(self.name, self.config.adapter.rank)

    @property
    def quorum(self) -> int:
        """Replies that make a round."""
        return quorum(self.config.federation)

    @property
    def tokens(self) -> int:
        """Of one step, at most."""
        return self.config.federation.batch_size * self.config.data.max_length

    @property
    def density(self) -> float:
        """Share of the values that an update sends at most."""
        up = self.config.exchange.up
        return 1.0 if CODECS[up.codec].sends_all else up.density


def check_policy(policy: Policy, proposal: ProposedRun) -> None:
    """Refuse a run that breaks the policy, whatever the time of day.

    Raises:
        PolicyError: names the first rule that is broken.
    """
    for check in (_who, _adapter, _training, _privacy, _cohort, _exchange, _base):
        for rule, sentence in check(policy, proposal):
            raise PolicyError(rule, sentence)


def check_hours(policy: Policy, now: Callable[[], datetime] = datetime.now) -> None:
    """Refuse an order outside the hours.

    Raises:
        PolicyError: rule ``hours``.
    """
    if not within_hours(policy, moment := now()):
        raise PolicyError("hours", f"no orders are taken at {moment:%a %H:%M}; hours = {list(policy.hours)}")


def run_epsilon(config: Config) -> float:
    """Epsilon that a run may spend on one unit's data; 0 without a promise, inf if it does not say."""
    privacy = config.privacy
    if privacy.unit == "none" or privacy.epsilon is not None:
        return privacy.epsilon or 0.0
    plan = plan_from_config(config) if privacy.trust != "distributed" else None
    return plan.epsilon() if plan else math.inf


def agreed_base(config: Config) -> str | None:
    """Content hash of the base that a run names; the embedded one need not be named by hash."""
    if config.base.sha256 is None and config.base.model == EMBEDDED:
        return content_hash(base_folder(config.base), config.base.quantisation)
    return config.base.sha256.lower() if config.base.sha256 else None


def own_base(policy: Policy, config: Config) -> str:
    """Where the agreed base lies on this machine.

    Raises:
        PolicyError: rule ``base``: it is not one of the allowed.
    """
    if policy.bases == "any":
        return config.base.model
    agreed = agreed_base(config)
    if agreed is None:
        raise PolicyError("base", "the run does not name its base by hash (base.sha256)")
    if agreed not in policy.bases:
        raise PolicyError("base", f"base {agreed} is none of the {len(policy.bases)} under [bases]")
    return policy.bases[agreed]


def memory_needed(config: Config, model: str) -> float:
    """Bytes that training on a base takes, as a rule of thumb: its loaded weights over `SHARE`."""
    folder = base_folder(config.base.model_copy(update={"model": model}))
    facts = read_model_config(folder)
    if "quantization_config" in facts:
        return sum(file.stat().st_size for file in weight_files(folder)) / SHARE
    stored_bytes = 2.0 if "16" in str(facts.get("dtype") or facts.get("torch_dtype")) else 4.0
    parameters = sum(file.stat().st_size for file in weight_files(folder)) / stored_bytes
    half = config.base.dtype in ("bfloat16", "float16") and config.base.quantisation == "none"
    return parameters * (2.0 if half else BYTES[config.base.quantisation]) / SHARE


def _who(policy: Policy, proposal: ProposedRun) -> Problems:
    if policy.coordinators != "joined" and proposal.coordinator not in policy.coordinators:
        yield "coordinator", f"coordinator {proposal.coordinator} is not one of coordinators"


def _adapter(policy: Policy, proposal: ProposedRun) -> Problems:
    rules, adapter = policy.adapter, proposal.config.adapter
    if adapter.method not in rules.methods:
        yield "method", f"adapter.method = {adapter.method!r}, allowed are {_list(rules.methods)}"
    if adapter.key != adapter.method and adapter.aggregation not in rules.aggregations:
        allowed = _list(rules.aggregations)
        yield "aggregation", f"adapter.aggregation = {adapter.aggregation!r}, allowed are {allowed}"
    if ADAPTER_METHODS[adapter.key].traits.trains_inputs:
        yield "method", f"adapter.method = {adapter.method!r} may train an embedding, which shows tokens"
    for setting, rule in _PARTS:
        if getattr(adapter, setting) and not getattr(rules, setting):
            yield rule, f"adapter.{setting} = {getattr(adapter, setting)}: {REVEALED[setting]}"
    if proposal.rank > rules.max_rank:
        yield "rank", f"adapter.rank = {proposal.rank}, allowed are at most {rules.max_rank}"
    if proposal.tokens / proposal.rank < rules.min_tokens_per_rank:
        least = f"{rules.min_tokens_per_rank:g} tokens per rank"
        yield "tokens", f"a step has {proposal.tokens} tokens for rank {proposal.rank}, needed are {least}"
    if missing := set(rules.skipped_layers) - set(adapter.skip_layers):
        yield "layers", f"adapter.skip_layers lacks {', '.join(map(str, sorted(missing)))}"


def _training(policy: Policy, proposal: ProposedRun) -> Problems:
    rules, federation = policy.training, proposal.config.federation
    if not rules.rounds[0] <= federation.rounds <= rules.rounds[1]:
        yield "rounds", f"federation.rounds = {federation.rounds}, allowed are {_range(rules.rounds)}"
    if not rules.local_steps[0] <= federation.local_steps <= rules.local_steps[1]:
        steps = federation.local_steps
        yield "steps", f"federation.local_steps = {steps}, allowed are {_range(rules.local_steps)}"
    if proposal.tokens > rules.max_step_tokens:
        yield "step", f"a step has {proposal.tokens} tokens, allowed are {rules.max_step_tokens}"
    if (at_once := proposal.config.run.tokens_at_once) > (most := max(rules.max_step_tokens, USUAL)):
        yield "memory", f"run.tokens_at_once = {at_once}, allowed are {most}"
    if proposal.config.base.threads > policy.limits.max_threads:
        threads = proposal.config.base.threads
        yield "threads", f"base.threads = {threads}, allowed are {policy.limits.max_threads}"
    if not rules.lr[0] <= federation.lr <= rules.lr[1]:
        yield "rate", f"federation.lr = {federation.lr:g}, allowed are {_range(rules.lr)}"


def _privacy(policy: Policy, proposal: ProposedRun) -> Problems:
    rules, privacy = policy.privacy, proposal.config.privacy
    if privacy.unit not in rules.units:
        yield "unit", f"privacy.unit = {privacy.unit!r}, allowed are {_list(rules.units)}"
    if privacy.randomness != "system" and not rules.seeded:
        yield "randomness", "privacy.randomness = 'seeded' protects nothing"
    if privacy.unit == "none":
        return
    if privacy.trust not in rules.trusts:
        yield "trust", f"privacy.trust = {privacy.trust!r}, allowed are {_list(rules.trusts)}"
    if (reached := _epsilon(proposal.config)) > rules.max_epsilon:
        yield "epsilon", f"the run spends epsilon {reached:.4g}, allowed are {rules.max_epsilon:g}"
    if not rules.min_delta <= privacy.delta <= rules.max_delta:
        allowed = _range((rules.min_delta, rules.max_delta))
        yield "delta", f"privacy.delta = {privacy.delta:g}, allowed are {allowed}"
    if not rules.clip[0] <= privacy.clip <= rules.clip[1]:
        yield "clip", f"privacy.clip = {privacy.clip:g}, allowed are {_range(rules.clip)}"
    if privacy.loss_share > rules.max_loss_share:
        share = f"privacy.loss_share = {privacy.loss_share:g}"
        yield "loss", f"{share} releases a noisy loss, allowed are {rules.max_loss_share:g}"


def _epsilon(config: Config) -> float:
    try:
        return run_epsilon(config)
    except FedPeftError:
        return math.inf


def _cohort(policy: Policy, proposal: ProposedRun) -> Problems:
    rules, config = policy.cohort, proposal.config
    federation, secure = config.federation, config.exchange.secure
    if federation.nodes < rules.min_nodes:
        yield "cohort", f"federation.nodes = {federation.nodes}, needed are {rules.min_nodes}"
    if proposal.quorum < rules.min_quorum:
        yield "quorum", f"the quorum is {proposal.quorum}, at least {rules.min_quorum} is required"
    if rules.secure and not secure.enabled:
        yield "secure", "exchange.secure.enabled = false, but updates must be summed securely"
    if secure.enabled:
        yield from _sums(policy, config)
    if federation.stock_nodes and not rules.stock_nodes:
        yield "stock", "federation.stock_nodes lets nodes take part that run the coordinator's code"


def _sums(policy: Policy, config: Config) -> Problems:
    rules, secure, cohort = policy.cohort, config.exchange.secure, Cohort.of(config)
    if cohort.quorum < rules.min_summed:
        yield "sum", f"sums of {cohort.quorum} nodes may be opened, needed are {rules.min_summed}"
    if secure.threshold < rules.min_threshold:
        least = f"{rules.min_threshold:g}"
        yield "threshold", f"exchange.secure.threshold = {secure.threshold:g}, needed are {least}"
    if secure.colluders < rules.min_colluders:
        least = rules.min_colluders
        yield "colluders", f"exchange.secure.colluders = {secure.colluders}, needed are {least}"


def _exchange(policy: Policy, proposal: ProposedRun) -> Problems:
    rules, up = policy.exchange, proposal.config.exchange.up
    if up.codec not in rules.codecs:
        yield "codec", f"exchange.up.codec = {up.codec!r}, allowed are {_list(rules.codecs)}"
    if proposal.density > rules.max_density:
        most = f"{rules.max_density:g}"
        yield "density", f"updates send {proposal.density:g} of their values, allowed are {most}"


def _base(policy: Policy, proposal: ProposedRun) -> Problems:
    try:
        model = own_base(policy, proposal.config)
        needed = memory_needed(proposal.config, model) if policy.limits.memory_gib else 0.0
    except PolicyError as refusal:
        yield refusal.rule, refusal.sentence
    except FedPeftError as error:
        yield "base", str(error)
    else:
        if needed > (policy.limits.memory_gib or math.inf) * 2**30:
            yield "memory", f"the base needs {needed / 2**30:.1f} GiB, allowed are {policy.limits.memory_gib}"


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _range(limits: tuple[Any, Any]) -> str:
    return f"{limits[0]:g} to {limits[1]:g}"
