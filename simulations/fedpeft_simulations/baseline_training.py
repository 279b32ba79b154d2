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
from fedpeft.progress_reports import at, each
from fedpeft.rng import stream
from fedpeft.runstore import RunStore, read_json, write_json

if TYPE_CHECKING:
    from fedpeft.evaluation.metrics import Evaluation


def _local_only(store: RunStore) -> dict[str, Any]:
    held_out = HeldOut.of(store)
    nodes: dict[str, dict[str, Any]] = {}
    for name, examples in each(list(_node_data(store, held_out)), "organisation alone"):
        file = store.path / "arms" / f"local_only-{name}.json"
        if not file.exists():  # else a baseline that was killed goes on
            score = _train_alone(held_out, examples, name, 1)
            write_predictions(store, f"local_only-{name}", score)
            write_json(file, score.figures)
        nodes[name] = read_json(file, {})
    means = {
        key: _mean([figures[key] for figures in nodes.values()]) for key in ("loss", "accuracy", "macro_f1")
    }
    return {**means, "nodes": nodes}


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
