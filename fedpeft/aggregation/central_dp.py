"""A trusted coordinator's noise: it hides what any one node has sent from all who see released models.

Neighbours are sets of updates that differ in one node's. Who is enrolled is no secret and neither is
the divisor; who was drawn by secret coins is one, and so a draw of nobody is a release of noise alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.aggregation.base import AggregationRule
from fedpeft.errors import PrivacyError
from fedpeft.privacy import noise
from fedpeft.privacy.csprng import KEY_BYTES, Randomness, seeded, words
from fedpeft.privacy.matrix import Wide, correlated, left_over, optimised
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.rng import stream

if TYPE_CHECKING:
    from fedpeft.aggregation.mean import Contribution
    from fedpeft.privacy.ledger import Ledger, Reservation

CLIP_MARGIN = 1e-6
"""Clipped updates end this much below the clip, far above the rounding of float64 norms and sums."""


def clipped_sum(size: int, contributions: Iterable[Contribution], clip: float) -> tuple[Wide, float]:
    """What enters the noise: the sum of clipped updates, and the centred count of those within the clip.

    Each node has weight 1 whatever it says. Adding or removing one node changes the sum by at most ``clip``
    in L2 norm and the count by exactly 1/2. An update that is not finite changes neither.

    Args:
        size: number of values.
        contributions: (node, ignored weight, values) in strictly rising order of node, read one at a time.
        clip: L2 bound of one node's update, above 0.

    Returns:
        The sum, float64, shape ``(size,)``; and the sum over nodes of 1/2 where the norm is at most
        ``clip`` and of -1/2 where it is not. Both are private until noise is added.

    Raises:
        PrivacyError: a node comes twice or out of order, or a vector has another size.
    """
    total, count, last = np.zeros(size, np.float64), 0.0, None
    bound = clip * (1 - CLIP_MARGIN)
    for node, _, values in contributions:
        if last is not None and node <= last:
            raise PrivacyError(f"each node counts once, in rising order; {node!r} came after {last!r}")
        if values.layout.size != size:
            raise PrivacyError(f"expected {size} values of {node!r}, got {values.layout.size}")
        vector, last = values.dense().astype(np.float64), node
        norm = float(np.linalg.norm(vector))
        if math.isfinite(norm):
            total += vector * (bound / max(norm, bound))
            count += 0.5 if norm <= clip else -0.5
    return total, count


def randomness(plan: PrivacyPlan, seed: int, round: int, purpose: str) -> Randomness:
    """Where a round's noise or draw comes from: the operating system, whatever the seed.

    Only a plan that is marked reproducible, and so guarantees nothing, follows the seed.
    """
    if not plan.reproducible:
        return words
    return seeded(stream(seed, round, "server", purpose).bytes(KEY_BYTES))


def sum_multiplier(plan: PrivacyPlan) -> float:
    """Noise of the sum over its clip, where the plan's multiplier is that of sum and count together.

    Sum and count are one Gaussian release of multiplier ``z`` when ``1/z^2`` is the sum of the squares of
    their sensitivities over their noise, the count's being 1/2 (Andrew et al. 2021, arXiv:1905.03871,
    theorem 1). Without an adaptive clip there is no count.

    Raises:
        PrivacyError: the count alone spends more than the plan allows.
    """
    if plan.adaptive is None:
        return plan.noise_multiplier
    rest = plan.noise_multiplier**-2 - (2 * plan.adaptive.count_noise) ** -2
    if rest <= 0:
        raise PrivacyError(
            f"the noise {plan.adaptive.count_noise:g} of an adaptive clip's count must exceed half the noise "
            f"multiplier {plan.noise_multiplier:g}: the count would cost more than the whole release; ask "
            "more nodes in a round, or set privacy.adaptive_clip = false"
        )
    return rest**-0.5


@dataclass(frozen=True)
class CentralNoise(AggregationRule):
    """``(sum of clipped updates + noise) / expected nodes``: one release; a law of aggregation.

    The noise is drawn once per release, in float64, before any cast, from the operating system's entropy.
    The divisor is the plan's constant: neither noise nor divisor follow the number of updates, so that
    fewer of them never weaken the guarantee, and none at all give noise alone.

    An adaptive clip follows a quantile of the norms (Andrew et al. 2021, algorithm 1): it grows while fewer
    updates than the quantile lie within it, and depends on noisy counts only.

    Attributes:
        plan: of trust central.
        clip: the clip in force.
        history: bands above 1: earlier rows of correlated noise of unit scale, newest first, float64, shape
            ``(at most bands - 1, size)``. Secret.
        done: releases so far.
        seed: of a reproducible plan.
    """

    needs_dense = False
    cuts = True

    plan: PrivacyPlan
    clip: float
    history: Wide = field(default_factory=lambda: np.zeros((0, 0)))
    done: int = 0
    seed: int = 0

    @classmethod
    def of(cls, plan: PrivacyPlan, seed: int = 0) -> CentralNoise:
        """The mechanism before the first round.

        Raises:
            PrivacyError: the plan is not for a trusted coordinator, or its count is too costly.
        """
        if plan.trust != "central":
            raise PrivacyError(f"privacy.trust = {plan.trust!r}: a coordinator adds noise for 'central' only")
        sum_multiplier(plan)
        return cls(plan, plan.clip, seed=seed)

    @property
    def coefficients(self) -> Wide:
        """First column of the matrix of the noise, shape ``(bands,)``."""
        return optimised(self.plan.bands, self.plan.steps)

    def mean(
        self, size: int, contributions: Iterable[Contribution]
    ) -> tuple[Wide, CentralNoise, dict[str, Any]]:
        """One release: the noisy mean, float64, shape ``(size,)``; the next state; and public facts of it.

        The facts are ``clip``, the clip in force, and ``noise``, the standard deviation of each value.

        Raises:
            PrivacyError: a node comes twice, or the result is not finite.
        """
        total, count = clipped_sum(size, contributions, self.clip)
        source = randomness(self.plan, self.seed, self.done + 1, "noise")
        fresh, history = noise.gaussian(size, source), self.history.reshape(-1, size)
        row, history = correlated(self.coefficients, fresh, history)
        scale = sum_multiplier(self.plan) * self.clip
        mean = (total + scale * row) / self.plan.expected_batch_size
        if not np.isfinite(mean).all():
            raise PrivacyError("the noisy mean is not finite; lower privacy.clip or the noise multiplier")
        facts = {"clip": self.clip, "noise": scale / self.plan.expected_batch_size}
        clip = self._next_clip(count, source)
        return mean, replace(self, clip=clip, history=history, done=self.done + 1), facts

    def _next_clip(self, count: float, source: Randomness) -> float:
        """The clip after a round whose centred count was ``count``."""
        if (adaptive := self.plan.adaptive) is None:
            return self.clip
        noisy = count + adaptive.count_noise * float(noise.gaussian(1, source)[0])
        share = 0.5 + noisy / self.plan.expected_batch_size
        return self.clip * math.exp(-adaptive.lr * (share - adaptive.quantile))

    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps."""
        matrix = {"history": self.history, "coefficients": self.coefficients}
        return matrix | {"clip": np.array([self.clip]), "done": np.array([self.done])}

    def restored(self, arrays: Mapping[str, np.ndarray]) -> CentralNoise:
        """The inverse of `arrays`.

        Rows of other coefficients, as of another version, are dropped: a column of both could be longer than
        1. A new matrix begins then, which weighs no more than what a process that resumes is charged.
        """
        clip, done = float(arrays["clip"][0]), int(arrays["done"][0])
        history = arrays["history"]
        if not np.array_equal(arrays.get("coefficients", np.zeros(0)), self.coefficients):
            history = np.zeros((0, 0))
        return replace(self, clip=clip, history=history, done=done)


@dataclass
class Account:
    """The coordinator's own spending: each release is reserved before any node is asked for it.

    A round that is repeated after a crash draws other noise and other nodes, and is charged again. Rounds
    in turns are reserved together: the first round of a process reserves all that are left.

    Attributes:
        ledger: the coordinator's.
        lineage: the run's name.
        run: the run's identity, hexadecimal.
        plan: of trust central.
    """

    ledger: Ledger
    lineage: str
    run: str
    plan: PrivacyPlan
    _open: Reservation | None = field(default=None, init=False)

    def reserve(self, round: int) -> Reservation:
        """Spend a 1-based round, durably; nodes may be asked from then on.

        Raises:
            PrivacyError: the budget would be exceeded; nothing is spent then.
        """
        if self.plan.separation == 1:
            self._open = self._spend(round, self.plan, 1)
        elif self._open is None:
            weight = left_over(self.plan.rounds, self.plan.bands, self.plan.separation, round - 1)
            once = replace(self.plan, separation=1, bands=1, steps_per_round=weight, rounds=1)
            self._open = self._spend(round, once, weight)
        return self._open

    def released(self, round: int, mean: Wide) -> None:
        """Record the digest of a noisy mean under its reservation; of correlated rounds that of the last."""
        if self._open is None:
            raise PrivacyError("a noisy mean must be reserved before it is released")
        if self.plan.separation == 1 or round == self.plan.rounds:
            self.ledger.released(self._open, hashlib.sha256(mean.tobytes()).hexdigest())

    def _spend(self, round: int, plan: PrivacyPlan, steps: int) -> Reservation:
        reservation = self.ledger.reserve(self.lineage, self.run, round, plan, steps)
        self.ledger.started(reservation)
        return reservation
