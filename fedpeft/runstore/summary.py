"""``run.json`` as frozen models; their JSON schema is ``docs/schemas/run.schema.json``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fedpeft.epsilons import Epsilon

SUMMARY_VERSION = 1


class Facts(BaseModel):
    """A frozen record in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseFacts(Facts):
    """The base of the run."""

    name: str
    sha256: str
    quantisation: str
    parameters: int
    dtype: str
    device: str


class AdapterFacts(Facts):
    """The adapter of the run."""

    method: str
    trainable: int = Field(description="values that one node exchanges")
    coverage: dict[str, Any] | None = Field(
        default=None,
        description="weight matrices of the base: adapted, all, share of the parameters, left out; notes "
        "on what else is trained",
    )


class ByteFacts(Facts):
    """Lengths of all envelopes of the run, signatures included.

    Where the coordinator adds the noise, all lengths are those of the dense exchange with all nodes: how many
    bits an update without noise needs, and who took part, are facts that the noise is to hide.
    """

    up: int
    down: int
    dense_up: int = Field(description="the same exchange of fp32 LoRA with both factors, of the same rank")
    dense_down: int
    ratio_up: float
    ratio_total: float
    bits_per_parameter: float = Field(description="of the compressed envelopes")
    entropy_bits_per_parameter: float | None = Field(
        description="Shannon's bound of their symbols, per tensor; null where no envelope is ternary"
    )


class NodePrivacy(Facts):
    """What one node spent."""

    name: str
    sampling_probability: float | None
    noise_multiplier: float | None
    steps: int
    clip: float | None
    epsilon: Epsilon | None = Field(description="joint over the node's ledger; null: no claim is made")


class PrivacyFacts(Facts):
    """The claim of the run."""

    unit: str
    adjacency: str | None
    trust: str | None
    epsilon: Epsilon | None = Field(description="of the worst node; null: no claim")
    delta: float | None
    accountant: str | None
    plan: dict[str, Any] | None = Field(description="every constant of the privacy plan; null: no claim")
    nodes: list[NodePrivacy]


class TimeFacts(Facts):
    """Seconds of wall clock."""

    train_s: float = Field(description="local training, over all rounds and nodes")
    overhead_s: float = Field(description="everything else of the federation")
    total_s: float = Field(description="the federation: train_s + overhead_s")
    command_s: float = Field(description="the last command, with baselines, evaluation and audit")


class AuditFacts(Facts):
    """The audit in one line; the rest is in ``audit/report.json``."""

    verdict: str = Field(description="on what really left the nodes: envelopes and the mean")
    verdicts: dict[str, int]
    head: str = Field(default="", description="the verdict in words, as the report has it")
    risks: dict[str, str] = Field(
        default_factory=dict, description="the four questions of the report, each with its verdict in words"
    )


class RunSummary(Facts):
    """``run.json``."""

    version: int = SUMMARY_VERSION
    config_hash: str
    seed: int
    base: BaseFacts
    adapter: AdapterFacts
    rounds: int
    nodes: int
    loss: dict[str, float]
    accuracy: dict[str, float | None]
    macro_f1: dict[str, float | None] = Field(
        default_factory=dict, description="mean of the classes' F1; null without labels"
    )
    bytes: ByteFacts
    privacy: PrivacyFacts
    time: TimeFacts
    audit: AuditFacts | None
    arms: dict[str, dict[str, Any]] = Field(description="each baseline as it left its result")
    updates: list[str] = Field(
        description="SHA-256 of each envelope up, in order of round and node; none where the coordinator "
        "adds the noise, as they are hashes of what has none"
    )
