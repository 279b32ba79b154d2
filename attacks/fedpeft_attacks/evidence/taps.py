"""Reading what a run wrote down for its audit.

``RUN/nodes/<name>/taps/rNN/`` holds one ``<stage>.npz`` with ``values`` per stage, ``meta.json`` with the
stages in order, and ``truth.json`` with the token ids of the records behind them: ``token_ids`` of step 1,
which made the stage ``gradient``, ``all_token_ids`` of all steps, and ``draws``, the places of the records
that each step drew (older runs have none); ``start.npz`` has the trainable values before the round, where
they were written down. The coordinator's mean is ``RUN/updates/rNN/aggregate.npz``.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.errors import AuditError
from fedpeft.exchange.layout import FloatVector
from fedpeft.runstore import RunStore

GRADIENT, UPDATE, AGGREGATE = "gradient", "update", "aggregate"

TokenIds = list[list[int]]


@dataclass(frozen=True)
class Tap:
    """One node's round as it was written down.

    Attributes:
        node: name of the node.
        round: 1-based round.
        folder: where the stages lie.
        stages: their names, in the order in which the update passed them.
        lr: local learning rate.
        first: token ids of the records of step 1.
        all: token ids of the records of all steps.
        draws: for each step the places, from 0, of the records that it drew; None: not written down.
    """

    node: str
    round: int
    folder: Path
    stages: tuple[str, ...]
    lr: float
    first: TokenIds = field(repr=False)
    all: TokenIds = field(repr=False)
    draws: tuple[tuple[int, ...], ...] | None = field(default=None, repr=False)

    def values(self, stage: str) -> FloatVector:
        """The update at a stage, float32."""
        return read_values(self.folder / f"{stage}.npz")

    @property
    def start(self) -> FloatVector | None:
        """The trainable values before the round; None where they were not written down."""
        path = self.folder / "start.npz"
        return read_values(path) if path.is_file() else None

    def records(self, stage: str) -> TokenIds:
        """Token ids of the records behind a stage."""
        return self.first if stage == GRADIENT else self.all

    def drawn(self, stage: str) -> frozenset[int]:
        """Places of the records behind a stage; none where draws were not written down."""
        steps = self.draws or ()
        return frozenset(place for step in (steps[:1] if stage == GRADIENT else steps) for place in step)


def read_taps(store: RunStore) -> list[Tap]:
    """All taps of a run, by round and node.

    Raises:
        AuditError: there are none, or a file is damaged.
    """
    folders = sorted((store.path / "nodes").glob("*/taps/r*/meta.json"))
    if not folders:
        raise AuditError(
            f"{str(store.path)!r} holds nothing to attack: no update was tapped; "
            "run it again with audit.enabled = true (envelopes alone come without the truth to compare with)"
        )
    taps = [_read_tap(path.parent) for path in folders]
    return sorted(taps, key=lambda tap: (tap.round, tap.node))


def read_values(path: Path) -> FloatVector:
    """The array ``values`` of an ``.npz`` file as float32.

    Raises:
        AuditError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive["values"], dtype=np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from None


def aggregate_of(store: RunStore, round_: int) -> Path | None:
    """The coordinator's mean update of a round, if it was written down."""
    path = store.path / "updates" / f"r{round_:02d}" / "aggregate.npz"
    return path if path.is_file() else None


def _read_tap(folder: Path) -> Tap:
    meta, truth = _json(folder / "meta.json"), _json(folder / "truth.json")
    try:
        draws = None if "draws" not in truth else tuple(tuple(map(int, step)) for step in truth["draws"])
        first, every = _rows(truth["token_ids"]), _rows(truth["all_token_ids"])
        stages = tuple(str(stage) for stage in meta["stages"])
        lr, number = float(meta.get("lr", 0.0)), int(folder.name.removeprefix("r"))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / "meta.json", error) from None
    return Tap(folder.parents[1].name, number, folder, stages, lr, first, every, draws)


def _rows(rows: Sequence[Sequence[int]]) -> TokenIds:
    return [[int(token) for token in row] for row in rows if len(row)]


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> AuditError:
    return AuditError(f"cannot read the tap {path} ({type(error).__name__}); run the federation again")
