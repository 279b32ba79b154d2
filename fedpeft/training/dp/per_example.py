"""Gradients of records or persons, clipped one by one and summed.

All engines give the same numbers. *batched* reads the gradients of many units from one backward pass through
hooks, *opacus* does so through those of Opacus; *loop* runs one backward pass per record, at its own length,
and holds one unit's gradient. `fedpeft.training.dp.engine_selection` says which one serves a model, or
refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.data import Batch
from fedpeft.errors import PrivacyError
from fedpeft.privacy.loss_share import LossShare
from fedpeft.training.dp.backward_passes import Rows, batched_rows, bounds_of, unit_row
from fedpeft.training.dp.engine_selection import HOOKS, Engine, engine_of
from fedpeft.training.modes import steady
from fedpeft_kernels.norms import squared_rows

if TYPE_CHECKING:
    from torch import Tensor

    from fedpeft.adapters import Attached
    from fedpeft.exchange.layout import Layout

__all__ = ["CLIP_MARGIN", "Engine", "JointClip", "clipped_sum", "engine_of"]

FloatVector64 = NDArray[np.float64]
Positions = NDArray[np.int64]
"""Increasing positions in the flat vector of trainable values."""

VALUES_AT_ONCE = 1 << 26
"""Most gradient values of a batch held at once (256 MiB in float32)."""

CLIP_MARGIN = 1e-6
"""Clipped norms end this much below the clip, above the rounding of float32 norms; entries of losses too."""


@dataclass(frozen=True)
class JointClip:
    """What bounds one unit.

    Attributes:
        gradient: L2 bound of its gradient.
        loss: how its loss becomes one more value; None: it does not.
    """

    gradient: float
    loss: LossShare | None = None

    @property
    def length(self) -> float:
        """L2 bound of a unit's gradient and loss together."""
        return self.gradient * (1.0 if self.loss is None else self.loss.growth)

    def entries(self, losses: Tensor) -> Tensor:
        """Losses of units as values of the sum, float64, shape ``(U,)``; what is not finite is the cap."""
        assert self.loss is not None
        cap, half = self.loss.cap, self.loss.cap / 2
        capped = torch.where(torch.isfinite(losses), losses.double(), cap).clamp(0, cap)
        return (capped - half) / half * (self.loss.share * self.gradient * (1 - CLIP_MARGIN))


def clipped_sum(
    attached: Attached,
    batch: Batch,
    clip: float | JointClip,
    units: NDArray[np.int64] | None = None,
    support: Positions | None = None,
    engine: Engine | None = None,
) -> tuple[FloatVector64, FloatVector64]:
    """Sum of the units' gradients, each clipped to L2 norm ``clip`` over the support.

    Adding or removing one unit changes the sum by at most ``clip``, or `JointClip.length`. A gradient that is
    not finite on the support counts as zero. A unit alone in its batch is always computed record by record,
    so that its size costs time, not memory.

    Args:
        attached: the model and its trainable parameters.
        batch: any number of records, also none.
        clip: L2 bound, above 0; a `JointClip` adds the units' losses as the sum's last value.
        units: the unit of each row, ascending, shape ``(B,)``; all of a unit's records are in this batch.
            None: each row is a unit.
        support: the public positions that may move; gradients are cut down to them before the norm.
            None: all.
        engine: default: whatever `engine_of` says.

    Returns:
        The sum on the support, float64, shape ``(K,)`` (``(layout.size,)`` without a support), with losses
        one value more; and the norms of the gradients before clipping, float64, shape ``(U,)``, inf or nan
        where one was not finite. Both are private until noise is added.

    Raises:
        PrivacyError: a parameter is trainable but not part of the layout, units are split, the support is
            not increasing, or a layer turns out not to see one row per example.
    """
    _refuse_strays(attached)
    bounds = bounds_of(units, len(batch))
    joint = JointClip(clip) if isinstance(clip, float | int) else clip
    total = _Total(places_of(attached.layout, support, batch.ids.device), joint, batch.ids.device)
    chosen = engine or engine_of(attached)
    with steady(attached.model):
        for rows, losses in _blocks(attached, batch, bounds, chosen):
            total.add(rows, losses)
    return total.values.cpu().numpy(), np.concatenate([np.zeros(0, np.float64), *total.norms])


@dataclass(frozen=True)
class Place:
    """The part of one tensor that is on the support.

    Attributes:
        start: where it begins in the sum.
        end: where it ends.
        inside: positions in the flattened tensor, int64, shape ``(end - start,)``; None: the whole tensor.
    """

    start: int
    end: int
    inside: Tensor | None

    def cut(self, rows: Tensor) -> Tensor:
        """The columns of ``(U, size)`` that are on the support."""
        return rows if self.inside is None else rows.index_select(1, self.inside)


def places_of(layout: Layout, support: Positions | None, device: torch.device) -> list[Place]:
    """The place of each tensor of a layout.

    Raises:
        PrivacyError: the support is not made of increasing positions of the flat vector.
    """
    offsets = layout.offsets.tolist()
    if support is None:
        return [Place(start, end, None) for start, end in pairwise(offsets)]
    if support.ndim != 1 or (np.diff(support, prepend=-1, append=layout.size) <= 0).any():
        raise PrivacyError(f"a support needs increasing positions below the {layout.size} trainable values")
    cuts = np.searchsorted(support, layout.offsets)
    inside = [support[a:b] - o for a, b, o in zip(cuts[:-1], cuts[1:], offsets[:-1], strict=True)]
    places = zip(cuts[:-1].tolist(), cuts[1:].tolist(), inside, strict=True)
    return [Place(start, end, torch.from_numpy(chosen).to(device)) for start, end, chosen in places]


@dataclass
class _Total:
    """The running sum of clipped gradients on the support, float64, on the device."""

    places: list[Place]
    clip: JointClip
    device: torch.device
    norms: list[FloatVector64] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = self.places[-1].end + (self.clip.loss is not None)
        self.values = torch.zeros(size, dtype=torch.float64, device=self.device)

    def add(self, rows: Rows, losses: Tensor) -> None:
        """Clip the gradients of U units over all tensors together; add them and the losses ``(U,)`` up."""
        count = len(losses)
        if self.clip.loss is not None:
            self.values[-1] += self.clip.entries(losses).sum()
        pairs = zip(self.places, rows, strict=True)
        parts = [
            (place, place.cut(row)) for place, row in pairs if row is not None and place.end > place.start
        ]
        squares = torch.zeros(count, dtype=torch.float64, device=self.device)
        for _, part in parts:
            squares += squared_rows(part)
        factors, lost = self._factors(squares.sqrt())
        for place, part in parts:
            finite = part if lost is None else part.masked_fill(lost[:, None], 0)
            self.values[place.start : place.end] += factors @ finite.double()

    def _factors(self, norms: Tensor) -> tuple[Tensor, Tensor | None]:
        """What each unit is multiplied by, float64, shape ``(U,)``, and which are not finite, if any."""
        self.norms.append(norms.cpu().numpy())
        factors = torch.clamp(self.clip.gradient * (1 - CLIP_MARGIN) / norms, max=1.0)
        lost = ~torch.isfinite(norms)
        return factors.masked_fill(lost, 0), lost if bool(lost.any()) else None


def _blocks(
    attached: Attached, batch: Batch, bounds: NDArray[np.int64], engine: Engine
) -> Iterator[tuple[Rows, Tensor]]:
    """Gradients and losses of units, of as many at once as the engine and the memory allow."""
    alone = engine.name == "loop" or batch.ids.shape[1] > engine.longest
    most = 1 if alone else max(1, VALUES_AT_ONCE // max(attached.layout.size, 1))
    first = 0
    while first < len(bounds) - 1:
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + most, "right")) - 1)
        part = batch.part(int(bounds[first]), int(bounds[last]))
        losses: list[Tensor] = []
        if last == first + 1:
            rows = unit_row(attached, part, engine.loss, losses)
        else:
            inside = bounds[first : last + 1] - bounds[first]
            rows = batched_rows(attached, part, inside, HOOKS[engine.name], losses)
        yield rows, torch.cat(losses)
        first = last


def _refuse_strays(attached: Attached) -> None:
    agreed = {id(parameter) for parameter in attached.parameters.values()}
    for name, parameter in attached.model.named_parameters():
        if parameter.requires_grad and id(parameter) not in agreed:
            raise PrivacyError(f"{name} is trainable but not exchanged, so no clip covers it; freeze it")
