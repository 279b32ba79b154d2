"""Canaries: made-up secrets of which a coin decided which were trained on.

They lie in ``nodes/<name>/taps/canaries.json`` of a simulated run and never leave it.
Source: Carlini et al. 2019, "The Secret Sharer", section 4.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.data import Record
from fedpeft.errors import AuditError
from fedpeft.runstore import write_json

DIGITS = 6
SPACE = 10**DIGITS
"""Number of secrets that a canary's was drawn from, all equally likely."""


@dataclass(frozen=True)
class Canary:
    """One made-up secret.

    Attributes:
        record: the record that holds it, with a person of its own.
        secret: six digits, which occur once in the record; empty where the whole record is made up.
        times: how often the record was written into the training data if the coin fell so; each copy counts
            as a record.
        trained: whether the coin fell so.
    """

    record: Record
    secret: str
    times: int
    trained: bool

    def holding(self, other: str) -> Record:
        """The same record with another secret."""
        return replace(
            self.record,
            prompt=self.record.prompt.replace(self.secret, other),
            completion=self.record.completion.replace(self.secret, other),
            messages=None
            if self.record.messages is None
            else tuple((role, text.replace(self.secret, other)) for role, text in self.record.messages),
            fields=None
            if self.record.fields is None
            else tuple((name, text.replace(self.secret, other)) for name, text in self.record.fields),
        )

    def candidates(self, count: int, rng: np.random.Generator) -> list[Record]:
        """The record itself, then ``count`` others with secrets drawn without replacement from all others."""
        true = int(self.secret)
        drawn = rng.choice(SPACE - 1, size=count, replace=False)
        return [self.record, *(self.holding(spelled(int(d) + (int(d) >= true))) for d in drawn)]


def spelled(number: int) -> str:
    """A secret as it is written: six digits."""
    return f"{number:0{DIGITS}d}"


def canary_file(home: Path) -> Path:
    """Where a simulated node keeps its canaries."""
    return home / "taps" / "canaries.json"


def write_canaries(home: Path, canaries: Sequence[Canary]) -> None:
    """Write the lists ``in`` and ``out``, atomically."""
    rows = [(canary.trained, asdict(canary)) for canary in canaries]
    facts = {name: [row for trained, row in rows if trained == (name == "in")] for name in ("in", "out")}
    write_json(canary_file(home), facts)


def read_canaries(homes: Iterable[Path]) -> list[Canary]:
    """The canaries of all these nodes; none where a node has no file.

    Raises:
        AuditError: a file is damaged.
    """
    return [canary for home in homes if canary_file(home).is_file() for canary in _read(canary_file(home))]


def _read(path: Path) -> list[Canary]:
    try:
        facts: dict[str, list[dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
        return [_canary(row) for name in ("in", "out") for row in facts[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AuditError(
            f"cannot read the canaries {path} ({type(error).__name__}); run the federation again"
        ) from None


def _canary(row: dict[str, Any]) -> Canary:
    facts = dict(row["record"])
    for pairs in ("messages", "fields"):
        if facts.get(pairs) is not None:
            facts[pairs] = tuple((str(name), str(text)) for name, text in facts[pairs])
    return Canary(Record(**facts), str(row["secret"]), int(row["times"]), bool(row["trained"]))
