"""The classes of records: what a classifier tells apart, or the first token of a short answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.data import Example
from fedpeft.data.batches import physical
from fedpeft.training.loss import class_logits, token_logits
from fedpeft.training.modes import steady
from fedpeft_attacks.views import NotApplicable, NotCovered

if TYPE_CHECKING:
    from fedpeft.adapters import Attached

MOST, EACH = 64, 3
"""Classes at most, and auxiliary records of a class on average at least: else answers are free text."""

_TOKENS = 4096
"""Padded tokens of a pass at most."""


@dataclass(frozen=True)
class Classes:
    """The classes that auxiliary records have.

    Attributes:
        names: label index, or first token of the answer, of each class, ascending.
        task: of the base.
        answers: a record of each class, whose answer stands for all that begin alike.
    """

    names: tuple[int, ...]
    task: str
    answers: tuple[Example, ...] = field(repr=False)

    @classmethod
    def of(cls, auxiliary: Sequence[Example], task: str) -> Classes | NotApplicable:
        """From records whose answers are known; or why their answers are no classes."""
        if not auxiliary:
            return NotCovered("there are no records that nobody trained on, whose labels would be known")
        if task == "causal-lm" and any(
            not 0 < example.prompt_length < len(example.ids) for example in auxiliary
        ):
            return NotApplicable("the records have no answers after their prompts, so there are no labels")
        names = sorted({_name_of(example, task) for example in auxiliary})
        if len(names) < 2 or len(names) > min(MOST, len(auxiliary) // EACH):
            return NotApplicable(
                f"{len(auxiliary)} records have {len(names)} different answers, so these are no labels"
            )
        first = {_name_of(example, task): example for example in reversed(auxiliary)}
        return cls(tuple(names), task, tuple(first[name] for name in names))

    def indices(self, examples: Sequence[Example]) -> NDArray[np.int64]:
        """Class of each record, -1 where auxiliary records have none like it; int64, shape ``(n,)``."""
        places = {name: place for place, name in enumerate(self.names)}
        return np.array([places.get(_name_of(example, self.task), -1) for example in examples], np.int64)

    def shares(self, examples: Sequence[Example]) -> NDArray[np.float64]:
        """Share of each class among records of known classes, float64, shape ``(classes,)``."""
        indices = self.indices(examples)
        counts = np.bincount(indices[indices >= 0], minlength=len(self.names))
        return counts / max(counts.sum(), 1)

    def answered(self, text: Example) -> Iterator[Example]:
        """A record with the answer of each class in place of its own, in the order of the classes."""
        for name, answer in zip(self.names, self.answers, strict=True):
            if self.task != "causal-lm":
                yield Example(text.ids, text.weights, name)
                continue
            end, start = text.prompt_length, answer.prompt_length
            ids = np.concatenate([text.ids[:end], answer.ids[start:]])
            weights = np.concatenate([text.weights[:end], answer.weights[start:]])
            yield Example(ids, weights, prompt_length=end)

    def logits(self, attached: Attached, examples: Sequence[Example]) -> NDArray[np.float64]:
        """Log-probabilities of the classes for the text of records alone, float64, shape ``(n, classes)``.

        The answers of the records are not looked at: no pass sees them.
        """
        texts = [_text_of(example, self.task) for example in examples]
        order = sorted(range(len(texts)), key=lambda place: len(texts[place].ids))
        rows = np.empty((len(texts), len(self.names)))
        done = 0
        with torch.no_grad(), steady(attached.model):
            for batch in physical(attached.model, [texts[place] for place in order], _TOKENS):
                last = torch.arange(len(batch), device=batch.ids.device)
                scores = (
                    token_logits(attached.model, batch.ids, last, batch.lengths - 1)
                    if self.task == "causal-lm"
                    else class_logits(attached.model, batch)
                )
                chosen = torch.log_softmax(scores.float(), -1)[:, list(self.names)]
                rows[order[done : done + len(batch)]] = chosen.cpu().numpy()
                done += len(batch)
        return rows


def _name_of(example: Example, task: str) -> int:
    return int(example.ids[example.prompt_length]) if task == "causal-lm" else example.label_index


def _text_of(example: Example, task: str) -> Example:
    """A record without its answer."""
    if task != "causal-lm":
        return Example(example.ids, example.weights)
    length = example.prompt_length
    return Example(example.ids[:length], example.weights[:length])
