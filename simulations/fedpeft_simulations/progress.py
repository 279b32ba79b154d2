"""What a run shows of its events."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal

from fedpeft.cli.show_progress import progress as shown

Mode = Literal["new", "resume", "overwrite"]
"""Make a new run, continue one, or replace an older one."""

Progress = Callable[[dict[str, Any]], None]
"""Receives each event of ``metrics.jsonl`` as it is written."""


@contextmanager
def progress(*, quiet: bool = False) -> Generator[Progress]:
    """A reporter for one run: a line for each event, and between them how far the run is."""
    with shown(quiet=quiet) as say:
        yield lambda event: say(line(event))


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
        reached = "" if accuracy is None else f" · accuracy {accuracy:.3f}"
        return f"{event['arm']}: held-out loss {event['loss']:.4f}{reached}"
    return str(event.get("text", event["event"]))
