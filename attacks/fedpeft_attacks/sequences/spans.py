"""The span check of partial sequences, layer by layer: does the next input lie in a module's row space?

Rows of LoRA's A gradient combine what the module reads at every position, and what layer l reads at position
t depends on the prefix alone. What the prefix explains is taken off first: with it known, later inputs fit a
row space of smaller rank than the number of tokens. Source: Petrov et al., DAGER, arXiv 2405.15586,
section 4, which does not subtract.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from fedpeft.adapters import Attached
from fedpeft.exchange.layout import FloatVector
from fedpeft_attacks.sequences.probing import Probe
from fedpeft_attacks.tokens.blocks import row_space

Inputs = Mapping[str, torch.Tensor]

_RIDGE = 1e-6
_TINY = 1e-12
_FLOOR = 1e-6
_NATS = 6.0  # per factor e of a share and full rank; inputs are no random directions, so far below the width


def input_rows(attached: Attached, values: FloatVector) -> dict[str, FloatVector]:
    """The tensors of values in layout order whose rows combine inputs, by module."""
    rows = attached.method.token_rows
    places = ((rows and rows.place(name), part) for name, part in attached.layout.split(values).items())
    return {place[0]: part for place, part in places if place and rows and place[1] == rows.inputs}


@dataclass(frozen=True, eq=False)
class Spans:
    """Row spaces of the modules beyond the first layer.

    Attributes:
        bases: module to an orthonormal basis of what its group of modules was seen to read, float32,
            shape ``(rank, I)``; groups whose rows span everything are absent.
    """

    bases: Mapping[str, torch.Tensor] = field(repr=False)

    @classmethod
    def of(cls, values: FloatVector, probe: Probe, leave: Collection[str] = ()) -> Spans:
        """Row spaces of the rows of inputs of values in layout order, but for modules to leave out."""
        tensors = input_rows(probe.attached, values)
        bases: dict[str, torch.Tensor] = {}
        for group in probe.groups:
            rows = [tensors[name] for name in group if name in tensors]
            if not rows or set(group) & set(leave):
                continue
            basis = row_space(np.concatenate(rows))
            if 0 < len(basis) < basis.shape[1]:
                bases[group[0]] = torch.from_numpy(basis.astype(np.float32))
        return cls(bases)

    def outside(self, past: Inputs, new: Inputs) -> dict[str, torch.Tensor]:
        """Share of each next input's news that lies outside each row space, 0 to 1, shape ``(B, P)``.

        Args:
            past: what each module reads along each prefix, shape ``(B, T, I)``.
            new: what it would read next, for each proposal, shape ``(B, P, I)``.
        """
        shares: dict[str, torch.Tensor] = {}
        for name, basis in self.bases.items():
            known, x = (functional.normalize(part, dim=-1) for part in (past[name], new[name]))
            beyond, all_ = (news(*pair) for pair in ((_off(known, basis), _off(x, basis)), (known, x)))
            shares[name] = (beyond / all_.clamp_min(_TINY)).clamp(_FLOOR, 1.0)
        return shares

    def evidence(self, shares: Inputs) -> torch.Tensor:
        """How much better each proposal fits than the median one, in nats over all modules.

        Args:
            shares: of `outside`, by module, shape ``(B, P)`` each.

        Returns:
            Shape ``(B, P)``.
        """
        total = torch.zeros(())
        for name, share in shares.items():
            rank, width = self.bases[name].shape
            total = total - _NATS * rank / width * (share / share.median()).log()
        return total


def _off(x: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    return x - (x @ basis.T) @ basis


def news(past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Squared length of each new row less its best linear prediction by the past ones.

    Args:
        past: shape ``(B, T, I)``.
        new: shape ``(B, P, I)``.

    Returns:
        Shape ``(B, P)``, float32.
    """
    past, new = past.double(), new.double()
    gram = past @ past.transpose(1, 2) + _RIDGE * torch.eye(past.shape[1], dtype=torch.double)
    shared = past @ new.transpose(1, 2)
    predicted = (shared * torch.linalg.solve(gram, shared)).sum(dim=1)
    return ((new**2).sum(dim=-1) - predicted).clamp_min(0.0).float()
