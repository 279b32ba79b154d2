"""Runs side by side: what each is, its curves over the rounds, and in which settings they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.epsilons import spent_in
from fedpeft.errors import FedPeftError, RunError
from fedpeft.runstore.store import RunStore

COLUMNS = ("run", "state", "rounds", "loss", "base loss", "accuracy", "bytes up", "bytes down", "epsilon")
"""Of the table of `facts`."""
CURVES = ("loss", "accuracy", "training loss", "bytes up", "bytes down", "epsilon")
"""What `curve` knows."""


def runs_in(folder: Path) -> list[RunStore]:
    """Run directories in a folder, or the folder itself if it is one; by name.

    Raises:
        RunError: there is none.
    """
    places = [folder] if (folder / "config.toml").is_file() else sorted(folder.glob("*/"))
    runs = [RunStore(place) for place in places if (place / "config.toml").is_file()]
    if not runs:
        raise RunError(f"no run in {str(folder)!r}; give a folder of run directories, such as 'runs'")
    return runs


def facts(store: RunStore) -> dict[str, Any]:
    """One row of the table of runs, keys as `COLUMNS`; None for what is not known yet."""
    try:
        config = store.config
    except FedPeftError as error:
        return dict.fromkeys(COLUMNS) | {"run": store.path.name, "state": f"unreadable: {error}"}
    rounds, losses = list(store.events("round")), dict(curve(store, "loss"))
    base = [event["loss"] for event in store.events("evaluation") if event["arm"] == "base"]
    last = max((event["round"] for event in rounds), default=0)
    values = (
        store.path.name,
        "finished" if store.is_finished else "not finished",
        f"{last} of {config.federation.rounds}",
        losses[max(losses)] if losses else None,
        base[-1] if base else None,
        next((value for _, value in reversed(curve(store, "accuracy"))), None),
        sum(event["bytes_up"] for event in rounds),
        sum(event["bytes_down"] for event in rounds),
        spent_in(rounds[-1]) if rounds else None,
    )
    return dict(zip(COLUMNS, values, strict=True))


def curve(store: RunStore, what: str) -> list[tuple[int, float]]:
    """A figure of `CURVES` over the rounds, by round; empty where it was not recorded.

    ``loss`` and ``accuracy`` are held-out figures of the federated adapter; bytes add up over the rounds.

    Raises:
        RunError: an unknown figure.
    """
    if what not in CURVES:
        raise RunError(f"unknown curve {what!r}; there are {', '.join(CURVES)}")
    if what in ("loss", "accuracy"):
        events = (event for event in store.events("evaluation") if event["arm"] == "federated")
        points = {event["round"]: event.get(what) for event in events}
    elif what == "training loss":
        points = {event["round"]: event["loss"] for event in store.events("training")}
    elif what == "epsilon":
        points = {event["round"]: spent_in(event) for event in store.events("round")}
    else:
        points, total = dict[int, Any](), 0
        for event in store.events("round"):
            total += event[what.replace(" ", "_")]
            points[event["round"]] = total
    return sorted((round, float(value)) for round, value in points.items() if isinstance(value, int | float))


def errors(store: RunStore) -> dict[int, float]:
    """Standard error of ``training loss`` by round, where it bears noise; empty where it is exact."""
    events = store.events("training")
    return {event["round"]: event["standard_error"] for event in events if "standard_error" in event}


def differences(stores: Sequence[RunStore]) -> dict[str, list[Any]]:
    """Settings in which runs differ: dotted key, and the value of each run in turn."""
    flat = [flat_settings(store.config.model_dump(mode="json")) for store in stores]
    keys = dict.fromkeys(key for settings in flat for key in settings if key != "run.name")
    rows = {key: [settings.get(key) for settings in flat] for key in keys}
    return {key: values for key, values in rows.items() if len({json.dumps(value) for value in values}) > 1}


def rounds_of(store: RunStore) -> list[dict[str, Any]]:
    """One row a round: what was sent, what was measured, and when it ended."""
    series = {what: dict(curve(store, what)) for what in ("loss", "accuracy", "training loss", "epsilon")}
    noise = errors(store)
    return [
        {
            "round": (number := event["round"]),
            "replies": event["replies"],
            "bytes up": event["bytes_up"],
            "bytes down": event["bytes_down"],
            **{what: points.get(number) for what, points in series.items()},
            **({"training loss error": noise.get(number)} if noise else {}),
            "seconds": event["total_s"],
            "time": event.get("time"),
        }
        for event in store.events("round")
    ]


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key, such as ``federation.rounds``."""
    rows: dict[str, Any] = {}
    for key, value in settings.items():
        rows |= (
            flat_settings(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return rows
