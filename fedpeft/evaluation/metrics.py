"""Held-out loss and label accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fedpeft.data import Batch, Example
from fedpeft.data.batches import physical
from fedpeft.errors import DataError
from fedpeft.progress_reports import at
from fedpeft.training.loss import (
    causal_loss,
    class_logits,
    per_example_loss,
    task_of,
    token_logits,
    weighted_positions,
)
from fedpeft.training.modes import steady

TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 65536}
"""Padded tokens of one pass, by device; on CPUs a small pass stays in the cache and is a third faster."""

Completion = tuple[int, ...]
Classes = NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """Held-out figures.

    Attributes:
        loss: mean over examples of the per-example loss.
        accuracy: share of examples whose true completion beats every other label; None without labels.
        count: number of examples.
        macro_f1: `macro_f1` of the labels; None without labels.
        labels: label index of each example, in their order; empty without labels.
        predicted: the label that wins for each.
    """

    loss: float
    accuracy: float | None
    count: int
    macro_f1: float | None = None
    labels: tuple[int, ...] = ()
    predicted: tuple[int, ...] = ()

    @property
    def figures(self) -> dict[str, float | None]:
        """What events and summaries hold of it."""
        return {"loss": self.loss, "accuracy": self.accuracy, "macro_f1": self.macro_f1}


def macro_f1(labels: Classes, predicted: Classes) -> float:
    """Unweighted mean of F1 over the classes that occur among labels or predictions.

    F1 of a class is 2 TP / (2 TP + FP + FN); a class that is never predicted counts 0. Uneven classes weigh
    alike, so that naming the largest always scores low.

    Args:
        labels: true class of each example, int, shape ``(N,)``.
        predicted: shape ``(N,)``.
    """
    scores = [
        2
        * np.sum((labels == label) & (predicted == label))
        / (np.sum(labels == label) + np.sum(predicted == label))
        for label in np.union1d(labels, predicted)
    ]
    return float(np.mean(scores))


def evaluate(
    attached_or_model: Any, examples: Sequence[Example], labels: Sequence[str] | None, tokenizer: Any
) -> Evaluation:
    """Loss and label accuracy on examples, batched by length, without gradients.

    A label wins by its first token where all labels begin differently, and otherwise by the log
    probability of its whole completion.

    Args:
        attached_or_model: an attached adapter or a plain model.
        examples: the held-out examples; with labels each carries its label index.
        labels: the classes in agreed order; None evaluates the loss alone.
        tokenizer: spells labels that occur in no example.

    Raises:
        DataError: no examples, or an example without a label index although labels are given.
    """
    model = attached_or_model if isinstance(attached_or_model, torch.nn.Module) else attached_or_model.model
    if not examples:
        raise DataError("nothing to evaluate: the held-out set is empty")
    if labels and any(not 0 <= example.label_index < len(labels) for example in examples):
        raise DataError(
            "an example to evaluate carries no label; pass labels=None to evaluate the loss alone"
        )
    with steady(model), torch.no_grad():
        return _evaluate(model, examples, labels, tokenizer)


def _evaluate(
    model: Any, examples: Sequence[Example], labels: Sequence[str] | None, tokenizer: Any
) -> Evaluation:
    device = str(next(model.parameters()).device)
    if task_of(model) == "sequence-classification":
        return _evaluate_classes(model, examples, device)
    spelled = spellings(examples, labels, tokenizer) if labels else []
    firsts = [spelling[0] for spelling in spelled]
    loss, predicted = _one_pass(model, examples, firsts, device)
    if not labels:
        return Evaluation(loss, None, len(examples))
    if len(set(firsts)) < len(firsts):
        predicted = _most_probable(model, examples, spelled, device)
    return _labelled(loss, examples, predicted)


def _labelled(loss: float, examples: Sequence[Example], predicted: Classes) -> Evaluation:
    labels = np.array([example.label_index for example in examples], np.int64)
    return Evaluation(
        loss,
        float(np.mean(labels == predicted)),
        len(examples),
        macro_f1(labels, predicted),
        tuple(labels.tolist()),
        tuple(predicted.tolist()),
    )


def _numbered(examples: Sequence[Example]) -> list[Example]:
    """Examples that carry their place as target: passes are made in the order of lengths."""
    return [replace(example, label_index=i) for i, example in enumerate(examples)]


def _one_pass(
    model: Any, examples: Sequence[Example], firsts: list[int], device: str
) -> tuple[float, Classes]:
    """Mean loss, and the label whose first token is the most probable one after each prompt."""
    candidates, losses = torch.tensor(firsts, device=device), 0.0
    before = torch.tensor([max(example.prompt_length, 1) - 1 for example in examples], device=device)
    predicted = np.full(len(examples), -1, np.int64)
    for batch in _passes(model, _numbered(examples)):
        rows, columns = weighted_positions(batch)
        logits = token_logits(model, batch.ids, rows, columns)
        losses += float(causal_loss(batch, rows, columns, logits).double().sum())
        if firsts:
            starts = columns == before[batch.targets[rows]]
            best = logits[starts][:, candidates].argmax(1)
            predicted[batch.targets[rows[starts]].cpu().numpy()] = best.cpu().numpy()
    return losses / len(examples), predicted


def _evaluate_classes(model: Any, examples: Sequence[Example], device: str) -> Evaluation:
    loss, predicted = 0.0, np.zeros(len(examples), np.int64)
    labels = torch.tensor([example.label_index for example in examples], device=device)
    for batch in _passes(model, _numbered(examples)):
        logits = class_logits(model, batch).float()
        loss += float(functional.cross_entropy(logits, labels[batch.targets], reduction="sum"))
        predicted[batch.targets.cpu().numpy()] = logits.argmax(1).cpu().numpy()
    return _labelled(loss / len(examples), examples, predicted)


def _passes(model: Any, examples: Sequence[Example]) -> Iterator[Batch]:
    device = next(model.parameters()).device.type
    done = 0
    for batch in physical(model, examples, TOKENS_AT_ONCE.get(device, TOKENS_AT_ONCE["cuda"])):
        at("held-out record", done, len(examples))
        yield batch
        done += len(batch.ids)
    at("held-out record", len(examples), len(examples))


def spellings(examples: Sequence[Example], labels: Sequence[str], tokenizer: Any) -> list[Completion]:
    """Token ids of each label: as its completion is most often spelled, else as the tokenizer spells it."""
    counters = [Counter[Completion]() for _ in labels]
    for example in examples:
        counters[example.label_index][completion(example)] += 1
    ends = {spelling[-1] for counter in counters for spelling in counter}
    end = tuple(ends) if ends == {tokenizer.eos_token_id} else ()
    return [
        max(sorted(counter), key=lambda spelling: counter[spelling])
        if counter
        else (*tokenizer(label, add_special_tokens=False)["input_ids"], *end)
        for counter, label in zip(counters, labels, strict=True)
    ]


def completion(example: Example) -> Completion:
    """The tokens after the prompt."""
    return tuple(int(token) for token in example.ids[example.prompt_length :])


def _most_probable(
    model: Any, examples: Sequence[Example], spelled: list[Completion], device: str
) -> Classes:
    """The label that is the most probable completion of each prompt."""
    scores = np.stack([_log_likelihoods(model, examples, spelling, device) for spelling in spelled], axis=1)
    return scores.argmax(1)


def _log_likelihoods(
    model: Any, examples: Sequence[Example], spelling: Completion, device: str
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Log probability of one completion after each prompt, float64, shape ``(examples,)``."""
    asked = [replace(_spelled(example, spelling), label_index=i) for i, example in enumerate(examples)]
    scores = np.zeros(len(examples), np.float64)
    for batch in _passes(model, asked):
        losses = per_example_loss(model, batch, "causal-lm") * len(spelling)
        scores[batch.targets.cpu().numpy()] = -losses.double().cpu().numpy()
    return scores


def _spelled(example: Example, spelling: Completion) -> Example:
    """The prompt followed by another completion, which alone bears weight."""
    prompt = example.ids[: max(example.prompt_length, 1)]
    ids = np.concatenate([prompt, np.array(spelling, np.int64)])
    weights = np.concatenate([np.zeros(len(prompt), np.float32), np.ones(len(spelling), np.float32)])
    return replace(example, ids=ids, weights=weights)
