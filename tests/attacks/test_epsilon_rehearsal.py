"""Rehearsals: canaries through the platform's own mechanisms, against the plans' formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, chi2, norm

from fedpeft.privacy import noise
from fedpeft.privacy.csprng import words
from fedpeft.privacy.grid import Grid
from fedpeft.privacy.matrix import optimised
from fedpeft.privacy.plan import AdaptiveClip, PrivacyPlan
from fedpeft_attacks.dp_audit import Effort, check, epsilon_checks, noise_scale, sampling_rate
from fedpeft_attacks.dp_audit.canary_rehearsal import (
    coins,
    likelihood,
    rehearse,
    simulated,
    total,
    turns,
    whitened,
)
from fedpeft_attacks.dp_audit.one_run import Guesses, curve_bound, guess
from fedpeft_attacks.dp_audit.plan_audit import rehearsed
from fedpeft_attacks.dp_audit.power import accuracy, best_share, family_factor, family_tail

LOCAL = PrivacyPlan(0.2, 1.2, 0.25, 64, 3, 2, 1e-5)
CENTRAL = PrivacyPlan(0.5, 3.0, 1.0, 10, 1, 6, 1e-5, "node", "central")
GRID = Grid(300, 500.0, 3)
PLANS = {
    "local": LOCAL,
    "all": replace(LOCAL, sampling_probability=1.0),
    "person": replace(LOCAL, unit="person", records_per_unit=2),
    "single": replace(LOCAL, unit="person", records_per_unit=3, drawn="record"),
    "integers": replace(LOCAL, grid=Grid(300, 500.0, 1, limit=2**50)),
    "bands": replace(LOCAL, bands=3),
    "person, bands": replace(LOCAL, unit="person", records_per_unit=2, bands=3),
    "central": CENTRAL,
    "turns": replace(CENTRAL, sampling_probability=1.0, separation=3, bands=2),
    "adaptive": replace(CENTRAL, adaptive=AdaptiveClip(0.5, 0.2, 6.0)),
    "summed": replace(
        LOCAL, steps_per_round=1, rounds=6, trust="distributed", grid=replace(GRID, limit=2000)
    ),
    "distributed": PrivacyPlan(1.0, 6.0, 1.0, 10, 1, 4, 1e-5, "node", "distributed", grid=GRID),
}
SIX_SIGMA = 6.0
CANARIES = 300


def half(seed=0):
    return coins(CANARIES, np.random.default_rng(seed))


@pytest.mark.parametrize("name", PLANS)
def test_a_rehearsal_has_the_plans_signal_and_noise(name):
    plan, members = PLANS[name], half()
    found = rehearse(plan, members)
    assert found.values.shape == (plan.steps, CANARIES)
    outside = whitened(found.values, plan)[:, ~members]
    size = noise_scale.of_steps(found)
    assert size.values == outside.size
    assert abs(size.square - 1) < SIX_SIGMA * np.sqrt(2 / outside.size)
    mine = found.asked & members
    inside, rate = found.values[mine], plan.step_rate
    clips = plan.records_per_unit if plan.drawn == "record" else 1
    error = np.sqrt((clips * rate * (1 - rate) + 2 * plan.noise_multiplier**2) / inside.size)
    assert abs(inside.mean() - clips * rate) < SIX_SIGMA * error


@pytest.mark.parametrize("name", ["local", "all", "person"])
def test_without_noise_each_canary_counts_one_clip_whenever_it_is_drawn(name, monkeypatch):
    monkeypatch.setattr(noise, "gaussian", lambda size, source=words: np.zeros(size))
    found = rehearse(PLANS[name], half())
    drawn = found.values > 0.5
    np.testing.assert_allclose(found.values, drawn, atol=1e-5)
    assert not drawn[:, ~found.members].any() and drawn.any()
    if name == "all":
        assert (drawn == found.members).all()


def test_the_simulation_is_the_rehearsal_in_distribution():
    for name in ("local", "single", "bands", "central", "turns"):
        plan, ends = PLANS[name], []
        for make in (rehearse, lambda plan, members: simulated(plan, members, 1.0, np.random.default_rng(1))):
            scores = [likelihood(make(plan, half(seed))) for seed in range(5)]
            truth = [half(seed) for seed in range(5)]
            hits = sum(guess(s, m, CANARIES // 5 * 2).correct for s, m in zip(scores, truth, strict=True))
            ends.append(hits)
        made = 5 * (CANARIES // 5 * 2)
        assert abs(ends[0] - ends[1]) < SIX_SIGMA * np.sqrt(2 * made / 4)


def test_scores_equal_the_formulas():
    found = simulated(LOCAL, half(), 1.0, np.random.default_rng(2))
    q, z = LOCAL.sampling_probability, LOCAL.noise_multiplier
    y = found.values
    ratio = ((1 - q) * np.exp(-(y**2) / (2 * z**2)) + q * np.exp(-((y - 1) ** 2) / (2 * z**2))) / np.exp(
        -(y**2) / (2 * z**2)
    )
    np.testing.assert_allclose(likelihood(found), np.log(ratio).sum(0), rtol=1e-9)
    plan = PLANS["turns"]
    found = simulated(plan, half(), 1.0, np.random.default_rng(3))
    np.testing.assert_allclose(total(found)[0], found.values[[0, 3], 0].sum())
    clean = simulated(plan, half(), 0.0, np.random.default_rng(3))
    signal = whitened((turns(plan, CANARIES) & clean.members).astype(float), plan)
    np.testing.assert_allclose(whitened(clean.values, plan)[0], clean.values[0] * optimised(2, 6)[0])
    assert (likelihood(clean)[clean.members] > 0).all() and (likelihood(clean)[~clean.members] < 0).all()
    assert signal.max() < 1


def test_the_score_of_drawn_records_is_the_ratio_of_the_mixture():
    plan = PLANS["single"]
    found = simulated(plan, half(), 1.0, np.random.default_rng(2))
    chances, z = binom.pmf(range(4), 3, plan.sampling_probability), plan.noise_multiplier
    mixed = sum(chance * norm.pdf(found.values, i, z) for i, chance in enumerate(chances))
    np.testing.assert_allclose(likelihood(found), np.log(mixed / norm.pdf(found.values, 0, z)).sum(0))


def test_accuracy_falls_with_noise_and_with_more_guesses():
    by_noise = [accuracy(LOCAL, likelihood, 0.2, factor) for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
    by_share = [accuracy(LOCAL, likelihood, share) for share in (0.05, 0.2, 0.6, 1.0)]
    assert by_noise == sorted(by_noise, reverse=True) and by_share == sorted(by_share, reverse=True)
    assert best_share(LOCAL, likelihood, 200, curve_bound) > best_share(LOCAL, likelihood, 2000, curve_bound)


def test_the_familys_limit_of_noise_covers_the_truth():
    """As often as it says, on simulated runs of the plan itself."""
    above, runs = 0, 40
    for seed in range(runs):
        rng = np.random.default_rng([7, seed])
        found = simulated(LOCAL, coins(1000, rng), 1.0, rng)
        above += family_factor(LOCAL, likelihood, guess(likelihood(found), found.members, 600)) < 1
    assert above <= binom.isf(1e-6, runs, 0.05)
    assert family_tail(LOCAL, likelihood, Guesses(1000, 600, 600), 1.0) < 1e-9


def test_the_size_of_the_noise_has_exact_limits():
    size = noise_scale.NoiseSize(50, 1.3)
    assert chi2.cdf(50 * 1.3 / size.most(0.95) ** 2, 50) == pytest.approx(0.05)
    assert not size.refutes(1e-3) and noise_scale.NoiseSize(50, 0.3).refutes(1e-3)
    assert noise_scale.power(12_000, 0.5, 1e-3) > 0.999 and noise_scale.power(50, 1.0, 1e-3) == pytest.approx(
        1e-3
    )
    assert noise_scale.epsilon_at(LOCAL, 1.0) == pytest.approx(LOCAL.epsilon(), rel=2e-3)
    assert noise_scale.epsilon_at(LOCAL, float("inf")) == 0.0


@pytest.mark.parametrize("name", ["local", "turns", "summed", "distributed"])
def test_one_release_of_nobody_is_the_plans_noise(name):
    size = noise_scale.of_release(PLANS[name], 100_000)
    assert abs(size.square - 1) < SIX_SIGMA * np.sqrt(2 / 100_000)


def test_a_crowd_tells_draws_from_fixed_batches():
    units, rng = sampling_rate.size_of(LOCAL), np.random.default_rng(8)
    plan = replace(LOCAL, rounds=8)
    noisy = plan.noise_multiplier * rng.normal(size=(400, plan.steps))
    drawn = [
        sampling_rate.Draws(plan, units, rng.binomial(units, 0.2, plan.steps) + row).p_value for row in noisy
    ]
    assert sum(p <= 0.05 for p in drawn) <= binom.isf(1e-6, 400, 0.05)
    assert min(drawn) > 1e-7
    fixed = [sampling_rate.Draws(plan, units, round(0.2 * units) + row).p_value for row in noisy]
    assert max(fixed) < 1e-3 and sampling_rate.power(plan, 1e-3) > 0.999


def test_the_suites_entry_agrees_with_right_plans_and_knows_its_power():
    """Each of seven checks errs with probability 1e-3; more than two at once are the platform's fault."""
    checks = epsilon_checks(LOCAL, Effort(canaries=400, coordinates=10_000))
    assert [one.method for one in checks][-4:] == [check.FAMILY, check.STEPS, check.RELEASE, check.DRAWS]
    assert sum(one.verdict == "contradicts the claim" for one in checks) <= 2
    assert all(0 <= one.power <= 1 and one.claimed == LOCAL.epsilon() for one in checks)
    powers = {one.method: one.power for one in checks}
    assert powers[check.STEPS] > 0.99 and powers[check.STEINKE] < 0.01
    assert all(one.bound < 1.5 * LOCAL.epsilon() for one in checks if one.bound is not None)


def test_records_in_secure_sums_are_rehearsed_with_their_draws():
    checks = epsilon_checks(PLANS["summed"], Effort(canaries=400, coordinates=10_000))
    assert checks[-1].method == check.DRAWS
    assert sum(one.verdict == "contradicts the claim" for one in checks) <= 2
    halved = replace(PLANS["summed"], grid=replace(GRID, least_nodes=1))
    powers = {
        one.method: one.power for one in epsilon_checks(halved, Effort(canaries=400, coordinates=10_000))
    }
    assert powers[check.STEPS] > 0.99


def test_nothing_is_claimed_and_nothing_checked_where_noise_can_be_repeated():
    assert epsilon_checks(replace(LOCAL, reproducible=True)) == []


def test_a_long_plan_is_rehearsed_in_part_against_the_epsilon_of_that_part():
    long = replace(LOCAL, steps_per_round=50, rounds=100)
    assert rehearsed(long, 120).steps == 100 and rehearsed(long, 20).steps == 20
    assert rehearsed(LOCAL, 1000) is LOCAL
