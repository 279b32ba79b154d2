"""``report.html``: one printable file without scripts, for readers who are no engineers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fedpeft.epsilons import shown
from fedpeft_attacks.report.charts import ladder_picture
from fedpeft_attacks.report.risks import headline
from fedpeft_attacks.report.stage_table import COLUMNS, ladder
from fedpeft_attacks.report.summaries import epsilon_words, work_in_words
from fedpeft_attacks.report.wording import HARMS, KINDS, STAGES, role_in_words, step_in_words
from fedpeft_attacks.results.findings import Finding, Report
from fedpeft_attacks.results.measures import Strength, WorkDone, spanned, written
from fedpeft_attacks.results.words import MEANINGS, verdict_words

if TYPE_CHECKING:
    from jinja2 import Environment

TITLES: Mapping[str, str] = {
    "summary": "Verdicts",
    "threats": "Adversaries",
    "ladder": "Stages",
    "findings": "Findings",
    "epsilon": "Epsilon",
    "exchange": "Exchange",
    "examples": "Examples",
    "limits": "Not shown",
    "dpia": "DPIA (GDPR article 35)",
    "sp-800-226": "NIST SP 800-226",
    "checking": "How to check it",
}
"""Sections of the page by their anchors, with short titles."""


def render(report: Report) -> str:
    """The report as one HTML page.

    It holds counts and shares, and no text of any record unless the report is the organisation's own copy.
    """
    steps = ladder(report.findings, report.exchange.stages)
    environment = _environment()
    return environment.get_template("report.html.j2").render(
        report=report,
        style=_style(environment),
        sections=list(TITLES.items()),
        titles=TITLES,
        steps=steps,
        columns=COLUMNS,
        picture=_safe(ladder_picture(steps)),
        head=headline(report.verdict, report.risks),
        measured=epsilon_words(report.epsilon),
        groups={kind: [finding for finding in report.findings if finding.kind == kind] for kind in KINDS},
        kinds=KINDS,
        harms=HARMS,
        tried={finding.kind for finding in report.findings},
        notes=list(dict.fromkeys(finding.note for finding in report.findings if finding.note)),
        powers=_powers(report.findings),
        works=_works(report.findings),
        stages=STAGES,
        meanings=MEANINGS,
        extra=_other_thresholds(report),
    )


def _powers(findings: Iterable[Finding]) -> list[tuple[str, Strength]]:
    """The power of each attack; it is the same at all stages, or each differs and is named."""
    rows: list[tuple[str, Strength]] = []
    for finding in findings:
        row = finding.attack, finding.power
        if row[1] is not None and row not in rows:
            rows.append((row[0], row[1]))
    return rows


def _works(findings: Iterable[Finding]) -> list[tuple[str, list[str], WorkDone]]:
    """What each attack did, with the stages at which it did just that."""
    rows: dict[tuple[str, WorkDone], list[str]] = {}
    for finding in findings:
        if finding.work is not None:
            rows.setdefault((finding.attack, finding.work), []).append(finding.stage)
    return [(attack, stages, done) for (attack, done), stages in rows.items()]


def _other_thresholds(report: Report) -> str:
    units = {figure.unit for finding in report.findings for figure in finding.measures}
    formats = {"auc": "{:.2f} of an area under the curve", "bits": "{:.1f} bits of exposure"}
    return ", ".join(formats[unit].format(report.thresholds[unit]) for unit in formats if unit in units)


def _sentence(text: str) -> str:
    """A clause as a sentence of its own."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."


def _style(environment: Environment) -> Any:
    loader = environment.loader
    return "" if loader is None else _safe(loader.get_source(environment, "style.css")[0])


def _safe(text: str) -> Any:
    """Markup of our own that is not escaped again."""
    from markupsafe import Markup

    return Markup(text)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("fedpeft_attacks.report", "templates")
    settings: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    environment = Environment(loader=loader, autoescape=True, **settings)
    environment.filters.update(
        written=written,
        spanned=spanned,
        role=role_in_words,
        step=step_in_words,
        sentence=_sentence,
        work=work_in_words,
        verdict=verdict_words,
        shown=shown,
    )
    return environment
