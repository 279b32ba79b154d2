"""What the audit of a simulated run needs to see: the update after every step, and the truth.

Nothing is written unless the home says so (``tapped``, set by the simulation only) and the round is one of
``audit.rounds``. Files of ``<home>/taps/rNN``:

    <stage>.npz   ``values``, float32, shape ``(layout.size,)``; ``start`` holds the values before the round
    truth.json    ``token_ids``: records of step 1; ``all_token_ids``: records of all steps; ``draws``: for
                  each step the places, from 0, of what it drew of the records that the node can use
    meta.json     ``stages`` in order, ``lr``, ``steps``
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedpeft.data import Batch, Example
from fedpeft.exchange import FloatVector, Update
from fedpeft.runstore import write_atomic, write_json


@dataclass
class Taps:
    """Writes one round's stages; without a folder it does nothing."""

    folder: Path | None
    stages: list[str] = field(default_factory=list)
    first: list[list[int]] = field(default_factory=list)
    draws: list[list[int]] = field(default_factory=list)

    def draw(self, places: Iterable[int]) -> None:
        """The places of the records that a step draws; needed for more than the audit, so always kept."""
        self.draws.append([int(place) for place in places])

    def gradient(self, values: FloatVector, batch: Batch) -> None:
        """The gradient of step 1 and the records that made it."""
        lengths = batch.lengths.tolist()
        self.first = [row[:length] for row, length in zip(batch.ids.tolist(), lengths, strict=True)]
        self.stage("gradient", values)

    def update(self, name: str, update: Update) -> None:
        """The update after a transform."""
        self.stage(name, update.values)

    def stage(self, name: str, values: FloatVector) -> None:
        """One stage's values."""
        if self.folder is not None:
            self._write(name, values)
            self.stages.append(name)

    def start(self, values: FloatVector) -> None:
        """The trainable values before the round, which the coordinator has."""
        if self.folder is not None:
            self._write("start", values)

    def _write(self, name: str, values: FloatVector) -> None:
        assert self.folder is not None
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, values=np.asarray(values, np.float32))
        write_atomic(self.folder / f"{name}.npz", buffer.getvalue())

    def truth(self, seen: Sequence[Example]) -> None:
        """The records that went into the update."""
        if self.folder is not None:
            rows = [example.ids.tolist() for example in seen]
            facts = {"token_ids": self.first, "all_token_ids": rows, "draws": self.draws}
            write_json(self.folder / "truth.json", facts)

    def finish(self, lr: float, steps: int) -> None:
        """The order of the stages and what they mean; written last."""
        if self.folder is not None:
            write_json(self.folder / "meta.json", {"stages": self.stages, "lr": lr, "steps": steps})
