"""The organisation's limits: ``policy.toml`` as frozen models. What it leaves out has the strictest value.

No coordinator can widen them; `fedpeft_clients.governance.policy_rules` holds a run against them.
"""

from __future__ import annotations

import re
import tomllib
from datetime import datetime
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from fedpeft.config.privacy_section import Trust, Unit
from fedpeft.config.section import Section
from fedpeft.errors import ConfigError, FederationError
from fedpeft.plugins import ADAPTER_METHODS, AggregationName, CodecName, MethodName
from fedpeft.privacy import Budget
from fedpeft.terminal import printable

TEMPLATES = ("strict", "research-pilot")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(r"(?:([a-z]{3})(?:-([a-z]{3}))? )?(\d\d):(\d\d)-(\d\d):(\d\d)")
_DAY_MINUTES = 24 * 60


class PolicyError(FederationError):
    """An order that the policy refuses. Only the name of the rule leaves the node, never the sentence."""

    def __init__(self, rule: str, sentence: str) -> None:
        self.rule, self.sentence = rule, printable(sentence)
        super().__init__(f"policy rule '{rule}': {self.sentence}")

    @property
    def code(self) -> str:
        """What the coordinator gets: one word of letters."""
        return f"Policy{self.rule.capitalize()}"


def _hash(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("a hash has 64 lower-case hexadecimal digits")
    return text


def _fingerprint(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{4}(-[0-9a-f]{4}){7}", text):
        raise ValueError("a fingerprint has 8 groups of 4 lower-case hexadecimal digits, joined by -")
    return text


def _window(text: str) -> str:
    window(text)
    return text


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError("the lower limit is above the upper one")
    return limits


Hash = Annotated[str, AfterValidator(_hash)]
Fingerprint = Annotated[str, AfterValidator(_fingerprint)]
Window = Annotated[str, AfterValidator(_window)]
Counts = Annotated[tuple[int, int], AfterValidator(_ordered)]
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]


class AdapterRules(Section):
    """What may be trained."""

    methods: tuple[MethodName, ...] = Field(default=("lora",), description="adapter methods")
    aggregations: tuple[AggregationName, ...] = Field(
        default=("frozen_a",), description="modes of methods that have several"
    )
    max_rank: int = Field(default=64, ge=1, description="rank of this node's adapter")
    min_tokens_per_rank: float = Field(
        default=8.0, ge=0, description="tokens of one step (batch_size * max_length) over the rank, at least"
    )
    skipped_layers: tuple[int, ...] = Field(
        default=(), description="layers that must not carry an adapter; attacks on tokens read layer 0"
    )
    experts: bool = Field(
        default=False,
        description="allow adapter.experts: their updates show which of them a batch was sent to",
    )
    trainable_tokens: bool = Field(
        default=False,
        description="allow adapter.trainable_tokens: their updates show which of them a batch held",
    )
    output_tokens: bool = Field(
        default=False, description="allow adapter.output_tokens: updates show how often each is an answer"
    )
    train_head: bool = Field(
        default=False, description="allow adapter.train_head: updates of a head show the labels of records"
    )

    @property
    def unbounded(self) -> list[str]:
        """The allowed modes that send factors, of which no bound on a coordinator's states is known."""
        keys = [f"{method}/{mode}" for method in self.methods for mode in self.aggregations]
        methods = [ADAPTER_METHODS[key] for key in keys if key in ADAPTER_METHODS]
        return sorted(method.aggregation for method in methods if method.sends_factors)


class TrainingRules(Section):
    """How much may be trained: lower and upper limits."""

    rounds: Counts = Field(default=(1, 100), description="rounds of a run")
    local_steps: Counts = Field(default=(1, 50), description="optimiser steps of a round")
    lr: Range = Field(default=(0.0, 50.0), description="local learning rate of round 1")
    max_step_tokens: int = Field(
        default=2**17, ge=1, description="tokens of one step (batch_size * max_length), which cost memory"
    )


class PrivacyRules(Section):
    """What must be promised, and how much may be spent."""

    units: tuple[Unit, ...] = Field(
        default=("record", "person"), description="units of differential privacy; 'none' allows runs without"
    )
    trusts: tuple[Trust, ...] = Field(default=("local",), description="who may add the noise")
    seeded: bool = Field(default=False, description="allow noise and batches that follow from run.seed")
    max_epsilon: float = Field(default=4.0, gt=0, description="of one run")
    min_delta: float = Field(
        default=1e-10, gt=0, lt=0.1, description="of one run; below it no accountant is exact"
    )
    max_delta: float = Field(default=1e-5, gt=0, lt=0.1, description="of one run")
    clip: Range = Field(default=(0.001, 10.0), description="L2 bound of one unit's gradient or update")
    max_loss_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="privacy.loss_share of one run: a noisy loss, within its epsilon; 0: none may leave",
    )
    lineage_epsilon: float = Field(default=8.0, gt=0, description="of one data set, over all runs for ever")
    yearly_epsilon: float = Field(default=4.0, gt=0, description="of one data set, within 365 days")
    budget_delta: float = Field(
        default=1e-5,
        gt=0,
        lt=0.1,
        description="where lineage_epsilon and yearly_epsilon are read, whatever a run asks for",
    )
    max_overlap: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="share of records that two privacy-budget ids may have in common; 1: only warn",
    )
    max_repeats: int = Field(
        default=8,
        ge=0,
        description="rounds of one run that a crash may cut off, each charged again beside its epsilon",
    )

    def budget(self) -> Budget:
        """The limits of a privacy-budget id, as its ledger holds them."""
        return Budget(self.lineage_epsilon, self.yearly_epsilon, self.budget_delta, self.max_repeats)


class CohortRules(Section):
    """Among how many others this node's update must be."""

    min_nodes: int = Field(default=3, ge=1, description="federation.nodes at least")
    min_quorum: int = Field(default=2, ge=1, description="least number of replies to a round")
    secure: bool = Field(default=False, description="require secure aggregation")
    min_summed: int = Field(default=3, ge=2, description="with it: nodes in every opened sum at least")
    min_threshold: float = Field(
        default=0.66, gt=0.5, le=1, description="with it: exchange.secure.threshold at least"
    )
    min_colluders: int = Field(
        default=1, ge=0, description="with it: exchange.secure.colluders, which claims withstand, at least"
    )
    roster: Literal["pinned", "terms"] = Field(
        default="pinned",
        description="with it: whose keys; those that 'fedpeft node roster pin' pinned, or any in the terms",
    )
    stock_nodes: bool = Field(default=False, description="accept runs with nodes that run foreign code")


class ExchangeRules(Section):
    """What an update may look like."""

    codecs: tuple[CodecName, ...] = Field(
        default=("ternary", "sign", "masked-sign", "dead-zone", "stochastic-ternary", "auto"),
        description="codecs of the updates",
    )
    max_density: float = Field(default=1.0, gt=0, le=1, description="share of values sent; dense codecs: 1")


class AuditRules(Section):
    """This node's own attack on each update before it leaves."""

    mode: Literal["off", "warn", "block"] = Field(
        default="warn",
        description="block keeps what leaks, or what the audit did not finish; under DP it only warns, as "
        "silence would tell",
    )
    threshold: float = Field(default=0.1, ge=0, le=1, description="excess over the baseline that is a leak")
    seconds: float = Field(
        default=600.0, gt=0, description="CPU time of an attack's safety stop; what it ends is not finished"
    )


class Limits(Section):
    """What a run may take of this machine."""

    memory_gib: float | None = Field(default=None, gt=0, description="for base and training; none: no limit")
    max_threads: int = Field(default=256, ge=1, description="CPU threads of one process, at most")
    device: str = Field(default="auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
    longest_step_s: float = Field(
        default=3600.0, gt=0, description="seconds on one message before the node starts itself anew"
    )


class Policy(Section):
    """All limits; an unknown key is an error."""

    version: Literal[1] = 1
    coordinators: Literal["joined"] | tuple[Fingerprint, ...] = Field(
        default="joined", description="whose runs: all that this node has joined, or these key fingerprints"
    )
    apps: Literal["own"] | tuple[Hash, ...] = Field(
        default="own", description="Flower apps by SHA-256; 'own': the one of the installed version"
    )
    bases: Literal["any"] | dict[Hash, str] = Field(
        default_factory=dict[str, str], description="content hashes of bases, each with its folder here"
    )
    data: str | None = Field(default=None, description="data set for runs whose approval names none")
    approval: bool = Field(default=True, description="each run waits for 'fedpeft node approve'")
    hours: tuple[Window, ...] = Field(
        default=(), description="when orders are taken, local time, as 'mon-fri 20:00-06:00'; empty: always"
    )
    adapter: AdapterRules = Field(default_factory=AdapterRules)
    training: TrainingRules = Field(default_factory=TrainingRules)
    privacy: PrivacyRules = Field(default_factory=PrivacyRules)
    cohort: CohortRules = Field(default_factory=CohortRules)
    exchange: ExchangeRules = Field(default_factory=ExchangeRules)
    audit: AuditRules = Field(default_factory=AuditRules)
    limits: Limits = Field(default_factory=Limits)


def parse_policy(text: str) -> Policy:
    """The policy that a TOML text says.

    Raises:
        ConfigError: no TOML, an unknown key, or a value out of range; names the key.
    """
    try:
        return Policy.model_validate(_renamed(tomllib.loads(text)))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the policy is not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"policy setting {place!r}: {first['msg'].lower()}") from None


def old_names(text: str) -> list[str]:
    """Settings of a valid policy that stand under the names they had before version 0.2."""
    tables = tomllib.loads(text).items()
    return [
        f"{name}.{key}" for name, table in tables if isinstance(table, dict) for key in table if _old(key)
    ]


def _old(key: str) -> bool:
    return key.startswith(("most_", "least_"))


def _renamed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings under their names of today: ``max_…`` was ``most_…``, ``min_…`` was ``least_…``.

    Raises:
        ConfigError: a setting stands there under both names.
    """
    tables = dict(settings)
    for name, table in settings.items():
        if isinstance(table, dict):
            tables[name] = {_new_name(key): value for key, value in table.items()}
            if len(tables[name]) < len(table):
                raise ConfigError(f"policy section {name!r} has a setting under its old name and its new one")
    return tables


def _new_name(key: str) -> str:
    return re.sub("^least_", "min_", re.sub("^most_", "max_", key))


def template(name: str) -> str:
    """The text of a policy to start from.

    Raises:
        ConfigError: there is no such template.
    """
    if name not in TEMPLATES:
        raise ConfigError(f"no policy template {name!r}; there are {', '.join(TEMPLATES)}")
    return (files("fedpeft_clients") / "policies" / f"{name}.toml").read_text(encoding="utf-8")


def window(text: str) -> tuple[frozenset[int], int, int]:
    """Weekdays (0 is Monday), first minute and last minute (exclusive) of a window.

    Raises:
        ValueError: not a window.
    """
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ValueError("a window looks like '20:00-06:00', 'sat 00:00-24:00' or 'mon-fri 20:00-06:00'")
    first, last = match[1] or "mon", match[2] or match[1] or "sun"
    if not {first, last} <= set(DAYS):
        raise ValueError(f"days are {', '.join(DAYS)}")
    start, end = (60 * int(match[at]) + int(match[at + 1]) for at in (3, 5))
    if start >= _DAY_MINUTES or end > _DAY_MINUTES or start == end or max(match[4], match[6]) >= "60":
        raise ValueError("times are 00:00 to 24:00, and a window is not empty")
    begin, count = DAYS.index(first), (DAYS.index(last) - DAYS.index(first)) % 7 + 1
    return frozenset((begin + step) % 7 for step in range(count)), start, end


def within_hours(policy: Policy, now: datetime) -> bool:
    """Whether orders are taken at a local time; a window past midnight belongs to the day it starts on."""
    return not policy.hours or any(_covers(window(text), now) for text in policy.hours)


def _covers(open_hours: tuple[frozenset[int], int, int], now: datetime) -> bool:
    days, start, end = open_hours
    minute, today = 60 * now.hour + now.minute, now.weekday()
    if start < end:
        return today in days and start <= minute < end
    return (today in days and minute >= start) or ((today - 1) % 7 in days and minute < end)
