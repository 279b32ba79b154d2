"""What a node has let go, on disk before it goes: nothing else is ever released in its place."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedpeft.runstore.files import sync_folder
from fedpeft.secagg.context import SecureContext
from fedpeft.secagg.errors import TermsRefused

OF_ROUND = ("accepted", "revealed")
"""Steps that a round has once, whatever the attempt."""


@dataclass(frozen=True)
class ReleaseStore:
    """Digests of a node's releases; the folder belongs to one node.

    A masked vector and a signed set of survivors are released once per attempt. Terms are accepted once per
    round, and shares let go once per round: shares of two attempts would open two sums over different nodes,
    whose difference is some nodes' own. A store that is rolled back forgets: keep it where the ledger is.
    """

    folder: Path

    def once(self, context: SecureContext, step: str, data: bytes) -> None:
        """Record a release, durably, before it is made; the very same one may be repeated.

        Safe against crashes at any point and against a second process.

        Raises:
            TermsRefused: rule ``round``: something else was released in this place before.
        """
        attempt = "" if step in OF_ROUND else f"-{context.attempt}"
        path = self.folder / f"{context.run.hex()}-{context.round}{attempt}.{step}"
        line = hashlib.sha256(context.digest + data).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        _create(path, line.encode())
        if path.read_text() != line:
            raise TermsRefused(
                "round", f"round {context.round}: another request was {step} before; wait for a new round"
            )


def _create(path: Path, data: bytes) -> None:
    """Write a file that does not exist; leave one that exists as it is."""
    handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
        sync_folder(path.parent)
    except FileExistsError:
        sync_folder(path.parent)
    finally:
        Path(temporary).unlink()
