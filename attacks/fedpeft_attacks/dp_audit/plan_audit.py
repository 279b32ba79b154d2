"""Audits of a plan by rehearsal: the platform's own code, made-up canaries, no data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial

from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.rng import stream
from fedpeft_attacks.dp_audit import check, noise_scale, sampling_rate
from fedpeft_attacks.dp_audit.canary_rehearsal import Observed, coins, likelihood, rehearse, total
from fedpeft_attacks.dp_audit.check import CONFIDENCE, ONE_RUN, RISK, EpsilonCheck, OneRun, verdict_of
from fedpeft_attacks.dp_audit.one_run import Guesses, fewest_hits, guess
from fedpeft_attacks.dp_audit.power import (
    FAMILY_SHARE,
    Score,
    best_share,
    family_factor,
    family_tail,
    guesses_of,
    power_of_hits,
)

_HALF = 0.5
_SEEN = {
    "local": "the node's own training: draws, gradients per unit, clip, sum, noise, divisor",
    "central": "draws, clip, sum, noise and divisor of the coordinator",
    "distributed": "draws of records, clip, rounding to the grid, and shares of noise of the fewest nodes",
}


@dataclass(frozen=True)
class Effort:
    """How much an audit of a plan may do.

    Attributes:
        canaries: of a rehearsal.
        coordinates: of one release of noise.
        steps: most releases that are rehearsed; of a longer plan the first so many, against their epsilon.
        seed: of the coins; noise and draws come from the operating system.
    """

    canaries: int = 1000
    coordinates: int = 1_000_000
    steps: int = 1000
    seed: int = 0


def epsilon_checks(plan: PrivacyPlan, effort: Effort | None = None) -> list[EpsilonCheck]:
    """Rehearse a plan with canaries and audit it; no data are opened.

    A plan that is marked reproducible guarantees nothing, and there is nothing to check.

    Args:
        plan: of a run.
        effort: default: some seconds.
    """
    if plan.reproducible:
        return []
    effort = effort or Effort()
    part = rehearsed(plan, effort.steps)
    observed = rehearse(part, coins(effort.canaries, stream(effort.seed, 0, "", "epsilon coins")))
    release = noise_scale.of_release(plan, effort.coordinates)
    checks = [
        *canary_checks(observed),
        _noise(check.STEPS, part, noise_scale.of_steps(observed), _SEEN[plan.trust]),
        _noise(check.RELEASE, plan, release, "one release without any unit"),
    ]
    return [*checks, _draws(part)] if sampling_rate.applies(plan) else checks


def rehearsed(plan: PrivacyPlan, most: int) -> PrivacyPlan:
    """The plan, or about its first ``most`` releases."""
    if plan.steps <= most:
        return plan
    per_round = min(plan.steps_per_round, most)
    return replace(plan, steps_per_round=per_round, rounds=most // per_round)


def canary_checks(observed: Observed) -> list[EpsilonCheck]:
    """One-run audits of a rehearsal, from the likelihood ratio of all steps and from their sum."""
    by_ratio = [one_run_check(observed, likelihood, estimator) for estimator in ONE_RUN]
    by_sum = one_run_check(observed, total, ONE_RUN[1])
    return [*by_ratio, replace(by_sum, method=f"{by_sum.method}, sum of steps"), family_check(observed)]


def one_run_check(observed: Observed, score: Score, estimator: OneRun) -> EpsilonCheck:
    """A one-run estimator with as many guesses as promise the highest bound where the plan is kept."""
    plan, count = observed.plan, len(observed.members)
    share = best_share(plan, score, count, estimator.bound)
    made = guesses_of(count, share)
    guesses, hits = guess(score(observed), observed.members, made), _fewest(plan, estimator, count, made)
    return EpsilonCheck(
        method=estimator.method,
        exercises=_SEEN[plan.trust],
        assumes=estimator.assumes,
        claimed=plan.epsilon(),
        bound=estimator.bound(guesses, plan.delta, CONFIDENCE),
        confidence=CONFIDENCE,
        canaries=count,
        verdict=verdict_of(guesses.correct >= hits),
        fault=check.HALVED,
        power=_power(plan, score, share, (count, made, hits)),
    )


@lru_cache(maxsize=256)
def _fewest(plan: PrivacyPlan, estimator: OneRun, canaries: int, made: int) -> int:
    return fewest_hits(partial(estimator.contradicts, plan), canaries, made)


def _power(plan: PrivacyPlan, score: Score, share: float, needed: tuple[int, int, int]) -> float:
    """Of ``(canaries, made, fewest hits)``; 0 where not even all guesses would be enough."""
    canaries, made, hits = needed
    return 0.0 if hits > made else power_of_hits(plan, score, share, Guesses(canaries, made, hits))


def family_check(observed: Observed) -> EpsilonCheck:
    """Hits against those that this very plan lets one expect: less general than the others, and sharper."""
    plan, count = observed.plan, len(observed.members)
    made = guesses_of(count, FAMILY_SHARE)
    guesses = guess(likelihood(observed), observed.members, made)

    def contradicts(guesses: Guesses) -> bool:
        return family_tail(plan, likelihood, guesses, 1.0) <= RISK

    hits = fewest_hits(contradicts, count, made)
    return EpsilonCheck(
        method=check.FAMILY,
        exercises=_SEEN[plan.trust],
        assumes="draws and clip as planned, independent canaries",
        claimed=plan.epsilon(),
        bound=noise_scale.epsilon_at(plan, family_factor(plan, likelihood, guesses, CONFIDENCE)),
        confidence=CONFIDENCE,
        canaries=count,
        verdict=verdict_of(guesses.correct >= hits),
        fault=check.HALVED,
        power=_power(plan, likelihood, FAMILY_SHARE, (count, made, hits)),
    )


def _noise(method: str, plan: PrivacyPlan, size: noise_scale.NoiseSize, seen: str) -> EpsilonCheck:
    return EpsilonCheck(
        method=method,
        exercises=seen,
        assumes="draws and clip as planned",
        claimed=plan.epsilon(),
        bound=noise_scale.epsilon_at(plan, size.most(CONFIDENCE)),
        confidence=CONFIDENCE,
        canaries=size.values,
        verdict=verdict_of(size.refutes(RISK)),
        fault=check.HALVED,
        power=noise_scale.power(size.values, _HALF, RISK),
    )


def _draws(plan: PrivacyPlan) -> EpsilonCheck:
    draws = sampling_rate.observe(plan)
    return EpsilonCheck(
        method=check.DRAWS,
        exercises=_SEEN[plan.trust],
        assumes="noise and clip as planned",
        claimed=plan.epsilon(),
        bound=None,
        confidence=CONFIDENCE,
        canaries=draws.units,
        verdict=verdict_of(draws.p_value <= RISK),
        fault="shuffled batches instead of draws",
        power=sampling_rate.power(plan, RISK),
    )
