"""Baselines of a run: what each organisation reaches alone, all data in one place, and the same under DP.

Each baseline trains with the same steps, batches and learning rates as the federation, and is evaluated
on the same records. The module is the process beside the federation:
``python -m fedpeft_simulations.baselines_process RUN``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedpeft.adapters import attach
from fedpeft.config import Config, build_config
from fedpeft.config.renamed import current_name
from fedpeft.data import Example, read_written
from fedpeft.errors import FedPeftError
from fedpeft.evaluation.held_out import HeldOut, tokens
from fedpeft.evaluation.metrics import Evaluation
from fedpeft.rng import stream
from fedpeft.runstore import RunStore, write_json
from fedpeft.training import Extras, LocalPlan, PerformanceFlags, train_local
from fedpeft_simulations.baselines import result_file
from fedpeft_simulations.federation_run import run


def run_baselines(store: RunStore) -> None:
    """Run the baselines that have no result yet, one after the other."""
    baselines = {"local_only": _local_only, "centralised": _centralised, "private": _private}
    for baseline in store.config.run.baselines:
        if not (file := result_file(store, baseline)).exists():
            write_json(file, baselines[baseline](store))


def private_config(config: Config) -> Config:
    """The settings of the private baseline: the run's, changed by ``run.private``, without baselines."""
    settings = config.model_dump(mode="json", exclude_none=True)
    settings["run"] |= {"baselines": [], "private": {}, "name": f"{config.run.name}-private"}
    for path, value in config.run.private.items():
        section, _, key = current_name(path).rpartition(".")
        table = settings
        for part in section.split("."):
            table = table.setdefault(part, {})
        table[key] = value
    return build_config(settings)


def _local_only(store: RunStore) -> dict[str, Any]:
    held_out = HeldOut.of(store)
    data = _node_data(store, held_out)
    scores = {name: _train_alone(held_out, examples, name, 1) for name, examples in data}
    accuracies = [score.accuracy for score in scores.values() if score.accuracy is not None]
    return {
        "loss": sum(score.loss for score in scores.values()) / len(scores),
        "accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        "nodes": {name: {"loss": s.loss, "accuracy": s.accuracy} for name, s in scores.items()},
    }


def _centralised(store: RunStore) -> dict[str, Any]:
    held_out = HeldOut.of(store)
    data = list(_node_data(store, held_out))
    pooled = [example for _, examples in data for example in examples]
    score = _train_alone(held_out, pooled, "centralised", len(data))
    return {"loss": score.loss, "accuracy": score.accuracy}


def _private(store: RunStore) -> dict[str, Any]:
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


def _node_data(store: RunStore, held_out: HeldOut) -> Iterator[tuple[str, Sequence[Example]]]:
    for home in store.homes:
        records = read_written(home / "train.jsonl", held_out.config.data)
        yield home.name, tokens(records, held_out.base, held_out.config, held_out.labels)


def _train_alone(held_out: HeldOut, examples: Sequence[Example], name: str, pooled: int) -> Evaluation:
    """Train as a federation of one: same steps and rates, batches ``pooled`` times as large."""
    federation, seed = held_out.config.federation, held_out.config.run.seed
    attached = attach(held_out.base, held_out.config.adapter, seed)
    extras = Extras(flags=PerformanceFlags.of(held_out.config.run))
    for round in range(1, federation.rounds + 1):
        plan = LocalPlan.of(federation, round)
        plan = replace(plan, batch_size=plan.batch_size * pooled)
        train_local(attached, examples, plan, stream(seed, round, name, "batches"), extras=extras)
    return held_out.score(attached)


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
        run_baselines(RunStore.open(Path(sys.argv[1])))
    except FedPeftError as error:
        sys.exit(f"error: {error}")
