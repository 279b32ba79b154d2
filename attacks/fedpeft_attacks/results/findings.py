"""The report as data: frozen pydantic models, whose JSON schema is the contract of ``report.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from fedpeft.epsilons import Epsilon
from fedpeft_attacks.results.assessments import Assessment, RiskName
from fedpeft_attacks.results.measures import Baselines, Facts, Measure, Strength, WorkDone
from fedpeft_attacks.results.words import LEAKS, NOT_COVERED, UNFINISHED, Verdict, verdict_words
from fedpeft_attacks.views import Role

REPORT_VERSION = 5

Kind = Literal["inversion", "memorisation", "membership", "property"]


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
    """One attack at one stage, over all audited nodes and rounds; `verdicts.finding_of` makes it.

    ``value``, ``interval`` and ``baselines`` repeat the headline, for those who read nothing else.
    """

    attack: str
    kind: Kind
    stage: str
    role: Role
    threat_model: str
    adapter: str
    measures: tuple[Measure, ...] = Field(
        description="the first is the headline; empty: not applicable or not covered"
    )
    value: float | None
    interval: tuple[float, float] | None
    baselines: Baselines | None
    precision: float | None = Field(description="of what the attack itself calls certain; null: nothing")
    power: Strength | None
    work: WorkDone | None = Field(
        default=None, description="of the search; null: a fixed number of trials, the count of each measure"
    )
    verdict: Verdict
    reason: str
    note: str | None = Field(default=None, description="what makes the attack weaker here than elsewhere")
    views: tuple[ViewScore, ...] = ()

    @model_validator(mode="after")
    def _repeats_its_headline(self) -> Finding:
        head = self.headline
        expected = (head.value, head.interval, head.baselines) if head else (None, None, None)
        if (self.value, self.interval, self.baselines) != expected:
            raise ValueError("value, interval and baselines must be those of the first measure")
        return self

    @property
    def headline(self) -> Measure | None:
        """The figure that is judged; None where the attack does not apply."""
        return self.measures[0] if self.measures else None

    @property
    def strength(self) -> float | None:
        """Share that the same attack recovers in the hardest of its trials with all protections off."""
        return None if self.power is None else self.power.least

    @property
    def label(self) -> str:
        """The verdict in words."""
        return verdict_words(self.verdict, self.strength)

    def measure(self, name: str) -> Measure | None:
        """The measure of this name, if there is one."""
        return next((measure for measure in self.measures if measure.name == name), None)


class EpsilonCheck(Facts):
    """A measured lower bound of epsilon beside the claim; `verdicts.epsilon_check` makes it."""

    method: str
    exercises: str = Field(description="which part of the privacy machinery the audit passes through")
    assumes: str = Field(description="what it takes for granted")
    claimed: float | None = Field(description="epsilon of the claim; null: none is made")
    lower: float | None = Field(
        ge=0, description="with the stated confidence epsilon is at least this; null: the audit gives none"
    )
    confidence: float = Field(gt=0, lt=1)
    canaries: int = Field(ge=0, description="canaries, or values, that were counted")
    power: dict[str, float | None] = Field(
        description="fault to the share of runs in which it would be caught; null: not known"
    )
    verdict: Verdict = Field(description="leaks: the claim is contradicted")
    reason: str

    @property
    def strength(self) -> float | None:
        """Share of runs in which the audit would catch the fault that it catches best; None: not known."""
        return max((share for share in self.power.values() if share is not None), default=None)

    @property
    def label(self) -> str:
        """The verdict in words."""
        return verdict_words(self.verdict, self.strength)


class Example(Facts):
    """Recovered text beside the truth; only in the organisation's own copy."""

    stage: str
    attack: str
    recovered: str
    truth: str
    without: str | None = Field(
        default=None, description="what the base alone would have guessed of the same record; null: not asked"
    )


class Threat(Facts):
    """One adversary in plain words, and what was found of what it sees."""

    role: Role
    who: str
    sees: tuple[str, ...] = Field(description="audited stages that it sees")
    attacks: tuple[str, ...] = Field(description="attacks that were tried")
    verdict: Verdict = Field(description="not tested: no attack on what it sees, or none that is judged")
    label: str = Field(description="the verdict in words")
    reason: str


class RiskPart(Facts):
    """One risk at one place: what somebody holds, and whether the attacks on it succeeded."""

    place: str = Field(description="what is held: an envelope, the mean, the finished adapter, the claim")
    verdict: Verdict = Field(description="the worst of the findings there, see `words.ORDER`")
    strength: float | None = Field(
        description="share that the strongest silent attack recovers in the hardest of its trials with all "
        "protections off; null: not known, or the verdict is another"
    )
    label: str = Field(description="the verdict in words")
    text: str = Field(description="the figures behind it, or why there are none")


class Risk(Facts):
    """One of the questions of the first page."""

    name: RiskName
    question: str
    verdict: Verdict = Field(description="the worst of its parts")
    label: str = Field(description="the verdict in words, with the places that it holds for")
    answer: str = Field(description="one sentence")
    parts: tuple[RiskPart, ...]


class Change(Facts):
    """One setting that limits a risk, or lets an audit answer a question that it left open."""

    setting: str
    effect: str
    risks: tuple[RiskName, ...]


class Direction(Facts):
    """One direction of the exchange: its plan from the config, its bytes from the run."""

    direction: Literal["up", "down"]
    steps: tuple[str, ...] = Field(description="the plan's own lines, in order, the codec last")
    digest: str = Field(description="SHA-256 of the plan")
    values: int = Field(description="values that the counted envelopes carry")
    bytes: int = Field(description="length of the counted envelopes, signatures included")
    bits_per_value: float | None = Field(description="null: values or bytes are not known")


class Exchange(Facts):
    """Both directions, and the stages at which an update was attacked on its way."""

    stages: tuple[str, ...] = Field(description="in the order in which an update passes them")
    directions: tuple[Direction, ...]


class AuditedEnvelope(Facts):
    """One file of bytes that left a node or the coordinator."""

    file: str
    sha256: str
    bytes: int


class Claim(Facts):
    """The privacy that the run claims."""

    unit: str
    epsilon: Epsilon | None
    delta: float | None
    text: str
    plan: dict[str, Any] | None = Field(description="every constant of the privacy plan; null: no claim")


class Signature(Facts):
    """Who signs the report; the signature itself lies beside it in ``report.sig``."""

    algorithm: Literal["Ed25519"] = "Ed25519"
    signer: str = Field(description="name of the folder that the key lies in")
    key: str = Field(description="public key, hexadecimal")
    file: str = "report.sig"


class Report(Facts):
    """Everything that the audit found, with what is needed to check it."""

    version: Literal[5] = REPORT_VERSION
    run: str
    config_hash: str
    base: str
    base_sha256: str
    adapter: str
    nodes: tuple[str, ...]
    rounds: tuple[int, ...]
    threshold: float = Field(description="excess of a share over its best baseline that counts as a leak")
    thresholds: dict[str, float] = Field(description="the same by unit, see `verdicts.thresholds`")
    verdict: Verdict = Field(description="of what leaves the nodes, and of the claimed epsilon")
    summary: str = Field(description="the answers to the risks, in plain language")
    risks: tuple[Risk, ...]
    changes: tuple[Change, ...] = Field(description="what to set, what has the most effect first")
    threats: tuple[Threat, ...]
    claim: Claim
    findings: tuple[Finding, ...]
    methods: dict[str, str] = Field(description="what each attack does, with its source")
    epsilon: tuple[EpsilonCheck, ...] = ()
    settings: dict[str, Any] = Field(description="of the run, by dotted key; of paths the last part alone")
    exchange: Exchange
    envelopes: tuple[AuditedEnvelope, ...]
    own_copy: bool = Field(default=False, description="whether recovered text may stand in this file")
    examples: tuple[Example, ...] = Field(default=(), description="empty unless own_copy: redacted")
    assessments: tuple[Assessment, ...] = Field(description="pages for a person to complete")
    not_tested: tuple[str, ...]
    limits: tuple[str, ...]
    versions: dict[str, str]
    command: str = Field(description="what repeats this audit on the run directory")
    signature: Signature | None = Field(default=None, description="null: not signed")

    @model_validator(mode="after")
    def _redacts(self) -> Report:
        if self.examples and not self.own_copy:
            raise ValueError("examples of recovered text stand only in the organisation's own copy")
        return self

    @property
    def leaks(self) -> bool:
        """Whether anything that leaves a node leaks."""
        return self.verdict == LEAKS

    @property
    def is_finished(self) -> bool:
        """Whether the verdict rests on attacks that cover the adapter and were run to the end."""
        return self.verdict not in (UNFINISHED, NOT_COVERED)
