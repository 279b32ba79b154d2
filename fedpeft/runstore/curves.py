"""Curves of several runs in one picture; matplotlib comes with the extra ``reports``."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedpeft.errors import ConfigError
from fedpeft.extras import needs
from fedpeft.runstore.files import write_atomic

FORMATS = (".svg", ".png", ".pdf")


def draw(
    series: Mapping[str, Sequence[tuple[int, float]]],
    what: str,
    path: Path,
    errors: Mapping[str, Mapping[int, float]] | None = None,
) -> None:
    """Write a picture of one line per run.

    Args:
        series: points (1-based round, value) by the name of the run.
        what: name of the value, for the axis.
        path: where; its suffix says in which of `FORMATS`.
        errors: standard errors by the name of the run and the round, where values bear noise.

    Raises:
        ConfigError: another suffix, matplotlib is not installed, or no run has recorded this.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"cannot draw {str(path)!r}; the file name must end in {', '.join(FORMATS)}")
    if not any(series.values()):
        raise ConfigError(f"none of these runs has recorded {what!r}")
    with needs("reports", "a picture"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.add_subplot()
    axis.spines[["top", "right"]].set_visible(False)
    for name, points in series.items():
        if points:
            noise = (errors or {}).get(name)
            bars = [noise[round] for round, _ in points] if noise else None
            axis.errorbar(*zip(*points, strict=True), yerr=bars, fmt="o-", markersize=3, label=name)
    axis.set(xlabel="round", ylabel=what)
    axis.legend(frameon=False)
    buffer, kind = io.BytesIO(), path.suffix.removeprefix(".")
    figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())
