"""ProjRes: does what a record makes the modules read lie in the row space of an update?

The gradient of a linear module combines the vectors that it read, so vectors of records behind an update lie
near the row space of the module's part of it. An adapter without trained input factor (frozen A, MiSS) shows
them through its fixed projection: there the rows have as many values as the rank, and once they fill that
space every record lies in it. The leading directions that hold most of an update are compared then.
Source: Deng et al. 2026 (arXiv:2604.21197), for full gradients of the first modules.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedpeft.adapters.attach import linear_modules_under
from fedpeft.exchange.layout import FloatVector
from fedpeft_attacks.memory.statistics import Floats

if TYPE_CHECKING:
    from fedpeft.adapters import Attached

ENERGY = 0.95
"""Share of a module's update that the directions hold which are its row space here."""


@dataclass(frozen=True)
class _Part:
    """The row spaces of one tensor in each column.

    Attributes:
        module: the module that the tensor belongs to.
        projection: what the module's input passes before, shape ``(rank, in)``; None: nothing.
        bases: orthonormal columns of all row spaces side by side, shape ``(width, directions)``.
        owners: the column of each direction, int64.
    """

    module: str
    projection: torch.Tensor | None
    bases: torch.Tensor
    owners: torch.Tensor


@dataclass(eq=False)
class Residuals:
    """The score of records against some observed updates.

    Attributes:
        parts: row spaces by tensor; none where no tensor shows what a module reads.
        columns: number of observed updates.
    """

    parts: tuple[_Part, ...]
    columns: int
    _seen: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    @classmethod
    def of(
        cls,
        observed: Sequence[FloatVector],
        attached: Attached,
        projections: Mapping[str, Any],
    ) -> Residuals:
        """Row spaces of observed values; modules whose whole space they fill in some column are left out.

        Args:
            observed: values in layout order, one vector for each column.
            attached: the adapter, whose method says which tensors combine what modules read.
            projections: fixed input projections by module, shape ``(rank, in)``.
        """
        rows, layout, parts = attached.method.token_rows, attached.layout, list[_Part]()
        if rows is None:
            return cls((), len(observed))
        tensors, modules = [layout.split(values) for values in observed], linear_modules_under(attached.model)
        for name in layout.names:
            module, kind = rows.place(name) or ("", "")
            if module not in modules or (kind == rows.projected and module not in projections):
                continue
            projection = torch.tensor(projections[module]) if kind == rows.projected else None
            part = _part(module, projection, [tensor[name] for tensor in tensors])
            parts += [part] if part is not None and kind in (rows.inputs, rows.projected) else []
        return cls(tuple(parts), len(observed))

    @contextmanager
    def reading(self, model: Any) -> Generator[None]:
        """Keep what the modules read in each pass of the model within."""
        modules = linear_modules_under(model)

        def keep(name: str) -> Any:
            def hook(_: Any, inputs: tuple[Any, ...]) -> None:
                self._seen[name] = inputs[0].detach().float()

            return hook

        names = {part.module for part in self.parts}
        handles = [modules[name].register_forward_pre_hook(keep(name)) for name in names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self) -> Floats:
        """The share of what was last read that lies in the row spaces, mean over tokens and modules.

        One less the residual: high for members. Float64, shape ``(columns,)``; zeros without parts.
        """
        total = torch.zeros(self.columns, dtype=torch.float64)
        for part in self.parts:
            read = self._seen[part.module].flatten(0, -2)
            if part.projection is not None:
                read = read @ part.projection.to(read).T
            read = read / read.norm(dim=1, keepdim=True).clamp_min(1e-12)
            inside = (read @ part.bases.to(read)).square().mean(dim=0).double().cpu()
            total.index_add_(0, part.owners, inside)
        return total.numpy() / max(len(self.parts), 1)


def _part(module: str, projection: torch.Tensor | None, tensors: Sequence[Any]) -> _Part | None:
    bases = [_row_space(tensor) for tensor in tensors]
    if any(basis is None for basis in bases):
        return None
    complete = [basis for basis in bases if basis is not None]
    owners = np.repeat(np.arange(len(complete)), [basis.shape[1] for basis in complete])
    return _Part(module, projection, torch.tensor(np.concatenate(complete, axis=1)), torch.tensor(owners))


def _row_space(tensor: Any) -> Any:
    """Leading right singular vectors as columns; None where they fill the space, or the tensor is zero."""
    _, sizes, rows = np.linalg.svd(np.asarray(tensor, np.float32), full_matrices=False)
    energy = np.cumsum(np.square(sizes, dtype=np.float64))
    if not energy[-1] > 0:
        return None
    count = int(np.searchsorted(energy, ENERGY * energy[-1])) + 1
    return rows[:count].T if count < rows.shape[1] else None
