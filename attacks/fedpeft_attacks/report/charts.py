"""The chart of leakage by pipeline stage: inline SVG; text stays text, colours are the page's."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from math import ceil
from typing import TYPE_CHECKING, Any

from fedpeft_attacks.report.stage_table import COLUMNS, Step, filled
from fedpeft_attacks.results.measures import Measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Placeholders that become variables of the page's style, so that the picture follows light and dark.
INK, SOFT, LINE, PAGE, LEAK, CALM = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_VARIABLES: Mapping[str, str] = dict(
    zip((INK, SOFT, LINE, PAGE, LEAK, CALM), ("ink", "soft", "line", "page", "leak", "calm"), strict=True)
)
_MARKERS = "osD^vPX*<>"
_LABELS, _ROW = 1.3, 0.17
_UNWANTED = (r"<metadata>.*?</metadata>", r"<defs>\s*<style.*?</style>\s*</defs>", r" font-family: [^;]*;")
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "fedpeft", "font.size": 8.5}


def ladder_picture(steps: Sequence[Step]) -> str:
    """The ladder as an ``<svg>`` element with title and description.

    Empty where no attack has a figure, or matplotlib is not installed; the table beside it holds all figures.

    A marker per attack, filled where the finding counts as a leak; a thin line for the 95 % interval and an
    upright tick for the best baseline.
    """
    names = filled(steps)
    if not names or find_spec("matplotlib") is None:
        return ""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        return _inline(_draw(steps, names), "ladder", "Leakage by pipeline stage", _description(steps, names))


def _draw(steps: Sequence[Step], names: Sequence[str]) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    attacks = list(dict.fromkeys(rung.attack for step in steps for rung in step.rungs))
    rows = sum(len(step.rungs) + 1 for step in steps)
    columns = 2 * len(names)
    head = 0.4 + 0.2 * ceil((len(attacks) + 2) / columns)
    size = (_LABELS + max(6.0, 2.1 * len(names)), _ROW * rows + head + 0.3)
    figure = Figure(figsize=size, facecolor="none")
    left, top = _LABELS / size[0], 1 - head / size[1]
    spaces = {"left": left, "right": 0.97, "top": top, "bottom": 0.3 / size[1], "wspace": 0.2}
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True, gridspec_kw=spaces)[0]
    for panel, name in zip(panels, names, strict=True):
        _panel(panel, steps, name, attacks)
    _stages(panels[0], steps)
    handles, labels = _legend(attacks)
    figure.legend(handles, labels, loc="upper left", ncols=columns, frameon=False, labelcolor=INK)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    return buffer.getvalue()


def _panel(panel: Axes, steps: Sequence[Step], name: str, attacks: Sequence[str]) -> None:
    column, y = COLUMNS.index(name), 0
    for step in steps:
        for rung in step.rungs:
            figure = rung.figures[column]
            if figure is not None:
                _point(panel, y, figure, _MARKERS[attacks.index(rung.attack) % 10], rung.verdict == "leaks")
            y += 1
        panel.axhline(y, color=LINE, linewidth=0.5)
        y += 1
    panel.set(xlim=(-0.03, 1.03), ylim=(y - 0.5, -1), facecolor="none")
    panel.set_title(name, loc="left", fontsize=8.5, fontweight="bold", color=INK)
    panel.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    panel.tick_params(length=0, colors=SOFT)
    panel.grid(axis="x", color=LINE, linewidth=0.5)
    panel.set_axisbelow(True)
    panel.spines[:].set_visible(False)


def _point(panel: Axes, y: int, figure: Measure, marker: str, leaks: bool) -> None:
    colour = LEAK if leaks else CALM
    panel.plot(figure.interval, (y, y), color=colour, linewidth=1)
    panel.plot(figure.baselines.best, y, "|", color=INK, markersize=8, markeredgewidth=1.6)
    panel.plot(
        figure.value, y, marker, color=colour, markerfacecolor=colour if leaks else PAGE, markersize=4.5
    )


def _stages(panel: Axes, steps: Sequence[Step]) -> None:
    places: list[float] = []
    start = 0
    for step in steps:
        places.append(start + (len(step.rungs) - 1) / 2)
        start += len(step.rungs) + 1
    panel.set_yticks(places, [step.stage for step in steps])
    panel.tick_params(axis="y", labelcolor=INK)


def _legend(attacks: Sequence[str]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    def sign(marker: str, colour: str, face: str) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=colour, markerfacecolor=face, markersize=4.5)

    signs = [sign(_MARKERS[place % 10], CALM, PAGE) for place in range(len(attacks))]
    extra = [sign("s", LEAK, LEAK), sign("|", INK, INK)]
    return [*signs, *extra], [*attacks, "filled: leaks", "best baseline"]


def _description(steps: Sequence[Step], names: Sequence[str]) -> str:
    loud = [
        f"{rung.attack} at {step.stage}" for step in steps for rung in step.rungs if rung.verdict == "leaks"
    ]
    leaks = f"Counted as leaks: {', '.join(loud)}." if loud else "Nothing counts as a leak."
    return f"Share recovered at each stage, of: {', '.join(names)}. {leaks} The table below has all figures."


def _inline(svg: str, name: str, title: str, description: str) -> str:
    """A drawing as an element of a page: no address, the page's colours and font, title and description."""
    box = next(iter(re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)))
    rest = svg[svg.index("<svg") :].split(">", 1)[1]
    for pattern in _UNWANTED:
        rest = re.sub(pattern, "", rest, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        rest = rest.replace(colour, f"var(--{variable})")
    return (
        f'<svg viewBox="0 0 {box[0]} {box[1]}" style="width: {float(box[0]) * 1.45:.0f}px" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">\n<title id="{name}-title">{escape(title)}</title>\n'
        f'<desc id="{name}-desc">{escape(description)}</desc>{rest}'
    )
