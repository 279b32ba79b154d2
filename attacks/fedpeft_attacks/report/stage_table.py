"""Leakage by pipeline stage as rows: what each attack recovers at each stage, beside the best baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft_attacks.results.findings import Finding
from fedpeft_attacks.results.measures import MEMBERS, RARE, SECRETS, SEQUENCES, TOKENS, Measure
from fedpeft_attacks.results.words import Verdict

COLUMNS = (TOKENS, RARE, SEQUENCES, SECRETS, MEMBERS)
"""What the ladder shows at every stage, in this order."""


@dataclass(frozen=True)
class Rung:
    """One attack at one stage.

    Attributes:
        attack: its name.
        figures: one per column; None where it was not tried or there was nothing to find.
        verdict: of the finding.
        label: the verdict in words.
    """

    attack: str
    figures: tuple[Measure | None, ...]
    verdict: Verdict
    label: str


@dataclass(frozen=True)
class Step:
    """One stage with all attacks that were tried on it."""

    stage: str
    rungs: tuple[Rung, ...]


def ladder(findings: Sequence[Finding], stages: Sequence[str]) -> tuple[Step, ...]:
    """Findings that have a figure of the ladder, or would have one did they apply, by stage.

    Args:
        findings: of the report.
        stages: in the order in which an update passes them; others follow in the order of the findings.
    """
    shown = [finding for finding in findings if _belongs(finding)]
    order = dict.fromkeys([*stages, *(finding.stage for finding in shown)])
    steps = (
        Step(stage, tuple(_rung(finding) for finding in shown if finding.stage == stage)) for stage in order
    )
    return tuple(step for step in steps if step.rungs)


def filled(steps: Sequence[Step]) -> tuple[str, ...]:
    """Columns in which there is any figure."""
    rungs = [rung for step in steps for rung in step.rungs]
    return tuple(
        name for place, name in enumerate(COLUMNS) if any(rung.figures[place] is not None for rung in rungs)
    )


def _belongs(finding: Finding) -> bool:
    silent = finding.kind == "inversion" and not finding.measures
    return silent or any(_shown(finding, name) for name in COLUMNS)


def _rung(finding: Finding) -> Rung:
    return Rung(
        finding.attack, tuple(_shown(finding, name) for name in COLUMNS), finding.verdict, finding.label
    )


def _shown(finding: Finding, name: str) -> Measure | None:
    """The share of this name; other units have no place on the ladder."""
    measure = finding.measure(name)
    return measure if measure is not None and measure.unit == "share" else None
