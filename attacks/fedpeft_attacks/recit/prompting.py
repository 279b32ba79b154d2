"""Completions of a prefix by the base, filtered to tokens thought to be in the batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fedpeft.adapters import Attached

Row = tuple[int, ...]

_OUTSIDE = -15.0
"""Log-probability taken from a token outside the filter: it stays possible where nothing else fits."""


@dataclass(frozen=True)
class Filter:
    """What to write: tokens of the batch, up to the end token.

    Attributes:
        penalty: added to the log-probabilities, float32, shape ``(tokens,)``.
        end: id of the end token.
        longest: tokens of the longest record.
    """

    penalty: Tensor
    end: int
    longest: int


def filter_of(tokens: Iterable[int], vocabulary: int, end: int, longest: int) -> Filter:
    """Allow these tokens and the end token; no tokens at all allow every one."""
    penalty = torch.full((vocabulary,), _OUTSIDE)
    chosen = list(tokens)
    penalty[[*chosen, end] if chosen else slice(None)] = 0.0
    return Filter(penalty, end, longest)


def complete(
    attached: Attached, prefix: Row, count: int, allowed: Filter, draws: torch.Generator
) -> list[Row]:
    """Sample whole records that begin with a prefix; distinct, in the order of their tokens.

    Args:
        attached: the model that is prompted.
        prefix: token ids with the start token first.
        count: records to draw before duplicates are dropped.
        allowed: tokens and length.
        draws: the reproducible stream.
    """
    model, device = attached.model, attached.base.device
    rows = torch.tensor([prefix] * count, device=device)
    asked, memory = rows, None
    open_rows = torch.ones(count, dtype=torch.bool)
    while rows.shape[1] < allowed.longest and bool(open_rows.any()):
        with torch.no_grad():
            output = model(input_ids=asked, past_key_values=memory, use_cache=True)
        memory = output.past_key_values
        logits = output.logits[:, -1].float().cpu().log_softmax(dim=-1) + allowed.penalty
        drawn = torch.multinomial(logits.softmax(dim=-1), 1, generator=draws)
        drawn[~open_rows] = allowed.end
        open_rows &= drawn[:, 0] != allowed.end
        asked = drawn.to(device)
        rows = torch.cat([rows, asked], dim=1)
    return sorted({_cut(tuple(row), allowed.end, len(prefix)) for row in rows.tolist()})


def _cut(row: Row, end: int, start: int) -> Row:
    """The record up to its first end token after the prefix."""
    return row[: row.index(end, start) + 1] if end in row[start:] else row
