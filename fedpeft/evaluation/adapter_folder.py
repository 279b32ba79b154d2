"""Held-out figures of an exported adapter, loaded as any user of peft would load it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.adapters.load_folder import head_rows, load_adapter, tokenizer_of
from fedpeft.adapters.merge import merge
from fedpeft.bases.load import load_apart
from fedpeft.bases.probe import check_lengths
from fedpeft.bases.source import held_base
from fedpeft.config.models import BaseConfig, DataConfig, Task
from fedpeft.data import Example, Record, read_records, read_written, tokenise
from fedpeft.errors import ConfigError
from fedpeft.evaluation.held_out import classes
from fedpeft.packing.peft_folder import check_weights, read_config
from fedpeft.run_plan import num_classes
from fedpeft.runstore import RunStore

if TYPE_CHECKING:
    from fedpeft.evaluation.metrics import Evaluation

_TASKS: dict[object, Task] = {
    None: "causal-lm",
    "CAUSAL_LM": "causal-lm",
    "SEQ_CLS": "sequence-classification",
}


def evaluate_run(run: Path) -> Evaluation:
    """Judge the adapter of a finished run on the run's own global test.

    Raises:
        RunError: no run, or one without its test records.
        ConfigError: the run has not exported an adapter yet.
    """
    store = RunStore.open(run)
    config, labels = store.config, json.loads(store.labels.read_text())
    rows = read_written(store.test, config.data)
    return load_folder(store.adapter, rows, config.base, config.data, labels).figures()


def evaluate_folder(folder: Path, records: Path, base: str | None, data: DataConfig) -> Evaluation:
    """Judge an adapter folder on records.

    Args:
        folder: an adapter folder of any peft method.
        records: JSONL, CSV, Parquet or a datasets folder.
        base: model folder or id; None: the one that the adapter names.
        data: columns and template of the records.

    Raises:
        ConfigError: no adapter in the folder, or one that does not fit the base.
        DataError, BaseModelError: records or base cannot be read.
    """
    chosen, rows = base_of(folder, base), read_records(records, data)
    return load_folder(folder, rows, chosen, data, classes(rows, chosen.task)).figures()


def merge_folder(folder: Path, out: Path, base: str | None) -> None:
    """Write base and adapter as one plain model folder; see `fedpeft.adapters.merge.merge`."""
    merge(folder, out, base_of(folder, base))


def base_of(folder: Path, base: str | None) -> BaseConfig:
    """The base that an adapter folder is for, with the head that its task needs.

    Args:
        folder: an adapter folder of any peft method.
        base: model folder or id; None: the one that the adapter names.

    Raises:
        ConfigError, BaseModelError: as `named_base`, or a task for which there is no model here.
    """
    kind = read_config(folder).get("task_type")
    if kind not in _TASKS:
        raise ConfigError(
            f"the adapter in {str(folder)!r} is for {str(kind)[:60]}; adapters for CAUSAL_LM and SEQ_CLS are "
            "evaluated and merged"
        )
    task = _TASKS[kind]
    return BaseConfig(model=base or named_base(folder), task=task)


def named_base(folder: Path) -> str:
    """The base that an adapter folder names, where it is on this machine; nothing is fetched for a stranger.

    Raises:
        ConfigError: the folder holds no adapter, or one that names no base.
        BaseModelError: the base is not here.
    """
    if (folder.parent / "base" / "config.json").is_file() and (folder.parent / "config.toml").is_file():
        return str(folder.parent / "base")  # of a run: its adapter names it from where the run was made
    config = read_config(folder)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not name:
        raise ConfigError(f"the adapter in {str(folder)!r} names no base; give --base")
    return held_base(str(name), None if revision is None else str(revision))


@dataclass(frozen=True)
class Loaded:
    """An adapter folder on its base, and records to evaluate it on.

    Attributes:
        model: the peft model.
        tokenizer: of the adapter folder, else of the base.
        examples: the records.
        labels: their classes, of a classifier in the order of its head; None evaluates the loss alone.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    examples: Sequence[Example] = field(repr=False)
    labels: Sequence[str] | None

    def figures(self) -> Evaluation:
        """Held-out figures of the adapter as it now is."""
        from fedpeft.evaluation.metrics import evaluate

        return evaluate(self.model, self.examples, self.labels, self.tokenizer)


def load_folder(
    folder: Path, rows: Sequence[Record], base: BaseConfig, data: DataConfig, labels: Sequence[str]
) -> Loaded:
    """Load an adapter folder and records.

    Args:
        folder: an adapter folder of any peft method.
        rows: the records.
        base: the base.
        data: columns and template of the records.
        labels: the classes of the records; empty for free text.

    Raises:
        ConfigError: the adapter does not fit the base, or its head not the labels.
        ExchangeError: the weights of the adapter are placeholders.
        DataError, BaseModelError: records cannot be tokenised, or the base not be loaded.
    """
    check_weights(folder)
    if base.task == "sequence-classification" and (head := head_rows(folder)):
        labels = _classes_of_head(folder, labels, head)
    loaded = load_apart(base, num_classes(base, labels))
    tokenizer = tokenizer_of(folder, loaded)
    examples = tokenise(rows, tokenizer, data, base.task, labels or None)
    check_lengths(loaded.model, base.model, (len(example.ids) for example in examples))
    return Loaded(load_adapter(loaded.model, folder), tokenizer, examples, labels or None)


def _classes_of_head(folder: Path, labels: Sequence[str], head: int) -> Sequence[str]:
    """As many classes as a head has: the labels of the records, or the numbers that they are."""
    if len(labels) == head:
        return labels
    numbers = [str(number) for number in range(head)]
    if set(labels) <= set(numbers):
        return numbers
    raise ConfigError(
        f"the head of {str(folder)!r} has {head} classes, and the records {len(labels)} labels: "
        f"{', '.join(labels)[:100]}; give records with all labels, or with the numbers of the classes"
    )
