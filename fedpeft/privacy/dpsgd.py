"""The noisy gradient of one DP-SGD step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedpeft.data import Batch
from fedpeft.errors import PrivacyError
from fedpeft.privacy import noise
from fedpeft.privacy.per_example import clipped_sum
from fedpeft.privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from fedpeft.adapters import Attached


def noisy_gradient(attached: Attached, batches: Iterable[Batch], plan: PrivacyPlan) -> NDArray[np.float32]:
    """``(sum of clipped gradients + noise) / expected batch size``, float32, shape ``(layout.size,)``.

    The noise is added once, in float64, to the sum over all physical batches and before any cast; without
    batches (an empty Poisson draw) the result is noise alone. The divisor is the plan's public constant.

    Args:
        attached: the model and its trainable parameters.
        batches: the records of one Poisson draw, cut into physical batches of any size.
        plan: clip, noise multiplier and divisor.

    Raises:
        PrivacyError: a trainable parameter is not covered by the clip, or the noise is not finite.
    """
    total = np.zeros(attached.layout.size, np.float64)
    for batch in batches:
        total += clipped_sum(attached, batch, plan.clip)[0]
    total += plan.noise_multiplier * plan.clip * noise.gaussian(attached.layout.size)
    if not np.isfinite(total).all():
        raise PrivacyError("the noisy gradient is not finite; lower privacy.clip or the noise multiplier")
    return (total / plan.expected_batch_size).astype(np.float32)
