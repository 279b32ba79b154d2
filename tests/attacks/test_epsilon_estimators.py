"""Bounds of epsilon: naive twins, known ceilings, order, and coverage on ideal mechanisms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import binom, binomtest

from fedpeft.errors import AuditError
from fedpeft.privacy.accounting import COARSE, Steps, composed
from fedpeft_attacks.dp_audit import intervals
from fedpeft_attacks.dp_audit.gaussian import delta_of, epsilon_of, separation
from fedpeft_attacks.dp_audit.one_run import (
    Guesses,
    curve_bound,
    curve_refutes,
    fewest_hits,
    guess,
    steinke_bound,
    steinke_refutes,
)

DELTA = 1e-5
FALSE_ALARM = 1e-6
RUNS = 30
CASES = [Guesses(300, 60, 55), Guesses(200, 80, 61), Guesses(90, 90, 60), Guesses(50, 50, 50)]


def naive_p_value(guesses, epsilon, delta):
    """Theorem of Steinke et al. by its sums."""
    rate = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = binom.pmf(range(guesses.made + 1), guesses.made, rate).tolist()
    tail = sum(mass[guesses.correct :])
    v = guesses.correct
    worst = max((sum(mass[v - i : v]) / i for i in range(1, v + 1)), default=0.0)
    return tail + 2 * guesses.canaries * delta * worst


def naive_curve(guesses, mu, risk):
    """Algorithm 3 of Mahloujifar et al. as a table over all numbers of hits, for a plain Gaussian curve."""
    m, made, hits = guesses.canaries, guesses.made, guesses.correct
    h, r = np.zeros(hits + 1), np.zeros(hits + 1)
    r[hits], h[hits] = risk * hits / m, risk * (made - hits) / m
    for i in reversed(range(hits)):
        h[i] = max(h[i + 1], ndtr(ndtri(r[i + 1]) - mu))
        r[i] = min(1.0, r[i + 1] + i / (made - i) * (h[i] - h[i + 1]))
    return r[0] + h[0] > made / m


@pytest.mark.parametrize("guesses", CASES)
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
def test_steinke_equals_the_naive_sums(guesses, delta):
    for epsilon in (0.0, 0.5, 1.5, 3.0):
        p = naive_p_value(guesses, epsilon, delta)
        assert steinke_refutes(guesses, epsilon, delta, p * 1.001)
        assert not steinke_refutes(guesses, epsilon, delta, p * 0.999)


@pytest.mark.parametrize("guesses", CASES)
@pytest.mark.parametrize("risk", [0.05, 1e-3])
def test_the_curve_equals_the_naive_recursion(guesses, risk):
    for mu in np.linspace(0.0, 4.0, 17):
        assert curve_refutes(guesses, float(mu), 0.0, risk) == naive_curve(guesses, mu, risk)


@pytest.mark.parametrize(
    ("m", "steinke", "curve"), [(100, 3.49, 8.2), (300, 4.59, 10.3), (1000, 5.78, 12.3), (3000, 6.83, 14.2)]
)
def test_the_ceilings_are_those_of_the_literature(m, steinke, curve):
    """Every guess right."""
    found = Guesses(m, m, m)
    assert steinke_bound(found, DELTA) == pytest.approx(steinke, abs=0.01)
    assert curve_bound(found, DELTA) == pytest.approx(curve, abs=0.06)


@pytest.mark.parametrize("bound", [steinke_bound, curve_bound])
def test_bounds_rise_with_hits_and_fall_with_confidence_and_delta(bound):
    by_hits = [bound(Guesses(500, 200, hits), DELTA) for hits in range(90, 201, 10)]
    assert by_hits == sorted(by_hits) and by_hits[0] == 0.0 and by_hits[-1] > 3
    one = Guesses(500, 200, 170)
    assert bound(one, DELTA, 0.99) < bound(one, DELTA, 0.95) < bound(one, DELTA, 0.8)
    assert steinke_bound(one, 1e-4) < steinke_bound(one, 1e-6)


@pytest.mark.parametrize(
    ("refutes", "claim"), [(steinke_refutes, 1.0), (curve_refutes, 0.5)], ids=["steinke", "curve"]
)
def test_fewest_hits_is_where_refuting_begins(refutes, claim):
    hits = fewest_hits(lambda found: refutes(found, claim, DELTA, 0.05), 400, 120)
    assert refutes(Guesses(400, 120, hits), claim, DELTA, 0.05)
    assert not refutes(Guesses(400, 120, hits - 1), claim, DELTA, 0.05)
    assert fewest_hits(lambda found: False, 400, 120) == 121


@pytest.mark.parametrize("claimed", [1.0, 4.0, 8.0])
@pytest.mark.parametrize("bound", [steinke_bound, curve_bound])
def test_bounds_of_an_ideal_mechanism_stay_below_the_claim(claimed, bound):
    found = [bound(one, DELTA) for one in ideal(claimed, 300, 0.2, RUNS)]
    assert sum(value > claimed for value in found) <= binom.isf(FALSE_ALARM, RUNS, 0.05)


@pytest.mark.parametrize("claimed", [4.0, 8.0])
def test_a_thousand_canaries_show_half_of_epsilon(claimed):
    found = [curve_bound(one, DELTA) for one in ideal(claimed, 1000, 0.15, RUNS)]
    assert np.median(found) >= 0.5 * claimed


def ideal(claimed, m, share, runs):
    """Guesses on scores of the plain Gaussian mechanism."""
    rng, mu = np.random.default_rng(3), separation(claimed, DELTA)
    for _ in range(runs):
        members = rng.random(m) < 0.5
        yield guess(members * mu + rng.normal(size=m), members, int(m * share))


def test_chance_shows_nothing():
    rng = np.random.default_rng(4)
    members = rng.random((RUNS, 500)) < 0.5
    found = [guess(rng.normal(size=500), coins, 100) for coins in members]
    assert sum(curve_bound(one, DELTA) > 0 for one in found) <= binom.isf(FALSE_ALARM, RUNS, 0.05)


def test_a_guess_takes_both_ends():
    members = np.array([True, False, True, False, True, False])
    scores = np.array([5.0, 1.0, 4.0, 6.0, 0.0, 3.0])
    assert guess(scores, members, 4) == Guesses(6, 4, 2)
    with pytest.raises(AuditError, match="finite"):
        guess(scores * np.nan, members, 4)
    with pytest.raises(AuditError, match="one finite value per coin"):
        guess(scores[:3], members, 2)
    with pytest.raises(AuditError, match="correct <= made"):
        Guesses(10, 4, 5)


@pytest.mark.parametrize("steps", [(0.2, 1.4, 24), (0.064, 1.0, 100), (0.01, 0.8, 1000), (1.0, 3.0, 8)])
def test_sampled_steps_lie_above_the_gaussian_curve_but_for_delta(steps):
    """What `curve_bound` takes for granted holds for the plans that are audited."""
    losses = composed(Steps(*steps), COARSE)
    claimed = losses.get_epsilon_for_delta(DELTA)
    grid, mu = np.linspace(0.0, 2 * claimed, 60), separation(claimed, DELTA)
    excess = np.array(losses.get_delta_for_epsilon(grid)) - [delta_of(epsilon, mu) for epsilon in grid]
    assert excess.max() <= DELTA
    assert excess[grid <= claimed].max() <= 1e-7


@pytest.mark.parametrize(("found", "count"), [(0, 50), (7, 50), (50, 50)])
def test_limits_of_rates_are_those_of_scipy(found, count):
    exact = binomtest(found, count).proportion_ci(0.9, "exact")
    assert intervals.lowest(found, count, 0.9) == pytest.approx(exact.low)
    assert intervals.highest(found, count, 0.9) == pytest.approx(exact.high)


def test_the_gaussian_bound_is_the_estimate_less_its_error():
    rng = np.random.default_rng(5)
    inside, outside = rng.normal(1.0, 1.0, 40_000), rng.normal(0.0, 1.0, 40_000)
    found = intervals.gaussian_bound(inside, outside, DELTA)
    error = math.sqrt(2 / 40_000 + 1 / 160_000)
    assert found == pytest.approx(epsilon_of(1 - 1.645 * error, DELTA), abs=4 * 5.5 * error)
    assert intervals.gaussian_bound(outside, inside, DELTA) == 0.0
