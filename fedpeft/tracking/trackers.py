"""Trackers that follow a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from fedpeft.config import Config
from fedpeft.plugins import TRACKERS
from fedpeft.tracking.event_figures import figures
from fedpeft.tracking.tracker import Tracked, Tracker

LOG = logging.getLogger("fedpeft.tracking")
SETTINGS = ("adapter", "federation", "exchange", "privacy")
"""Sections of the config that a tracker gets; no paths of records or bases."""


def check_trackers(names: Sequence[str]) -> None:
    """Make sure that there are trackers of these names, before a run writes anything.

    Raises:
        ConfigError: there is none of a name; the nearest is named.
    """
    for name in names:
        _ = TRACKERS[name]


def open_trackers(names: Sequence[str], run: Path, config: Config) -> list[Tracker]:
    """Open trackers for a run.

    Raises:
        ConfigError: no tracker of that name, or its package is not installed.
    """
    settings = {
        f"{section}.{key}": value
        for section in SETTINGS
        for key, value in _flat(config.model_dump(mode="json", exclude_none=True)[section])
    }
    run = run.resolve()
    tracked = Tracked(config.run.name, run, {"run.seed": config.run.seed, **settings})
    return [TRACKERS[name](tracked) for name in dict.fromkeys(names)]


@contextmanager
def tracking(
    names: Sequence[str], run: Path, config: Config
) -> Generator[Callable[[Mapping[str, Any]], None]]:
    """Follow a run while the body runs: whatever event the body passes on goes to all trackers.

    A tracker that fails is not used any more and never ends the run.

    Raises:
        ConfigError: as `open_trackers`.
    """
    with ExitStack() as stack:
        live = open_trackers(names, run, config)
        for tracker in live:
            stack.callback(_safely, live, tracker, tracker.close)

        def pass_on(event: Mapping[str, Any]) -> None:
            if not (numbers := figures(event, private=config.privacy.unit != "none")):
                return
            when = datetime.fromisoformat(event["time"]) if "time" in event else datetime.now()
            for tracker in list(live):
                _safely(live, tracker, tracker.log, numbers, event.get("round", 0), when.timestamp())

        yield pass_on


def _safely(live: list[Tracker], tracker: Tracker, act: Callable[..., None], *arguments: object) -> None:
    """Call a tracker, unless it has failed before."""
    if tracker not in live:
        return
    try:
        act(*arguments)
    except Exception as error:
        live.remove(tracker)
        LOG.warning("%s fails and is left out: %s", type(tracker).__name__, error)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value if isinstance(value, int | float | str) else str(value)))
    return rows
