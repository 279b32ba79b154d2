"""The baselines of a run: the child process that runs them, and their results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedpeft.errors import RunError
from fedpeft.runstore import RunStore


@contextmanager
def companion(store: RunStore) -> Generator[subprocess.Popen[bytes] | None]:
    """Run the baselines in a child process while the body runs; an error in the body ends them."""
    if not [baseline for baseline in store.config.run.baselines if not result_file(store, baseline).exists()]:
        yield None
        return
    log = store.path / "arms" / "log.txt"
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        command = [sys.executable, "-m", "fedpeft_simulations.baselines_process", str(store.path)]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield child
        except BaseException:
            child.terminate()
            raise
        finally:
            child.wait()


def results(store: RunStore) -> dict[str, dict[str, Any]]:
    """Results of all baselines of a run, by name.

    Raises:
        RunError: a baseline has not finished; its log is named.
    """
    outcomes: dict[str, dict[str, Any]] = {}
    for baseline in store.config.run.baselines:
        if not (file := result_file(store, baseline)).exists():
            raise RunError(f"baseline {baseline!r} has failed; see {store.path / 'arms' / 'log.txt'}")
        outcomes[baseline] = json.loads(file.read_text())
    return outcomes


def result_file(store: RunStore, baseline: str) -> Path:
    """The file of a result."""
    return store.path / "arms" / f"{baseline}.json"
