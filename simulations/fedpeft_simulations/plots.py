"""Pictures of a run: loss, bytes and leakage, as SVG files in ``RUN/plots``."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedpeft.runstore import RunStore, write_atomic

INK, ACCENT, MUTED = "#1f2933", "#2563a8", "#9aa5b1"


def plot_run(store: RunStore) -> list[Path]:
    """Draw what the run has recorded; a picture without data is left out.

    Returns:
        The files written.
    """
    rounds = list(store.events("round"))
    report = store.path / "audit" / "report.json"
    findings = json.loads(report.read_text())["findings"] if report.exists() else []
    pictures: dict[str, Callable[[Any], bool]] = {
        "loss": lambda axis: _loss(axis, list(store.events("evaluation"))),
        "bytes": lambda axis: _bytes(axis, rounds),
        "leakage": lambda axis: _leakage(axis, findings),
    }
    return [path for name, draw in pictures.items() if (path := _picture(store, name, draw))]


def _picture(store: RunStore, name: str, draw: Callable[[Any], bool]) -> Path | None:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.add_subplot()
    axis.spines[["top", "right"]].set_visible(False)
    if not draw(axis):
        return None
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    path = store.path / "plots" / f"{name}.svg"
    write_atomic(path, buffer.getvalue())
    return path


def _loss(axis: Any, evaluations: list[dict[str, Any]]) -> bool:
    if not evaluations:
        return False
    points = sorted((event["round"], event["loss"]) for event in evaluations)
    axis.plot(*zip(*points, strict=True), "o-", color=ACCENT)
    axis.set(xlabel="round", ylabel="held-out loss (nats)", title="Global held-out loss")
    return True


def _bytes(axis: Any, rounds: list[dict[str, Any]]) -> bool:
    if not rounds:
        return False
    numbers = [r["round"] for r in rounds]
    up, down = ([r[key] / 1000 for r in rounds] for key in ("bytes_up", "bytes_down"))
    axis.bar(numbers, up, color=ACCENT, label="up")
    axis.bar(numbers, down, bottom=up, color=MUTED, label="down")
    axis.set(xlabel="round", ylabel="kB, all nodes")
    axis.set_title("Bytes of all envelopes", loc="left")
    axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return True


def _leakage(axis: Any, findings: list[dict[str, Any]]) -> bool:
    shown = [f for f in findings if f["kind"] == "inversion" and f["measures"]]
    if not shown:
        return False
    labels = [f"{f['stage']} · {f['attack']}: {f['measures'][0]['name']}" for f in shown]
    places = range(len(shown))
    axis.barh(places, [f["value"] for f in shown], color=ACCENT, label="attack")
    prior = [max(value or 0.0 for value in f["baselines"].values()) for f in shown]
    axis.plot(prior, places, "|", color=INK, markersize=11, label="best baseline")
    axis.set_yticks(list(places), labels, fontsize=7)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="share recovered", title="What an attacker reads")
    axis.legend(frameon=False, loc="lower right")
    return True
