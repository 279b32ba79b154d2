"""The baselines of a run: a child process runs them, and the run those that are left; their results."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedpeft.config import Config, build_config
from fedpeft.config.hints import paths, unknown_setting
from fedpeft.config.load import put_setting
from fedpeft.config.renamed import current_name
from fedpeft.errors import ConfigError, RunError
from fedpeft.progress_reports import at
from fedpeft.runstore import RunStore, write_json

Runner = Callable[[RunStore], dict[str, Any]]
"""Computes the result of one baseline of a run."""


def private_config(config: Config) -> Config:
    """The settings of the private baseline: the run's, changed by ``run.private``, without baselines.

    Raises:
        ConfigError: ``run.private`` names no setting, or makes a config that cannot be.
    """
    settings = config.model_dump(mode="json", exclude_none=True)
    settings["run"] |= {"baselines": [], "private": {}, "name": f"{config.run.name}-private"}
    known = set(paths())
    for path, value in config.run.private.items():
        name = current_name(path)
        if name not in known:
            raise ConfigError(f"run.private: {unknown_setting(name)}")
        put_setting(settings, name, value)
    try:
        return build_config(settings)
    except ConfigError as error:
        raise ConfigError(f"run.private: {error}") from None


@contextmanager
def companion(store: RunStore) -> Generator[subprocess.Popen[bytes] | None]:
    """Run the baselines in a child process while the body runs; an error in the body ends them."""
    if not [baseline for baseline in store.config.run.baselines if not result_file(store, baseline).exists()]:
        yield None
        return
    log = store.path / "arms" / "log.txt"
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(_command(store), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield child
            _await(child, log)
        except BaseException:
            child.terminate()
            raise
        finally:
            child.wait()


def _command(store: RunStore) -> list[str]:
    return [sys.executable, "-m", "fedpeft_simulations.baselines_process", str(store.path)]


def _await(child: subprocess.Popen[bytes], log: Path) -> None:
    """Report what the child has last printed of its progress until it ends."""
    while child.poll() is None:
        lines = log.read_text(errors="replace").splitlines() or [""]
        at(f"waiting for the baselines: {lines[-1].strip()}".removesuffix(": "))
        time.sleep(1)


def run_baselines(store: RunStore, runners: Mapping[str, Runner]) -> None:
    """Run those of these baselines that the run names and nobody else is at, one after the other."""
    for baseline, runner in runners.items():
        if baseline in store.config.run.baselines:
            with _taken(store, baseline) as is_free:
                if is_free:
                    write_json(result_file(store, baseline), runner(store))


@contextmanager
def _taken(store: RunStore, baseline: str) -> Generator[bool]:
    """Yields whether a baseline has no result and no other process is at it; none comes to it inside.

    The lock of a process that was killed goes with it.
    """
    file = result_file(store, baseline)
    file.parent.mkdir(exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = not file.exists()
        except BlockingIOError:
            is_free = False
        yield is_free


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
