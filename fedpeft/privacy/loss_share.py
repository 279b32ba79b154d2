"""A noisy training loss as one more value of the Gaussian release that the gradients are.

A unit's vector is (clipped gradient, ``share * clip * (min(loss, cap) - cap / 2) / (cap / 2)``). Its length
is at most ``clip * sqrt(1 + share^2)``, the joint clip, and so is what one unit more or less changes in the
sum. Noise of ``noise_multiplier`` joint clips in every value makes both one Gaussian release, drawn and
accounted for once (Dong, Roth, Su 2022, arXiv:1905.02383, section 2.3: a vector of sensitivity 1). The loss
costs no draw and no event: what it costs is the noise of the gradients, larger by ``sqrt(1 + share^2)``.

Losses are counted from the middle of their range: halves of ``cap`` on either side have half the sensitivity
of a whole one above 0, and so half the noise at equal share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedpeft.errors import PrivacyError

CAPS = (1e-3, 1e3)
"""Least and largest cap, in nats: floating-point numbers far outside of it no longer keep an entry within the
share, nor finite, and whether a step fails would then tell whether it drew a record."""


@dataclass(frozen=True)
class LossShare:
    """Which part of a release the loss is; both are public.

    Attributes:
        share: largest entry of a unit's loss over the clip of its gradient, in (0, 1].
        cap: nats; a larger loss, and one that is not finite, counts as this, a negative one as 0.

    Raises:
        PrivacyError: a share or cap out of range.
    """

    share: float
    cap: float

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and CAPS[0] <= self.cap <= CAPS[1]):
            raise PrivacyError(
                f"{self}: the share must be in (0, 1], the cap {CAPS[0]:g} to {CAPS[1]:g} nats"
            )

    @property
    def growth(self) -> float:
        """Joint clip over the clip of the gradient: what all noise grows by."""
        return math.sqrt(1 + self.share**2)

    @property
    def nats(self) -> float:
        """Loss that an entry of one clip stands for."""
        return self.cap / 2 / self.share

    def mean(self, entry: float) -> float:
        """The loss that the noisy sum of entries stands for, in nats.

        Args:
            entry: the sum over the clip and the expected batch size.
        """
        return self.cap / 2 + self.nats * entry
