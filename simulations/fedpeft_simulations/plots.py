"""Pictures of a run: loss, bytes and leakage, as SVG files in ``RUN/plots``."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedpeft.runstore import RunStore, write_atomic
from fedpeft_attacks.results.measures import RARE
from fedpeft_simulations.baselines import results

INK, ACCENT, MUTED, RARE_INK = "#1f2933", "#2563a8", "#9aa5b1", "#b45309"
BASELINE = {"markersize": 11, "label": "best baseline"}


def plot_run(store: RunStore) -> list[Path]:
    """Draw what the run has recorded; a picture without data is left out, without matplotlib all are.

    Returns:
        The files written.
    """
    if find_spec("matplotlib") is None:
        return []
    rounds = list(store.events("round"))
    report = store.path / "audit" / "report.json"
    findings = json.loads(report.read_text())["findings"] if report.exists() else []
    pictures: dict[str, Callable[[Any], bool]] = {
        "loss": lambda axis: _loss(axis, _losses(store), results(store)),
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


def _losses(store: RunStore) -> list[dict[str, Any]]:
    """Events with held-out losses, and with those that nodes released with noise."""
    return [*store.events("evaluation"), *(e for e in store.events("training") if "standard_error" in e)]


def _loss(axis: Any, events: list[dict[str, Any]], baselines: Mapping[str, Mapping[str, Any]]) -> bool:
    """The federation's loss over the rounds, and the losses of base and baselines as horizontal lines."""
    evaluations = [event for event in events if event["event"] == "evaluation"]
    if not evaluations:
        return False
    if noisy := [(e["round"], e["loss"], e["standard_error"]) for e in events if e["event"] == "training"]:
        axis.errorbar(*zip(*noisy, strict=True), fmt=".", color=MUTED, label="training, noisy")
    points = sorted((e["round"], e["loss"]) for e in evaluations if e["arm"] in ("base", "federated"))
    axis.plot(*zip(*points, strict=True), "o-", color=ACCENT, label="federated")
    references = {e["arm"]: e["loss"] for e in evaluations if e["arm"] == "base"}
    references |= {name: facts["loss"] for name, facts in baselines.items()}
    for (name, loss), style in zip(references.items(), ("-", "--", "-.", ":"), strict=False):
        axis.axhline(loss, color=MUTED, linestyle=style, label=name.replace("_", " "))
    axis.set(xlabel="round", ylabel="held-out loss (nats)", title="Global held-out loss")
    axis.legend(frameon=False)
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
    places, rare = range(len(shown)), [_rare(f) for f in shown]
    axis.barh(places, [f["value"] for f in shown], color=ACCENT, label="attack")
    axis.plot(*_points([f["measures"][0] for f in shown], "baselines"), "|", **BASELINE, color=INK)
    axis.plot(*_points(rare, "value"), "o", color=RARE_INK, markersize=4, label="rare tokens")
    axis.plot(*_points(rare, "baselines"), "|", color=RARE_INK, markersize=11, label="their baseline")
    axis.set_yticks(list(places), labels, fontsize=7)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="share recovered", title="What an attacker reads")
    axis.legend(frameon=False, loc="lower right")
    return True


def _rare(finding: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The figure of a finding's rare tokens, which hurt most; None where it has none."""
    return next((measure for measure in finding["measures"][1:] if measure["name"] == RARE), None)


def _points(measures: Sequence[Mapping[str, Any] | None], what: str) -> tuple[list[float], list[int]]:
    """Values, or best baselines, of the measures that are there, and their places."""
    there = [(place, measure) for place, measure in enumerate(measures) if measure is not None]
    values = [
        max(value or 0.0 for value in m["baselines"].values()) if what == "baselines" else m["value"]
        for _, m in there
    ]
    return values, [place for place, _ in there]
