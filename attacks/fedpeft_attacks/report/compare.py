"""Two reports of one run, or of one seed on two machines, beside each other.

What an audit says may not depend on the machine: verdicts and work counts have to be the same. Figures and
powers may differ by what rounding does to a base in training, and are shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fedpeft.errors import AuditError
from fedpeft_attacks.results.findings import Finding, Report
from fedpeft_attacks.results.measures import WorkDone

Row = tuple[str, str, str, str]


@dataclass(frozen=True)
class Comparison:
    """What two reports say.

    Attributes:
        same: number of verdicts and work counts that both have in common.
        differences: subject, what, and both values, where verdicts or work counts differ.
        figures: the same of values and powers, which may differ by rounding.
        largest: largest difference of a recovered share or of a power.
    """

    same: int
    differences: tuple[Row, ...]
    figures: tuple[Row, ...]
    largest: float


def read_report(folder: Path) -> Report:
    """The report in a folder.

    Raises:
        AuditError: there is none, or it is of another version.
    """
    file = folder / "report.json"
    try:
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        cause = type(error).__name__
        raise AuditError(f"no report at {str(file)!r} ({cause}); give an audit's folder") from None
    except ValidationError as error:
        raise AuditError(
            f"{str(file)!r} is no report of this version ({error.error_count()} faults); audit the run again"
        ) from None


def compare(first: Report, second: Report) -> Comparison:
    """Hold two reports beside each other; what only one of them has counts as a difference."""
    firm = list(_beside(_firm(first), _firm(second)))
    loose = list(_beside(_loose(first), _loose(second)))
    gaps = [abs(float(a) - float(b)) for *_, a, b in loose if "–" not in (a, b)]
    return Comparison(
        same=sum(row[2] == row[3] for row in firm),
        differences=tuple(row for row in firm if row[2] != row[3]),
        figures=tuple(row for row in loose if row[2] != row[3]),
        largest=max(gaps, default=0.0),
    )


Facts = dict[tuple[str, str], str]
"""By subject and what is said of it."""


def _firm(report: Report) -> Facts:
    """What may not depend on the machine."""
    facts: Facts = {("report", "verdict"): report.verdict}
    for finding in report.findings:
        facts[_name(finding), "verdict"] = finding.verdict
        facts[_name(finding), "work"] = _work(finding.work)
        for share, done in ({} if finding.power is None else finding.power.work).items():
            facts[finding.attack, f"work for its power: {share}"] = _work(done)
    return facts | {(check.method, "verdict"): check.verdict for check in report.epsilon}


def _loose(report: Report) -> Facts:
    """Recovered shares, powers and bounds."""
    facts: Facts = {}
    for finding in report.findings:
        facts |= {(_name(finding), measure.name): f"{measure.value:.4f}" for measure in finding.measures}
        for share, value in ({} if finding.power is None else finding.power.shares).items():
            facts[finding.attack, f"power: {share}"] = "–" if value is None else f"{value:.4f}"
    return facts


def _name(finding: Finding) -> str:
    return f"{finding.attack} · {finding.stage}"


def _work(done: WorkDone | None) -> str:
    if done is None:
        return "a fixed number of trials"
    return ", ".join(f"{name} {value}" for name, value in done.model_dump().items())


def _beside(first: Facts, second: Facts) -> Iterator[Row]:
    for key in dict.fromkeys([*first, *second]):
        yield (*key, first.get(key, "–"), second.get(key, "–"))
