"""Discrete Gaussian noise against its law, and the grid against its bound."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedpeft.privacy.csprng import words
from fedpeft.privacy.grid import SMOOTH, Grid
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.secagg import SecureAggregationError, from_residues, to_residues
from fedpeft.secagg.discrete_gaussian import _table, largest, share_of_noise
from fedpeft.secagg.grid_values import clipped, from_grid, noisy_grid, to_grid

SIZE = 200_000


def law(variance: float, end: int) -> np.ndarray:
    """Probabilities of -end .. end by the definition."""
    k = np.arange(-end, end + 1, dtype=np.float64)
    weights = np.exp(-k * k / (2 * variance))
    return weights / weights.sum()


def cumulative(variance: float) -> list[int]:
    """The table as whole numbers of 2^-127."""
    first, second = _table(variance)
    return [(int(a) << 64) + int(b) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("variance", [0.01, 0.3, 1.0, 7.3, 100.0, 1e4])
def test_the_table_is_the_law(variance):
    """Atom by atom, to 2^-127 and 1e-13 of each, far beyond the digits of one word."""
    total = cumulative(variance)
    counts = [after - before for before, after in zip([0, *total], total, strict=False)]
    assert sum(counts) == 2**127 and min(counts) > 0
    end = len(counts) - 1
    exact = law(variance, 2 * end + 40)
    middle = len(exact) // 2
    for k, count in enumerate(counts):
        wanted = float(exact[middle + k]) * (1 if k == 0 else 2)
        assert abs(float(Fraction(count, 2**127)) - wanted) <= 2.0**-126 + 1e-13 * wanted
    assert exact[middle + end + 1] * 2 < 2.0**-126


def test_no_noise_is_zero():
    assert share_of_noise(100, 0.0).tolist() == [0] * 100 and largest(0.0) == 0


@pytest.mark.parametrize("variance", [0.3, 2.0, 30.0])
def test_drawn_values_fit_the_exact_law(variance):
    drawn = share_of_noise(SIZE, variance)
    most = int(6 * math.sqrt(variance)) + 1
    exact = law(variance, most + 60)[60:-60]
    keep = exact * SIZE > 10
    observed = np.array([np.sum(drawn == value) for value in np.arange(-most, most + 1)[keep]])
    expected = np.append(exact[keep], 1 - exact[keep].sum()) * SIZE
    assert stats.chisquare(np.append(observed, SIZE - observed.sum()), expected).pvalue > 1e-7


@pytest.mark.parametrize("variance", [50.0, 1e5, 1e9])
def test_drawn_moments_are_those_of_a_gaussian(variance):
    """Mean, variance and fourth moment within 6 standard errors; from a deviation of 3 on they are equal."""
    drawn = share_of_noise(SIZE, variance).astype(np.float64) / math.sqrt(variance)
    assert abs(drawn.mean()) < 6 / math.sqrt(SIZE)
    assert abs((drawn**2).mean() - 1) < 6 * math.sqrt(2 / SIZE)
    assert abs((drawn**4).mean() - 3) < 7 * math.sqrt(96 / SIZE)


def test_where_one_word_leaves_two_values_open_a_second_decides():
    """A first word at the boundary of two values, and second words just below and above it."""
    variance, k = 100.0, 7
    first, second = _table(variance)
    digits, rest = int(first[k]), int(second[k])
    for following, value in ((rest - 1, k), (rest, k + 1), (rest + 1, k + 1)):
        answers = [np.array([digits << 1], np.uint64), np.array([following], np.uint64)]
        assert share_of_noise(1, variance, lambda _, left=answers: left.pop(0)).tolist() == [value]
        assert answers == []


def test_the_tail_beyond_one_word_is_reached():
    variance, answers = 100.0, [np.array([2**64 - 1], np.uint64), np.array([2**64 - 1], np.uint64)]
    assert share_of_noise(1, variance, lambda _: answers.pop(0)).tolist() == [-largest(variance)]
    assert largest(variance) > 12.5 * math.sqrt(variance)


@pytest.mark.parametrize(("nodes", "deviation"), [(2, SMOOTH), (3, SMOOTH), (10, 4.0)])
def test_the_noise_of_several_nodes_is_one_gaussian_of_the_whole_variance(nodes, deviation):
    """Exact probabilities by convolution: no value that counts differs by more than floating point adds."""
    one = law(deviation**2, int(14 * deviation))
    total = np.ones(1)
    for _ in range(nodes):
        total = np.convolve(total, one)
    whole = law(nodes * deviation**2, len(total) // 2)
    counts = whole > 1e-12  # below that the convolution rounds in float64
    np.testing.assert_allclose(total[counts], whole[counts], rtol=1e-9)


@pytest.mark.parametrize("deviation", [SMOOTH + 0.5, 8.0])
@pytest.mark.parametrize("shift", [1, 5])
def test_a_discrete_gaussian_is_a_function_of_a_continuous_one(deviation, shift):
    """The kernel of `fedpeft.privacy.grid` by numbers: the same one serves a shifted Gaussian."""
    k = np.arange(-120, 121)
    x = np.linspace(-120, 120, 240 * 64 + 1)
    weights = np.exp(-((k[:, None] - x[None]) ** 2) / (2 * SMOOTH**2))
    kernel = weights / weights.sum(axis=0)
    for middle in (0, shift):
        density = stats.norm.pdf(x, middle, math.sqrt(deviation**2 - SMOOTH**2))
        made = kernel @ density / density.sum()
        exact = np.roll(law(deviation**2, 120), middle)
        np.testing.assert_allclose(made[exact > 1e-12], exact[exact > 1e-12], rtol=1e-8)


def test_survivors_without_the_others_hold_the_planned_noise():
    """Shares are sized for the least number of nodes: sums of more have more noise, never less."""
    variance, least = 1000.0, 7
    for nodes in (7, 10):
        total = sum(share_of_noise(20_000, variance / least) for _ in range(nodes))
        ratio = float(np.mean(total.astype(np.float64) ** 2)) / (variance * nodes / least)
        assert abs(ratio - 1) < 6 * math.sqrt(2.1 / 20_000)


def test_neighbours_and_sums_are_uncorrelated():
    drawn = share_of_noise(SIZE, 1e4).astype(np.float64)
    other = share_of_noise(SIZE, 1e4).astype(np.float64)
    for one, two in ((drawn[1:], drawn[:-1]), (drawn, other)):
        assert abs(np.corrcoef(one, two)[0, 1]) < 6 / math.sqrt(SIZE)


@pytest.mark.parametrize("variance", [-1.0, 1e11, math.nan, math.inf])
def test_a_variance_out_of_range_is_refused(variance):
    with pytest.raises(SecureAggregationError, match="noise variance"):
        share_of_noise(1, variance)


@settings(max_examples=200, deadline=None)
@given(
    base=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40),
    seed=st.integers(0, 2**32 - 1),
    limit=st.sampled_from([5, 300, 2**31]),
)
def test_one_unit_more_changes_the_sum_by_the_sensitivity_at_most(base, seed, limit):
    """Whatever the sum, the unit, the cut and the words: equal words, so the difference is the unit's own."""
    draw, size = np.random.default_rng(seed), len(base)
    grid = Grid(size, 40.0, 3, limit=limit)
    unit = draw.standard_normal(size) * draw.integers(0, 2, size)
    unit *= 1 / max(np.linalg.norm(unit), 1e-9)
    drawn = words(size)
    step = 1.0 / grid.steps_per_clip
    before = to_grid(np.array(base), step, limit, lambda _: drawn)
    after = to_grid(np.array(base) + unit, step, limit, lambda _: drawn)
    assert np.linalg.norm(after - before) < grid.steps_per_clip + math.sqrt(size)
    assert np.all(np.abs(after - before) < np.abs(unit) / step + 1)
    assert np.abs(after).max() <= limit


def test_the_sensitivity_is_passed_as_rarely_as_the_plan_says():
    """The bound with its small probability, read at one of 1e-3 where failures can be counted."""
    size, trials, rare = 2000, 20_000, 1e-3
    draw = np.random.default_rng(0)
    steps = 2 * math.sqrt(size)
    unit = draw.standard_normal(size)
    unit *= steps / np.linalg.norm(unit)
    rounded = np.floor(unit + draw.random((trials, size)))
    spread = math.sqrt(-2 * math.log(rare)) * (steps + math.sqrt(size) / 2)
    bound = math.sqrt(steps**2 + size / 4 + spread)
    norms = np.linalg.norm(rounded, axis=1)
    assert np.mean(norms > bound) <= rare
    grid = Grid(size, steps, 3)
    assert grid.failure > 0 and norms.max() < grid.l2 < steps + math.sqrt(size)


def test_a_tiny_grid_has_a_bound_without_exception():
    grid = Grid(size=4, steps_per_clip=1.0, least_nodes=1)
    assert (grid.l2, grid.failure) == (3.0, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_become_zero(bad):
    values = np.array([bad, 1.0])
    assert to_grid(values, 1 / 500, 2**31)[0] == 0
    assert clipped(values, 2.0).tolist() == [0.0, 1.0]
    assert clipped(np.array([1e200, 1.0]), 2.0).tolist() == [0.0, 0.0]


def test_clipped_values_keep_direction_and_bound():
    assert clipped(np.array([3.0, 4.0]), 10.0).tolist() == [3.0, 4.0]
    assert np.linalg.norm(clipped(np.array([3e4, 4e4], np.float32), 5.0)) == pytest.approx(5.0)


def test_rounding_has_the_right_mean():
    for value in (0.3, -0.3):
        rounded = to_grid(np.full(SIZE, value), 1.0, 9)
        assert set(np.unique(rounded).tolist()) == {math.floor(value), math.floor(value) + 1}
        assert abs(rounded.mean() - value) < 6 * math.sqrt(0.21 / SIZE)


def test_shape_is_kept_and_the_way_back_scales():
    rounded = to_grid(np.ones((2, 3), np.float32), 1e-5, 2**31)
    assert rounded.shape == (2, 3) and rounded.dtype == np.int64
    assert np.allclose(from_grid(rounded, 1e-5), 1.0, atol=2e-5)


@pytest.mark.parametrize("nodes", [4, 6])
def test_a_noisy_sum_has_the_planned_error(nodes):
    """Grid, shares for the least number of nodes, residues, and back."""
    size, clip, steps, noise, least = 20_000, 2.0, 500.0, 1.5, 4
    grid = Grid(size, steps, least, limit=2000)
    plan = PrivacyPlan(0.1, noise, clip, 8, 1, 5, 1e-5, "record", "distributed", grid=grid)
    draw = np.random.default_rng(nodes)
    vectors = draw.standard_normal((nodes, size)) * np.linspace(0.001, 0.02, nodes)[:, None]
    total = np.zeros(size, np.uint32)
    for vector in vectors:
        total = total + to_residues(noisy_grid(vector, plan), 16).astype(np.uint32)
    opened = from_residues((total & 0xFFFF).astype("<u2"), 16)
    error = from_grid(opened, clip / steps) - vectors.sum(axis=0)
    planned = noise * clip * math.sqrt(nodes / least)
    assert float(np.mean(error**2)) == pytest.approx(planned**2, rel=6 * math.sqrt(2 / size))
