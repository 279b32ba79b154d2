"""One rule for every kind of attack: when a figure counts as a leak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedpeft_attacks.results.findings import EpsilonCheck, Finding, Kind
from fedpeft_attacks.results.measures import Measure, Strength, Unit, written
from fedpeft_attacks.results.words import LEAKS, NOT_APPLICABLE, NOT_COVERED, NOT_TESTED, SILENT, Verdict
from fedpeft_attacks.views import THREAT_MODELS, Role

SCALE: Mapping[Unit, float] = {"share": 1.0, "auc": 0.5, "bits": 10.0, "epsilon": 0.0}
"""What the threshold on a share means in other units.

An area under the curve of 1/2 + x is a membership advantage of about 2 x, so half the threshold counts. At
the default threshold of 0.1 an exposure counts from one bit on, where a guesser needs half as many tries.
A lower bound of epsilon counts as soon as it exceeds what is claimed.
"""


def with_unread(verdict: str, reason: str, unread: str) -> dict[str, str]:
    """Verdict and reason of a finding; silence says nothing where an update shows more than the attack reads.

    Args:
        verdict: of the attack.
        reason: why.
        unread: what else the update shows; empty: nothing.
    """
    if unread and verdict in (SILENT, NOT_TESTED, NOT_APPLICABLE):
        verdict, reason = NOT_COVERED, unread
    return {"verdict": verdict, "reason": reason}


@dataclass(frozen=True)
class Subject:
    """What a finding is about: which attack, on what, and who could run it."""

    attack: str
    kind: Kind
    stage: str
    role: Role
    adapter: str


@dataclass(frozen=True)
class Audit:
    """How epsilon was measured.

    Attributes:
        method: the estimator.
        exercises: which part of the privacy machinery it passes through.
        assumes: what it takes for granted.
    """

    method: str
    exercises: str
    assumes: str = "nothing"


@dataclass(frozen=True)
class Bound:
    """A measured lower bound of epsilon.

    Attributes:
        lower: with the stated confidence epsilon is at least this; None: the audit gives none.
        confidence: in (0, 1).
        canaries: how many were guessed.
    """

    lower: float | None
    confidence: float
    canaries: int


def thresholds(threshold: float) -> dict[str, float]:
    """Excess over the best baseline that counts as a leak, by unit, from that on a share."""
    return {unit: scale * threshold for unit, scale in SCALE.items()}


def is_leak(measure: Measure, threshold: float) -> bool:
    """Whether a figure is above its best baseline by its interval, and by the threshold of its unit."""
    sure = measure.interval[0] > measure.baselines.best
    return sure and measure.excess >= SCALE[measure.unit] * threshold


def finding_of(
    subject: Subject,
    measures: Sequence[Measure],
    threshold: float,
    power: Strength | None = None,
    reason: str = "",
) -> Finding:
    """A finding, judged by its headline, the first measure.

    Args:
        subject: what it is about.
        measures: figures, the headline first; none where the attack does not apply.
        threshold: on a share, as the node's policy sets it.
        power: what the same attack recovers with all protections off.
        reason: why the attack does not apply; else the rule gives the reason.
    """
    head = measures[0] if measures else None
    verdict, explanation = (NOT_APPLICABLE, reason) if head is None else _compare(head, threshold)
    return Finding(
        attack=subject.attack,
        kind=subject.kind,
        stage=subject.stage,
        role=subject.role,
        threat_model=THREAT_MODELS[subject.role],
        adapter=subject.adapter,
        measures=tuple(measures),
        value=head.value if head else None,
        interval=head.interval if head else None,
        baselines=head.baselines if head else None,
        precision=None,
        power=power,
        verdict=verdict,
        reason=explanation,
    )


def epsilon_check(
    audit: Audit,
    claimed: float | None,
    bound: Bound,
    power: Mapping[str, float | None],
    contradicted: bool | None = None,
) -> EpsilonCheck:
    """A measured lower bound beside the claim.

    Args:
        audit: how it was measured.
        claimed: epsilon of the claim at the same delta; None: none is made.
        bound: what was measured.
        power: fault to the share of runs in which this audit would contradict the claim.
        contradicted: what the audit's own test says; None: whether the bound exceeds the claim.
    """
    if contradicted is None:
        contradicted = None not in (claimed, bound.lower) and (bound.lower or 0.0) > (claimed or 0.0)
    if claimed is None:
        verdict, reason = NOT_APPLICABLE, "no epsilon is claimed that it could contradict"
    elif contradicted:
        verdict, reason = LEAKS, "what was measured contradicts the claim"
    else:
        verdict, reason = SILENT, "what was measured does not contradict the claim"
    return EpsilonCheck(
        method=audit.method,
        exercises=audit.exercises,
        assumes=audit.assumes,
        claimed=claimed,
        lower=bound.lower,
        confidence=bound.confidence,
        canaries=bound.canaries,
        power=dict(power),
        verdict=verdict,
        reason=reason,
    )


def _compare(head: Measure, threshold: float) -> tuple[Verdict, str]:
    if is_leak(head, threshold):
        return LEAKS, f"{head.name}: beyond every baseline by more than the threshold and the uncertainty"
    best, value = written(head.baselines.best, head.unit), written(head.value, head.unit)
    return SILENT, f"{head.name}: {value} does not exceed its best baseline, {best}, by enough"
