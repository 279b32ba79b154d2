"""One frozen object that owns sampler, clip, noise, accountant events, unit, adjacency and trust model."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fedpeft.epsilons import written
from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import FINE, Event, MixtureSteps, Steps, epsilon
from fedpeft.privacy.grid import Grid
from fedpeft.privacy.loss_share import LossShare
from fedpeft.privacy.mixture import MOST_RECORDS

ACCOUNTANT = "PLD (dp-accounting)"

COUNTS = ("expected_batch_size", "steps_per_round", "rounds", "records_per_unit", "separation", "bands")
TRUSTS = {
    "record": ("local", "distributed"),
    "person": ("local", "distributed"),
    "node": ("central", "distributed"),
}
"""Who may add the noise for which unit. A single node's noise cannot hide the node at any useful scale."""


AGAINST = {
    "local": "all who see what leaves an organisation, the coordinator included",
    "central": "all who see released models; not the coordinator, which sees updates without noise",
    "distributed": "the coordinator too, and the colluding organisations that the plan allows, for the sum "
    "of all organisations, while every organisation has pinned the others' keys",
}
"""By trust: against whom a plan holds."""


@dataclass(frozen=True)
class AdaptiveClip:
    """A clip that follows a quantile of the norms (Andrew et al. 2021, arXiv:1905.03871).

    Attributes:
        quantile: share of nodes whose norm shall be below the clip.
        lr: step in the logarithm of the clip.
        count_noise: standard deviation of the noise in the count of nodes below the clip, of which every
            node contributes -1/2 or +1/2.

    Raises:
        PrivacyError: a quantile outside (0, 1), or a step or noise that is not positive.
    """

    quantile: float
    lr: float
    count_noise: float

    def __post_init__(self) -> None:
        positive = 0 < self.lr < math.inf and 0 < self.count_noise < math.inf
        if not (0 < self.quantile < 1 and positive):
            raise PrivacyError(f"{self}: the quantile must be in (0, 1), step and noise above 0")


@dataclass(frozen=True)
class PrivacyPlan:
    """Everything that decides about privacy in a run; every field is public, none comes from private data.

    Trust ``local``: DP-SGD in the node. Each local step draws units (records or persons) by Poisson sampling,
    clips each unit's gradient, adds Gaussian noise of standard deviation `deviation` to the sum and divides
    by ``expected_batch_size`` (Abadi et al. 2016, arXiv:1607.00133, algorithm 1). It holds against anyone who
    sees what leaves the node, the coordinator included. With ``loss`` the training loss is one more value of
    each of these releases (`fedpeft.privacy.loss_share`). With a ``grid`` the sum is rounded to whole steps
    and the noise is a discrete Gaussian: the release is a function of integers. With ``bands``
    above 1 the noise of its steps is correlated and each unit may be drawn in every ``bands``-th step alone,
    at so many times the rate (Choquette-Choo et al. 2023, arXiv:2306.08153, algorithm 2).

    Trust ``central``: each round draws nodes, clips each node's update, and the coordinator adds the noise
    to the sum (McMahan et al. 2018, arXiv:1710.06963). It holds against all who see released models, not
    against the coordinator. Nodes that take turns take part at most every ``separation`` rounds; with
    ``bands`` above 1 the noise of their rounds is correlated (matrix mechanism).

    Trust ``distributed``: the nodes add shares of discrete Gaussian noise to integers under secure
    aggregation (Kairouz et al. 2021, arXiv:2102.06387). It holds against the coordinator and
    ``grid.colluders`` nodes that work with it, for the sum. With records or persons as units each node sums
    the clipped gradients of one Poisson draw a round, as in ``local``, and adds its share of the noise that
    the sum of all needs; with nodes as units each clips its update, and epsilon is for what it sent against
    zeros in its place, as who took part is no secret.

    Attributes:
        sampling_probability: rate of inclusion of what is drawn in each step, in (0, 1].
        noise_multiplier: noise standard deviation of the sum / `joint_clip`; positive. With an adaptive clip,
            that of sum and count together: the sum's own noise is somewhat larger (`central.sum_multiplier`).
        clip: L2 bound of one unit's gradient, or of a node's update.
        expected_batch_size: public divisor of the noisy sum: records, persons or nodes of one step.
        steps_per_round: noisy releases of one round: local steps, or 1 for nodes.
        rounds: rounds of the run.
        delta: failure probability of the guarantee.
        unit: what one added or removed unit is.
        trust: who adds the noise, and so who is trusted with what came before it.
        records_per_unit: the most records of one person that a step uses; 1 where the unit is no person.
        separation: rounds from one participation of a node to its next, at least; 1: it may be in all.
        bands: bands of the matrix mechanism; 1: independent noise in each release. Trust central: at most
            ``separation``. Trust local: a divisor of ``steps_per_round``, so that what the rounds are charged
            adds up to the run's, of which ``bands * sampling_probability`` is at most 1.
        adaptive: how the clip follows the norms; None: it is fixed.
        grid: the integers of discrete noise: always with trust ``distributed``, by choice with ``local``.
        reproducible: noise and sampling come from the configured seed: nothing is guaranteed then.
        loss: the part of each release that is the training loss; None: no loss leaves the node.
        drawn: ``unit``: units are drawn and clipped (of persons: ULS of Charles et al. 2024,
            arXiv:2407.07737). ``record``: single records are, and the unit is a person of whom
            ``records_per_unit`` are eligible in a step (ELS there).

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
    unit: Literal["record", "person", "node"] = "record"
    trust: Literal["local", "central", "distributed"] = "local"
    records_per_unit: int = 1
    separation: int = 1
    bands: int = 1
    adaptive: AdaptiveClip | None = None
    grid: Grid | None = None
    reproducible: bool = False
    loss: LossShare | None = None
    drawn: Literal["unit", "record"] = "unit"

    def __post_init__(self) -> None:
        _require(0 < self.sampling_probability <= 1, "sampling_probability", self, "in (0, 1]")
        for name in ("noise_multiplier", "clip"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, self, "finite and above 0")
        for name in COUNTS:
            _require(getattr(self, name) >= 1, name, self, "at least 1")
        _require(0 < self.delta < 0.1, "delta", self, "in (0, 0.1), best below 1 / units")
        allowed = TRUSTS[self.unit]
        _require(self.trust in allowed, "trust", self, f"{' or '.join(allowed)} for unit {self.unit}")
        central = self.trust == "central"
        _require(central or self.separation == 1, "separation", self, "1 unless trust is central")
        self._check_bands()
        _require(central or self.adaptive is None, "adaptive", self, "None unless trust is central")
        turns = self.separation == 1 or self.sampling_probability == 1
        _require(turns, "separation", self, "1 with nodes that are drawn by coins")
        _require(self.bands == 1 or self.adaptive is None, "bands", self, "1 with an adaptive clip")
        distributed = self.trust == "distributed"
        single = self.steps_per_round == 1 or not distributed
        _require(single, "steps_per_round", self, "1 with trust distributed: a secure sum is one release")
        _require(self.trust == "local" or self.loss is None, "loss", self, "None unless trust is local")
        _require(not distributed or self.grid is not None, "grid", self, "given for trust distributed")
        _require(not central or self.grid is None, "grid", self, "None with trust central")
        alone = distributed or self.grid is None or (self.grid.least_nodes, self.grid.colluders) == (1, 0)
        _require(alone, "grid", self, "of one node, whose noise is all there is, with trust local")
        by_unit = self.drawn == "unit"
        _require(by_unit or self.unit == "person", "drawn", self, "'unit' unless the unit is a person")
        allowed_records = by_unit or self.records_per_unit <= MOST_RECORDS
        _require(allowed_records, "records_per_unit", self, f"at most {MOST_RECORDS} where records are drawn")

    def _check_bands(self) -> None:
        if self.trust == "local":
            plain = self.bands == 1
            _require(plain or self.loss is None, "loss", self, "None with bands")
            _require(plain or self.grid is None, "grid", self, "None with bands: their noise is no integer")
            _require(plain or self.drawn == "unit", "drawn", self, "'unit' with bands")
            whole = self.steps_per_round % self.bands == 0
            _require(whole, "bands", self, f"a divisor of the {self.steps_per_round} steps of a round")
            drawn = self.bands * self.sampling_probability <= 1 + 1e-12
            _require(drawn, "bands", self, f"at most 1 / the rate {self.sampling_probability:g}")
        else:
            _require(
                self.bands <= self.separation, "bands", self, f"at most the separation {self.separation}"
            )

    @property
    def steps(self) -> int:
        """Noisy releases of the whole run."""
        return self.steps_per_round * self.rounds

    @property
    def joint_clip(self) -> float:
        """L2 bound of what one unit adds to the sum of a release: gradient and, where it leaves, loss."""
        return self.clip * (1.0 if self.loss is None else self.loss.growth)

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise in each value of that sum."""
        return self.noise_multiplier * self.joint_clip

    @property
    def loss_error(self) -> float:
        """Standard error in nats, by the noise alone, of the loss that a node releases in a round; or 0.

        Public. Which records a step draws adds to it, at most ``cap / 2 / sqrt(batch_size * steps)``.
        """
        if self.loss is None:
            return 0.0
        entry = self.deviation / self.clip / self.expected_batch_size
        return self.loss.nats * entry / math.sqrt(self.steps_per_round)

    @property
    def step_rate(self) -> float:
        """Rate of inclusion of a unit in a release that it may be drawn for: any, or one of its group."""
        return (
            min(1.0, self.bands * self.sampling_probability) if self.groups > 1 else self.sampling_probability
        )

    @property
    def groups(self) -> int:
        """Groups that the units of a node are in, of which each release draws from one; 1: all are in it."""
        return self.bands if self.trust == "local" else 1

    @property
    def adjacency(self) -> Literal["add-or-remove-one", "replace-by-zero"]:
        """What epsilon holds for: one unit more or less, or one node's update against zeros.

        A secure sum shows who takes part in it, so that its noise hides what a node sent, not that it sent
        something; how many records or persons a node drew it does not show.
        """
        return (
            "replace-by-zero" if (self.unit, self.trust) == ("node", "distributed") else "add-or-remove-one"
        )

    def event(self, steps: int | None = None) -> Event:
        """What the accountant composes for a number of releases; default: the whole run.

        Of rounds in turns each unit is in at most every ``separation``-th, and of local steps with bands at
        most in every ``bands``-th. That many independent releases count, and a banded run, one release of
        the whole matrix, weighs as much (Choquette-Choo et al. 2023, arXiv:2306.08153, theorems 2 and 4).
        Without a guarantee the event has no noise: infinite epsilon.
        """
        count = self.steps if steps is None else steps
        if self.reproducible:
            return Steps(1.0, 0.0, count)
        rate, noise = self.sampling_probability, self.noise_multiplier
        records = self.records_per_unit if self.drawn == "record" else None
        if self.grid is not None:
            event = self.grid.event(rate, noise, count)
            return event if records is None else self.grid.mixture_event(event, records)
        if records is not None:
            return MixtureSteps(rate, noise, records, 0.0, count)
        every = max(self.separation, self.groups)
        return Steps(self.step_rate, noise, math.ceil(count / every))

    def epsilon(self, steps: int | None = None, interval: float = FINE) -> float:
        """Epsilon at ``delta`` after ``steps`` releases (default: the whole run), an upper bound."""
        return epsilon([self.event(steps)], self.delta, interval)

    def with_noise(self, noise_multiplier: float) -> PrivacyPlan:
        """The same plan with another noise multiplier."""
        return replace(self, noise_multiplier=noise_multiplier)

    def bound_to(self, public: bytes) -> bytes:
        """Digest of what integers under this plan mean and which noise they bear, 32 bytes.

        Nodes and coordinator put it among the terms of a secure sum: where one works out another grid or
        other noise, as another version may, nothing that it says verifies and its values are in no sum.
        """
        facts = json.dumps(["discrete gaussian", self.fields()], sort_keys=True)
        return hashlib.sha256(b"fedpeft-grid-1\0" + public + facts.encode()).digest()

    def fields(self) -> dict[str, Any]:
        """All fields as JSON values; ``loss`` and ``drawn`` only where they say more than older plans do."""
        fields = asdict(self)
        if self.loss is None:
            del fields["loss"]
        if self.drawn == "unit":
            del fields["drawn"]
        return fields

    def describe(self) -> dict[str, Any]:
        """All fields and the run's epsilon, for reports and JSON."""
        facts = {"epsilon": written(self.epsilon()), "adjacency": self.adjacency, "accountant": ACCOUNTANT}
        return self.fields() | facts


def _require(holds: bool, name: str, plan: PrivacyPlan, allowed: str) -> None:
    if not holds:
        raise PrivacyError(f"privacy plan: {name} = {getattr(plan, name)} must be {allowed}")
