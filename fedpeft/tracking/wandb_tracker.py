"""Weights & Biases: a run of the project ``fedpeft``, sent as ``wandb login`` or ``WANDB_MODE`` say."""

from __future__ import annotations

from collections.abc import Mapping

from fedpeft.extras import needs
from fedpeft.tracking.tracker import Tracked, Tracker

PROJECT = "fedpeft"


class WeightsAndBiases(Tracker):
    """Figures over the round: W&B's own step only grows, and held-out figures come a round later."""

    def __init__(self, run: Tracked) -> None:
        with needs("wandb", "tracker 'wandb'"):
            import wandb  # pyright: ignore[reportMissingImports]
        settings = dict(run.settings)
        self._run = wandb.init(project=PROJECT, name=run.name, config=settings, dir=str(run.folder))
        self._run.define_metric("*", step_metric="round")

    def log(self, figures: Mapping[str, float], step: int, seconds: float) -> None:
        """Send the figures."""
        self._run.log({**figures, "round": step})

    def close(self) -> None:
        """End the W&B run."""
        self._run.finish()
