"""An adapter beside its base on held-out records, answers that both generate among them."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.errors import ConfigError
from fedpeft.evaluation.adapter_folder import Loaded, Subject, load_base_of
from fedpeft.evaluation.answers import AnswerFigures
from fedpeft.evaluation.metrics import Evaluation
from fedpeft.progress_reports import at


@dataclass(frozen=True)
class Figures:
    """What one model does on held-out records.

    Attributes:
        evaluation: loss and, of labels, accuracy.
        answers: of what it generates.
    """

    evaluation: Evaluation
    answers: AnswerFigures


@dataclass(frozen=True)
class Comparison:
    """Figures of an adapter and of its base.

    Attributes:
        adapter: with the adapter.
        base: without; None where records have tokens of the adapter's own, which the base does not know.
    """

    adapter: Figures
    base: Figures | None


def compare(subject: Subject, max_new_tokens: int) -> Comparison:
    """Evaluate a base and, once the adapter is on it, both, with generated answers.

    Raises:
        ConfigError: a classifier, which generates nothing; prompts too long for the base; otherwise as
            `load_base_of` and `Loaded.adapted`.
        DataError, BaseModelError: records or base cannot be read.
    """
    if subject.base.task != "causal-lm":
        raise ConfigError(
            f"{str(subject.folder)!r} is a sequence classifier, which generates no answers: leave out "
            "--generate"
        )
    loaded = load_base_of(subject)
    rows = loaded.model.get_input_embeddings().weight.shape[0]
    is_known = max((int(example.ids.max()) for example in loaded.examples), default=0) < rows
    base = _figures(loaded, "base", max_new_tokens) if is_known else None
    return Comparison(_figures(loaded.adapted(), "adapter", max_new_tokens), base)


def _figures(loaded: Loaded, name: str, max_new_tokens: int) -> Figures:
    at(f"figures of the {name}")
    return Figures(loaded.figures(), loaded.answers(max_new_tokens))
