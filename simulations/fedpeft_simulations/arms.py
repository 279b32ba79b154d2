"""Comparison arms: what each organisation reaches alone, all data in one place, and the same under DP.

Each arm trains with the same steps, batches and learning rates as the federation, and is judged on the same
records. The module runs as a child process beside the federation: ``python -m fedpeft_simulations.arms RUN``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.config import Config, build_config
from fedpeft.errors import FedPeftError, RunError
from fedpeft.runstore import RunStore, write_json

if TYPE_CHECKING:
    from fedpeft.data import Example
    from fedpeft.evaluation.held_out import HeldOut
    from fedpeft.evaluation.metrics import Evaluation


@contextmanager
def companion(store: RunStore) -> Generator[subprocess.Popen[bytes] | None]:
    """Run the arms of a run in a child process while the body runs; they end with the body on an error."""
    if not [arm for arm in store.config.run.arms if not result_file(store, arm).exists()]:
        yield None
        return
    log = store.path / "arms" / "log.txt"
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        command = [sys.executable, "-m", "fedpeft_simulations.arms", str(store.path)]
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
    import json

    found: dict[str, dict[str, Any]] = {}
    for arm in store.config.run.arms:
        if not (file := result_file(store, arm)).exists():
            raise RunError(f"arm {arm!r} has failed; see {store.path / 'arms' / 'log.txt'}")
        found[arm] = json.loads(file.read_text())
    return found


def result_file(store: RunStore, arm: str) -> Path:
    """Where an arm leaves its result."""
    return store.path / "arms" / f"{arm}.json"


def run_arms(store: RunStore) -> None:
    """Run the arms that have no result yet, one after the other."""
    arms = {"local_only": _local_only, "centralised": _centralised, "private": _private}
    for arm in store.config.run.arms:
        if not (file := result_file(store, arm)).exists():
            write_json(file, arms[arm](store))


def private_config(config: Config) -> Config:
    """The settings of the private arm: the run's, changed by ``run.private``, without arms of its own."""
    settings = config.model_dump(mode="json", exclude_none=True)
    settings["run"] |= {"arms": [], "private": {}, "name": f"{config.run.name}-private"}
    for path, value in config.run.private.items():
        section, _, key = path.rpartition(".")
        table = settings
        for part in section.split("."):
            table = table.setdefault(part, {})
        table[key] = value
    return build_config(settings)


def _local_only(store: RunStore) -> dict[str, Any]:
    from fedpeft.evaluation.held_out import HeldOut

    judge = HeldOut.of(store)
    scores = {name: _train_alone(judge, examples, name, 1) for name, examples in _node_data(store, judge)}
    accuracies = [score.accuracy for score in scores.values() if score.accuracy is not None]
    return {
        "loss": sum(score.loss for score in scores.values()) / len(scores),
        "accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        "nodes": {name: {"loss": s.loss, "accuracy": s.accuracy} for name, s in scores.items()},
    }


def _centralised(store: RunStore) -> dict[str, Any]:
    from fedpeft.evaluation.held_out import HeldOut

    judge = HeldOut.of(store)
    data = list(_node_data(store, judge))
    pooled = [example for _, examples in data for example in examples]
    score = _train_alone(judge, pooled, "centralised", len(data))
    return {"loss": score.loss, "accuracy": score.accuracy}


def _private(store: RunStore) -> dict[str, Any]:
    from fedpeft_simulations.federation_run import run

    folder = store.path / "arms" / "private"
    mode = "resume" if (folder / "config.toml").exists() else "new"
    facts = run(private_config(store.config), folder, mode, lambda event: None).summary
    return {
        "loss": facts["loss"]["federated"],
        "accuracy": facts["accuracy"]["federated"],
        "epsilon": facts["privacy"]["epsilon"],
        "delta": facts["privacy"]["delta"],
        "run": str(folder.relative_to(store.path)),
    }


def _node_data(store: RunStore, judge: HeldOut) -> Iterator[tuple[str, Sequence[Example]]]:
    from fedpeft.data import read_written
    from fedpeft.evaluation.held_out import tokens

    for home in store.homes:
        records = read_written(home / "train.jsonl", judge.config.data)
        yield home.name, tokens(records, judge.base, judge.config, judge.labels)


def _train_alone(judge: HeldOut, examples: Sequence[Example], name: str, pooled: int) -> Evaluation:
    """Train as a federation of one: same steps and rates, batches ``pooled`` times as large."""
    from dataclasses import replace

    from fedpeft.adapters import attach
    from fedpeft.rng import stream
    from fedpeft.training import Extras, LocalPlan, PerformanceFlags, train_local

    federation, seed = judge.config.federation, judge.config.run.seed
    attached = attach(judge.base, judge.config.adapter, seed)
    extras = Extras(flags=PerformanceFlags.of(judge.config.run))
    for round in range(1, federation.rounds + 1):
        plan = LocalPlan.of(federation, round)
        plan = replace(plan, batch_size=plan.batch_size * pooled)
        train_local(attached, examples, plan, stream(seed, round, name, "batches"), extras=extras)
    return judge.score(attached)


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
        run_arms(RunStore.open(Path(sys.argv[1])))
    except FedPeftError as error:
        sys.exit(f"error: {error}")
