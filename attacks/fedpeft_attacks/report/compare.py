"""Two reports beside each other: of one run before and after a change, or of one seed on two machines.

Of one run on two machines verdicts and work counts have to be the same: what an audit says may not depend on
the machine. Figures and powers may differ by what rounding does to a base in training, and are shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fedpeft.errors import AuditError
from fedpeft_attacks.report.wording import role_in_words
from fedpeft_attacks.results.findings import Finding, Report
from fedpeft_attacks.results.measures import Measure, WorkDone, spanned, written

Row = tuple[str, str, str, str]
Facts = dict[tuple[str, str], str]
"""By subject and what is said of it."""

ABSENT = "–"


@dataclass(frozen=True)
class Comparison:
    """What two reports say; each row is subject, what, and both values.

    Attributes:
        same: number of verdicts and work counts that both have in common.
        risks: the four questions, each with both answers, the same or not.
        settings: settings in which the runs differ.
        differences: verdicts and work counts that differ, of risks, findings and measured epsilons.
        figures: figures, with their 95 % intervals, and powers that differ.
        largest: largest difference of a figure or of a power.
    """

    same: int
    risks: tuple[Row, ...]
    settings: tuple[Row, ...]
    differences: tuple[Row, ...]
    figures: tuple[Row, ...]
    largest: float


def read_report(folder: Path) -> Report:
    """The report in a folder, or in ``audit`` below it.

    Raises:
        AuditError: there is none, or it is of another version.
    """
    file = folder / "report.json"
    if not file.exists() and (folder / "audit" / "report.json").exists():
        file = folder / "audit" / "report.json"
    try:
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        cause = type(error).__name__
        raise AuditError(
            f"no report at {str(file)!r} ({cause}); give a run directory or an audit's folder"
        ) from None
    except ValidationError as error:
        raise AuditError(
            f"{str(file)!r} is no report of this version ({error.error_count()} faults); audit the run again"
        ) from None


def compare(first: Report, second: Report) -> Comparison:
    """Hold two reports beside each other; what only one of them has counts as a difference."""
    firm = list(_beside(_firm(first), _firm(second)))
    loose = list(_beside(_loose(first), _loose(second)))
    numbers = _numbers(first), _numbers(second)
    gaps = [abs(numbers[0][key] - numbers[1][key]) for key in numbers[0].keys() & numbers[1].keys()]
    return Comparison(
        same=sum(row[2] == row[3] for row in firm),
        risks=tuple(_beside(_risks(first), _risks(second))),
        settings=_differing(_beside(_settings(first), _settings(second))),
        differences=_differing(firm),
        figures=_differing(loose),
        largest=max(gaps, default=0.0),
    )


def _risks(report: Report) -> Facts:
    return {(risk.question, "answer"): risk.label for risk in report.risks}


def _settings(report: Report) -> Facts:
    return {(key, "setting"): json.dumps(value) for key, value in report.settings.items()}


def _firm(report: Report) -> Facts:
    """What may not depend on the machine."""
    facts: Facts = {("report", "verdict"): report.verdict}
    facts |= {(risk.question, "verdict"): risk.verdict for risk in report.risks}
    for finding in report.findings:
        facts[_name(finding), "verdict"] = finding.verdict
        facts[_name(finding), "work"] = _work(finding.work)
        for share, done in ({} if finding.power is None else finding.power.work).items():
            facts[finding.attack, f"work for its power: {share}"] = _work(done)
    return facts | {(check.method, "verdict"): check.verdict for check in report.epsilon}


def _loose(report: Report) -> Facts:
    """Figures with their intervals, powers and bounds, as people read them."""
    facts: Facts = {}
    for finding in report.findings:
        facts |= {(_name(finding), measure.name): _figure(measure) for measure in finding.measures}
        for share, value in ({} if finding.power is None else finding.power.shares).items():
            facts[finding.attack, f"power: {share}"] = written(value)
    return facts | {(check.method, "at least"): written(check.lower, "epsilon") for check in report.epsilon}


def _numbers(report: Report) -> Mapping[tuple[str, str], float]:
    """Figures and powers as numbers."""
    numbers = dict[tuple[str, str], float]()
    for finding in report.findings:
        numbers |= {(_name(finding), measure.name): measure.value for measure in finding.measures}
        for share, value in ({} if finding.power is None else finding.power.shares).items():
            numbers |= {} if value is None else {(finding.attack, f"power: {share}"): value}
    return numbers


def _figure(measure: Measure) -> str:
    unit = measure.unit
    best = written(measure.baselines.best, unit)
    return f"{written(measure.value, unit)} [{spanned(measure.interval, unit)}], baseline {best}"


def _name(finding: Finding) -> str:
    """Attack and stage, and the role where the stage is seen by several."""
    return f"{finding.attack} · {finding.stage} · {role_in_words(finding.role)}"


def _work(done: WorkDone | None) -> str:
    if done is None:
        return "a fixed number of trials"
    return ", ".join(f"{name} {value}" for name, value in done.model_dump().items())


def _beside(first: Facts, second: Facts) -> Iterator[Row]:
    for key in dict.fromkeys([*first, *second]):
        yield (*key, first.get(key, ABSENT), second.get(key, ABSENT))


def _differing(rows: Iterator[Row] | list[Row]) -> tuple[Row, ...]:
    return tuple(row for row in rows if row[2] != row[3])
