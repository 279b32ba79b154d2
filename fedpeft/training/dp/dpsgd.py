"""The clipped gradient sum of one Poisson draw, and the noisy gradient of one DP-SGD step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedpeft.data import Batch
from fedpeft.errors import PrivacyError
from fedpeft.privacy import noise
from fedpeft.privacy.csprng import Randomness, words
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.privacy.step_matrix import StepMatrix
from fedpeft.secagg.grid_values import from_grid, noisy_grid
from fedpeft.training.dp.backward_passes import bounds_of, clear
from fedpeft.training.dp.engine_selection import Engine
from fedpeft.training.dp.per_example import FloatVector64, JointClip, Positions, clipped_sum

if TYPE_CHECKING:
    from fedpeft.adapters import Attached

LOG = logging.getLogger("fedpeft.privacy")

Units = NDArray[np.int64]
"""The unit of each row of a physical batch, ascending."""


@dataclass(frozen=True)
class Mechanism:
    """How the steps of a round are made noisy.

    Attributes:
        plan: clip, noise multiplier and divisor.
        support: the public positions that may move; noise is drawn there only. None: all.
        source: of the random words; default: the operating system. Any other gives no guarantee.
        engine: of the per-unit gradients; None: whatever is right for the model.
        on_loss: is given the noisy loss of each step, in nats, where the plan releases one.
        matrix: of a plan with bands; each noisy gradient takes its next row of noise.
    """

    plan: PrivacyPlan
    support: Positions | None = None
    source: Randomness = words
    engine: Engine | None = None
    on_loss: Callable[[float], object] | None = None
    matrix: StepMatrix | None = None

    @property
    def clip(self) -> JointClip:
        """What bounds one unit."""
        return JointClip(self.plan.clip, self.plan.loss)

    def size(self, attached: Attached) -> int:
        """Values of a noisy sum: those on the support, and the loss where one is released."""
        values = attached.layout.size if self.support is None else len(self.support)
        return values + (self.plan.loss is not None)


def noisy_gradient(
    attached: Attached, batches: Iterable[tuple[Batch, Units | None]], mechanism: Mechanism
) -> NDArray[np.float32]:
    """``(sum of clipped gradients + noise) / expected batch size``, float32, shape ``(layout.size,)``.

    The noise is added once, in float64, to the sum over all physical batches and before any cast; without
    batches (an empty Poisson draw) the result is noise alone. The divisor is the plan's public constant.
    Values off the support are 0. Where the plan releases a loss it is one more value of the same sum, and
    goes to ``on_loss``. A unit whose gradient cannot be computed counts as zero, as one that is not finite
    does: whether a step failed would tell of it. Where the plan has a grid, the sum is rounded to it
    at random and integer noise is added: what is returned is a function of those integers.

    Args:
        attached: the model and its trainable parameters.
        batches: one Poisson draw, cut into physical batches of whole units; None: each row is a unit.
        mechanism: plan, support, randomness and engine.

    Raises:
        PrivacyError: a trainable parameter is not covered by the clip, the noise is not finite, or the plan
            has bands and no matrix is given.
    """
    plan = mechanism.plan
    total = summed(attached, batches, mechanism)
    size = total.size
    if plan.grid is None:
        total += plan.deviation * _unit_noise(attached, mechanism, size)
    else:
        step = plan.joint_clip / plan.grid.steps_per_clip
        total = from_grid(noisy_grid(total, plan, mechanism.source), step)
    if not np.isfinite(total).all():
        raise PrivacyError("the noisy gradient is not finite; lower privacy.clip or the noise multiplier")
    if plan.loss is not None:
        entry, total = float(total[-1]), total[:-1]
        if mechanism.on_loss is not None:
            mechanism.on_loss(plan.loss.mean(entry / plan.clip / plan.expected_batch_size))
    return dense_mean(total, attached, mechanism)


def _unit_noise(attached: Attached, mechanism: Mechanism, size: int) -> FloatVector64:
    """The noise of one step in units of its deviation, float64, shape ``(size,)``, on the support.

    Correlated noise is drawn for all values: another round may have another support.
    """
    matrix, support = mechanism.matrix, mechanism.support
    if matrix is None:
        if mechanism.plan.groups > 1:
            raise PrivacyError(f"the plan has {mechanism.plan.bands} bands: give its step matrix")
        return noise.gaussian(size, mechanism.source)
    row = matrix.next_row(noise.gaussian(attached.layout.size, mechanism.source))
    return row if support is None else row[support]


def dense_mean(total: FloatVector64, attached: Attached, mechanism: Mechanism) -> NDArray[np.float32]:
    """A sum on the support over the expected batch size, float32, ``(layout.size,)``: 0 off the support."""
    gradient = np.zeros(attached.layout.size, np.float32)
    on_support = slice(None) if mechanism.support is None else mechanism.support
    gradient[on_support] = total / mechanism.plan.expected_batch_size
    return gradient


def summed(
    attached: Attached, batches: Iterable[tuple[Batch, Units | None]], mechanism: Mechanism
) -> FloatVector64:
    """Sum of the units' clipped gradients on the support, float64: private until noise is added.

    Its last value is that of the losses, where the plan releases one. One unit more or less changes it by at
    most the plan's joint clip. Arguments and errors: `noisy_gradient`.
    """
    size = mechanism.size(attached)
    total = np.zeros(size, np.float64)
    for batch, units in batches:
        total += _contribution(attached, batch, units, mechanism, size)
    return total


def _contribution(
    attached: Attached, batch: Batch, units: Units | None, mechanism: Mechanism, size: int
) -> FloatVector64:
    """The clipped sum of a batch; where the pass fails, that of the units which do not fail alone."""
    try:
        clip, support = mechanism.clip, mechanism.support
        return clipped_sum(attached, batch, clip, units, support, mechanism.engine)[0]
    except PrivacyError:
        raise  # the mechanism itself does not hold, whatever the records are
    except Exception as error:
        clear(attached)
        bounds = bounds_of(units, len(batch))
        if len(bounds) > 2:
            parts = [
                (batch.part(start, end), np.zeros(end - start, np.int64)) for start, end in pairwise(bounds)
            ]
            return sum((_contribution(attached, *part, mechanism, size) for part in parts), np.zeros(size))
        LOG.warning("a gradient cannot be computed (%s) and counts as zero", type(error).__name__)
        return np.zeros(size)
