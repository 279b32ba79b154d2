"""The coordinator's durable state: one file per checkpoint, whole or not there."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.errors import RunError
from fedpeft.runstore import Format, write_atomic
from fedpeft.runstore.formats import KEY

CHECKPOINTS = 2
_FACTS = "facts"
FORMAT = Format()
"""Of the facts in a checkpoint; one of an older format is written anew by the next round."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything the next round needs.

    Attributes:
        round: the last round that is done.
        facts: JSON values: enrolled keys and the like.
        arrays: exact values, what nodes hold, optimiser moments.
    """

    round: int
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write arrays and JSON facts into one ``.npz`` file, atomically."""
    encoded = np.frombuffer(json.dumps(dict(facts), allow_nan=False).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{_FACTS: encoded, **arrays})
    write_atomic(path, buffer.getvalue())


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The inverse of `save_arrays`.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return arrays, json.loads(arrays.pop(_FACTS).tobytes())
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise RunError(f"cannot read {path}: {type(error).__name__}; remove the file to start over") from None


def save(run: Path, checkpoint: Checkpoint) -> None:
    """Store a checkpoint under ``RUN/checkpoints/NNNN/`` and drop all but the last two."""
    folder = run / "checkpoints"
    facts = {KEY: FORMAT.number, **checkpoint.facts, "round": checkpoint.round}
    save_arrays(folder / f"{checkpoint.round:04d}" / "state.npz", checkpoint.arrays, facts)
    for old in _rounds(folder)[:-CHECKPOINTS]:
        shutil.rmtree(folder / f"{old:04d}")


def newest_round(run: Path) -> int:
    """The round of the newest whole checkpoint, 0 before the first."""
    return max(_rounds(run / "checkpoints"), default=0)


def latest(run: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run, or None before the first."""
    if not (newest := newest_round(run)):
        return None
    path = run / "checkpoints" / f"{newest:04d}" / "state.npz"
    arrays, stored_facts = load_arrays(path)
    facts = FORMAT.migrated(path, stored_facts)
    return Checkpoint(int(facts.pop("round")), facts, arrays)


def _rounds(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(path.parent.name) for path in folder.glob("[0-9]*/state.npz"))


def trim_events(path: Path, last_round: int) -> None:
    """Drop events after a round and a torn last line, so that a resumed run logs each round once."""
    if not path.exists():
        return
    lines = [line for line in path.read_bytes().splitlines() if _is_kept(line, last_round)]
    write_atomic(path, b"".join(line + b"\n" for line in lines))


def _is_kept(line: bytes, last_round: int) -> bool:
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return False
    return event.get("round", 0) <= last_round and event.get("event") != "done"
