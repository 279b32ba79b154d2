"""Ternary plans run where the adapter was trained: two bit planes cross to the host, not the values.

Triton kernels select, mark and sum on the GPU and define everything over integers, so that values, residual
and envelope are those of `ExchangePlan.run`, bit for bit. A residual crosses too, once each way and round,
because it must be on disk before the envelope leaves; without error feedback nothing else does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedpeft.errors import ExchangeError
from fedpeft.exchange.codecs.bitfields import fitting
from fedpeft.exchange.codecs.ternary import Ternarise
from fedpeft.exchange.decoded import Decoded
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.plan import ExchangePlan
from fedpeft.exchange.transforms import RESIDUAL, AddResidual, KeepResidual, Sparsify, State, Update

if TYPE_CHECKING:
    import torch

    from fedpeft_kernels.planes import Planes


def fits_device(plan: ExchangePlan, device: str) -> bool:
    """Whether a plan can be run by `run_on_device` there: ternary, not private, on a GPU with Triton."""
    from fedpeft_kernels import gpu

    steps = tuple(type(step) for step in plan.transforms)
    plain = (Sparsify, Ternarise)
    return (
        not plan.private and steps in (plain, (AddResidual, *plain, KeepResidual)) and gpu.available(device)
    )


def run_on_device(plan: ExchangePlan, change: torch.Tensor, update: Update, state: State) -> Update:
    """Run a plan that `fits_device` on a change that lies on the device.

    Args:
        plan: sparsify and ternarise, with or without error feedback.
        change: float32, shape ``(layout.size,)``.
        update: layout, round, steps and weight of the result; its values are not read.
        state: as in `ExchangePlan.run`.

    Returns:
        What `ExchangePlan.run` gives for these values.

    Raises:
        ExchangeError: the values are not finite.
    """
    import torch

    from fedpeft_kernels import gpu

    feedback = isinstance(plan.transforms[0], AddResidual)
    density = next(step.density for step in plan.transforms if isinstance(step, Sparsify))
    if not bool(torch.isfinite(change).all()):
        raise ExchangeError(
            f"the update of round {update.round} is not finite; lower the learning rate or clip gradients"
        )
    if feedback and RESIDUAL in state:
        change = change + torch.from_numpy(state[RESIDUAL]).to(change.device)
    offsets = torch.from_numpy(update.layout.offsets).to(change.device)
    count = min(update.layout.size, max(1, round(density * update.layout.size)))
    planes = gpu.pack(change, offsets, gpu.threshold(change, count))
    host = planes.host()
    scales = fitting(np.ldexp(host.sums / np.maximum(host.counts, 1), -host.shift))
    if feedback:
        residual = change.clone()
        steps = torch.from_numpy(-scales).to(change.device)
        gpu.accumulate(planes.mask, planes.sign, steps, offsets, residual)
        state[RESIDUAL] = residual.cpu().numpy()
    sent = _decoded(host, scales, update.layout)
    return update.with_values(sent.dense(), sent.positions)


def _decoded(planes: Planes, scales: FloatVector, layout: Layout) -> Decoded:
    """The values of planes and scales, as they will be decoded."""
    flags = np.unpackbits(planes.mask, count=planes.size, bitorder="little")
    positions = np.flatnonzero(flags)
    negative = np.unpackbits(planes.sign, count=planes.size, bitorder="little")[positions]
    numbers = np.repeat(scales, planes.counts)
    numbers = np.where(negative, -numbers, numbers)
    return Decoded(layout, numbers[numbers != 0], positions[numbers != 0])
