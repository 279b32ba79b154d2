"""How large the noise is, read from values that hold nothing else; epsilon follows by the accountant."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from fedpeft.aggregation.central_dp import CentralNoise, sum_multiplier
from fedpeft.privacy.accounting import COARSE
from fedpeft.privacy.matrix import optimised
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.privacy.step_matrix import StepMatrix
from fedpeft.training.dp.dpsgd import Mechanism, noisy_gradient
from fedpeft_attacks.dp_audit.canary_rehearsal import Observed, whitened
from fedpeft_attacks.dp_audit.synthetic_model import SyntheticModel, shared_noise


@dataclass(frozen=True)
class NoiseSize:
    """Independent normal values that should have deviation 1.

    Attributes:
        values: how many.
        square: mean of their squares.
    """

    values: int
    square: float

    def most(self, confidence: float = 0.95) -> float:
        """Upper limit of their deviation, exact for normal values."""
        return float(np.sqrt(self.values * self.square / chi2.ppf(1 - confidence, self.values)))

    def refutes(self, risk: float) -> bool:
        """Whether they are too small for a deviation of 1."""
        return bool(self.values * self.square <= chi2.ppf(risk, self.values))


def power(values: int, factor: float, risk: float) -> float:
    """Probability that noise of ``factor`` times its size is refuted."""
    return float(chi2.cdf(chi2.ppf(risk, values) / factor**2, values))


def epsilon_at(plan: PrivacyPlan, factor: float) -> float:
    """Epsilon of the plan with ``factor`` times its noise, sampler and clip being right; 0 where it is inf.

    The factor is rounded up to half a hundredth: the bound stays one, and the accountant's work repeats.
    """
    if not 0 < factor < math.inf:
        return 0.0 if factor > 0 else math.inf
    return plan.with_noise(math.ceil(factor * 200) / 200 * plan.noise_multiplier).epsilon(interval=COARSE)


def of_steps(observed: Observed) -> NoiseSize:
    """The noise of all steps in the coordinates of canaries that were out."""
    values = whitened(observed.values, observed.plan)[:, ~observed.members]
    return NoiseSize(values.size, float(np.mean((values / sum_multiplier(observed.plan)) ** 2)))


def of_release(plan: PrivacyPlan, coordinates: int) -> NoiseSize:
    """The noise of one release of nobody, in the node, at the coordinator or in a secure sum."""
    values = _MAKERS[plan.trust](plan, coordinates)
    return NoiseSize(values.size, float(np.mean((values / sum_multiplier(plan)) ** 2)))


def _local(plan: PrivacyPlan, coordinates: int) -> NDArray[np.float64]:
    matrix = StepMatrix.begin(plan) if plan.groups > 1 else None
    mechanism = Mechanism(plan, matrix=matrix)
    gradient = noisy_gradient(SyntheticModel.of(coordinates, plan.clip).attached, [], mechanism)
    return gradient.astype(np.float64) * _first_row(plan)


def _central(plan: PrivacyPlan, coordinates: int) -> NDArray[np.float64]:
    mean, _, _ = CentralNoise.of(plan).mean(coordinates, [])
    return mean * _first_row(plan)


def _first_row(plan: PrivacyPlan) -> float:
    """What makes a first mean unit noise: its row is the fresh one over the first coefficient."""
    return plan.expected_batch_size / plan.clip * float(optimised(plan.bands, plan.steps)[0])


def _distributed(plan: PrivacyPlan, coordinates: int) -> NDArray[np.float64]:
    assert plan.grid is not None
    return shared_noise(plan, coordinates, plan.grid.least_nodes) / plan.grid.steps_per_clip


_MAKERS = {"local": _local, "central": _central, "distributed": _distributed}
