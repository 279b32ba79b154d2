"""One frozen object that owns sampler, clip, noise, accountant event, unit, adjacency and trust model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import FINE, Steps, epsilon
from fedpeft.privacy.calibration import noise_multiplier

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from fedpeft.config.models import Config

ACCOUNTANT = "PLD (dp-accounting)"


@dataclass(frozen=True)
class PrivacyPlan:
    """DP-SGD of one node over a whole run; every field is public and none comes from private data.

    Each step draws records by Poisson sampling, clips each record's gradient, adds Gaussian noise of
    standard deviation ``noise_multiplier * clip`` to the sum and divides by ``expected_batch_size``
    (Abadi et al. 2016, arXiv:1607.00133, algorithm 1). The released steps are
    ``epsilon(steps)``-``delta`` differentially private for one record added or removed, against anyone
    who sees what leaves the node.

    Attributes:
        sampling_probability: rate of inclusion of each record in each step, in (0, 1].
        noise_multiplier: noise standard deviation / clip; positive.
        clip: L2 bound of one record's gradient.
        expected_batch_size: public divisor of the noisy sum.
        steps_per_round: local steps of one round.
        rounds: rounds of the run.
        delta: failure probability of the guarantee.
        unit: what one added or removed unit is.
        adjacency: the neighbouring relation.
        trust: who is trusted with the raw data: only the node itself.

    Raises:
        PrivacyError: a value with which the guarantee would be empty.
    """

    sampling_probability: float
    noise_multiplier: float
    clip: float
    expected_batch_size: int
    steps_per_round: int
    rounds: int
    delta: float
    unit: Literal["record"] = "record"
    adjacency: Literal["add-or-remove-one"] = "add-or-remove-one"
    trust: Literal["local"] = "local"

    def __post_init__(self) -> None:
        _require(0 < self.sampling_probability <= 1, "sampling_probability", self, "in (0, 1]")
        for name in ("noise_multiplier", "clip"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, self, "finite and above 0")
        for name in ("expected_batch_size", "steps_per_round", "rounds"):
            _require(getattr(self, name) >= 1, name, self, "at least 1")
        _require(0 < self.delta < 0.1, "delta", self, "in (0, 0.1), best below 1 / records")

    @property
    def steps(self) -> int:
        """Local steps of the whole run."""
        return self.steps_per_round * self.rounds

    @property
    def dp_event(self) -> DpEvent:
        """The whole run as dp-accounting describes it."""
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

        step = PoissonSampledDpEvent(self.sampling_probability, GaussianDpEvent(self.noise_multiplier))
        return SelfComposedDpEvent(step, self.steps)

    def events(self, steps: int | None = None) -> Steps:
        """The accountant's view of a number of steps; default: the whole run."""
        count = self.steps if steps is None else steps
        return Steps(self.sampling_probability, self.noise_multiplier, count)

    def epsilon(self, steps: int | None = None, interval: float = FINE) -> float:
        """Epsilon at ``delta`` after ``steps`` steps (default: the whole run), as upper bound by PLD."""
        return epsilon([self.events(steps)], self.delta, interval)

    def describe(self) -> dict[str, Any]:
        """All fields and the run's epsilon, for reports."""
        return asdict(self) | {"epsilon": self.epsilon(), "accountant": ACCOUNTANT}


def plan_from_config(config: Config) -> PrivacyPlan | None:
    """The privacy plan that a configuration asks for; None where it asks for no DP.

    With ``privacy.epsilon`` the noise multiplier is solved for, so that the whole run never exceeds it.

    Raises:
        PrivacyError: noise and epsilon both or neither given, no public sampling rate, or nonsense values.
    """
    privacy, federation = config.privacy, config.federation
    if privacy.unit == "none":
        return None
    if (privacy.epsilon is None) == (privacy.noise_multiplier is None):
        raise PrivacyError("set exactly one of privacy.epsilon and privacy.noise_multiplier")
    rate = sampling_probability(config)
    noise = privacy.noise_multiplier
    if noise is None:
        steps = federation.local_steps * federation.rounds
        noise = noise_multiplier(privacy.epsilon or 0.0, privacy.delta, rate, steps)
    return PrivacyPlan(
        sampling_probability=rate,
        noise_multiplier=noise,
        clip=privacy.clip,
        expected_batch_size=federation.batch_size,
        steps_per_round=federation.local_steps,
        rounds=federation.rounds,
        delta=privacy.delta,
    )


def sampling_probability(config: Config) -> float:
    """The public Poisson rate: as given, or batch size over a public record count; never from private data.

    The embedded federation's ``data.samples`` is a public constant and serves as that count.

    Raises:
        PrivacyError: no public figure is configured, or it is below the batch size.
    """
    privacy, batch = config.privacy, config.federation.batch_size
    if privacy.sampling_probability is not None:
        return privacy.sampling_probability
    records = privacy.public_records
    if records is None and config.data.source == "embedded":
        records = config.data.samples
    if records is None:
        raise PrivacyError(
            "the sampling rate must be public, not derived from the private number of records: set "
            "privacy.sampling_probability, or privacy.public_records to a public lower bound"
        )
    if batch > records:
        raise PrivacyError(f"federation.batch_size {batch} is above the {records} public records; lower it")
    return batch / records


def _require(holds: bool, name: str, plan: PrivacyPlan, allowed: str) -> None:
    if not holds:
        raise PrivacyError(f"privacy plan: {name} = {getattr(plan, name)} must be {allowed}")
