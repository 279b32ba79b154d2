"""The matrix of correlated noise that a node's rounds go on with, in a file of its own.

A matrix goes on only where the ledger shows that nothing of it was used since it was stored: the newest
reservation of this run before the present one is that under which it was stored. Else its newest rows may be
in a release already, and the next would share them: after a crash, a repeated round, a lost or a restored
file a new matrix begins. The lost round was charged, the repeated one is, and the two matrices are two
mechanisms that compose.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from fedpeft.privacy import Reservation
from fedpeft.privacy.csprng import seeded
from fedpeft.privacy.step_matrix import StepMatrix
from fedpeft.rng import stream
from fedpeft.runstore import write_atomic
from fedpeft_clients.rounds import ledger_view
from fedpeft_clients.rounds.node_context import NodeContext

UNREADABLE = (OSError, ValueError, KeyError, EOFError, TypeError, IndexError, zipfile.BadZipFile)


def matrix_of(node: NodeContext, reservation: Reservation, round: int) -> StepMatrix | None:
    """The matrix that a reserved round goes on with, or a new one; None: the plan has no bands."""
    home, plan = node.home, node.plan.local
    if plan is None or plan.groups == 1:
        return None
    entry = ledger_view.reserved_before(node.ledger, node.run.hex(), home.lineage, reservation.head.seq)
    matrix = None if entry is None else _load(home.step_noise, entry)
    if matrix is not None or not plan.reproducible:
        return matrix or StepMatrix.begin(plan)
    return StepMatrix.begin(plan, seeded(stream(home.config.run.seed, round, home.name, "groups").bytes(32)))


def store(node: NodeContext, reservation: Reservation, matrix: StepMatrix | None, round: int) -> None:
    """Store a matrix after a round's steps, before the round is released; after the last round delete it."""
    file = node.home.step_noise
    if matrix is None:
        return
    if round >= node.home.config.federation.rounds:
        file.unlink(missing_ok=True)
        return
    buffer, entry = io.BytesIO(), np.array([reservation.head.hash])
    np.savez(buffer, allow_pickle=False, entry=entry, **matrix.arrays())
    write_atomic(file, buffer.getvalue())


def _load(file: Path, entry: str) -> StepMatrix | None:
    """The matrix that was stored under an entry of the ledger; a damaged file is a lost one."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return StepMatrix.restored(arrays) if str(arrays["entry"][0]) == entry else None
    except UNREADABLE:
        return None
