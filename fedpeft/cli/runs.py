"""``fedpeft runs``: several runs side by side, as tables, CSV files and curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedpeft.cli.output import JSON_OPTION, emit, quantity, table
from fedpeft.errors import ConfigError

if TYPE_CHECKING:
    from fedpeft.runstore import RunStore

RUN = typer.Argument(help="Run directory.")
RUNS = typer.Argument(help="Run directories, two or more.")
CSV = typer.Option(None, "--csv", help="Write the table to this CSV file too.")
BYTES = ("bytes up", "bytes down")


class Curve(StrEnum):
    """What ``fedpeft runs plot`` draws over the rounds."""

    LOSS = "loss"
    ACCURACY = "accuracy"
    TRAINING = "training loss"
    UP = "bytes up"
    DOWN = "bytes down"
    EPSILON = "epsilon"


def register(app: typer.Typer) -> None:
    """Add the ``runs`` commands."""
    group = typer.Typer(help="Runs side by side: tables, CSV files, curves, trackers.", no_args_is_help=True)
    group.command("list")(list_runs)
    group.command("show")(show)
    group.command("compare")(compare)
    group.command("plot")(plot)
    group.command("track")(track)
    app.add_typer(group, name="runs")


def list_runs(
    folder: Path = typer.Argument(Path("runs"), help="Folder of run directories."),
    to_csv: Path | None = CSV,
    as_json: bool = JSON_OPTION,
) -> None:
    """List the runs of a folder: state, rounds, held-out loss and accuracy, bytes, epsilon."""
    from fedpeft.runstore.overview import COLUMNS, facts, runs_in

    rows = [facts(store) for store in runs_in(folder)]
    _write(to_csv, rows)
    emit({"runs": rows}, as_json, lambda: table(f"runs in {folder}", COLUMNS, map(_cells, rows)))


def show(run: Path = RUN, to_csv: Path | None = CSV, as_json: bool = JSON_OPTION) -> None:
    """Show one run round by round: what was sent, what was measured, and when."""
    from fedpeft.runstore import RunStore
    from fedpeft.runstore.overview import facts, rounds_of

    store = RunStore.open(run)
    summary, rows = facts(store), rounds_of(store)
    _write(to_csv, rows)

    def text() -> None:
        table(str(run), ("what", "value"), zip(summary, _cells(summary), strict=True))
        if rows:
            table("rounds", list(rows[0]), map(_cells, rows))

    emit({**summary, "by_round": rows}, as_json, text)


def compare(runs: list[Path] = RUNS, to_csv: Path | None = CSV, as_json: bool = JSON_OPTION) -> None:
    """Compare runs: the settings in which they differ, and their figures."""
    from fedpeft.runstore.overview import COLUMNS, differences, facts

    stores = _opened(runs)
    figures, settings = [facts(store) for store in stores], differences(stores)
    rows = [{"what": key, **_by_run(runs, values)} for key, values in settings.items()]
    rows += [{"what": key, **_by_run(runs, [row[key] for row in figures])} for key in COLUMNS[1:]]
    _write(to_csv, rows)

    def text() -> None:
        header = ("what", *map(str, runs))
        changed = [(key, *map(str, values)) for key, values in settings.items()]
        table("settings that differ", header, changed or [("none", *("" for _ in runs))])
        cells = [_cells(row)[1:] for row in figures]
        table("figures", header, zip(COLUMNS[1:], *cells, strict=True))

    emit({"settings": settings, "figures": figures}, as_json, text)


def plot(
    runs: list[Path] = typer.Argument(help="Run directories, one or more."),
    out: Path = typer.Option(
        Path("runs.svg"), "-o", "--out", help="Image file to write: .svg, .png or .pdf."
    ),
    what: Curve = typer.Option(Curve.LOSS, "--what", help="Figure to draw over the rounds."),
    to_csv: Path | None = CSV,
    as_json: bool = JSON_OPTION,
) -> None:
    """Draw one figure of several runs over their rounds; needs the extra reports."""
    from fedpeft.runstore.curves import draw
    from fedpeft.runstore.overview import curve, errors

    stores = {str(path): store for path, store in zip(runs, _opened(runs, 1), strict=True)}
    series = {name: curve(store, what.value) for name, store in stores.items()}
    points = ((name, *point) for name, line in series.items() for point in line)
    _write(to_csv, [dict(zip(("run", "round", what.value), point, strict=True)) for point in points])
    noise = {name: errors(store) for name, store in stores.items()} if what is Curve.TRAINING else None
    draw(series, what.value, out, noise)
    emit({"picture": str(out), "curves": series}, as_json, lambda: typer.echo(f"written: {out}"))


def track(
    run: Path = RUN,
    to: list[str] = typer.Option(..., "--to", help="tensorboard, mlflow or wandb; repeatable."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Send what a run has recorded so far to trackers, also a run of `fedpeft server`."""
    from fedpeft.runstore import RunStore
    from fedpeft.tracking import tracking

    store, count = RunStore.open(run), 0
    with tracking(to, store.path, store.config) as pass_on:
        for event in store.events():
            pass_on(event)
            count += 1
    facts = {"run": str(run), "trackers": to, "events": count}
    emit(facts, as_json, lambda: typer.echo(f"{count} events of {run} sent to {', '.join(to)}"))


def _opened(paths: Sequence[Path], least: int = 2) -> list[RunStore]:
    from fedpeft.runstore import RunStore

    if len(paths) < least:
        raise ConfigError(f"{len(paths)} run given; give {least} or more run directories")
    return [RunStore.open(path) for path in paths]


def _by_run(runs: Sequence[Path], values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(map(str, runs), values, strict=True))


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [_cell(name, value) for name, value in row.items()]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name in BYTES:
        return quantity(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(path: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a CSV file, if one is wanted."""
    if path is None:
        return
    from fedpeft.runstore import write_atomic

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["run"])
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue().encode())
