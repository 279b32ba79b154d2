"""The report as data: frozen pydantic models, whose JSON schema is the contract of ``report.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedpeft_attacks.views import Role

REPORT_VERSION = 1

Verdict = Literal["leaks", "no leak found at this power", "not applicable"]


class Facts(BaseModel):
    """A frozen record in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Baselines(Facts):
    """What the same figure is without the update in question."""

    chance: float = Field(description="tokens drawn at random from the vocabulary")
    prior: float = Field(description="the tokens that the base itself writes most often")
    control: float | None = Field(
        description="the same attack on an update of other data; null: none was at hand"
    )

    @property
    def best(self) -> float:
        """The baseline that a leak has to exceed."""
        return max(self.chance, self.prior, self.control or 0.0)


class Measure(Facts):
    """A recall with its 95 % interval and baselines."""

    value: float = Field(ge=0, le=1)
    interval: tuple[float, float]
    baselines: Baselines
    tokens: int = Field(ge=0, description="true tokens that the recall counts, over all views")


class Power(Facts):
    """The same attack on the undefended reference: both LoRA factors, warm, the raw gradient of the batch."""

    batch: float = Field(ge=0, le=1, description="token recall on the very same batches")
    rare: float | None = Field(description="recall of rare tokens on the very same batches")
    record: float = Field(ge=0, le=1, description="token recall on one record of each batch alone")
    layer: float = Field(ge=0, le=1, description="the same from the layers that the run's adapter lies on")


class ViewScore(Facts):
    """What one attack got from one view; counts only, never tokens."""

    node: str
    round: int
    tokens: int = Field(description="distinct tokens of the data behind this update")
    recall: float
    precision: float | None = Field(description="of the tokens that the attack calls certain; null: none")
    rare_tokens: int
    rare_recall: float | None
    method: str = Field(description="solver that spoke")


class Finding(Facts):
    """One attack at one stage, over all audited nodes and rounds."""

    attack: str
    stage: str
    role: Role
    threat_model: str
    adapter: str
    value: float | None = Field(description="share of the true tokens among as many guesses")
    interval: tuple[float, float] | None
    baselines: Baselines | None
    precision: float | None
    rare: Measure | None = Field(
        description="the same for tokens that the base seldom writes: names, numbers"
    )
    power: Power | None
    verdict: Verdict
    reason: str
    note: str | None = Field(None, description="what makes the attack weaker here than in layer 0")
    views: tuple[ViewScore, ...]


class AuditedEnvelope(Facts):
    """One file of bytes that left a node or the coordinator."""

    file: str
    sha256: str
    bytes: int


class Claim(Facts):
    """The privacy that the run claims."""

    unit: str
    epsilon: float | None
    delta: float | None
    text: str
    plan: dict[str, Any] | None = Field(description="every constant of the privacy plan; null: no claim")


class Report(Facts):
    """Everything that the audit found, with what is needed to check it."""

    version: int = REPORT_VERSION
    run: str
    config_hash: str
    base: str
    base_sha256: str
    adapter: str
    exchange: tuple[str, ...] = Field(description="stages in the order in which an update passes them")
    nodes: tuple[str, ...]
    rounds: tuple[int, ...]
    threshold: float = Field(description="excess over the best baseline that counts as a leak")
    verdict: Verdict = Field(description="of what leaves the nodes: envelope and aggregate")
    summary: str = Field(description="the verdict in plain language")
    claim: Claim
    findings: tuple[Finding, ...]
    envelopes: tuple[AuditedEnvelope, ...]
    limits: tuple[str, ...]
    versions: dict[str, str]

    @property
    def leaks(self) -> bool:
        """Whether anything that leaves a node leaks."""
        return self.verdict == "leaks"
