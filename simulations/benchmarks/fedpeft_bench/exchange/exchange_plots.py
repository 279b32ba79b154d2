"""Pictures of ``fedpeft bench exchange``: what a bit buys, and how far each codec is from Shannon's bound."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedpeft.runstore import write_atomic
from fedpeft_bench.exchange.exchange import Row
from fedpeft_simulations.plots import ACCENT, INK, MUTED


@dataclass(frozen=True)
class Mark:
    """How one codec is drawn.

    Attributes:
        text: its label; rate pictures carry labels in their first panel only.
        colour: of line, points and label.
        style: of line and points, as matplotlib spells them.
        density: the point that carries the label; None for codecs without one.
        shift: of the label from that point, in typographic points; a negative first number aligns it right.
    """

    text: str
    colour: str
    style: str
    density: float | None
    shift: tuple[float, float]


RATE = {
    "ComPEFT formula": Mark("ComPEFT's formula", INK, "--", 0.005, (-3, -6)),
    "OpenFL STC": Mark("OpenFL STC", MUTED, "s-", 0.10, (7, 0)),
    "top-k, int32 + fp16": Mark("top-k, int32 + fp16", MUTED, "o-", 0.05, (8, 2)),
    "ComPEFT masks, mean scale": Mark("ComPEFT, two masks", INK, "s", 0.01, (7, 0)),
    "NVFLARE normfloat4": Mark("NVFLARE nf4", INK, "D", None, (-8, 0)),
    "NVFLARE blockwise8": Mark("8 bits, NVFLARE and fedpeft", INK, "D", None, (-8, 0)),
    "fp16 + zstd -3": Mark("fp16 + zstd", INK, "D", None, (0, -11)),
    "fedpeft masked sign": Mark("masked sign", ACCENT, ":", 0.50, (5, 6)),
    "fedpeft dead-zone": Mark("dead-zone", ACCENT, "--", 0.10, (-6, -8)),
    "fedpeft ternary": Mark("fedpeft ternary", ACCENT, "o-", 0.01, (-5, -9)),
    "fedpeft sign": Mark("sign", ACCENT, "D", None, (7, 0)),
    "fedpeft int8": Mark("", ACCENT, "D", None, (0, 0)),
}
"""Two codecs of ours have no line: auto follows the best, and stochastic ternary, which pays with error for
having no bias, lies above the picture."""
BOUND = {
    "ComPEFT masks, mean scale": Mark("ComPEFT, two masks", INK, "s-", 0.03, (6, 6)),
    "OpenFL STC": Mark("OpenFL STC", MUTED, "s-", 0.03, (0, 9)),
    "ComPEFT formula": Mark("ComPEFT's formula", INK, "--", 0.005, (8, 8)),
    "fedpeft ternary": Mark("fedpeft, whole envelope", ACCENT, "o-", 0.03, (0, 9)),
}


def draw(facts: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``rate.svg`` (real deltas where there are some) and ``bound.svg``.

    Args:
        facts: of `fedpeft_bench.exchange.exchange_report.run`.
        folder: made if it does not exist.

    Returns:
        The files written.
    """
    made_up = [vector for vector in facts["vectors"] if vector["name"].startswith("LoRA-like")]
    real = [vector for vector in facts["vectors"] if vector not in made_up]
    folder.mkdir(parents=True, exist_ok=True)
    rate = _picture(folder / "rate.svg", real or made_up[:2], ("bits", "error"), RATE)
    return [rate, _picture(folder / "bound.svg", made_up[:2], ("density", "excess"), BOUND)]


def _picture(
    path: Path, vectors: Sequence[dict[str, Any]], axes: tuple[str, str], styles: dict[str, Mark]
) -> Path:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, len(vectors), sharey=True, squeeze=False)[0]
    for panel, vector in zip(panels, vectors, strict=True):
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_title(vector["name"], loc="left", fontsize=10)
        first = panel is panels[0]
        for codec, mark in styles.items():
            rows = [row for row in vector["rows"] if row["codec"] == codec]
            _codec(panel, rows, axes, mark if first or styles is BOUND else replace(mark, text=""))
        (_scale_rate if axes[0] == "bits" else _scale_bound)(panel, first=first)
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    write_atomic(path, buffer.getvalue())
    return path


def _codec(panel: Any, rows: list[Row], axes: tuple[str, str], mark: Mark) -> None:
    """One line, up to the density at which more bits bring no more, and its label."""
    rows = [row for row in rows if row[axes[0]] is not None and row[axes[1]] is not None]
    if axes[1] == "error" and rows:
        best = min(range(len(rows)), key=lambda place: rows[place]["error"])
        rows = rows[: best + 1]
    points = [(row[axes[0]], row[axes[1]]) for row in rows]
    if not points:
        return
    panel.plot(*zip(*points, strict=True), mark.style, color=mark.colour, markersize=4, linewidth=1.4)
    for row, point in zip(rows, points, strict=True):
        if row["density"] == mark.density:
            side = "right" if mark.shift[0] < 0 else "left"
            options = {"textcoords": "offset points", "fontsize": 8, "ha": side, "va": "center"}
            panel.annotate(mark.text, point, mark.shift, color=mark.colour, **options)


def _scale_rate(panel: Any, *, first: bool) -> None:
    panel.set(xscale="log", xlim=(0.004, 80), ylim=(-0.07, 1.05), xlabel="bits per parameter")
    ticks = [0.01, 0.05, 0.2, 1, 2, 4, 8, 16, 32]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    if first:
        panel.set_ylabel("what is lost (L2, relative)")


def _scale_bound(panel: Any, *, first: bool) -> None:
    panel.set(xscale="log", yscale="log", xlabel="share of values sent")
    panel.set_ylim(0.0005, 100)
    ticks = {0.005: "0.5 %", 0.01: "1 %", 0.05: "5 %", 0.2: "20 %", 1.0: "100 %"}
    panel.set_xticks(list(ticks), list(ticks.values()))
    labels = {0.001: "0.1 %", 0.01: "1 %", 0.1: "10 %", 1.0: "100 %", 10.0: "1000 %"}
    panel.set_yticks(list(labels), list(labels.values()))
    panel.minorticks_off()
    if first:
        panel.set_ylabel("bytes over Shannon's bound per tensor")
