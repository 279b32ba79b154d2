"""TensorBoard: event files in ``RUN/tensorboard``; ``tensorboard --logdir runs`` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedpeft.extras import needs
from fedpeft.tracking.trackers import Tracked, Tracker


def open_tracker(run: Tracked) -> Tracker:
    """A tracker that writes event files.

    Raises:
        ConfigError: the package ``tensorboard`` is not installed.
    """
    with needs("tensorboard", "tracker 'tensorboard'"):
        from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(str(run.folder / "tensorboard"))
    writer.add_text("settings", "\n".join(f"    {key} = {value}" for key, value in run.settings.items()))
    return TensorBoard(writer)


class TensorBoard:
    """Scalars by name and round."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, figures: Mapping[str, float], step: int, seconds: float) -> None:
        """Write the figures, at once."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step, walltime=seconds)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
