"""The baselines of a run as it sees them: a child process beside it, and their results."""

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
    """Run the arms of a run in a child process while the body runs; they end with the body on an error."""
    if not [arm for arm in store.config.run.baselines if not result_file(store, arm).exists()]:
        yield None
        return
    log = store.path / "arms" / "log.txt"
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        command = [sys.executable, "-m", "fedpeft_simulations.arms_process", str(store.path)]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield child
        except BaseException:
            child.terminate()
            raise
        finally:
            child.wait()


def results(store: RunStore) -> dict[str, dict[str, Any]]:
    """Results of all arms of a run, by name.

    Raises:
        RunError: an arm has not finished; its log is named.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm in store.config.run.baselines:
        if not (file := result_file(store, arm)).exists():
            raise RunError(f"arm {arm!r} has failed; see {store.path / 'arms' / 'log.txt'}")
        found[arm] = json.loads(file.read_text())
    return found


def result_file(store: RunStore, arm: str) -> Path:
    """Where an arm leaves its result."""
    return store.path / "arms" / f"{arm}.json"
