"""Optimisation-based gradient inversion of the field, small and faithful in the essentials, for comparison.

TAG (Deng et al., EMNLP Findings 2021): dummy embeddings whose gradient matches the observed one in L2 plus
L1. LAMP (Balunovic et al., NeurIPS 2022): cosine match, embeddings kept at a usual length, and discrete steps
that swap and move tokens, judged by the match and the base's perplexity. Both are granted the length; their
causal targets are the soft tokens that the dummy embeddings themselves stand for. Batch 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedpeft.errors import AuditError
from fedpeft.rng import stream, torch_stream
from fedpeft.training.modes import steady
from fedpeft_attacks.sequences import Assembled, Budget
from fedpeft_attacks.sequences.probing import Probe
from fedpeft_attacks.views import View

Kind = Literal["tag", "lamp"]

_RATE = 0.02
_L1 = 0.01
_LENGTHS = 1.0
_PERPLEXITY = 0.05
_EVERY = 25
_CHANGES = 12
_SHARP = 10.0


def invert(view: View, length: int, kind: Kind, budget: Budget | None = None) -> Assembled:
    """Recover one record of known length from a gradient.

    Args:
        view: a gradient of the whole adapter, with the model.
        length: tokens of the record, the start token included.
        kind: whose objective.
        budget: steps of the optimiser.
    """
    start, meter = view.knowledge.start, (budget or Budget()).meter()
    if start is None:
        raise AuditError("this view holds no model; give a view whose knowledge has a start")
    work = _Inversion(Probe.of(start), torch.from_numpy(view.values), kind)
    x = work.guess(length)
    optimiser = torch.optim.Adam([x], _RATE)
    while meter.step():
        optimiser.zero_grad()
        loss = work.mismatch(x)
        loss.backward(inputs=[x])
        optimiser.step()
        if kind == "lamp" and meter.work.steps % _EVERY == 0:
            work.reorder(x, meter.work.steps)
    record = tuple(work.tokens(x))
    return Assembled((record,), (False,), float(work.mismatch(x).detach()), meter.work)


@dataclass(frozen=True, eq=False)
class _Inversion:
    """Objective and discrete steps of one inversion."""

    probe: Probe
    observed: torch.Tensor = field(repr=False)
    kind: Kind

    @property
    def table_VD(self) -> torch.Tensor:
        return self.probe.attached.model.get_input_embeddings().weight.detach().float()

    def guess(self, length: int) -> torch.Tensor:
        """Random embeddings of the usual length, shape ``(T - 1, D)``; the start token is known."""
        noise = torch.randn(
            (length - 1, self.table_VD.shape[1]), generator=torch_stream(0, 0, "", "inversion")
        )
        return (noise * self.table_VD.std()).requires_grad_()

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.table_VD[self.probe.begin][None], x])

    def mismatch(self, x: torch.Tensor) -> torch.Tensor:
        """Distance of the dummy's gradient from the observed one."""
        seen = self.gradient(x)
        if self.kind == "tag":
            gap = seen - self.observed
            return (gap.square().sum() + _L1 * gap.abs().sum()) / self.observed.square().sum()
        match = 1 - functional.cosine_similarity(seen, self.observed, dim=0)
        return match + _LENGTHS * (x.norm(dim=1).mean() - self.table_VD.norm(dim=1).mean()).square()

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        model: Any = self.probe.attached.model
        parameters = list(self.probe.attached.parameters.values())
        with steady(model), sdpa_kernel(SDPBackend.MATH):
            logits = model(inputs_embeds=self.whole(x)[None], use_cache=False).logits[0, :-1].float()
            loss = functional.cross_entropy(logits, (self.similar(x) * _SHARP).softmax(dim=-1))
            parts = torch.autograd.grad(loss, parameters, create_graph=True)
        return torch.cat([part.reshape(-1) for part in parts])

    def similar(self, x: torch.Tensor) -> torch.Tensor:
        """Cosine of each dummy with each token's embedding, ``(T - 1, V)``."""
        return functional.normalize(x, dim=1) @ functional.normalize(self.table_VD, dim=1).T

    def tokens(self, x: torch.Tensor) -> list[int]:
        return [self.probe.begin, *self.similar(x.detach()).argmax(dim=1).tolist()]

    def reorder(self, x: torch.Tensor, step: int) -> None:
        """LAMP's discrete step: the best of some swaps and moves of dummies replaces the present order."""
        draws = stream(0, step, "", "lamp-orders")
        orders = [list(range(len(x))), *(_changed(len(x), draws) for _ in range(_CHANGES))]
        scores = [self.score(x.detach()[order]) for order in orders]
        x.data = x.data[orders[int(np.argmin(scores))]]

    def score(self, x: torch.Tensor) -> float:
        ids = torch.tensor([self.tokens(x)])
        logits = self.probe.logits(ids)[0, :-1]
        return float(self.mismatch(x).detach()) + _PERPLEXITY * float(
            functional.cross_entropy(logits, ids[0, 1:])
        )


def _changed(length: int, draws: np.random.Generator) -> list[int]:
    """Two places swapped, or one moved elsewhere."""
    order = list(range(length))
    a, b = (int(place) for place in draws.integers(length, size=2))
    if draws.random() < 0.5:
        order[a], order[b] = order[b], order[a]
    else:
        order.insert(b, order.pop(a))
    return order
