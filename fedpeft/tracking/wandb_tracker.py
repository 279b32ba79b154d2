"""Weights & Biases: a run of the project ``fedpeft``, sent as ``wandb login`` or ``WANDB_MODE`` say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedpeft.extras import needs
from fedpeft.tracking.trackers import Tracked, Tracker

PROJECT = "fedpeft"


def open_tracker(run: Tracked) -> Tracker:
    """A tracker with a W&B run of its own.

    Raises:
        ConfigError: the package ``wandb`` is not installed.
    """
    with needs("wandb", "tracker 'wandb'"):
        import wandb  # pyright: ignore[reportMissingImports]
    return WeightsAndBiases(
        wandb.init(project=PROJECT, name=run.name, config=dict(run.settings), dir=str(run.folder))
    )


class WeightsAndBiases:
    """Figures over the round: W&B's own step only grows, and held-out figures come a round later."""

    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric("*", step_metric="round")

    def log(self, figures: Mapping[str, float], step: int, seconds: float) -> None:
        """Send the figures."""
        self._run.log({**figures, "round": step})

    def close(self) -> None:
        """End the W&B run."""
        self._run.finish()
