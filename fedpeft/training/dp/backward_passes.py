"""Gradients of units, one per row, and their losses: from one pass for many units, or one per record.

The model is `steady`, and each pass begins from the state that it had at the entry. A unit is one record, or
the records of one person, whose loss is the mean of its records' losses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.data import Batch
from fedpeft.errors import PrivacyError
from fedpeft.training.dp.linear_hooks import Recorder
from fedpeft.training.dp.opacus_hooks import OpacusRecorder
from fedpeft.training.loss import Loss, per_example_loss
from fedpeft.training.modes import forget

if TYPE_CHECKING:
    from torch import Tensor

    from fedpeft.adapters import Attached

Rows = list["Tensor | None"]
"""Per tensor of the layout the gradients of U units, float32, shape ``(U, size)``; None: all are zero."""


def bounds_of(units: NDArray[np.int64] | None, count: int) -> NDArray[np.int64]:
    """Where each unit's rows begin and, last, the end: int64, shape ``(U + 1,)``; None: a row is a unit.

    Raises:
        PrivacyError: not one unit per row, or the rows of a unit do not stand together.
    """
    if units is None:
        return np.arange(count + 1)
    steps = np.diff(units)
    if units.shape != (count,) or (steps < 0).any():
        raise PrivacyError(f"{count} rows need one unit each, in ascending order, to be clipped together")
    return np.concatenate([[0], np.flatnonzero(steps) + 1, [count]]) if count else np.zeros(1, np.int64)


def batched_rows(
    attached: Attached,
    batch: Batch,
    bounds: NDArray[np.int64],
    hooks: type[Recorder | OpacusRecorder] = Recorder,
    losses: list[Tensor] | None = None,
) -> Rows:
    """Gradients of all units of a batch, from one pass through hooks; right only where the gates say so.

    The units' losses, float32, shape ``(U,)``, are appended to ``losses``, if it is given.
    """
    counts = torch.from_numpy(np.diff(bounds)).to(batch.ids.device)
    recorder = hooks(attached.model, attached.parameters, len(batch))
    with recorder:
        shares = torch.repeat_interleave(1 / counts, counts)
        weighted = per_example_loss(attached.model, batch) * shares
        _backward(weighted)
        forget(attached.model)
    owners = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    if losses is not None:
        losses.append(weighted.new_zeros(len(counts)).index_add_(0, owners, weighted.detach()))
    return [
        _joined(recorder.gradients.pop(name, None), owners, len(counts)) for name in attached.layout.names
    ]


def _joined(gradients: Tensor | None, owners: Tensor, units: int) -> Tensor | None:
    if gradients is None:
        return None
    rows = gradients.flatten(1)
    return rows if units == len(rows) else rows.new_zeros(units, rows.shape[1]).index_add_(0, owners, rows)


def unit_row(
    attached: Attached, batch: Batch, loss: Loss | None = None, losses: list[Tensor] | None = None
) -> Rows:
    """The gradient of the one unit that the whole batch is, from one pass per record, cut to its own length.

    Right for any model that passes the gates of the loop: no pass has seen another record, nor its length.
    Activations of one record live at a time, and one gradient for the whole unit. The unit's loss, shape
    ``(1,)``, is appended to ``losses``, if it is given.
    """
    clear(attached)
    total = torch.zeros(1, device=batch.ids.device)
    try:
        for row in range(len(batch)):
            length = max(int(batch.lengths[row]), 1)
            single = _trimmed(batch.part(row, row + 1), length)
            weighted = (loss or per_example_loss)(attached.model, single) / len(batch)
            _backward(weighted)
            forget(attached.model)
            total += weighted.detach()
        if losses is not None:
            losses.append(total)
        return [_taken(attached.parameters[name]) for name in attached.layout.names]
    finally:
        clear(attached)


def clear(attached: Attached) -> None:
    """Drop the gradients of the trainables."""
    for parameter in attached.parameters.values():
        parameter.grad = None


def _taken(parameter: torch.nn.Parameter) -> Tensor | None:
    return None if parameter.grad is None else parameter.grad.to_dense().float().reshape(1, -1)


def _backward(losses: Tensor) -> None:
    if losses.requires_grad:  # an adapter that these tokens do not wake leaves none
        losses.sum().backward()


def _trimmed(batch: Batch, length: int) -> Batch:
    return Batch(batch.ids[:, :length], batch.weights[:, :length], batch.lengths, batch.targets)
