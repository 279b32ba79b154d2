"""One node's training in one round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.data import Batch, Example
from fedpeft.data.batches import epochs, gather, physical, whole_units
from fedpeft.errors import DataError, PrivacyError
from fedpeft.privacy.csprng import KEY_BYTES, seeded, words
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.privacy.step_matrix import StepMatrix
from fedpeft.progress_reports import at
from fedpeft.training.dp.dpsgd import Mechanism, dense_mean, noisy_gradient, summed
from fedpeft.training.dp.engine_selection import LONGEST, engine_of
from fedpeft.training.loss import Loss, per_example_loss
from fedpeft.training.modes import steady
from fedpeft.training.optimisers import optimiser
from fedpeft.training.plan import LocalPlan, PerformanceFlags
from fedpeft.training.privacy_units import Units, draw, identities, units_of

if TYPE_CHECKING:
    from fedpeft.adapters import Attached

FloatVector = NDArray[np.float32]
GradientTap = Callable[[FloatVector, Batch], None]
"""Called once, in step 1, with the gradient in layout order and the examples that made it."""
DrawTap = Callable[[Iterable[int]], object]
"""Called in each step with the indices of the examples that it draws; the same one may come again."""


@dataclass(frozen=True)
class Extras:
    """What a round of local training does besides the plans.

    Attributes:
        on_first_gradient: audit tap; sees the batch gradient before the clip, or the noisy one under privacy.
        flags: speed and memory.
        support: increasing public positions of the flat vector, int64: under privacy nothing else moves, and
            nothing else bears noise. None: all values.
        longest: most tokens of a record, as ``data.max_length``: how far the gates of privacy look. A longer
            record is right too, but slow.
        loss: of each example; None: `per_example_loss`. Under privacy it is given one record at a time, so
            that no record can enter the gradient of another.
        on_draw: audit tap; sees which examples are drawn, with and without privacy.
        matrix: of a plan with bands, the matrix of noise that goes on from the round before; it is changed,
            and has to be stored before anything leaves. None: one that begins and ends with this round.
    """

    on_first_gradient: GradientTap | None = None
    flags: PerformanceFlags = field(default_factory=PerformanceFlags)
    support: NDArray[np.int64] | None = None
    longest: int = LONGEST
    loss: Loss | None = None
    on_draw: DrawTap | None = None
    matrix: StepMatrix | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a round of local training may say about itself.

    Under privacy nothing here depends on the data but for ``loss_released``, which bears noise: the other
    losses and the examples seen are None.

    Attributes:
        steps: optimiser steps taken.
        loss_first: mean loss of the first batch.
        loss_last: mean loss of the last batch, before its step.
        seen: ascending indices of the examples that were used.
        loss_released: mean of the noisy losses of all steps, rounded to float32, where the privacy plan
            releases one (`fedpeft.privacy.loss_share`).
    """

    steps: int
    loss_first: float | None = None
    loss_last: float | None = None
    seen: tuple[int, ...] | None = None
    loss_released: float | None = None


def train_local(
    attached: Attached,
    examples: Sequence[Example],
    plan: LocalPlan,
    rng: np.random.Generator,
    privacy: PrivacyPlan | None = None,
    extras: Extras | None = None,
) -> TrainResult:
    """Train the adapter in place for one round, from its present values.

    Without privacy: fixed-size batches drawn by ``rng``, the mean of the per-example losses, the gradient
    clipped to ``plan.max_grad_norm``; the result is a function of the arguments alone. With privacy: Poisson
    batches of records or persons and noise from the operating system, the optimiser runs on the noisy
    gradient (post-processing), and ``rng`` is not used, unless the privacy plan is ``reproducible``: then
    both come from ``rng``, and nothing is guaranteed. Reserve the round in the ledger first.

    Args:
        attached: the model and its trainable parameters.
        examples: the node's training examples.
        plan: steps, batch size, optimiser.
        rng: the reproducible stream of the batches.
        privacy: None trains without a guarantee.
        extras: tap, flags and support.

    Raises:
        DataError: no examples and no privacy plan, or records that name no person where that is the unit.
        PrivacyError: more steps than the privacy plan accounts for, a unit that no node draws, or the
            batched engine where it is wrong.
    """
    hooks = extras or Extras()
    if privacy is not None:
        return _train_private(
            attached, examples, plan, _mechanism(attached, plan, rng, privacy, hooks), hooks
        )
    if not examples:
        raise DataError("a node has no training examples; add records, or leave it out of the federation")
    values, rule = _values(attached), optimiser(plan)
    losses: list[float] = []
    seen: set[int] = set()
    with steady(attached.model):
        for step, indices in enumerate(islice(epochs(len(examples), plan.batch_size, rng), plan.steps)):
            at("step", step, plan.steps)
            if hooks.on_draw is not None:
                hooks.on_draw(indices)
            chosen = [examples[index] for index in indices]
            loss, gradient = _mean_gradient(attached, chosen, hooks)
            if not losses and hooks.on_first_gradient is not None:
                hooks.on_first_gradient(gradient.cpu().numpy(), gather(attached.model, chosen))
            rule.step(values, gradient * _shrink(gradient, plan.max_grad_norm))
            _store(attached, values)
            losses.append(loss)
            seen.update(int(index) for index in indices)
    at("step", plan.steps, plan.steps)
    return TrainResult(plan.steps, losses[0], losses[-1], tuple(sorted(seen)))


def gradient_sum(
    attached: Attached,
    examples: Sequence[Example],
    plan: LocalPlan,
    rng: np.random.Generator,
    privacy: PrivacyPlan,
    extras: Extras | None = None,
) -> NDArray[np.float64]:
    """Sum of the clipped gradients of one Poisson draw, float64, on the support; the values stay as they are.

    It bears no noise and must not leave the node as it is: `fedpeft.privacy.grid` says what is added to it.
    Arguments and errors: `train_local`.
    """
    hooks = extras or Extras()
    mechanism = _mechanism(attached, plan, rng, privacy, hooks)
    with steady(attached.model):
        at("step", 0, 1)
        units = units_of(examples, privacy)
        chosen, batches = _draw(attached, examples, units, mechanism, hooks)
        total = summed(attached, batches, mechanism)
        if hooks.on_first_gradient is not None:
            gradient = dense_mean(total, attached, mechanism)
            hooks.on_first_gradient(gradient, gather(attached.model, chosen))
    at("step", 1, 1)
    return total


def _draw(
    attached: Attached,
    examples: Sequence[Example],
    units: Units,
    mechanism: Mechanism,
    extras: Extras,
) -> tuple[list[Example], Iterable[tuple[Batch, NDArray[np.int64]]]]:
    """One Poisson draw of these units: its records, and the same in physical batches of whole units."""
    drawn = draw(units, mechanism.plan, mechanism.source)
    if extras.on_draw is not None:
        extras.on_draw(index for unit in drawn for index in unit)
    chosen = [[examples[index] for index in unit] for unit in drawn]
    batches = whole_units(attached.model, chosen, extras.flags.tokens_at_once)
    return [example for unit in chosen for example in unit], batches


def _mechanism(
    attached: Attached, plan: LocalPlan, rng: np.random.Generator, privacy: PrivacyPlan, extras: Extras
) -> Mechanism:
    """What makes the round's steps noisy, checked before anything is computed on the data."""
    if plan.steps > privacy.steps_per_round:
        raise PrivacyError(
            f"{plan.steps} local steps, but the privacy plan accounts for {privacy.steps_per_round} per round"
        )
    source = seeded(rng.bytes(KEY_BYTES)) if privacy.reproducible else words
    engine = engine_of(attached, extras.flags.engine, extras.longest, extras.loss)
    matrix = (extras.matrix or StepMatrix.begin(privacy, source)) if privacy.groups > 1 else None
    return Mechanism(privacy, extras.support, source, engine, matrix=matrix)


def _train_private(
    attached: Attached, examples: Sequence[Example], plan: LocalPlan, mechanism: Mechanism, extras: Extras
) -> TrainResult:
    values, rule, losses = _values(attached), optimiser(plan), list[float]()
    groups, matrix = _groups(examples, mechanism), mechanism.matrix
    mechanism = replace(mechanism, on_loss=losses.append)
    with steady(attached.model):
        for step in range(plan.steps):
            at("step", step, plan.steps)
            units = groups[matrix.turn if matrix else 0]
            chosen, batches = _draw(attached, examples, units, mechanism, extras)
            gradient = noisy_gradient(attached, batches, mechanism)
            if step == 0 and extras.on_first_gradient is not None:
                extras.on_first_gradient(gradient, gather(attached.model, chosen))
            rule.step(values, torch.from_numpy(gradient).to(values.device))
            _store(attached, values)
    at("step", plan.steps, plan.steps)
    released = float(np.float32(np.mean(losses))) if losses else None
    return TrainResult(plan.steps, loss_released=released)


def _groups(examples: Sequence[Example], mechanism: Mechanism) -> list[list[list[int]]]:
    """The units that a step may draw, by whose turn it is; without bands all in one group."""
    units = units_of(examples, mechanism.plan)
    if mechanism.matrix is None:
        return [units]
    pools = mechanism.matrix.pools(identities(examples, units, mechanism.plan))
    return [[units[index] for index in pool] for pool in pools]


def _mean_gradient(
    attached: Attached, examples: Sequence[Example], extras: Extras
) -> tuple[float, torch.Tensor]:
    """Mean loss of a batch and its gradient, float32, in layout order; cut into physical batches."""
    loss, losses = 0.0, extras.loss or per_example_loss
    for batch in physical(attached.model, examples, extras.flags.tokens_at_once):
        part = losses(attached.model, batch).sum() / len(examples)
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
