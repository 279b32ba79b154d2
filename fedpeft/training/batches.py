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
    ordered = sorted(examples, key=lambda example: len(example.ids))
    start = 0
    while start < len(ordered):
        end = start + 1
        while end < len(ordered) and len(ordered[end].ids) * (end + 1 - start) <= tokens:
            end += 1
        yield gather(model, ordered[start:end])
        start = end
