"""Names and contents of a run directory (design: RUN/config.toml … RUN/audit)."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedpeft.config import Config, dump_config, load_config
from fedpeft.errors import RunError
from fedpeft.runstore.files import append_whole, write_atomic

_APPENDING = threading.Lock()


@dataclass(frozen=True)
class RunStore:
    """A run directory that exists; every path of it has one name here."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> RunStore:
        """An existing run.

        Raises:
            RunError: the folder is not a run directory.
        """
        if not (path / "config.toml").is_file():
            raise RunError(f"{str(path)!r} is not a run directory (it has no config.toml)")
        return cls(path)

    @property
    def config(self) -> Config:
        """The resolved config that the run was started with."""
        return load_config(self.path / "config.toml")

    @property
    def metrics(self) -> Path:
        """``metrics.jsonl``: one event a line."""
        return self.path / "metrics.jsonl"

    @property
    def homes(self) -> list[Path]:
        """Home folders of the simulated nodes, by name."""
        return sorted(path for path in (self.path / "nodes").iterdir() if path.is_dir())

    @property
    def test(self) -> Path:
        """Records on which the global adapter is evaluated."""
        return self.path / "data" / "test.jsonl"

    @property
    def labels(self) -> Path:
        """The classes of a labelled task, a JSON list; empty for free text."""
        return self.path / "data" / "labels.json"

    @property
    def adapter(self) -> Path:
        """The Hugging Face PEFT folder."""
        return self.path / "adapter"

    @property
    def base(self) -> Path:
        """The base of the exported adapter, where it has no public id."""
        return self.path / "base"

    @property
    def is_finished(self) -> bool:
        """Whether the run has reached its end and written ``run.json``."""
        return (self.path / "run.json").is_file()

    @property
    def summary(self) -> dict[str, Any]:
        """``run.json``.

        Raises:
            RunError: the run has not finished.
        """
        try:
            return json.loads((self.path / "run.json").read_text())
        except FileNotFoundError:
            raise RunError(
                f"{str(self.path)!r} has no run.json: it has not finished; continue it with --resume"
            ) from None

    def append(self, event: dict[str, Any]) -> None:
        """Append one event to ``metrics.jsonl``, whole or not at all; threads may do so at once.

        Its line gets ``time``: now, in UTC, as ISO 8601.

        Raises:
            OSError: the line cannot be written.
        """
        stamped = {**event, "time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        line = (json.dumps(stamped, allow_nan=False) + "\n").encode()
        with _APPENDING:
            append_whole(self.metrics, line)

    def events(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """Events of ``metrics.jsonl``; a torn last line of a killed run is left out."""
        if not self.metrics.exists():
            return
        for line in self.metrics.read_text().splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if kind is None or event.get("event") == kind:
                yield event

    @property
    def values(self) -> int:
        """Values of one node's update, as its rounds tell; 0 before the first."""
        rounds = list(self.events("round"))
        return sum(event["values_up"] for event in rounds) // max(
            1, sum(event["replies"] for event in rounds)
        )


def check_free(path: Path, *, overwrite: bool = False) -> None:
    """Make sure that a run may be written at a path: nothing is there, or an older run to be replaced.

    Raises:
        RunError: something else is there, or a run and ``overwrite`` was not asked for; or no folder can be
            made there.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        _check_writable(path)
        return
    except (OSError, ValueError) as error:  # a name that is too long, or no name of a file
        raise _unusable(path, error) from None
    if path.is_dir() and all(_is_torn(item) for item in path.iterdir()):
        return
    if not (path / "config.toml").is_file():
        raise RunError(f"{str(path)!r} exists and is not a run; choose another --out")
    if not overwrite:
        raise RunError(f"{str(path)!r} exists; --resume continues it, --overwrite replaces it")


def _check_writable(path: Path) -> None:
    """Refuse a place in which no folder can be made; what is made to find out is taken away again."""
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".fedpeft-", dir=parent))
    except OSError as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: Exception) -> RunError:
    cause = error.strerror if isinstance(error, OSError) else "it is no name of a folder"
    return RunError(f"{str(path)[:200]!r} cannot be made: {cause}; choose another --out")


def _is_torn(path: Path) -> bool:
    """Whether a file is what a run leaves that is killed while it writes its config."""
    return path.name.startswith(".config.toml.")


def create_run(path: Path, config: Config, *, overwrite: bool = False) -> RunStore:
    """Make a run directory with its config, in place of an older run if ``overwrite``.

    Raises:
        RunError: as `check_free`.
    """
    check_free(path, overwrite=overwrite)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    write_atomic(path / "config.toml", dump_config(config).encode())
    return RunStore(path)
