"""What a run shows while it works: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal

from fedpeft.terminal import printable

Mode = Literal["new", "resume", "overwrite"]
"""Make a new run, continue one, or replace an older one."""

Progress = Callable[[dict[str, Any]], None]
"""Receives each event of ``metrics.jsonl`` as it is written."""


@contextmanager
def progress(rounds: int, *, quiet: bool = False) -> Generator[Progress]:
    """A reporter for one run: a live view on a terminal, a line for each event elsewhere, or nothing."""
    from fedpeft.cli.output import console as drawn_on

    console = drawn_on(stderr=True)
    if quiet:
        yield lambda event: None
    elif console.is_terminal:
        with _live(console, rounds) as report:
            yield report
    else:
        yield lambda event: print(line(event), flush=True)


def line(event: dict[str, Any]) -> str:
    """One event as one line."""
    if event["event"] == "round":
        refused = f" · refused {', '.join(event['refused'])}" if event.get("refused") else ""
        return (
            f"round {event['round']}: {event['replies']} updates · {event['bytes_up'] / 1000:.1f} kB up · "
            f"{event['bytes_down'] / 1000:.1f} kB down · {event['train_s']:.1f} s training{refused}"
        )
    if event["event"] == "evaluation":
        accuracy = event.get("accuracy")
        shown = "" if accuracy is None else f" · accuracy {accuracy:.3f}"
        return f"{event['arm']}: held-out loss {event['loss']:.4f}{shown}"
    return str(event.get("text", event["event"]))


@contextmanager
def _live(console: Any, rounds: int) -> Generator[Progress]:
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar
    from rich.table import Table
    from rich.text import Text

    bar = Bar("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)
    task = bar.add_task("rounds", total=rounds)
    recent: list[str] = []

    def view() -> Group:
        grid = Table.grid()
        for text in recent[-6:]:
            grid.add_row(Text(printable(text)))
        return Group(bar, grid)

    with Live(view(), console=console, refresh_per_second=4, transient=True) as live:

        def report(event: dict[str, Any]) -> None:
            if event["event"] == "round":
                bar.update(task, completed=event["round"])
            recent.append(line(event))
            live.update(view())

        yield report
