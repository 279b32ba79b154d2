"""The process beside a federation, which runs its baselines: the same under DP, and those trained alone.

``python -m fedpeft_simulations.baselines_process RUN``. The private one goes first, as it takes longest; what
is left when the run itself is done with its own work it takes from the other end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

from fedpeft.cli.show_progress import progress
from fedpeft.errors import FedPeftError
from fedpeft.runstore import RunStore
from fedpeft_simulations.baseline_training import TRAINED
from fedpeft_simulations.baselines import private_config, run_baselines
from fedpeft_simulations.federation_run import run


def _private(store: RunStore) -> dict[str, Any]:
    folder = store.path / "arms" / "private"
    mode = "resume" if (folder / "config.toml").exists() else "new"
    facts = run(private_config(store.config), folder, mode, lambda event: None).summary
    return {
        "loss": facts["loss"]["federated"],
        "accuracy": facts["accuracy"]["federated"],
        "macro_f1": facts["macro_f1"]["federated"],
        "epsilon": facts["privacy"]["epsilon"],
        "delta": facts["privacy"]["delta"],
        "run": str(folder.relative_to(store.path)),
    }


RUNNERS = {"private": _private, **dict(reversed(TRAINED.items()))}
"""What computes each baseline, in the order of this process."""


def _end_with_parent() -> None:
    """Ask Linux to end this process when its parent is gone, so that a killed run leaves nothing behind."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() == 1:
        sys.exit(1)


if __name__ == "__main__":
    _end_with_parent()
    try:
        with progress(live=False):
            run_baselines(RunStore.open(Path(sys.argv[1])), RUNNERS)
    except FedPeftError as error:
        sys.exit(f"error: {error}")
