"""The ServerApp: one round loop, whatever grid it is run on."""

from __future__ import annotations

import threading
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedpeft.errors import ConfigError
from fedpeft_server.rounds.round_loop import Report, run_rounds
from fedpeft_server.rounds.run_terms import Enrolled


def make_app(
    report: Report = lambda event: None,
    run_dir: Path | None = None,
    stop: threading.Event | None = None,
    enrolled: Enrolled | None = None,
) -> ServerApp:
    """A ServerApp that reports its events; the run directory may come from the run config instead.

    Args:
        report: receives each event of ``metrics.jsonl`` as it is written.
        run_dir: the run; default: ``run-dir`` of the Flower run config.
        stop: ends the run when it is set.
        enrolled: the nodes and the key of a deployed run; None: a simulation.
    """
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:  # pyright: ignore[reportUnusedFunction]
        run = run_dir or context.run_config.get("run-dir")
        if run is None:
            raise ConfigError("the ServerApp needs run-dir in its run config: the folder with config.toml")
        run_rounds(grid, Path(str(run)), report, stop, enrolled)

    return made


app = make_app()
