"""Which examples a step sees, and how many go through the model at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.data import Batch, Example, collate


def epochs(count: int, batch_size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Endless batches of fixed size, without replacement within an epoch; the remainder is left out.

    Fewer examples than ``batch_size`` make one batch of all. Only ``rng`` decides, so a caller can replay it.
    """
    size = min(batch_size, count)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def gather(model: Any, examples: Sequence[Example]) -> Batch:
    """One batch on the model's device, padded with the token that its configuration names, else 0."""
    pad = model.config.get_text_config().pad_token_id
    return collate(examples, 0 if pad is None or pad < 0 else pad, next(model.parameters()).device)


def physical(model: Any, examples: Sequence[Example], tokens: int) -> Iterator[Batch]:
    """Batches, shortest examples first, of at most ``tokens`` padded tokens (or one example) each.

    No example is cut or left out; padding bears no loss.
    """
    for batch, _ in whole_units(model, [[example] for example in examples], tokens):
        yield batch


def whole_units(
    model: Any, units: Sequence[Sequence[Example]], tokens: int
) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
    """Batches as `physical` makes them, of units that are never split: at most ``tokens`` or one unit each.

    Yields:
        A batch, and the unit of each of its rows, ascending from 0, int64, shape ``(B,)``.
    """
    ordered = sorted((unit for unit in units if unit), key=_longest)
    start = 0
    while start < len(ordered):
        end, rows = start + 1, len(ordered[start])
        while end < len(ordered) and _longest(ordered[end]) * (rows + len(ordered[end])) <= tokens:
            rows += len(ordered[end])
            end += 1
        chosen = ordered[start:end]
        owners = np.repeat(np.arange(len(chosen)), [len(unit) for unit in chosen])
        yield gather(model, [example for unit in chosen for example in unit]), owners
        start = end


def _longest(unit: Sequence[Example]) -> int:
    return max(len(example.ids) for example in unit)
