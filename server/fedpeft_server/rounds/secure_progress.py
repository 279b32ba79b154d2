"""What a coordinator keeps of its secure sums: their one roster, and how far each round's sum has come."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedpeft.runstore import read_json, write_json

ROSTER_FILE = "roster.json"


def fix_roster(run: Path, keys: Mapping[str, bytes], nodes: int) -> dict[str, bytes] | None:
    """The keys of all nodes that ever sum together in a run, fixed once the agreed number of them is there.

    A node that sums securely must know the others beforehand: a roster that could grow or shrink would let a
    coordinator surround a node with nodes of its own.

    Args:
        run: the run directory.
        keys: of the nodes that are there, by name.
        nodes: the agreed number.

    Returns:
        The keys by name; None as long as there are more or fewer than agreed.
    """
    path = run / "state" / ROSTER_FILE
    if not path.exists():
        if len(keys) != nodes:
            return None
        write_json(path, {name: key.hex() for name, key in sorted(keys.items())})
    return {name: bytes.fromhex(key) for name, key in json.loads(path.read_text()).items()}


@dataclass(frozen=True)
class Progress:
    """How far the sum of a round has come; on disk before a node learns of it.

    Attributes:
        attempt: the newest; 0: none yet.
        follows: whether the support follows the newest broadcast, as the first attempt had it: nodes accept
            no other terms for the same round.
        opening: whether nodes were asked to let their shares go. They do that once, so the round is either
            opened by that attempt or lost.
    """

    attempt: int = 0
    follows: bool = False
    opening: bool = False

    @classmethod
    def of(cls, run: Path, round: int) -> Progress:
        """As it was written down last.

        A version before this one wrote the number of the attempt alone. Whether shares were let go by then is
        not known, so that round counts as opened by this attempt or lost.
        """
        path = _file(run, round)
        if path.exists() and (number := path.read_text().strip()).isdecimal():
            return cls(int(number), opening=True)
        return cls(**read_json(path, {}))

    def next(self, follows: bool) -> Progress:
        """Of another attempt, under a number that no attempt has had, also before a crash."""
        return replace(self, attempt=self.attempt + 1, follows=self.follows if self.attempt else follows)

    def save(self, run: Path, round: int) -> Progress:
        """Write it, atomically."""
        write_json(_file(run, round), asdict(self))
        return self


def _file(run: Path, round: int) -> Path:
    return run / "state" / f"secure-r{round:04d}"
