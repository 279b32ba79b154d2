"""The broadcasts of earlier rounds, kept for nodes that missed some.

A node that holds the state of round ``r`` reaches the state of round ``n`` by the broadcasts of the rounds
between, in order, each signed for the state it applies to: it then holds the very bits of a node that missed
nothing. One sum of the same broadcasts would be no shorter, because they share little (docs/decisions/0007).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedpeft.runstore import write_atomic

START = 1
"""The round whose state follows from the agreed seed: every node holds it."""


@dataclass(frozen=True)
class Broadcasts:
    """Deltas of a run by round, in its directory.

    Attributes:
        folder: ``RUN/broadcasts``; updates lie elsewhere, under names that nodes have.
        cached: how many broadcasts before the newest a node may be sent.
    """

    folder: Path
    cached: int

    def path(self, round: int) -> Path:
        """Where a round's broadcast lies."""
        return self.folder / f"r{round:02d}.fpd"

    def whole(self, round: int) -> Path:
        """Where the whole state lies as nodes were sent it that had missed too much."""
        return self.folder / f"r{round:02d}-full.fpd"

    def put(self, round: int, data: bytes) -> None:
        """Keep a round's broadcast."""
        write_atomic(self.path(round), data)

    def chain(self, since: int, round: int, limit: int) -> list[bytes] | None:
        """The broadcasts that lead from the state of round ``since`` to that of ``round``.

        Returns:
            In order; None where they are too many, not all kept, or together ``limit`` bytes or more.
        """
        paths = [self.path(number) for number in range(since + 1, round + 1)]
        if len(paths) > 1 + self.cached or not all(path.exists() for path in paths):
            return None
        if sum(path.stat().st_size for path in paths) >= limit:
            return None
        return [path.read_bytes() for path in paths]
