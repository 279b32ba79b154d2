"""MLflow: a run on the server of ``MLFLOW_TRACKING_URI``, or in ``./mlruns``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedpeft.extras import needs
from fedpeft.tracking.trackers import Tracked, Tracker

EXPERIMENT = "fedpeft"


def open_tracker(run: Tracked) -> Tracker:
    """A tracker with an MLflow run of its own.

    Raises:
        ConfigError: the package ``mlflow`` is not installed.
    """
    with needs("mlflow", "tracker 'mlflow'"):
        import mlflow  # pyright: ignore[reportMissingImports]
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
    run_id = client.create_run(number, run_name=run.name).info.run_id
    for key, value in run.settings.items():
        client.log_param(run_id, key, value)
    return MLflow(client, run_id)


class MLflow:
    """Metrics by name and round."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def log(self, figures: Mapping[str, float], step: int, seconds: float) -> None:
        """Send the figures."""
        for name, value in figures.items():
            self._client.log_metric(self._run_id, name, value, timestamp=int(seconds * 1000), step=step)

    def close(self) -> None:
        """End the MLflow run."""
        self._client.set_terminated(self._run_id)
