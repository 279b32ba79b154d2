"""DAGER's sequence search, for comparison: span checks by a threshold, no prior, no choice by gradients.

Source: Petrov et al., DAGER, arXiv 2405.15586, section 4 (decoders), and its published code
(insait-institute/dager-gradient-inversion): layer 1 gives the tokens, and a partial record is extended by
every token whose input of layer 2 lies in the row space of that layer's gradient.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from fedpeft.exchange.layout import FloatVector
from fedpeft_attacks.sequences import Assembled, Budget
from fedpeft_attacks.sequences.probing import Probe
from fedpeft_attacks.sequences.spans import input_rows
from fedpeft_attacks.tokens.observations import observations
from fedpeft_attacks.tokens.span_check import span_check
from fedpeft_attacks.views import NotApplicable, View
from fedpeft_attacks.work import Meter

LORA, FULL = 0.05, 1e-3
"""Distances from the space that the published scripts take, for LoRA and for whole gradients."""

_RANK = 5e-9  # singular values above it make the space, as in the published script for LoRA
_RESERVE = 20  # dimensions that the space leaves at least, as in the published code
_CANDIDATES = 16

Paths = list[tuple[tuple[int, ...], float]]


def dager(view: View, budget: Budget | None = None, inside: float = LORA) -> Assembled:
    """Records whose every prefix passes the span check of layer 2; none where no token passes layer 1.

    Args:
        view: a gradient of the whole adapter, with model and number of records.
        budget: steps and longest record; the width of the beam is DAGER's own.
        inside: distance below which an input passes.
    """
    limits, start = budget or Budget(), view.knowledge.start
    blocks = observations(view)
    ranking, claimed = ([], 0) if isinstance(blocks, NotApplicable) else span_check(blocks)
    if start is None or not claimed:
        return Assembled((), (), 1.0)
    probe, meter = Probe.of(start, view.knowledge.frame), limits.meter()
    space = second_layer(view.values, probe, view.knowledge.readers)
    tokens = sorted(set(ranking[:claimed]) - set(probe.frame.begin))
    if not tokens or space is None:
        return Assembled((), (), 1.0)
    search = _Search(probe, *space, tokens, inside)
    ended = search.run(limits.longest, meter)
    end = () if probe.end is None else (probe.end,)
    records = tuple((*path, *end) for path, _ in sorted(ended, key=lambda pair: pair[1] / len(pair[0])))
    taken = records[: view.records]
    return Assembled(taken, (False,) * len(taken), 1.0, meter.work)


def second_layer(
    values: FloatVector, probe: Probe, readers: frozenset[str]
) -> tuple[str, torch.Tensor] | None:
    """The next modules of the readers' kind, and the row space of their gradient, ``(rank, I)``; None: zero.

    All modules that read the same count, not the query alone: more than the published code uses.
    """
    kinds, rows = {name.rpartition(".")[2] for name in readers}, input_rows(probe.attached, values)
    for group in probe.groups:
        parts = [rows[name] for name in group if name in rows and rows[name].any()]
        if parts and group[0].rpartition(".")[2] in kinds and not set(group) & readers:
            _, strengths, basis = np.linalg.svd(np.concatenate(parts), full_matrices=False)
            rank = min(int((strengths > _RANK).sum()), basis.shape[1] - _RESERVE)
            return group[0], torch.from_numpy(basis[: max(rank, 1)])
    return None


class _Search:
    """The tree of partial records, of which so many with the smallest distances stay."""

    def __init__(
        self, probe: Probe, module: str, basis: torch.Tensor, tokens: list[int], inside: float
    ) -> None:
        self._probe, self._module, self._basis = probe, module, basis
        self._tokens, self._inside = tokens, inside

    def run(self, longest: int, meter: Meter) -> Paths:
        """Paths that nothing extends, of every length, with the sums of their distances."""
        begin = self._probe.frame.begin
        starts = [(begin, 0.0)] if begin else self._extended([((), 0.0)])
        alive = sorted(starts, key=lambda pair: pair[1])[:_CANDIDATES]
        ended: Paths = []
        while alive and len(alive[0][0]) < longest and meter.step():
            longer = [pair for pair in self._extended(alive) if len(set(pair[0])) > 1]
            goes_on = {path[:-1] for path, _ in longer}
            ended += [pair for pair in alive if pair[0] not in goes_on]
            alive = sorted(longer, key=lambda pair: pair[1])[:_CANDIDATES]
        return ended + alive

    def _extended(self, alive: Paths) -> Paths:
        """Every extension that passes, with the sum of its distances."""
        ids = torch.tensor([path for path, _ in alive], dtype=torch.int64)
        proposals = torch.tensor([self._tokens] * len(alive))
        x = functional.normalize(
            self._probe.next_inputs(ids, proposals, [self._module])[self._module], dim=-1
        )
        distances = (x - (x @ self._basis.T) @ self._basis).norm(dim=-1)
        return [
            ((*path, self._tokens[column]), score + float(distances[row, column]))
            for row, (path, score) in enumerate(alive)
            for column in torch.nonzero(distances[row] < self._inside)[:, 0].tolist()
        ]
