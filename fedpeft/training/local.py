"""One node's training in one round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.data import Batch, Example
from fedpeft.errors import DataError, PrivacyError
from fedpeft.privacy.dpsgd import noisy_gradient
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.privacy.sampling import poisson
from fedpeft.training.batches import epochs, gather, physical
from fedpeft.training.loss import per_example_loss
from fedpeft.training.modes import steady
from fedpeft.training.optimisers import optimiser
from fedpeft.training.plan import LocalPlan

if TYPE_CHECKING:
    from fedpeft.adapters import Attached

FloatVector = NDArray[np.float32]
GradientTap = Callable[[FloatVector, Batch], None]
"""Called once, in step 1, with the gradient in layout order and the examples that made it."""


@dataclass(frozen=True)
class TrainResult:
    """What a round of local training may say about itself.

    Under privacy nothing here depends on the data: the losses and the examples seen are None.

    Attributes:
        steps: optimiser steps taken.
        loss_first: mean loss of the first batch.
        loss_last: mean loss of the last batch, before its step.
        seen: ascending indices of the examples that were used.
    """

    steps: int
    loss_first: float | None = None
    loss_last: float | None = None
    seen: tuple[int, ...] | None = None


def train_local(
    attached: Attached,
    examples: Sequence[Example],
    plan: LocalPlan,
    rng: np.random.Generator,
    privacy: PrivacyPlan | None = None,
    on_first_gradient: GradientTap | None = None,
) -> TrainResult:
    """Train the adapter in place for one round, from its present values.

    Without privacy: fixed-size batches drawn by ``rng``, the mean of the per-example losses, the gradient
    clipped to ``plan.max_grad_norm``; the result is a function of the arguments alone. With privacy: Poisson
    batches and noise from the operating system, the optimiser runs on the noisy gradient (post-processing),
    and ``rng`` is not used. Reserve the round in the ledger first.

    Args:
        attached: the model and its trainable parameters.
        examples: the node's training examples.
        plan: steps, batch size, optimiser.
        rng: the reproducible stream of the batches.
        privacy: None trains without a guarantee.
        on_first_gradient: audit tap; sees the batch gradient before the clip, or the noisy one under privacy.

    Raises:
        DataError: there are no examples and no privacy plan.
        PrivacyError: more steps than the privacy plan accounts for.
    """
    if privacy is not None:
        return _train_private(attached, examples, plan, privacy, on_first_gradient)
    if not examples:
        raise DataError("a node has no training examples; add records, or leave it out of the federation")
    values, rule = _values(attached), optimiser(plan)
    losses: list[float] = []
    seen: set[int] = set()
    with steady(attached.model):
        for indices in islice(epochs(len(examples), plan.batch_size, rng), plan.steps):
            chosen = [examples[index] for index in indices]
            loss, gradient = _mean_gradient(attached, chosen, plan)
            if not losses and on_first_gradient is not None:
                on_first_gradient(gradient.cpu().numpy(), gather(attached.model, chosen))
            rule.step(values, gradient * _shrink(gradient, plan.max_grad_norm))
            _store(attached, values)
            losses.append(loss)
            seen.update(int(index) for index in indices)
    return TrainResult(plan.steps, losses[0], losses[-1], tuple(sorted(seen)))


def _train_private(
    attached: Attached,
    examples: Sequence[Example],
    plan: LocalPlan,
    privacy: PrivacyPlan,
    tap: GradientTap | None,
) -> TrainResult:
    if plan.steps > privacy.steps_per_round:
        raise PrivacyError(
            f"{plan.steps} local steps, but the privacy plan accounts for {privacy.steps_per_round} per round"
        )
    values, rule = _values(attached), optimiser(plan)
    with steady(attached.model):
        for step in range(plan.steps):
            chosen = [examples[i] for i in poisson(len(examples), privacy.sampling_probability)]
            batches = physical(attached.model, chosen, plan.tokens_at_once)
            gradient = noisy_gradient(attached, batches, privacy)
            if step == 0 and tap is not None:
                tap(gradient, gather(attached.model, chosen))
            rule.step(values, torch.from_numpy(gradient).to(values.device))
            _store(attached, values)
    return TrainResult(plan.steps)


def _mean_gradient(
    attached: Attached, examples: Sequence[Example], plan: LocalPlan
) -> tuple[float, torch.Tensor]:
    """Mean loss of a batch and its gradient, float32, in layout order; cut into physical batches."""
    loss = 0.0
    for batch in physical(attached.model, examples, plan.tokens_at_once):
        part = per_example_loss(attached.model, batch).sum() / len(examples)
        part.backward()
        loss += float(part.detach())
    gradient = torch.cat(list(_gradients(attached)))
    for parameter in attached.parameters.values():
        parameter.grad = None
    return loss, gradient


def _gradients(attached: Attached) -> Iterator[torch.Tensor]:
    for name in attached.layout.names:
        parameter = attached.parameters[name]
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        yield gradient.reshape(-1).float()


def _shrink(gradient: torch.Tensor, limit: float) -> float:
    return min(1.0, limit / max(float(gradient.norm()), 1e-12))


def _values(attached: Attached) -> torch.Tensor:
    """A copy of the trainable values, float32, in layout order, on the model's device."""
    parts = [attached.parameters[name].detach().reshape(-1).float() for name in attached.layout.names]
    return torch.cat(parts).clone()


def _store(attached: Attached, values: torch.Tensor) -> None:
    for name, part in zip(attached.layout.names, values.split(attached.layout.sizes.tolist()), strict=True):
        parameter = attached.parameters[name]
        parameter.data.copy_(part.reshape(parameter.shape))
