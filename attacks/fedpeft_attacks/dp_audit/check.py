"""One audit of a claimed epsilon, as the report shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedpeft.privacy.plan import PrivacyPlan
from fedpeft_attacks.dp_audit.gaussian import separation
from fedpeft_attacks.dp_audit.one_run import (
    Bound,
    Guesses,
    Refutes,
    curve_bound,
    curve_refutes,
    steinke_bound,
    steinke_refutes,
)

Verdict = Literal["contradicts the claim", "agrees with the claim at this power"]

CONFIDENCE = 0.95
RISK = 1e-3
"""Probability at which one check contradicts a true claim: far below that of its bound, as there are many."""

STEINKE, CURVE, FAMILY = "one run, any mechanism", "one run, Gaussian trade-off", "one run, the plan's family"
STEPS, RELEASE, DRAWS = "noise within the steps", "noise of one release", "sampling rate of the draws"
TAPPED, SHARED = "noise in tapped gradients", "noise shared by tapped gradients"
HALVED = "noise halved"
"""The fault that most powers are against."""


@dataclass(frozen=True)
class EpsilonCheck:
    """One audit of a claimed epsilon.

    Attributes:
        method: name of the audit.
        exercises: what of the platform, or of the run, it has seen.
        assumes: what it takes for granted.
        claimed: epsilon at the plan's delta.
        bound: lower bound of epsilon, 0 where nothing was shown; None: the audit gives none.
        confidence: of the bound, by itself.
        canaries: canaries, or values, that it counted.
        verdict: ``contradicts`` with probability `RISK` at most where the claim is true.
        fault: what its power is against.
        power: probability that it would contradict the claim under that fault; None: it is not known.
    """

    method: str
    exercises: str
    assumes: str
    claimed: float
    bound: float | None
    confidence: float
    canaries: int
    verdict: Verdict
    fault: str
    power: float | None


def verdict_of(wrong: bool) -> Verdict:
    """The verdict in words."""
    return "contradicts the claim" if wrong else "agrees with the claim at this power"


@dataclass(frozen=True)
class OneRun:
    """A one-run estimator.

    Attributes:
        method: its name.
        assumes: what it takes for granted beside fair coins.
        bound: its lower bound of epsilon.
        refutes: its test of a claim, epsilon or separation.
    """

    method: str
    assumes: str
    bound: Bound
    refutes: Refutes

    def claim(self, plan: PrivacyPlan) -> float:
        """What the plan claims, in the parameter that is tested."""
        epsilon = plan.epsilon()
        return epsilon if self.method == STEINKE else separation(epsilon, plan.delta)

    def contradicts(self, plan: PrivacyPlan, guesses: Guesses, risk: float = RISK) -> bool:
        """Whether so many hits contradict the plan."""
        return self.refutes(guesses, self.claim(plan), plan.delta, risk)


ONE_RUN = (
    OneRun(STEINKE, "nothing beside the coins", steinke_bound, steinke_refutes),
    OneRun(CURVE, "a trade-off like a Gaussian's, but for delta", curve_bound, curve_refutes),
)
