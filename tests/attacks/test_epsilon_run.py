"""Audits of finished runs: scores of canary records, and the noise in tapped gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from fedpeft.errors import AuditError
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft_attacks.dp_audit import check, score_checks, tap_checks, tapped_noise
from fedpeft_attacks.dp_audit.gaussian import separation

PLAN = PrivacyPlan(1.0, 1 / separation(4.0, 1e-5), 0.25, 64, 1, 1, 1e-5)
STRICT = PrivacyPlan(1.0, 1 / separation(1.0, 1e-5), 0.25, 64, 1, 1, 1e-5)
STEPS = PrivacyPlan(0.2, 1.5, 0.25, 64, 3, 2, 1e-5)
VALUES = 20_000
DEVIATION = 1.5 * 0.25 / 64


def scores(rng, canaries, mu):
    members = rng.random(canaries) < 0.5
    return members * mu + rng.normal(size=canaries), members


def test_canary_records_of_the_plain_mechanism_show_part_of_the_claim():
    rng, runs = np.random.default_rng(0), 8
    found = [score_checks(*scores(rng, 500, 1 / PLAN.noise_multiplier), PLAN, "x") for _ in range(runs)]
    for at, least in ((0, 0.2), (1, 0.35)):
        bounds = [checks[at].bound for checks in found]
        assert sum(bound > 4.0 for bound in bounds) <= binom.isf(1e-6, runs, 0.05)
        assert np.median(bounds) > least * 4.0
    assert found[0][0].method == check.STEINKE and found[0][0].power is None
    assert all(one.verdict.startswith("agrees") for checks in found for one in checks)


def test_scores_that_say_too_much_contradict_and_scores_of_chance_show_nothing():
    rng = np.random.default_rng(1)
    known, members = scores(rng, 600, 8.0)
    assert [one.verdict for one in score_checks(known, members, STRICT, "x")] == ["contradicts the claim"] * 2
    assert [one.bound for one in score_checks(rng.normal(size=600), members, STRICT, "x")] == [0.0, 0.0]
    assert score_checks(known, members, replace(PLAN, reproducible=True), "x") == []
    with pytest.raises(AuditError):
        score_checks(known[:5], members, PLAN, "x")


def gradients(rng, factor=1.0, signal=0.0, shared=False):
    made = {}
    noise = rng.normal(size=VALUES)
    for name in ("bank r01", "clinic r01", "bank r02"):
        noise = noise if shared else rng.normal(size=VALUES)
        values = DEVIATION * (factor * noise + signal * rng.normal(size=VALUES))
        made[name] = np.where(np.arange(VALUES) % 2, values, 0).astype(np.float32)
    return made


@pytest.mark.parametrize("signal", [0.0, 0.5, 3.0])
def test_right_noise_is_never_called_small_whatever_the_signal(signal):
    own, shared = tap_checks(gradients(np.random.default_rng(2), signal=signal), STEPS)
    assert own.verdict.startswith("agrees") and shared.verdict.startswith("agrees")
    assert own.canaries == 3 * VALUES // 2 and own.bound <= 1.02 * STEPS.epsilon()
    assert (own.power > 0.99) == (signal < 3)


@pytest.mark.parametrize("factor", [0.5, 0.7])
def test_weak_noise_is_caught_beside_a_signal(factor):
    own, _ = tap_checks(gradients(np.random.default_rng(3), factor, signal=0.4), STEPS)
    assert own.verdict == "contradicts the claim" and own.bound > STEPS.epsilon()


def test_noise_of_one_seed_is_caught_between_nodes_and_not_within_them():
    own, shared = tap_checks(gradients(np.random.default_rng(4), signal=0.4, shared=True), STEPS)
    assert own.verdict.startswith("agrees") and shared.verdict == "contradicts the claim"
    assert shared.power > 0.99 and shared.bound is None


def test_values_near_zero_are_as_rare_as_the_binomial_says():
    rng, runs = np.random.default_rng(5), 400
    wrong = [tapped_noise.Near.of(rng.normal(size=501), 1.0).refutes(0.05) for _ in range(runs)]
    assert sum(wrong) <= binom.isf(1e-6, runs, 0.05)
    assert tapped_noise.Near.of(rng.normal(size=100_000), 1.0).most() == pytest.approx(1.0, abs=0.02)
    assert tapped_noise.Near.of(100 + rng.normal(size=1000), 1.0).most() == np.inf


def test_other_plans_tap_no_noise():
    made = gradients(np.random.default_rng(6))
    assert tap_checks(made, replace(STEPS, reproducible=True)) == [] and tap_checks({}, STEPS) == []
    assert len(tap_checks({"bank r01": made["bank r01"]}, STEPS)) == 1
