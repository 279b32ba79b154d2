"""What a tracker is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Tracked:
    """What a tracker gets about the run that it follows.

    Attributes:
        name: of the run.
        folder: the run directory; a tracker that writes files does so in a folder of its own in it.
        settings: hyperparameters as flat texts and numbers, by ``section.key``.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]


class Tracker(ABC):
    """Receives the figures of one run."""

    @abstractmethod
    def __init__(self, run: Tracked) -> None:
        """Begin to follow a run.

        Raises:
            ConfigError: a package that it needs is not installed.
        """

    @abstractmethod
    def log(self, figures: Mapping[str, float], step: int, seconds: float) -> None:
        """Take figures by name.

        Args:
            figures: such as ``{"federated/loss": 2.1}``.
            step: the 1-based round; 0 before the first.
            seconds: when that was, in seconds of Unix time.
        """

    @abstractmethod
    def close(self) -> None:
        """Write what is left; the run has ended or was interrupted."""
