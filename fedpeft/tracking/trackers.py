"""Trackers by name: those that come along, and those that other packages register."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from fedpeft.config import Config
from fedpeft.errors import ConfigError
from fedpeft.tracking.event_figures import figures

LOG = logging.getLogger("fedpeft.tracking")
GROUP = "fedpeft.trackers"
"""Entry points by which other packages add trackers; each is an `Open`."""

BUILT_IN = {
    "mlflow": "fedpeft.tracking.mlflow_tracker:open_tracker",
    "tensorboard": "fedpeft.tracking.tensorboard_tracker:open_tracker",
    "wandb": "fedpeft.tracking.wandb_tracker:open_tracker",
}
SETTINGS = ("adapter", "federation", "exchange", "privacy")
"""Sections of the config that a tracker is told; not where records or bases lie."""


class Tracker(Protocol):
    """Receives the figures of one run."""

    def log(self, figures: Mapping[str, float], step: int, seconds: float) -> None:
        """Take figures by name.

        Args:
            figures: such as ``{"federated/loss": 2.1}``; finite or not.
            step: the 1-based round; 0 before the first.
            seconds: when that was, in seconds of Unix time.
        """
        ...

    def close(self) -> None:
        """Write what is left; the run has ended or was interrupted."""
        ...


@dataclass(frozen=True)
class Tracked:
    """What a tracker is told of the run that it will follow.

    Attributes:
        name: of the run.
        folder: the run directory; a tracker that writes files does so in a folder of its own in it.
        settings: hyperparameters as flat texts and numbers, by ``section.key``.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]


Open = Callable[[Tracked], Tracker]
"""Makes a tracker; raises `ConfigError` where its package is not installed."""


def tracker_names() -> list[str]:
    """Names of all trackers."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


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
    return [_opener(name)(tracked) for name in dict.fromkeys(names)]


@contextmanager
def tracking(
    names: Sequence[str], run: Path, config: Config
) -> Generator[Callable[[Mapping[str, Any]], None]]:
    """Follow a run while the body runs: whatever event the body passes on goes to all trackers.

    A tracker that fails is left out from then on and never ends the run.

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


def _opener(name: str) -> Open:
    for point in entry_points(group=GROUP, name=name):
        return point.load()
    if name not in BUILT_IN:
        near = difflib.get_close_matches(name, tracker_names(), 1)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise ConfigError(f"unknown tracker {name!r}{hint}; there are {', '.join(tracker_names())}")
    module, _, function = BUILT_IN[name].partition(":")
    return getattr(import_module(module), function)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value if isinstance(value, int | float | str) else str(value)))
    return rows
