"""A section for the model card of the released adapter, from the same facts as the report."""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft_attacks.report.risks import headline
from fedpeft_attacks.report.summaries import epsilon_words, leaving
from fedpeft_attacks.report.wording import role_in_words
from fedpeft_attacks.results.findings import Finding, Report
from fedpeft_attacks.results.measures import spanned, written

_HEAD = "| attack | stage | what | recovered | 95 % | without it | verdict |\n|---|---|---|---|---|---|---|"


def model_card(report: Report) -> str:
    """Markdown with what was found of what leaves the nodes; never any text of a record."""
    parts = [
        "## Privacy audit",
        f"**{headline(report.verdict, report.risks)}.**",
        _risks(report),
        _changes(report),
        f"{report.claim.text} {epsilon_words(report.epsilon)}",
        _threats(report),
        _figures(leaving(report.findings)),
        "Not tested:\n\n" + "\n".join(f"* {line}" for line in report.not_tested),
        _origin(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _risks(report: Report) -> str:
    rows = [f"| {risk.question} | {risk.label} | {risk.answer} |" for risk in report.risks]
    return "\n".join(["| risk | verdict | in a sentence |", "|---|---|---|", *rows])


def _changes(report: Report) -> str:
    lines = [
        f"{number}. {change.setting}: {change.effect}" for number, change in enumerate(report.changes, 1)
    ]
    return "What to change, the most effective first:\n\n" + "\n".join(lines) if lines else ""


def _threats(report: Report) -> str:
    rows = [f"| {role_in_words(threat.role)} | {threat.label} |" for threat in report.threats]
    return "\n".join(["| adversary | verdict |", "|---|---|", *rows])


def _figures(findings: Sequence[Finding]) -> str:
    rows = [
        f"| {finding.attack} | {finding.stage} | {figure.name} | {written(figure.value, figure.unit)} | "
        f"{spanned(figure.interval, figure.unit)} | {written(figure.baselines.best, figure.unit)} | "
        f"{finding.label} |"
        for finding in findings
        for figure in finding.measures
    ]
    return "\n".join([_HEAD, *rows]) if rows else ""


def _origin(report: Report) -> str:
    signed = "not signed" if report.signature is None else f"signed by `{report.signature.key}`"
    return (
        f"Base `{report.base_sha256}`, config `{report.config_hash}`, fedpeft {report.versions['fedpeft']}; "
        f"report {signed}. Nothing here is a proof of privacy."
    )
