"""Baselines that are trained here: what each organisation reaches alone, and all data in one place.

Each trains with the same steps, batches and learning rates as the federation, and is evaluated on the same
records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedpeft.adapters import attach
from fedpeft.data import Example, read_written
from fedpeft.evaluation.held_out import HeldOut, tokens, write_predictions
from fedpeft.progress_reports import at
from fedpeft.rng import stream
from fedpeft.runstore import RunStore

if TYPE_CHECKING:
    from fedpeft.evaluation.metrics import Evaluation


def _local_only(store: RunStore) -> dict[str, Any]:
    held_out = HeldOut.of(store)
    data = _node_data(store, held_out)
    scores = {name: _train_alone(held_out, examples, name, 1) for name, examples in data}
    for name, score in scores.items():
        write_predictions(store, f"local_only-{name}", score)
    return {
        "loss": sum(score.loss for score in scores.values()) / len(scores),
        "accuracy": _mean([score.accuracy for score in scores.values()]),
        "macro_f1": _mean([score.macro_f1 for score in scores.values()]),
        "nodes": {name: score.figures for name, score in scores.items()},
    }


def _centralised(store: RunStore) -> dict[str, Any]:
    held_out = HeldOut.of(store)
    data = list(_node_data(store, held_out))
    pooled = [example for _, examples in data for example in examples]
    score = _train_alone(held_out, pooled, "centralised", len(data))
    write_predictions(store, "centralised", score)
    return score.figures


def _mean(scores: Sequence[float | None]) -> float | None:
    """Of all; None where there are no labels, and so no scores."""
    values = [score for score in scores if score is not None]
    return sum(values) / len(values) if values else None


def _node_data(store: RunStore, held_out: HeldOut) -> Iterator[tuple[str, Sequence[Example]]]:
    for home in store.homes:
        records = read_written(home / "train.jsonl", held_out.config.data)
        yield home.name, tokens(records, held_out.base, held_out.config, held_out.labels)


def _train_alone(held_out: HeldOut, examples: Sequence[Example], name: str, pooled: int) -> Evaluation:
    """Train as a federation of one: same steps and rates, batches ``pooled`` times as large."""
    from fedpeft.training import Extras, LocalPlan, PerformanceFlags, train_local

    federation, seed = held_out.config.federation, held_out.config.run.seed
    attached = attach(held_out.base, held_out.config.adapter, seed)
    extras = Extras(flags=PerformanceFlags.of(held_out.config.run))
    for round in range(1, federation.rounds + 1):
        at("round of a baseline", round - 1, federation.rounds)
        plan = LocalPlan.of(federation, round)
        plan = replace(plan, batch_size=plan.batch_size * pooled)
        train_local(attached, examples, plan, stream(seed, round, name, "batches"), extras=extras)
    at("round of a baseline", federation.rounds, federation.rounds)
    return held_out.score(attached)


TRAINED = {"local_only": _local_only, "centralised": _centralised}
"""What computes each of them."""
