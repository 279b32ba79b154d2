"""From a script of Opacus to a `PrivacyPlan`: what carries over, and what differs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import FINE, Steps, epsilon
from fedpeft.privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from opacus import PrivacyEngine
    from opacus.optimizers import DPOptimizer
    from torch.utils.data import DataLoader

Subject = Literal["rate", "divisor", "sampler", "noise", "clip", "accountant", "history"]
REFUSED = {
    "DPPerLayerOptimizer": "clipping = 'per_layer' clips every tensor to a bound of its own",
    "SimpleDistributedPerLayerOptimizer": "clipping = 'per_layer' clips every tensor to a bound of its own",
    "AdaClipDPOptimizer": "clipping = 'adaptive' moves the clip by a noisy count of records in each step",
}
"""Why an optimiser of Opacus has no plan here; any other kind has workers that share one sum."""


@dataclass(frozen=True)
class Difference:
    """One thing that a plan does otherwise than the script that it was read from.

    Attributes:
        subject: what differs.
        opacus: what the script does.
        fedpeft: what the plan does, or what is to be done.
    """

    subject: Subject
    opacus: str
    fedpeft: str


@dataclass(frozen=True)
class OpacusPlan:
    """What `from_opacus` has read.

    Attributes:
        plan: unit record, trust local, with the script's rate, noise, clip and divisor.
        differences: what the plan does otherwise.
        opacus_epsilon: epsilon of the plan's steps by the script's own accountant.
        spent: the steps that the script has already taken; they are not in the plan.
    """

    plan: PrivacyPlan
    differences: tuple[Difference, ...]
    opacus_epsilon: float
    spent: tuple[Steps, ...]

    @property
    def epsilon(self) -> float:
        """Epsilon of the plan's steps alone, at the plan's delta, an upper bound."""
        return self.plan.epsilon()

    @property
    def epsilon_with_spent(self) -> float:
        """Epsilon of the script's steps so far and the plan's together, if both see the same records."""
        return epsilon([*self.spent, self.plan.event()], self.plan.delta, FINE)

    def __str__(self) -> str:
        lines = [f"{d.subject}: Opacus: {d.opacus}; fedpeft: {d.fedpeft}" for d in self.differences]
        return "\n".join(lines)


def from_opacus(
    engine: PrivacyEngine,
    optimizer: DPOptimizer,
    data_loader: DataLoader[Any],
    *,
    steps_per_round: int,
    rounds: int,
    delta: float,
) -> OpacusPlan:
    """The plan of an existing script of Opacus, from what ``make_private`` returned, and what differs.

    The rate and the divisor are read as they are; ``make_private`` has derived them from the number of
    records. Before they are used as public constants, put public ones in their place
    (``dataclasses.replace(result.plan, ...)``).

    Args:
        engine: the ``PrivacyEngine``.
        optimizer: the ``DPOptimizer`` that it returned.
        data_loader: the loader that it returned.
        steps_per_round: local steps of one round.
        rounds: rounds of the run.
        delta: failure probability of the guarantee.

    Raises:
        PrivacyError: something else was passed, or the script clips or shares its work in a way that no plan
            has.
    """
    _check_kinds(engine, optimizer, data_loader)
    rate = float(getattr(data_loader, "sample_rate", 1 / len(data_loader)))
    plan = PrivacyPlan(
        sampling_probability=rate,
        noise_multiplier=float(optimizer.noise_multiplier),
        clip=float(optimizer.max_grad_norm),
        expected_batch_size=_divisor(optimizer),
        steps_per_round=steps_per_round,
        rounds=rounds,
        delta=delta,
    )
    spent = tuple(Steps(q, noise, steps) for noise, q, steps in engine.accountant.history)
    theirs = _epsilon_of(engine, plan)
    script = (engine, optimizer, data_loader)
    differences = (
        *_sampling(plan, data_loader),
        *_step(plan, optimizer),
        *_account(plan, script, theirs, spent),
    )
    return OpacusPlan(plan, differences, theirs, spent)


def _check_kinds(engine: Any, optimizer: Any, data_loader: Any) -> None:
    from opacus import PrivacyEngine
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from torch.utils.data import DataLoader

    kinds = ((engine, PrivacyEngine), (optimizer, DPOptimizer), (data_loader, DataLoader))
    for value, kind in kinds:
        if not isinstance(value, kind):
            raise PrivacyError(
                f"from_opacus needs the {kind.__name__} of Opacus' make_private, not {type(value).__name__}"
            )
    if type(optimizer) not in (DPOptimizer, DPOptimizerFastGradientClipping):
        name = type(optimizer).__name__
        cause = REFUSED.get(name, "its workers share one sum, which a plan for one node does not describe")
        raise PrivacyError(f"{name} has no plan here: {cause}; set clipping = 'flat' on one worker")


def _divisor(optimizer: Any) -> int:
    if not optimizer.expected_batch_size:
        raise PrivacyError(
            f"expected_batch_size = {optimizer.expected_batch_size} is no divisor; make it at least 1"
        )
    return int(optimizer.expected_batch_size)


def _epsilon_of(engine: Any, plan: PrivacyPlan) -> float:
    """Epsilon of the plan's steps by a fresh accountant of the script's kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of gdp, which `differences` names
        accountant = type(engine.accountant)()
    accountant.history = [(plan.noise_multiplier, plan.sampling_probability, plan.steps)]
    return float(accountant.get_epsilon(plan.delta))


def _sampling(plan: PrivacyPlan, data_loader: Any) -> Iterator[Difference]:
    rate, divisor = plan.sampling_probability, plan.expected_batch_size
    advice = "a public constant: put one in its place if this one comes from the data (Opacus #819)"
    yield Difference("rate", f"{rate:.6g} = 1 / batches of this data set, which tells its size", advice)
    yield Difference("divisor", f"{divisor} = records x rate, which tells the data set's size", advice)
    if not hasattr(data_loader, "sample_rate"):
        yield Difference(
            "sampler",
            f"{type(data_loader.sampler).__name__} in batches of fixed size, accounted for as Poisson draws",
            "Poisson draws, for which alone this epsilon holds: the script's own figure is not shown by it",
        )
    elif abs(1 / len(data_loader) - rate) > 1e-12:
        yield Difference(
            "sampler",
            f"draws at {rate:.6g}, but accounts for 1 / {len(data_loader)} (a rounded number of steps)",
            "draws and accounts at one rate",
        )


def _step(plan: PrivacyPlan, optimizer: Any) -> Iterator[Difference]:
    source = "secure_mode" if optimizer.secure_mode else "torch's seedable generator, in the gradient's type"
    yield Difference(
        "noise",
        f"{source}; one seed on several nodes is one noise, which cancels in differences",
        "float64 from the operating system's entropy, never from a seed",
    )
    yield Difference(
        "clip",
        "one record that is not finite makes the weights not finite",
        "such a record counts as zero; norms end 1e-6 below the clip",
    )
    if optimizer.loss_reduction == "sum":
        yield Difference(
            "divisor",
            "loss_reduction = 'sum': the noisy sum is not divided",
            f"divided by {plan.expected_batch_size}: multiply the learning rate of SGD by it",
        )


def _account(
    plan: PrivacyPlan, script: Sequence[Any], theirs: float, spent: tuple[Steps, ...]
) -> Iterator[Difference]:
    engine, optimizer, _ = script
    kind, ours = engine.accountant.mechanism(), plan.epsilon()
    bound = "; a limit, no upper bound" if kind == "gdp" else ""
    yield Difference(
        "accountant",
        f"{kind} in memory: epsilon {theirs:.4g} for {plan.steps} steps at delta {plan.delta:g}{bound}",
        f"PLD in a ledger on disk: epsilon {ours:.4g} for the same steps",
    )
    others = {step.noise_multiplier for step in spent} - {float(optimizer.noise_multiplier)}
    if spent:
        count = sum(step.repeats for step in spent)
        varied = f", some with noise {', '.join(f'{noise:g}' for noise in sorted(others))}" if others else ""
        yield Difference(
            "history",
            f"{count} steps are taken{varied}: epsilon {epsilon(spent, plan.delta):.4g}",
            "not in the plan; the data set has spent them (`spent`, `epsilon_with_spent`)",
        )
