"""State files that outlive the version that wrote them: a format number, and steps from each to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.errors import RunError
from fedpeft.runstore.files import read_json, sync_folder, write_atomic, write_json

KEY = "_format"
"""Holds the number in a JSON file; no node, run or setting has a name that begins so."""

Step = Callable[[dict[str, Any]], dict[str, Any]]


def newer(path: object, number: int, known: int) -> str:
    """The line for state that a later version wrote."""
    return (
        f"{path} has format {number}, this fedpeft reads up to {known}: a newer version wrote it; "
        "upgrade fedpeft on this machine; nothing was changed"
    )


@dataclass(frozen=True)
class Format:
    """The format of one kind of JSON file.

    A file without a number is of format 1. An older file is migrated when it is read: its bytes are kept
    beside it, durably, as ``NAME.formatN``, then the steps are taken and the whole is written anew,
    atomically; a crash in between leaves the old file, and the next read begins again.

    Attributes:
        steps: the first leads from format 1 to 2, and so on; a step adds what a later version needs.
    """

    steps: tuple[Step, ...] = ()

    @property
    def number(self) -> int:
        """What this version writes."""
        return len(self.steps) + 1

    def read(self, path: Path, missing: Any) -> Any:
        """The facts of a file, without the number, in today's format; ``missing`` if it is not there.

        Raises:
            ConfigError: the file holds no JSON object.
            RunError: a newer version wrote it.
        """
        facts = read_json(path, None)
        if facts is None:
            return missing
        number = facts.get(KEY, 1)
        today = self.migrated(path, facts)
        if number == self.number:
            return today
        backup = path.with_name(f"{path.name}.format{number}")
        if not backup.exists():
            write_atomic(backup, path.read_bytes())
            sync_folder(path.parent)
        self.write(path, today)
        return today

    def migrated(self, path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Facts of a file as they were read, in today's format and without the number; writes nothing.

        Raises:
            RunError: a newer version wrote them.
        """
        number = facts.get(KEY, 1)
        if type(number) is not int or not 1 <= number <= self.number:
            raise RunError(newer(path, number, self.number))
        today = {key: value for key, value in facts.items() if key != KEY}
        for step in self.steps[number - 1 :]:
            today = step(today)
        return today

    def write(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write facts in today's format, atomically."""
        write_json(path, {KEY: self.number, **facts})
