"""The Rényi curves against exact divergences, and mixed composition against dp-accounting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from scipy.stats import poisson, skellam

from fedpeft.errors import PrivacyError
from fedpeft.privacy import renyi
from fedpeft.privacy.accounting import GridSteps, Pure, Skellam, Steps, epsilon, renyi_epsilon

DELTA = 1e-5


def divergence(order, log_p, log_q):
    """Exact Rényi divergence of two discrete laws."""
    return np.logaddexp.reduce(order * log_p + (1 - order) * log_q) / (order - 1)


def shifted(variance, shift):
    """Logarithms of a Skellam law and of its shift, where either has mass that matters, by convolution."""
    reach = math.ceil(20 * math.sqrt(variance) + 60)
    one = poisson.pmf(np.arange(4 * reach + int(variance)), variance / 2)
    both = np.convolve(one, one[::-1])
    middle = len(one) - 1
    index = np.arange(middle - reach, middle + reach + 1)
    with np.errstate(divide="ignore"):
        logs = np.log(both)
    return logs[index - shift], logs[index]


@pytest.mark.parametrize("variance", [2.0, 10.0, 100.0, 2500.0])
@pytest.mark.parametrize("shift", [1, 3, 10])
def test_the_skellam_curve_bounds_the_exact_divergence(variance, shift):
    moved, still = shifted(variance, shift)
    bound = renyi.skellam(shift, shift, variance)
    for order, limit in zip(renyi.ORDERS[:8], bound[:8], strict=True):
        exact = max(divergence(order, moved, still), divergence(order, still, moved))
        assert exact <= limit * (1 + 1e-9)
    if variance >= 100:
        exact = divergence(2.0, moved, still)
        assert renyi.skellam(shift, shift, variance)[0] <= exact * (1 + 4 / variance + 3 / variance)


def test_the_twin_is_a_skellam_law():
    moved, still = shifted(10.0, 3)
    middle = len(still) // 2
    at = np.arange(-12, 13)
    assert np.exp(still[middle + at]) == pytest.approx(skellam.pmf(at, 5.0, 5.0), rel=1e-9)
    assert np.exp(moved[middle + at]) == pytest.approx(skellam.pmf(at - 3, 5.0, 5.0), rel=1e-9)


def test_two_coordinates_are_no_worse_than_the_curve_says():
    (a, b), (c, d) = shifted(9.0, 2), shifted(9.0, -1)
    for order in (2.0, 3.0, 5.0):
        exact = divergence(order, a, b) + divergence(order, c, d)
        index = int(np.flatnonzero(order == renyi.ORDERS)[0])
        assert exact <= renyi.skellam(3.0, math.sqrt(5.0), 9.0)[index]


def test_a_fine_grid_costs_as_much_as_a_gaussian():
    noise = 3.0
    gaussian = epsilon([Skellam(1.0, 1.0, noise**2, 0), Steps(1.0, noise, 10)], DELTA)
    whole = 1e4
    fine = epsilon([Skellam(whole, whole, (noise * whole) ** 2, 10)], DELTA)
    assert fine == pytest.approx(renyi_epsilon([Steps(1.0, noise, 10)], DELTA), rel=1e-3)
    assert gaussian < fine


@pytest.mark.parametrize(("rate", "noise"), [(0.01, 1.0), (0.08, 0.8), (0.5, 4.0), (1.0, 3.0)])
def test_the_gaussian_curve_equals_dp_accounting(rate, noise):
    orders = renyi.ORDERS[:60]
    accountant = RdpAccountant(orders)
    accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)))
    for order, ours in zip(orders[:10], renyi.gaussian(rate, noise)[:10], strict=True):
        single = RdpAccountant([order])
        single.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)))
        theirs = single.get_epsilon(DELTA) - math.log1p(-1 / order) + math.log(DELTA * order) / (order - 1)
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("bound", [0.1, 1.0, 5.0])
def test_the_pure_curve_is_that_of_randomised_response(bound):
    yes = math.exp(bound) / (1 + math.exp(bound))
    p, q = np.log([yes, 1 - yes]), np.log([1 - yes, yes])
    exact = [divergence(order, p, q) for order in renyi.ORDERS]
    assert renyi.pure(bound) == pytest.approx(exact, rel=1e-9)
    assert (renyi.pure(bound) <= bound).all()


def test_pure_releases_compose_to_at_most_their_sum():
    assert epsilon([Pure(0.1, 10)], DELTA) <= 1.0
    assert epsilon([Pure(0.5, 1)], 1e-12) == pytest.approx(0.5, rel=1e-3)
    many = epsilon([Pure(0.1, 200)], DELTA)
    assert many < 20 / 2
    assert many <= renyi_epsilon([Pure(0.1, 200)], DELTA)


def test_a_count_beside_training_costs_less_than_its_own_epsilon():
    training, count = Steps(0.08, 1.0, 100), Pure(0.5, 1)
    alone = epsilon([training], DELTA)
    assert alone < epsilon([training, count], DELTA) < alone + 0.5


def test_any_mix_is_an_upper_bound_of_its_parts():
    events = [Steps(0.1, 1.0, 50), Pure(0.1, 5), Skellam(100.0, 10.0, 1e4, 30), Steps(1.0, 8.0, 3)]
    joint = epsilon(events, DELTA)
    assert joint == pytest.approx(epsilon(events[::-1], DELTA), rel=1e-12)
    assert joint > max(epsilon([event], DELTA) for event in events)
    assert joint == pytest.approx(renyi_epsilon(events, DELTA), rel=1e-9)
    assert epsilon([*events, *events], DELTA) > joint


@pytest.mark.parametrize(
    "event",
    [
        ("steps", 1.0, 1),
        (0.1, 1.0, 1),
        None,
        Steps(0.0, 1.0, 1),
        Steps(1.5, 1.0, 1),
        Steps(0.1, 1.0, -1),
        Steps(0.1, math.nan, 1),
        Skellam(-1.0, 1.0, 1.0, 1),
        Skellam(math.inf, 1.0, 1.0, 1),
        Pure(math.nan, 1),
        GridSteps(0.1, 0.0, 9.0, 0.0, 1),
        GridSteps(0.1, 5.0, 9.0, 1.0, 1),
        GridSteps(0.1, 5.0, 9.0, -1e-9, 1),
        GridSteps(1.1, 5.0, 9.0, 0.0, 1),
    ],
)
def test_what_is_no_release_is_refused(event):
    with pytest.raises(PrivacyError):
        epsilon([Steps(0.1, 1.0, 1), event], DELTA)


@pytest.mark.parametrize(
    "event",
    [Steps(0.1, 0.0, 1), Steps(0.1, -1.0, 1), Skellam(1.0, 1.0, 0.0, 1), Pure(math.inf, 1), Pure(-1.0, 1)],
)
def test_no_noise_is_no_privacy(event):
    assert epsilon([event], DELTA) == math.inf
    assert epsilon([event, Steps(0.1, 1.0, 5), Pure(0.1, 1)], DELTA) == math.inf
    assert renyi_epsilon([event], DELTA) == math.inf
