"""TensorBoard: event files in ``RUN/tensorboard``; ``tensorboard --logdir runs`` shows them."""

from __future__ import annotations

from collections.abc import Mapping

from fedpeft.extras import needs
from fedpeft.tracking.tracker import Tracked, Tracker


class TensorBoard(Tracker):
    """Scalars by name and round."""

    def __init__(self, run: Tracked) -> None:
        with needs("tensorboard", "tracker 'tensorboard'"):
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(run.folder / "tensorboard"))
        settings = "\n".join(f"    {key} = {value}" for key, value in run.settings.items())
        self._writer.add_text("settings", settings)

    def log(self, figures: Mapping[str, float], step: int, seconds: float) -> None:
        """Write the figures, at once."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step, walltime=seconds)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
