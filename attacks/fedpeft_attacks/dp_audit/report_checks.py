"""The claimed epsilon beside what audits measure of it: the plan rehearsed, and the noise of the run."""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft.privacy import PrivacyPlan
from fedpeft.run_plan import RunPlan
from fedpeft.runstore import RunStore
from fedpeft_attacks import dp_audit
from fedpeft_attacks.evidence.taps import GRADIENT, Tap
from fedpeft_attacks.memory import canary_scores, released
from fedpeft_attacks.results.findings import EpsilonCheck
from fedpeft_attacks.results.verdicts import Audit, Bound, epsilon_check


def claim_checks(
    store: RunStore, taps: Sequence[Tap], effort: dp_audit.Effort | None = None
) -> list[EpsilonCheck]:
    """Audit the plan of a run by rehearsal, and the noise in what its nodes tapped; none without a claim.

    Args:
        store: the run.
        taps: what its nodes wrote down.
        effort: of the rehearsal.
    """
    plan = RunPlan.from_config(store.config, store.values).privacy
    if plan is None:
        return []
    gradients = {
        f"{tap.node} r{tap.round:02d}": tap.values(GRADIENT) for tap in taps if GRADIENT in tap.stages
    }
    checks = [*dp_audit.epsilon_checks(plan, effort), *dp_audit.tap_checks(gradients, plan)]
    return [_reported(check) for check in (*checks, *_of_canaries(store, plan))]


def _of_canaries(store: RunStore, plan: PrivacyPlan) -> list[dp_audit.EpsilonCheck]:
    """One-run audits from the canaries among the records, where some were planted."""
    if not store.config.audit.canaries or not (store.path / "state" / "final.npz").is_file():
        return []
    scores, coins = canary_scores(store, released(store))
    what = "the whole run: canaries among the records of the nodes, scored by the released adapter"
    return dp_audit.score_checks(scores, coins, plan, what) if len(scores) else []


def _reported(check: dp_audit.EpsilonCheck) -> EpsilonCheck:
    return epsilon_check(
        Audit(check.method, check.exercises, check.assumes),
        check.claimed,
        Bound(check.bound, check.confidence, check.canaries),
        {check.fault: check.power},
        check.verdict == "contradicts the claim",
    )
