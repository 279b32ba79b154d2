"""The picture of the report: recall by stage, with interval and best baseline, as plain SVG geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft_attacks.findings import Finding, Measure

_LABEL, _PANEL, _GAP = 190.0, 240.0, 30.0
_ROW, _TOP = 18.0, 46.0


@dataclass(frozen=True)
class Bar:
    """One bar; lengths in pixels. ``low``, ``high`` and ``baseline`` are places on the same axis."""

    x: float
    y: float
    length: float
    low: float
    high: float
    baseline: float
    leaks: bool


@dataclass(frozen=True)
class Label:
    """Text beside a row."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Ladder:
    """The picture: two panels, all tokens on the left and rare ones on the right."""

    width: float
    height: float
    panels: tuple[tuple[float, str], ...]
    panel: float
    ticks: tuple[Label, ...]
    labels: tuple[Label, ...]
    bars: tuple[Bar, ...]


def ladder(findings: Sequence[Finding]) -> Ladder:
    """Lay out one row per finding, in the order of attack and stage."""
    starts = (_LABEL, _LABEL + _PANEL + _GAP)
    labels: list[Label] = []
    bars: list[Bar] = []
    for row, finding in enumerate(findings):
        y = _TOP + row * _ROW
        labels.append(Label(_LABEL - 8, y + _ROW / 2 + 3, f"{finding.attack} · {finding.stage}"))
        for start, figure in zip(starts, (_every(finding), finding.rare), strict=True):
            if figure is None:
                labels.append(
                    Label(start + _PANEL, y + _ROW / 2 + 3, finding.verdict if start == _LABEL else "")
                )
            else:
                bars.append(_bar(start, y, figure, finding.verdict == "leaks"))
    height = _TOP + len(findings) * _ROW + 12
    ticks = tuple(
        Label(s + part * _PANEL, _TOP - 8, f"{100 * part:.0f} %") for s in starts for part in (0, 0.5, 1)
    )
    panels = ((starts[0], "all tokens"), (starts[1], "rare tokens"))
    return Ladder(starts[1] + _PANEL + 20, height, panels, _PANEL, ticks, tuple(labels), tuple(bars))


def _every(finding: Finding) -> Measure | None:
    if finding.value is None or finding.interval is None or finding.baselines is None:
        return None
    return Measure(value=finding.value, interval=finding.interval, baselines=finding.baselines, tokens=0)


def _bar(x: float, y: float, figure: Measure, leaks: bool) -> Bar:
    def place(share: float) -> float:
        return round(x + share * _PANEL, 1)

    low, high = figure.interval
    length = round(figure.value * _PANEL, 1)
    return Bar(x, y, length, place(low), place(high), place(figure.baselines.best), leaks)
