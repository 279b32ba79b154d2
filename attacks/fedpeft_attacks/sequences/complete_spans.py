"""Row spaces that hold all that a module read, told by the gap in their singular values.

Rows of LoRA's A gradient combine what the module reads at every position of the batch, and rows of B's
combine what A makes of it. Where there are more rows, and more dimensions, than positions, the singular
values fall from the weakest position to rounding at once: on SmolLM2-135M, eight records of 32 tokens, by a
factor of 20 to 9,000 (median 800). Such a space holds each input up to rounding, and hardly any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch.nn import functional

from fedpeft.exchange.layout import FloatVector
from fedpeft_attacks.sequences.probing import Probe
from fedpeft_attacks.tokens.blocks import Matrix, unit_rows

_GAP = 10.0  # least ratio of the weakest position to rounding: neither may be anywhere near the other
_ROUNDING = 1e-5  # what is below the gap, relative to the largest singular value; exact values leave 3e-8
_LEAST = 1e-9
_GROUPS = 12  # of modules that are looked at: three layers
_NEAR = 4  # of them used: the first, as a pass need go no further


@dataclass(frozen=True, eq=False)
class CompleteSpan:
    """What one module, or all that read the same, read at all positions of a batch.

    Attributes:
        module: name of the module.
        projection: shape ``(r, I)``: what the input is seen through; None: through nothing.
        basis: orthonormal, shape ``(rank, I)`` or ``(rank, r)``, float32.
    """

    module: str
    projection: torch.Tensor | None = field(repr=False)
    basis: torch.Tensor = field(repr=False)

    @property
    def rank(self) -> int:
        """Number of different inputs that were read, where they are independent."""
        return len(self.basis)

    @property
    def width(self) -> int:
        """Number of coordinates of an input."""
        return self.basis.shape[1] if self.projection is None else self.projection.shape[1]

    def outside(self, inputs: torch.Tensor) -> torch.Tensor:
        """Sine of the angle between inputs, shape ``(..., I)``, and the space; 0 is inside, up to 1e-6."""
        seen = inputs if self.projection is None else inputs @ self.projection.T
        x = functional.normalize(seen, dim=-1)
        return (x - (x @ self.basis.T) @ self.basis).norm(dim=-1)


def complete_basis(rows: Matrix) -> torch.Tensor | None:
    """Orthonormal basis of the span of rows, ``(rank, width)``; None where no gap tells where it ends."""
    scaled = unit_rows(np.asarray(rows, np.float64))
    scaled = scaled[np.any(scaled != 0, axis=1)]
    if len(scaled) < 2:
        return None
    _, strengths, basis = np.linalg.svd(scaled, full_matrices=False)
    strengths = np.maximum(strengths / strengths[0], _LEAST)
    ratios = np.where(strengths[1:] < _ROUNDING, strengths[:-1] / strengths[1:], 0.0)
    end = int(ratios.argmax())
    return torch.from_numpy(basis[: end + 1].astype(np.float32)) if ratios[end] >= _GAP else None


@dataclass(frozen=True, eq=False)
class CompleteSpans:
    """The complete spans of a view.

    Attributes:
        tokens: of the modules that read token inputs.
        later: of the first modules after them, whose inputs depend on the whole prefix.
    """

    tokens: tuple[CompleteSpan, ...]
    later: tuple[CompleteSpan, ...]

    @classmethod
    def of(cls, values: FloatVector, probe: Probe, readers: frozenset[str]) -> CompleteSpans | None:
        """Of values in the layout of the whole adapter; None where they show no such spans.

        Every module after the first layer reads as many different inputs as there are different prefixes. A
        query projection lacks first positions, and the last layer prompts whose loss does not count, so the
        largest rank counts that two spaces share.

        Args:
            values: a gradient, or a multiple of it.
            probe: base and adapter as they were.
            readers: modules that read token inputs, exactly known.
        """
        rows, groups = _Rows.of(probe, values), iter(probe.groups)
        first = next((group for group in groups if set(group) & readers), [])
        tokens = rows.spans(first)
        if not tokens:
            return None
        later = [span for group in islice(groups, _GROUPS) for span in rows.spans(group)]
        ranks = Counter(span.rank for span in later)
        shared = max((rank for rank, count in ranks.items() if count > 1), default=0)
        if not shared:
            return None
        most = max(span.rank for span in tokens)
        agreed = (span for span in later if span.rank == shared)
        return cls(tuple(span for span in tokens if span.rank == most), tuple(islice(agreed, _NEAR)))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Tensors of values by module: rows of inputs, rows of projected inputs, and what these went through."""

    inputs: Mapping[str, Matrix]
    projected: Mapping[str, Matrix]
    projection: Mapping[str, Matrix]

    @classmethod
    def of(cls, probe: Probe, values: FloatVector) -> _Rows:
        attached = probe.attached
        kinds = attached.method.token_rows
        if kinds is None:
            return cls({}, {}, {})

        def tensors(part: str | None, among: Mapping[str, Matrix]) -> dict[str, Matrix]:
            places = ((kinds.place(name), tensor) for name, tensor in among.items())
            return {place[0]: tensor for place, tensor in places if place and place[1] == part}

        sent, loaded = attached.layout.split(values), attached.layout.split(probe.state)
        loaded = {
            name: part.detach().float().cpu().numpy() for name, part in attached.frozen.items()
        } | loaded
        return cls(
            tensors(kinds.inputs, sent), tensors(kinds.projected, sent), tensors(kinds.projection, loaded)
        )

    def spans(self, group: Sequence[str]) -> list[CompleteSpan]:
        """Of a group of modules that read the same: one of rows of inputs, or as many as are projected."""
        direct = [self.inputs[name] for name in group if name in self.inputs and self.inputs[name].any()]
        if direct:
            basis = complete_basis(np.concatenate(direct))
            return [] if basis is None else [CompleteSpan(group[0], None, basis)]
        both = [name for name in group if name in self.projected and name in self.projection]
        bases = ((name, complete_basis(self.projected[name])) for name in both)
        return [
            CompleteSpan(group[0], torch.from_numpy(self.projection[name]), basis)
            for name, basis in bases
            if basis is not None
        ]
