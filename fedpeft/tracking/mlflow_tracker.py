"""MLflow: a run on the server of ``MLFLOW_TRACKING_URI``, or in ``./mlruns``."""

from __future__ import annotations

from collections.abc import Mapping

from fedpeft.extras import needs
from fedpeft.tracking.tracker import Tracked, Tracker

EXPERIMENT = "fedpeft"


class MLflow(Tracker):
    """Metrics by name and round, in an MLflow run of its own."""

    def __init__(self, run: Tracked) -> None:
        with needs("mlflow", "tracker 'mlflow'"):
            import mlflow  # pyright: ignore[reportMissingImports]
        self._client = mlflow.MlflowClient()
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = (
            self._client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
        )
        self._run_id = self._client.create_run(number, run_name=run.name).info.run_id
        for key, value in run.settings.items():
            self._client.log_param(self._run_id, key, value)

    def log(self, figures: Mapping[str, float], step: int, seconds: float) -> None:
        """Send the figures."""
        for name, value in figures.items():
            self._client.log_metric(self._run_id, name, value, timestamp=int(seconds * 1000), step=step)

    def close(self) -> None:
        """End the MLflow run."""
        self._client.set_terminated(self._run_id)
