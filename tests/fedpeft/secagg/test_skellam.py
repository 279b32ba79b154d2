"""Skellam noise against its law, and the grid against its bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from fedpeft.secagg import SecureAggregationError, bits_for, from_residues, to_residues
from fedpeft.secagg.skellam import _probabilities, _table, from_grid, largest, share_of_noise, to_grid

SIZE = 200_000


@pytest.mark.parametrize("variance", [0.01, 0.1, 1.0, 7.3, 100.0, 1e4])
def test_the_table_is_the_law(variance):
    """Against exp(-v) I_k(v) from scipy, atom by atom, to 2^-63 and 1e-12 of each."""
    counts = np.diff(_table(variance).astype(object), prepend=0)
    places = np.arange(len(counts))
    exact = special.ive(places, variance) * np.where(places == 0, 1, 2)
    found = np.array([int(count) for count in counts], dtype=np.float64) / 2.0**63
    assert np.all(np.abs(found - exact)[1:] <= 2.0**-63 + 1e-12 * exact[1:])
    assert found[0] == pytest.approx(exact[0], rel=1e-12)
    assert sum(counts) == 2**63


@pytest.mark.parametrize("variance", [0.1, 1e3, 1e6, 1e9])
def test_moments_of_the_law_are_exact(variance):
    chances = _probabilities(variance)
    places = np.arange(len(chances), dtype=np.float64)
    assert np.sum(chances * places**2) == pytest.approx(variance, rel=1e-11)
    assert np.sum(chances * places**4) == pytest.approx(3 * variance**2 + variance, rel=1e-11)
    assert len(_table(variance)) > 8 * math.sqrt(variance)


@pytest.mark.parametrize("variance", [0.1, 1.0, 50.0, 1e5, 1e9])
def test_drawn_moments(variance):
    """Mean, variance and fourth moment within 6 standard errors of the law."""
    drawn = share_of_noise(SIZE, variance).astype(np.float64)
    chances = _probabilities(variance)
    places = np.arange(len(chances), dtype=np.float64)
    second, fourth, eighth = (np.sum(chances * places**power) for power in (2, 4, 8))
    assert abs(drawn.mean()) < 6 * math.sqrt(second / SIZE)
    assert abs((drawn**2).mean() - second) < 6 * math.sqrt((fourth - second**2) / SIZE)
    assert abs((drawn**4).mean() - fourth) < 7 * math.sqrt((eighth - fourth**2) / SIZE)


@pytest.mark.parametrize("variance", [0.1, 2.0, 30.0])
def test_drawn_values_fit_the_exact_law(variance):
    drawn = share_of_noise(SIZE, variance)
    most = int(6 * math.sqrt(variance)) + 1
    exact = stats.skellam.pmf(np.arange(-most, most + 1), variance / 2, variance / 2)
    keep = exact * SIZE > 10
    observed = np.array([np.sum(drawn == value) for value in np.arange(-most, most + 1)[keep]])
    others = SIZE - observed.sum()
    expected = np.append(exact[keep], 1 - exact[keep].sum()) * SIZE
    assert stats.chisquare(np.append(observed, others), expected).pvalue > 1e-7


def test_shares_add_up_to_the_whole():
    """The sum of ten shares has the law of the whole, not only its variance."""
    whole = sum(share_of_noise(SIZE, 0.5) for _ in range(10))
    exact = stats.skellam.pmf(np.arange(-7, 8), 2.5, 2.5)
    observed = np.array([np.sum(whole == value) for value in range(-7, 8)])
    expected = np.append(exact, 1 - exact.sum()) * SIZE
    assert stats.chisquare(np.append(observed, SIZE - observed.sum()), expected).pvalue > 1e-7


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


def test_extreme_words_give_the_ends_of_the_table():
    words = {"all": np.array([2**64 - 1, 2**64 - 2, 0, 1], dtype=np.uint64)}
    drawn = share_of_noise(4, 100.0, lambda count: words["all"][:count])
    end = len(_table(100.0)) - 1
    assert drawn.tolist() == [-end, end, 0, 0] and end > 80


@pytest.mark.parametrize("variance", [0.0, -1.0, 1e11, math.nan, math.inf])
def test_a_variance_out_of_range_is_refused(variance):
    with pytest.raises(SecureAggregationError, match="noise variance"):
        share_of_noise(1, variance)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=40),
    clip=st.floats(1e-6, 1e6),
    steps=st.floats(1e-2, 1e6),
    up=st.sampled_from([0, 2**63, 2**64 - 1]),
)
def test_the_norm_on_the_grid_is_bounded(values, clip, steps, up):
    """Whatever the values and the words, below what the accountant assumes."""
    rounded = to_grid(np.array(values), clip, steps, lambda count: np.full(count, up, np.uint64))
    assert math.sqrt(sum(value**2 for value in rounded.tolist())) < steps + math.sqrt(len(values))


@pytest.mark.parametrize("variance", [0.5, 100.0, 1e6])
def test_no_node_sends_more_than_the_largest(variance):
    steps, top = 37.5, np.uint64(2**64 - 2)
    values = to_grid(np.array([50.0, 0.0]), 1.0, steps, lambda count: np.zeros(count, np.uint64))
    values += share_of_noise(2, variance, lambda count: np.full(count, top))
    assert values[0] == largest(steps, variance)


def test_whole_values_at_the_clip_keep_their_norm():
    rounded = to_grid(np.array([3.0, 4.0]), 5.0, 5.0, lambda count: np.zeros(count, np.uint64))
    assert rounded.tolist() == [3, 4]
    assert from_grid(rounded, 5.0, 5.0).tolist() == [3.0, 4.0]


def test_rounding_has_the_right_mean():
    values = np.full(SIZE, 0.3)
    rounded = to_grid(values, 1e9, 1e9)
    assert set(np.unique(rounded).tolist()) == {0, 1}
    assert abs(rounded.mean() - 0.3) < 6 * math.sqrt(0.21 / SIZE)
    negative = to_grid(-values, 1e9, 1e9)
    assert abs(negative.mean() + 0.3) < 6 * math.sqrt(0.21 / SIZE)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_become_zero(bad):
    rounded = to_grid(np.array([bad, 1.0]), 2.0, 1000.0)
    assert rounded[0] == 0 and abs(rounded[1] - 500) <= 1
    assert to_grid(np.array([1e200, 1.0]), 2.0, 1000.0).tolist() == [0, 0]


def test_shape_is_kept_and_the_way_back_scales():
    rounded = to_grid(np.ones((2, 3), np.float32), 10.0, 1e6)
    assert rounded.shape == (2, 3) and rounded.dtype == np.int64
    assert np.allclose(from_grid(rounded, 10.0, 1e6), 1.0, atol=2e-5)


@pytest.mark.parametrize("nodes", [4, 6])
def test_a_noisy_sum_has_the_planned_error(nodes):
    """Clip, grid, shares for the least number of nodes, residues, and back."""
    size, clip, steps, noise_multiplier, least = 20_000, 2.0, 500.0, 1.5, 4
    variance = (noise_multiplier * steps) ** 2 / least
    draw = np.random.default_rng(nodes)
    vectors = draw.standard_normal((nodes, size)) * np.linspace(0.001, 0.02, nodes)[:, None]
    most = largest(steps, variance)
    bits, total = bits_for(nodes * most), 0
    for vector in vectors:
        total = total + to_residues(
            to_grid(vector, clip, steps) + share_of_noise(size, variance), bits, most
        ).astype(np.uint64)
    found = from_grid(from_residues(total.astype(f"<u{bits // 8}"), bits, nodes * most), clip, steps)
    exact = sum(vector * min(1, clip / np.linalg.norm(vector)) for vector in vectors)
    planned = noise_multiplier * clip * math.sqrt(nodes / least)
    assert float(np.mean((found - exact) ** 2)) == pytest.approx(planned**2, rel=6 * math.sqrt(2 / size))
