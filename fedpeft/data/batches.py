"""Which examples a step sees, and how many go through the model at once, padded to one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.tokens import Example

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right; causal models need no attention mask for it.

    Attributes:
        ids: int64, shape ``(B, T)``.
        weights: float32, shape ``(B, T)``; 0 on padding.
        lengths: int64, shape ``(B,)``, tokens before the padding.
        targets: int64, shape ``(B,)``, the label index or -1.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    def part(self, start: int, end: int) -> Batch:
        """The examples ``start:end``, with their padding."""
        rows = slice(start, end)
        return Batch(self.ids[rows], self.weights[rows], self.lengths[rows], self.targets[rows])


def epochs(count: int, batch_size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Endless batches of fixed size, without replacement within an epoch; the remainder is left out.

    Fewer examples than ``batch_size`` make one batch of all. Only ``rng`` decides, so a caller can replay it.
    """
    size = min(batch_size, count)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def collate(examples: Sequence[Example], pad_id: int, device: str | torch.device = "cpu") -> Batch:
    """Pad examples on the right to one batch on a device."""
    import torch

    lengths = np.array([len(example.ids) for example in examples], dtype=np.int64)
    shape = (len(examples), int(lengths.max(initial=0)))
    ids, weights = np.full(shape, pad_id, np.int64), np.zeros(shape, np.float32)
    for row, example in enumerate(examples):
        ids[row, : lengths[row]] = example.ids
        weights[row, : lengths[row]] = example.weights
    targets = np.array([example.label_index for example in examples], dtype=np.int64)
    parts = (torch.from_numpy(array).to(device) for array in (ids, weights, lengths, targets))
    return Batch(*parts)


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
