"""How probable a model finds a stretch of a record, given what stands before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.data import Example
from fedpeft.data.batches import physical
from fedpeft.training.loss import token_logits, weighted_positions
from fedpeft.training.modes import steady

TOKENS_AT_ONCE = 2048


@dataclass(frozen=True)
class Span:
    """Tokens ``start:end`` of a record; ``start`` is at least 1."""

    ids: tuple[int, ...]
    start: int
    end: int

    @property
    def tokens(self) -> tuple[int, ...]:
        """The stretch itself."""
        return self.ids[self.start : self.end]


@dataclass(frozen=True)
class Reading:
    """What a model says of spans.

    Attributes:
        log_p: natural logarithm of the probability of each whole span, float64, shape ``(spans,)``.
        greedy: whether each token of a span is the model's first choice, so that greedy decoding of what
            stands before the span writes it out; bool, shape ``(spans,)``.
    """

    log_p: NDArray[np.float64]
    greedy: NDArray[np.bool_]


def read_spans(model: Any, spans: Sequence[Span]) -> Reading:
    """One pass over all spans, batched by length.

    Args:
        model: a causal language model, with or without adapter.
        spans: any number.
    """
    log_p, greedy = np.zeros(len(spans)), np.ones(len(spans), bool)
    examples = [_example(span, place) for place, span in enumerate(spans)]
    with steady(model), torch.no_grad():
        for batch in physical(model, examples, TOKENS_AT_ONCE):
            rows, columns = weighted_positions(batch)
            logits = token_logits(model, batch.ids, rows, columns).float()
            wanted, places = batch.ids[rows, columns + 1], batch.targets[rows].cpu().numpy()
            scores = logits.log_softmax(1).gather(1, wanted[:, None])[:, 0].double().cpu().numpy()
            np.add.at(log_p, places, scores)
            np.logical_and.at(greedy, places, (logits.argmax(1) == wanted).cpu().numpy())
    return Reading(log_p, greedy)


def read_continuations(model: Any, spans: Sequence[Span]) -> NDArray[np.float64]:
    """Log probability of spans that follow the very same tokens, which go through the model once.

    Args:
        model: a causal language model that can keep keys and values.
        spans: at least one; all have the same tokens before their start.

    Returns:
        Natural logarithms, float64, shape ``(spans,)``.
    """
    start, memory = spans[0].start, None
    lengths = torch.tensor([len(span.tokens) for span in spans])
    tails = torch.zeros(len(spans), int(lengths.max()) + 1, dtype=torch.int64)
    for row, span in zip(tails, spans, strict=True):
        row[: len(span.tokens) + 1] = torch.tensor(span.ids[start - 1 : span.end])
    device = next(model.parameters()).device
    with steady(model), torch.no_grad():
        if start > 1:
            shared = torch.tensor([spans[0].ids[: start - 1]], device=device)
            memory = model(input_ids=shared, use_cache=True).past_key_values
            memory.batch_repeat_interleave(len(spans))
        logits = model(input_ids=tails.to(device), past_key_values=memory, use_cache=True).logits
        scores = logits[:, :-1].float().log_softmax(2).gather(2, tails[:, 1:, None].to(device))[..., 0]
    inside = torch.arange(tails.shape[1] - 1) < lengths[:, None]
    return (scores.double().cpu() * inside).sum(1).numpy()


def differing(rows: Sequence[Sequence[int]]) -> list[Span]:
    """The spans in which records differ: from the first token that is not in all to the last one.

    Each span is at least one token long.

    Args:
        rows: token ids of records that are alike but for one stretch, at least two different ones.
    """
    shortest = min(map(len, rows))
    start = _agreeing(rows, shortest)
    end = _agreeing([row[::-1] for row in rows], shortest - start - 1)
    return [Span(tuple(row), start, len(row) - end) for row in rows]


def _agreeing(rows: Sequence[Sequence[int]], limit: int) -> int:
    """How many leading tokens all rows share, at most ``limit``."""
    columns = zip(*(row[:limit] for row in rows), strict=False)
    return next((place for place, column in enumerate(columns) if len(set(column)) > 1), limit)


def _example(span: Span, place: int) -> Example:
    weights = np.zeros(span.end, np.float32)
    weights[span.start :] = 1.0
    return replace(Example(np.asarray(span.ids[: span.end], np.int64), weights), label_index=place)
