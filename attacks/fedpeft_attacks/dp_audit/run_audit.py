"""Audits of a finished run: membership scores of its canaries, and the noise in what it tapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedpeft.exchange.layout import FloatVector
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft_attacks.dp_audit import check, noise_scale, tapped_noise
from fedpeft_attacks.dp_audit.check import CONFIDENCE, ONE_RUN, RISK, EpsilonCheck, OneRun, verdict_of
from fedpeft_attacks.dp_audit.one_run import guess
from fedpeft_attacks.dp_audit.power import guesses_of

SCORE_SHARES = (0.1, 0.2, 0.5)
"""Shares of canaries that are guessed; fixed, so that no score decides."""


def score_checks(
    scores: NDArray[np.floating], members: NDArray[np.bool_], plan: PrivacyPlan, what: str
) -> list[EpsilonCheck]:
    """One-run audits from membership scores of canary records in a finished run.

    Three numbers of guesses, fixed beforehand, share the risk of each bound. How much a broken run would
    show depends on how well records are remembered, so that no power is known.

    Args:
        scores: the higher, the likelier a member, shape ``(canaries,)``.
        members: the coins, each fair and independent, that decided which were trained on.
        plan: of the run; each canary is one of its units.
        what: what was attacked with what, for the report.

    Raises:
        AuditError: scores and coins do not fit.
    """
    return (
        []
        if plan.reproducible
        else [_of_scores(scores, members, plan, estimator, what) for estimator in ONE_RUN]
    )


def _of_scores(
    scores: NDArray[np.floating], members: NDArray[np.bool_], plan: PrivacyPlan, estimator: OneRun, what: str
) -> EpsilonCheck:
    tries = [guess(scores, members, guesses_of(len(scores), share)) for share in SCORE_SHARES]
    confidence = 1 - (1 - CONFIDENCE) / len(tries)
    return EpsilonCheck(
        method=estimator.method,
        exercises=what,
        assumes=estimator.assumes,
        claimed=plan.epsilon(),
        bound=max(estimator.bound(guesses, plan.delta, confidence) for guesses in tries),
        confidence=CONFIDENCE,
        canaries=len(scores),
        verdict=verdict_of(any(estimator.contradicts(plan, guesses, RISK / len(tries)) for guesses in tries)),
        fault=check.HALVED,
        power=None,
    )


def tap_checks(gradients: Mapping[str, FloatVector], plan: PrivacyPlan) -> list[EpsilonCheck]:
    """The noise in a run's tapped noisy gradients: is it large enough, and is it nobody else's?

    Args:
        gradients: stage ``gradient`` of a run, by any name such as ``bank r01``; other trusts than ``local``
            tap no noise.
        plan: of the run.
    """
    if plan.reproducible or plan.trust != "local" or not gradients:
        return []
    pairs = tapped_noise.shared_noise(gradients, plan)
    checks = [_each_tap(tapped_noise.own_noise(gradients, plan), plan)]
    if pairs:
        checks.append(_of_taps(check.SHARED, pairs, plan, ("one seed on two nodes", 0.0, None)))
    return checks


def _each_tap(near: Sequence[tapped_noise.Near], plan: PrivacyPlan) -> EpsilonCheck:
    confidence = 1 - (1 - CONFIDENCE) / len(near)
    bound = noise_scale.epsilon_at(plan, min(noise.most(confidence) for noise in near))
    return _of_taps(check.TAPPED, near, plan, (check.HALVED, 0.5, bound))


def _of_taps(
    method: str, near: Sequence[tapped_noise.Near], plan: PrivacyPlan, fault: tuple[str, float, float | None]
) -> EpsilonCheck:
    name, factor, bound = fault
    risk = RISK / len(near)
    return EpsilonCheck(
        method=method,
        exercises="step 1 of each tapped round, on the real data",
        assumes="normal noise around any signal",
        claimed=plan.epsilon(),
        bound=bound,
        confidence=CONFIDENCE,
        canaries=sum(noise.values for noise in near),
        verdict=verdict_of(any(noise.refutes(risk) for noise in near)),
        fault=name,
        power=min(noise.power(factor, risk) for noise in near),
    )
