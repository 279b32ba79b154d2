"""Records: the text of an organisation, before any tokenizer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.errors import DataError
from fedpeft.runstore.files import write_json_lines

FIELD = "field:"
"""Before the name of a template's own column in what `write_records` writes."""


@dataclass(frozen=True)
class Record:
    """One training record.

    Attributes:
        prompt: what the model is given; for chats the earlier messages, one per line.
        completion: what it shall answer, or the label.
        group: value of the partition column: whose record it is, or its class.
        messages: (role, text) pairs of a chat, the last one the answer; None for plain records.
        person: value of the person column: whose privacy the record is; None where none is named.
        turns: JSON of the chat as its template is given it, with the tools; None where ``messages`` say all.
        fields: (column, text) pairs of the prompt, where ``data.template`` names columns of its own.
        place: file and line that it was read from; "" where it was not.
    """

    prompt: str
    completion: str
    group: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None
    person: str | None = None
    turns: str | None = None
    fields: tuple[tuple[str, str], ...] | None = None
    place: str = field(default="", compare=False, repr=False)

    def chat(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """The messages and the tools of a chat, as a chat template is given them."""
        if self.turns is not None:
            whole = json.loads(self.turns)
            return whole["messages"], whole["tools"]
        return [{"role": role, "content": text} for role, text in self.messages or ()], None


@dataclass
class Notes:
    """What a user should hear of data that can be used.

    Attributes:
        records: sentence to the number of records of which it is true.
        files: sentences on files and folders.
    """

    records: Counter[str] = field(default_factory=Counter[str])
    files: list[str] = field(default_factory=list[str])

    def add(self, others: Notes) -> None:
        """Take over the notes of others."""
        self.records.update(others.records)
        self.files += others.files

    def lines(self) -> list[str]:
        """Every note as a line."""
        return [*dict.fromkeys(self.files), *(f"{text}: {n} records" for text, n in self.records.items())]


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSONL with the columns prompt, completion, group, messages and person, atomically.

    Columns that a template names bear `FIELD` before their names.
    """
    write_json_lines(path, map(_row, records))


def _row(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": record.prompt, "completion": record.completion}
    if record.group is not None:
        row["group"] = record.group
    if record.messages is not None:
        row["messages"], tools = record.chat()
        row |= {"tools": tools} if tools else {}
    if record.person is not None:
        row["person"] = record.person
    return row | {FIELD + name: text for name, text in record.fields or ()}


def label_set(records: Iterable[Record]) -> list[str]:
    """The distinct completions, sorted: the classes of a labelled task."""
    return sorted({record.completion for record in records})


def split(
    records: Sequence[Record], shares: Sequence[float], rng: np.random.Generator
) -> tuple[list[Record], ...]:
    """Shuffle and cut records into parts of the given shares, which must sum to at most 1.

    Records of one person, where the data name persons, stay in one part. Sizes are cumulative shares rounded
    to the nearest record (or person), so that the parts of a whole sum to it.

    Raises:
        DataError: a share is negative or the shares sum to more than 1.
    """
    if any(share < 0 for share in shares) or sum(shares) > 1 + 1e-9:
        raise DataError(f"shares {list(shares)} must be at least 0 and sum to at most 1")
    groups = _by_person(records)
    order = rng.permutation(len(groups))
    ends = np.floor(np.cumsum([0.0, *shares]) * len(groups) + 0.5).astype(int)
    return tuple(
        [record for index in order[start:end] for record in groups[index]] for start, end in pairwise(ends)
    )


def _by_person(records: Sequence[Record]) -> list[list[Record]]:
    """Records grouped by person in order of appearance; one without a person is a group of its own."""
    groups: dict[str | int, list[Record]] = {}
    for place, record in enumerate(records):
        groups.setdefault(place if record.person is None else record.person, []).append(record)
    return list(groups.values())
