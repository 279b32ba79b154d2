"""Noisy counts: the law of the noise, its exactness, and its price."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from fedpeft.errors import PrivacyError
from fedpeft.privacy import scalars
from fedpeft.privacy.accounting import Pure, epsilon
from fedpeft.privacy.csprng import seeded

KEY = bytes(range(32))


def law(rate, reach):
    """Probabilities of the values from -reach to reach."""
    decay = math.exp(-rate)
    return (1 - decay) / (1 + decay) * decay ** np.abs(np.arange(-reach, reach + 1))


@pytest.mark.parametrize("rate", [Fraction(1, 2), Fraction(2), Fraction(7, 3), Fraction(0.3)])
def test_the_noise_follows_its_law(rate):
    source, count = seeded(KEY), 6_000
    drawn = np.array([scalars.two_sided_geometric(rate, source) for _ in range(count)])
    reach = int(math.log(count / 40) / float(rate)) + 1
    expected = law(float(rate), reach) * count
    clipped = np.clip(drawn, -reach, reach)
    observed = np.bincount(clipped + reach, minlength=2 * reach + 1)
    tail = (count - expected.sum()) / 2
    expected[[0, -1]] += tail
    assert stats.chisquare(observed, expected).pvalue > 1e-6


def test_the_mean_is_the_count():
    source = seeded(KEY)
    drawn = [scalars.noisy_count(1000, 0.5, source) for _ in range(4_000)]
    assert abs(np.mean(drawn) - 1000) < 0.3
    assert all(isinstance(value, int) for value in drawn)


def test_the_system_draws_anew_each_time():
    assert len({scalars.noisy_count(0, 1e-6) for _ in range(20)}) > 15


def test_a_tiny_epsilon_needs_more_than_one_word():
    drawn = [scalars.noisy_count(0, 1e-25, seeded(bytes([i] * 32))) for i in range(5)]
    assert len(set(drawn)) == 5 and max(map(abs, drawn)) > 1e20


def test_uniform_integers_are_uniform():
    source = seeded(KEY)
    counts = np.bincount([scalars._below(5, source) for _ in range(5_000)], minlength=5)
    assert stats.chisquare(counts).pvalue > 1e-6
    assert scalars._below(1, source) == 0
    assert all(0 <= scalars._below(2**70 + 1, source) <= 2**70 for _ in range(50))


def test_the_event_is_what_the_count_costs():
    assert scalars.count_event(0.5) == Pure(0.5, 1)
    assert epsilon([scalars.count_event(0.5)], 1e-12) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_no_noise_is_refused(bad):
    with pytest.raises(PrivacyError, match="epsilon of a noisy count"):
        scalars.noisy_count(3, bad)
