"""One way to print: JSON for machines, rich tables for people, plain lines where there is no terminal."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from fedpeft.terminal import drawing, printable

if TYPE_CHECKING:
    from rich.console import Console

JSON_OPTION = typer.Option(False, "--json", help="Print one JSON object for machines.")

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def leave_interrupted(next_step: str) -> NoReturn:
    """End the process now, after one line that says how to go on.

    For work that may stop at any byte: threads in the middle of a training step are not waited for.
    """
    typer.echo(f"interrupted; {next_step}", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)


def emit(payload: dict[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    """Print a payload as JSON (null for what is not finite), or call ``show`` to print it for people."""
    if as_json:
        typer.echo(json.dumps(_finite(payload), indent=2, allow_nan=False))
    else:
        show()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; the first column is left-aligned, the others right-aligned.

    Cells may be a stranger's text: they are shown as they are, on one line, and are no markup.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    grid = Table(box=SIMPLE_HEAD)
    for index, column in enumerate(columns):
        grid.add_column(printable(column), justify="left" if index == 0 else "right")
    for row in rows:
        grid.add_row(*(printable(cell) for cell in row))
    shown = console()
    shown.print(f"\n{printable(title)}", style="bold")
    shown.print(grid)


def console(stderr: bool = False) -> Console:
    """Where tables and live views are drawn: no markup; whoever draws passes texts through `printable`."""
    from rich.console import Console

    stream = drawing(sys.stderr if stderr else sys.stdout)
    width = None if stream.isatty() else 160
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


def quantity(number: float, unit: str = "B") -> str:
    """A number with a metric prefix: ``1234567 -> '1.23 MB'``."""
    for prefix in ("", "k", "M", "G"):
        if abs(number) < 1000:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:.3g} T{unit}"
