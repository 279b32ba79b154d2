"""One call that runs a prepared federation on any backend, from its last checkpoint to its end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedpeft.errors import ConfigError
from fedpeft.rng import stream
from fedpeft.runstore import RunStore, write_atomic
from fedpeft_simulations.backends.base import Progress

BACKENDS = ("inprocess", "ray", "deployment")


def run_federation(
    run_dir: Path, homes: Sequence[Path], backend: str = "inprocess", progress: Progress | None = None
) -> None:
    """Run all rounds that are left; afterwards ``RUN/state/final.npz`` holds the result.

    Args:
        run_dir: a run directory with ``config.toml``.
        homes: one home folder per organisation.
        backend: inprocess (nodes take turns in this process), ray (Flower's simulation engine) or
            deployment (a SuperLink and one process per organisation, on loopback).
        progress: receives each event of ``metrics.jsonl`` as it is written.

    Raises:
        ConfigError: an unknown backend, or ray is not installed.
        FederationError: no quorum.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}; allowed are {', '.join(BACKENDS)}")
    run, folders = run_dir.resolve(), [home.resolve() for home in homes]
    _keep_to_itself(run)
    _coordinator_key(run)
    _hush()
    _RUNNERS[backend](run, folders, progress or (lambda event: None))


def _keep_to_itself(run: Path) -> None:
    """Whatever Flower writes stays in the run; nothing is reported to anybody."""
    os.environ["FLWR_HOME"] = str(run / "flower")
    for name, value in (("FLWR_TELEMETRY_ENABLED", "0"), ("RAY_USAGE_STATS_ENABLED", "0")):
        os.environ.setdefault(name, value)


def _hush() -> None:
    from fedpeft import flower

    flower.hush()


def _coordinator_key(run: Path) -> None:
    """A simulated coordinator's key comes from the seed, so that equal runs send equal bytes."""
    path = run / "coordinator.key"
    if not path.exists():
        seed = RunStore.open(run).config.run.seed
        write_atomic(path, stream(seed, 0, "coordinator", "signing").bytes(32))


def _inprocess(run: Path, homes: Sequence[Path], progress: Progress) -> None:
    from fedpeft import flower
    from fedpeft_clients.app import app
    from fedpeft_server.app import make_app

    flower.run_local(make_app(progress, run), app, [{"home": str(home)} for home in homes], {})


def _ray(run: Path, homes: Sequence[Path], progress: Progress) -> None:
    from fedpeft_simulations.backends.ray import run_ray

    run_ray(run, homes, progress)


def _deployment(run: Path, homes: Sequence[Path], progress: Progress) -> None:
    from fedpeft_simulations.backends.deployment import run_deployment

    run_deployment(run, homes, progress)


_RUNNERS = {"inprocess": _inprocess, "ray": _ray, "deployment": _deployment}
