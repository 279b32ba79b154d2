"""An adapter folder on its base with held-out records, loaded as any user of peft would load it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.adapters.load_folder import head_rows, load_adapter, tokenizer_of
from fedpeft.adapters.merge import merge
from fedpeft.bases.load import load_apart
from fedpeft.bases.probe import check_lengths
from fedpeft.bases.source import held_base
from fedpeft.config import Config
from fedpeft.config.models import BaseConfig, DataConfig, Task
from fedpeft.config.template import Template
from fedpeft.data import Example, Record, read_records, read_written, tokenise
from fedpeft.errors import ConfigError
from fedpeft.evaluation.held_out import classes, in_order_of_head
from fedpeft.packing.peft_folder import check_weights, read_config
from fedpeft.run_plan import num_classes
from fedpeft.runstore import RunStore

if TYPE_CHECKING:
    from fedpeft.evaluation.answers import AnswerFigures
    from fedpeft.evaluation.metrics import Evaluation

_TASKS: dict[object, Task] = {
    None: "causal-lm",
    "CAUSAL_LM": "causal-lm",
    "SEQ_CLS": "sequence-classification",
}
_CLASSES = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "CAUSAL_LM",  # bases that see; of other kinds loading says what is wrong
    "ForSequenceClassification": "SEQ_CLS",
}


@dataclass(frozen=True)
class Subject:
    """An adapter folder, its base, and records to evaluate it on; nothing is loaded yet.

    Attributes:
        folder: an adapter folder of any peft method.
        base: its base.
        rows: the records.
        data: their columns and template.
        labels: their classes; empty for free text.
    """

    folder: Path
    base: BaseConfig
    rows: Sequence[Record] = field(repr=False)
    data: DataConfig
    labels: Sequence[str]

    @classmethod
    def of_run(cls, run: Path, folder: Path | None = None) -> Subject:
        """The adapter of a finished run, or another folder, on the run's own global test.

        Raises:
            RunError: no run, or one without its test records.
        """
        store = RunStore.open(run)
        config, labels = store.config, json.loads(store.labels.read_text())
        rows = read_written(store.test, config.data)
        return cls(folder or store.adapter, base_of_run(config), rows, config.data, labels)

    @classmethod
    def of_folder(cls, folder: Path, records: Path, base: str | None, data: DataConfig) -> Subject:
        """An adapter folder and a file of records.

        Args:
            folder: an adapter folder of any peft method.
            records: JSONL, CSV, Parquet or a datasets folder.
            base: model folder or id; None: the one that the adapter names.
            data: columns and template of the records.

        Raises:
            ConfigError: no adapter in the folder, or one that names no base.
            DataError, BaseModelError: the records cannot be read, or the base is not here.
        """
        chosen, rows = base_of(folder, base), read_records(records, data)
        labels = in_order_of_head(classes(rows, chosen.task), chosen)
        return cls(folder, chosen, rows, data, labels)


def evaluate_run(run: Path) -> Evaluation:
    """Judge the adapter of a finished run on the run's own global test.

    Raises:
        RunError: no run, or one without its test records.
        ConfigError: the run has not exported an adapter yet.
    """
    return load_base_of(Subject.of_run(run)).adapted().figures()


def evaluate_folder(folder: Path, records: Path, base: str | None, data: DataConfig) -> Evaluation:
    """Judge an adapter folder on records; arguments as `Subject.of_folder`.

    Raises:
        ConfigError: no adapter in the folder, or one that does not fit the base.
        DataError, BaseModelError: records or base cannot be read.
    """
    return load_base_of(Subject.of_folder(folder, records, base, data)).adapted().figures()


def merge_folder(folder: Path, out: Path, base: str | None) -> None:
    """Write base and adapter as one plain model folder; see `fedpeft.adapters.merge.merge`."""
    merge(folder, out, base_of(folder, base))


def base_of_run(config: Config) -> BaseConfig:
    """The base of a run as it is evaluated: activations are not recomputed, since nothing is trained."""
    return config.base.model_copy(update={"gradient_checkpointing": False})


def base_of(folder: Path, base: str | None) -> BaseConfig:
    """The base that an adapter folder is for, with the head that its task needs.

    Args:
        folder: an adapter folder of any peft method.
        base: model folder or id; None: the one that the adapter names.

    Raises:
        ConfigError, BaseModelError: as `named_base`, or a task for which there is no model here.
    """
    task = _task_of(folder)
    check_weights(folder)
    return BaseConfig(model=base or named_base(folder), task=task)


def _task_of(folder: Path) -> Task:
    """What the adapter in a folder is for; peft names the class of the base where it was told no task."""
    config = read_config(folder)
    kind, mapping = config.get("task_type"), config.get("auto_mapping")
    if kind is None and isinstance(mapping, dict):
        name = str(dict[str, Any](mapping).get("base_model_class"))
        kind = next((task for end, task in _CLASSES.items() if name.endswith(end)), name)
    if not (kind is None or isinstance(kind, str)) or kind not in _TASKS:
        raise ConfigError(
            f"the adapter in {str(folder)!r} is for {str(kind)[:60]}; adapters for CAUSAL_LM and SEQ_CLS are "
            "evaluated and merged"
        )
    return _TASKS[kind]


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
    """A base, without the adapter or with it, and records to evaluate it on.

    Attributes:
        model: the base's model, or the peft model around it.
        tokenizer: of the adapter folder, else of the base.
        examples: the records.
        labels: their classes, of a classifier in the order of its head; None evaluates the loss alone.
        subject: what was loaded.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    examples: Sequence[Example] = field(repr=False)
    labels: Sequence[str] | None
    subject: Subject = field(repr=False)

    def adapted(self) -> Loaded:
        """The same with the adapter around the base's model, which is changed in place.

        Raises:
            ConfigError: the adapter does not fit the base.
        """
        return replace(self, model=load_adapter(self.model, self.subject.folder))

    def figures(self) -> Evaluation:
        """Held-out figures of the model as it now is."""
        from fedpeft.evaluation.metrics import evaluate

        return evaluate(self.model, self.examples, self.labels, self.tokenizer)

    def answers(self, max_new_tokens: int) -> AnswerFigures:
        """How good the answers are that the model generates (`fedpeft.evaluation.generation`).

        Raises:
            ConfigError: prompts and so many tokens are longer than the base has positions for.
        """
        from fedpeft.evaluation.answers import answer_figures
        from fedpeft.evaluation.generation import generate

        made = generate(self.model, self.tokenizer, self.examples, max_new_tokens)
        # what the template writes after an answer is trained, and is no part of it
        after = Template.parse(self.subject.data.template).constants[-1]
        texts = [text.partition(after)[0] if after else text for text in made.texts]
        return answer_figures(texts, [row.completion for row in self.subject.rows], made.unfinished)


def load_base_of(subject: Subject) -> Loaded:
    """Load a base, apart from the one that runs share, and the records as its examples.

    Raises:
        ConfigError: the head of the adapter does not fit the labels.
        ExchangeError: the weights of the adapter are placeholders.
        DataError, BaseModelError: records cannot be tokenised, or the base not be loaded.
    """
    base, labels, folder = subject.base, subject.labels, subject.folder
    check_weights(folder)
    if base.task == "sequence-classification" and (head := head_rows(folder)):
        labels = _classes_of_head(folder, labels, head)
    loaded = load_apart(base, num_classes(base, labels))
    tokenizer = tokenizer_of(folder, loaded)
    examples = tokenise(subject.rows, tokenizer, subject.data, base.task, labels or None)
    check_lengths(loaded.model, base.model, (len(example.ids) for example in examples))
    return Loaded(loaded.model, tokenizer, examples, labels or None, subject)


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
