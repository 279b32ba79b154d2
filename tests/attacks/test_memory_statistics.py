"""Intervals of memorisation and membership against closed forms and naive twins."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from fedpeft_attacks.memory.statistics import area, detected, mean, share
from fedpeft_attacks.results.token_scores import wilson


def test_the_area_counts_pairs_and_halves_ties():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 30).astype(float)
    pairs = (members[:, None] > others) + (members[:, None] == others) / 2
    assert area(members, others)[0] == pytest.approx(pairs.mean())


def test_the_area_of_two_normal_laws_lies_in_its_interval():
    rng = np.random.default_rng(1)
    true, runs = norm.cdf(1 / np.sqrt(2)), 400
    bounds = [area(rng.normal(1, 1, 60), rng.normal(0, 1, 80))[1] for _ in range(runs)]
    covered = sum(low <= true <= high for low, high in bounds)
    assert covered >= binom.ppf(1e-7, runs, 0.93)
    assert covered < runs


def test_a_test_raises_no_more_false_alarms_than_it_says():
    rng = np.random.default_rng(2)
    runs, size = 300, 50
    for alarms, members in ((0.1, 199), (0.01, 99)):
        found = [detected(rng.normal(size=size), rng.normal(size=members), alarms) for _ in range(runs)]
        shares = np.array([estimate[0] for estimate in found])
        spread = shares.std() / np.sqrt(runs)
        assert shares.mean() <= alarms + 5.2 * spread
        assert shares.mean() >= alarms - 5.2 * spread - 1 / 50


def test_a_perfect_score_finds_every_member_and_a_useless_one_none():
    members, others = np.full(20, 3.0), np.arange(200.0) / 100
    found = detected(members, others, 0.01)
    assert found is not None and found[0] == found[1][1] == 1.0
    assert found[1][0] == pytest.approx(wilson(20, 20)[0])
    assert detected(np.zeros(20), np.zeros(200), 0.1) == (0.0, (0.0, wilson(0, 20)[1]))


def test_a_rate_that_the_non_members_cannot_bear_is_not_given():
    assert detected(np.ones(5), np.zeros(98), 0.01) is None
    assert detected(np.ones(5), np.zeros(99), 0.01) is not None


def test_the_mean_of_a_large_sample_has_the_interval_of_the_normal_law():
    values = np.random.default_rng(3).normal(2, 1, 400)
    value, (low, high) = mean(values)
    assert value == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((value - 0.098, value + 0.098), abs=0.02)
    assert mean(values) == mean(list(values))


def test_a_share_has_wilsons_interval():
    assert share([True, False, False, False]) == (0.25, wilson(1, 4))
