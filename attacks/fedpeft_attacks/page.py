"""``report.html``: one printable file without scripts, for readers who are no engineers."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fedpeft_attacks.findings import Report
from fedpeft_attacks.ladder import ladder
from fedpeft_attacks.registry import ATTACKS
from fedpeft_attacks.views import THREAT_MODELS

if TYPE_CHECKING:
    from jinja2 import Template

STAGES = {
    "gradient": "first gradient, before any step",
    "update": "change after all local steps",
    "envelope": "decoded from the bytes that leave",
    "aggregate": "mean of all nodes",
}
"""What stages are, for the report; other stages carry the name of their transform."""


def render(report: Report) -> str:
    """The report as one HTML page; it holds counts and shares, no tokens and no text of any record."""
    attacks = list(dict.fromkeys(finding.attack for finding in report.findings))
    return _template().render(
        report=report,
        ladder=ladder(report.findings),
        notes=list(dict.fromkeys(finding.note for finding in report.findings if finding.note)),
        methods={name: ATTACKS[name].text for name in attacks},
        stages=STAGES,
        threats=THREAT_MODELS,
        roles=sorted({finding.role for finding in report.findings}),
    )


def percent(share: float | None) -> str:
    """A share as a whole percentage, or a dash."""
    return "–" if share is None else f"{100 * share:.0f} %"


def span(interval: tuple[float, float] | None) -> str:
    """An interval of shares in percent, or nothing."""
    return "" if interval is None else f"{100 * interval[0]:.0f}–{100 * interval[1]:.0f}"


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("fedpeft_attacks", "templates")
    settings: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    environment = Environment(loader=loader, autoescape=True, **settings)
    environment.filters.update(percent=percent, span=span)
    return environment.get_template("report.html.j2")
