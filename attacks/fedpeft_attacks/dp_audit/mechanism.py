"""A statistical audit of the noise itself: a million independent Gaussian mechanisms in one release."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft.privacy import noise
from fedpeft_attacks.dp_audit.gaussian import separation
from fedpeft_attacks.dp_audit.intervals import best_threshold, counting_bound, gaussian_bound

CONFIDENCE = 0.95
DELTA = 1e-5
CLIP = 0.7


@dataclass(frozen=True)
class Audit:
    """What one noisy sum shows of its own epsilon; bounds hold with 95 % probability, each by itself.

    Attributes:
        claimed: epsilon of one release with this noise, exact.
        gaussian: lower bound that takes the noise to be Gaussian, and estimates its size.
        counting: lower bound that takes nothing (Clopper-Pearson at a threshold fixed beforehand).
    """

    claimed: float
    gaussian: float
    counting: float


def audit(epsilon: float, coordinates: int = 1_000_000, noise_scale: float = 1.0) -> Audit:
    """Add noise for ``epsilon`` to canaries, as the private mechanisms do, and read epsilon back.

    Every coordinate is a Gaussian mechanism of its own: in a random half of them a unit adds a whole clip.

    Args:
        epsilon: that a right implementation has at delta = 1e-5.
        coordinates: number of canaries.
        noise_scale: what the noise is multiplied with; below 1 it is too weak, and must be caught.
    """
    multiplier = 1 / separation(epsilon, DELTA)
    inside = np.random.default_rng(0).random(coordinates) < 0.5
    total = np.where(inside, CLIP, 0.0)
    total += noise_scale * multiplier * CLIP * noise.gaussian(coordinates)
    members, others = total[inside] / CLIP, total[~inside] / CLIP
    threshold = best_threshold(multiplier, len(members), DELTA, CONFIDENCE)
    counted = counting_bound(members, others, threshold, DELTA, CONFIDENCE)
    return Audit(epsilon, gaussian_bound(members, others, DELTA, CONFIDENCE), counted)
