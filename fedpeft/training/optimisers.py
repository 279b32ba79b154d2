"""Optimisers over the flat vector of trainable values, one state per round."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from fedpeft.training.plan import ADAMW_BETAS

if TYPE_CHECKING:
    from torch import Tensor

    from fedpeft.training.plan import LocalPlan


class Optimiser(Protocol):
    """One step along a gradient."""

    def step(self, values: Tensor, gradient: Tensor) -> None:
        """Move ``values`` in place; both float32, shape ``(N,)``."""
        ...


@dataclass
class Sgd:
    """Gradient descent with heavy-ball momentum, as in torch: the first step is the plain gradient."""

    lr: float
    momentum: float
    velocity: Tensor | None = None

    def step(self, values: Tensor, gradient: Tensor) -> None:
        """Move ``values`` in place."""
        if self.velocity is None:
            self.velocity = gradient.clone()
        else:
            self.velocity.mul_(self.momentum).add_(gradient)
        values.add_(self.velocity, alpha=-self.lr)


@dataclass
class AdamW:
    """AdamW without weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2)."""

    lr: float
    betas: tuple[float, float] = ADAMW_BETAS
    epsilon: float = 1e-8
    count: int = 0
    moments: list[Tensor] = field(default_factory=list)

    def step(self, values: Tensor, gradient: Tensor) -> None:
        """Move ``values`` in place."""
        if not self.moments:
            self.moments = [torch.zeros_like(values), torch.zeros_like(values)]
        self.count += 1
        (first, second), (beta1, beta2) = self.moments, self.betas
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (second / (1 - beta2**self.count)).sqrt_().add_(self.epsilon)
        values.addcdiv_(first, scale, value=-self.lr / (1 - beta1**self.count))


def optimiser(plan: LocalPlan) -> Optimiser:
    """The optimiser of a plan, without memory."""
    return Sgd(plan.lr, plan.momentum) if plan.optimiser == "sgd" else AdamW(plan.lr)
