"""Held-out figures of an exported adapter, loaded as any user of peft would load it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.adapters.merge import load_adapter, merge
from fedpeft.bases.load import load_apart
from fedpeft.bases.source import held_base
from fedpeft.config.models import BaseConfig, DataConfig, Task
from fedpeft.data import Record, read_records, read_written, tokenise
from fedpeft.errors import ConfigError
from fedpeft.evaluation.held_out import classes
from fedpeft.packing.peft_folder import read_config
from fedpeft.run_plan import num_classes
from fedpeft.runstore import RunStore

if TYPE_CHECKING:
    from fedpeft.evaluation.metrics import Evaluation


def evaluate_run(run: Path) -> Evaluation:
    """Judge the adapter of a finished run on the run's own global test.

    Raises:
        RunError: no run, or one without its test records.
        ConfigError: the run has not exported an adapter yet.
    """
    store = RunStore.open(run)
    config, labels = store.config, json.loads(store.labels.read_text())
    rows = read_written(store.test, config.data)
    return _evaluate(store.adapter, rows, config.base, config.data, labels)


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
    return _evaluate(folder, rows, chosen, data, classes(rows, chosen.task))


def merge_folder(folder: Path, out: Path, base: str | None) -> None:
    """Write base and adapter as one plain model folder; see `fedpeft.adapters.merge.merge`."""
    merge(folder, out, BaseConfig(model=base or named_base(folder)))


def base_of(folder: Path, base: str | None) -> BaseConfig:
    """The base that an adapter folder is for, with the head that its task needs.

    Args:
        folder: an adapter folder of any peft method.
        base: model folder or id; None: the one that the adapter names.

    Raises:
        ConfigError, BaseModelError: as `named_base`.
    """
    classifies = read_config(folder).get("task_type") == "SEQ_CLS"
    task: Task = "sequence-classification" if classifies else "causal-lm"
    return BaseConfig(model=base or named_base(folder), task=task)


def named_base(folder: Path) -> str:
    """The base that an adapter folder names, where it is on this machine; nothing is fetched for a stranger.

    Raises:
        ConfigError: the folder holds no adapter, or one that names no base.
        BaseModelError: the base is not here.
    """
    name = read_config(folder).get("base_model_name_or_path")
    if not name:
        raise ConfigError(f"the adapter in {str(folder)!r} names no base; give --base")
    return held_base(str(name))


def _evaluate(
    folder: Path, rows: Sequence[Record], base: BaseConfig, data: DataConfig, labels: list[str]
) -> Evaluation:
    from fedpeft.evaluation.metrics import evaluate

    loaded = load_apart(base, num_classes(base, labels))
    examples = tokenise(rows, loaded.tokenizer, data, base.task, labels or None)
    return evaluate(load_adapter(loaded.model, folder), examples, labels or None, loaded.tokenizer)
