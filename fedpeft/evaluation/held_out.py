"""Held-out loss and accuracy of a run's states on its global test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpeft.bases import Base, base_folder, load_base
from fedpeft.bases.files import read_model_config
from fedpeft.bases.weights import class_names
from fedpeft.config import Config
from fedpeft.config.models import BaseConfig, Task
from fedpeft.data import Example, Record, label_set, read_written, tokenise
from fedpeft.run_plan import num_classes
from fedpeft.runstore import RunStore, write_json

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.evaluation.metrics import Evaluation

MAX_CLASSES = 64
RECORDS_PER_CLASS = 4
"""More distinct completions than `MAX_CLASSES`, or than one in so many records, are no labels; two are."""


def classes(records: Sequence[Record], task: Task) -> list[str]:
    """The distinct completions, sorted, where they are the labels of a task; nothing for free text.

    The one rule of every evaluation: simulated and deployed runs, adapter folders, packed adapters. A
    sequence classifier's completions are always labels. For free text no accuracy is reported.
    """
    labels, most = label_set(records), min(MAX_CLASSES, max(2, len(records) // RECORDS_PER_CLASS))
    if task == "sequence-classification":
        most = len(labels)
    return labels if 1 < len(labels) <= most else []


def in_order_of_head(labels: list[str], base: BaseConfig) -> list[str]:
    """The labels of a classifier in the order of the head that its base was trained with, if it was."""
    if base.task != "sequence-classification":
        return labels
    names = class_names(read_model_config(base_folder(base)))
    return names if sorted(names) == sorted(labels) else labels


def load_run_base(config: Config, labels: Sequence[str]) -> Base:
    """The base that a run's config names, with a head of as many classes as the data has.

    Raises:
        BaseModelError, ConfigError: as `load_base`; it must have positions for ``data.max_length``.
    """
    return load_base(config.base, num_classes(config.base, labels), config.data.max_length)


@dataclass(frozen=True)
class HeldOut:
    """The global test of one run, tokenised once.

    Attributes:
        base: the base of the run.
        config: the settings of the run.
        examples: the global test.
        labels: the classes of a labelled task; empty for free text.
    """

    base: Base
    config: Config
    examples: Sequence[Example]
    labels: list[str]

    @classmethod
    def of(cls, store: RunStore) -> HeldOut:
        """The global test of a prepared run.

        Raises:
            FedPeftError: its base or its records cannot be read.
        """
        config, labels = store.config, json.loads(store.labels.read_text())
        base = load_run_base(config, labels)
        records = read_written(store.test, config.data)
        return cls(base, config, tokens(records, base, config, labels), labels)

    def score(self, attached: Attached) -> Evaluation:
        """Loss and accuracy of the adapter as it now is."""
        from fedpeft.evaluation.metrics import evaluate

        return evaluate(attached, self.examples, self.labels or None, self.base.tokenizer)


def tokens(records: Sequence[Record], base: Base, config: Config, labels: Sequence[str]) -> list[Example]:
    """Records of a run as examples of its base."""
    return tokenise(records, base.tokenizer, config.data, config.base.task, labels or None)


def evaluation_event(arm: str, round: int, score: Evaluation) -> dict[str, Any]:
    """An evaluation as an event of ``metrics.jsonl``; arm ``base`` is the untrained base, at round 0."""
    return {"event": "evaluation", "arm": arm, "round": round, **score.figures}


def write_predictions(store: RunStore, name: str, score: Evaluation) -> None:
    """Keep what an adapter predicts for each record of the global test, as ``predictions/NAME.json``.

    Label indices in the order of the test's records, so that adapters can be compared record by record.
    """
    if score.labels:
        table = {"label": list(score.labels), "predicted": list(score.predicted)}
        write_json(store.path / "predictions" / f"{name}.json", table)
