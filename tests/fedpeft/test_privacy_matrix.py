"""Correlated noise against the dense matrices it stands for."""

import itertools

import numpy as np
import pytest

from fedpeft.errors import PrivacyError
from fedpeft.privacy import PrivacyPlan
from fedpeft.privacy.accounting import Steps, epsilon
from fedpeft.privacy.matrix import correlated, left_over, participations, running_error, square_root

PLAN = PrivacyPlan(1.0, 1.0, 1.0, 10, 1, 12, 1e-5, unit="node", trust="central")


def dense(column, rounds):
    """The naive twin of C: a lower triangular Toeplitz matrix."""
    matrix = np.zeros((rounds, rounds))
    for row, col in itertools.product(range(rounds), repeat=2):
        if 0 <= row - col < len(column):
            matrix[row, col] = column[row - col]
    return matrix


def patterns(rounds, separation):
    """All sets of rounds that lie at least so far apart."""
    for flags in itertools.product((0, 1), repeat=rounds):
        chosen = np.flatnonzero(flags)
        if len(chosen) and (np.diff(chosen) >= separation).all():
            yield chosen


def rows(column, fresh):
    history, found = np.zeros((0, fresh.shape[1])), []
    for row in fresh:
        released, history = correlated(column, row, history)
        found.append(released)
        assert len(history) <= len(column) - 1
    return np.array(found)


def test_uncut_coefficients_are_a_square_root_of_the_running_sum():
    column = square_root(9)
    square = np.convolve(column, column)[:9]
    np.testing.assert_allclose(square, np.full(9, column[0] ** 2))
    np.testing.assert_array_equal(square_root(1), [1.0])
    with pytest.raises(PrivacyError, match="at least 1"):
        square_root(0)


@pytest.mark.parametrize("bands", [1, 2, 4, 7, 12])
def test_rows_are_those_of_the_inverse(bands):
    fresh = np.random.default_rng(0).standard_normal((12, 5))
    column = square_root(bands)
    np.testing.assert_allclose(rows(column, fresh), np.linalg.solve(dense(column, 12), fresh), atol=1e-12)


@pytest.mark.parametrize(("rounds", "bands"), [(9, 1), (9, 2), (10, 3), (11, 4), (5, 5), (5, 8)])
def test_no_pattern_of_participation_moves_the_release_by_more_than_the_plan_says(rounds, bands):
    matrix = dense(square_root(bands), rounds)
    lengths = np.linalg.norm(matrix, axis=0)
    assert lengths.max() <= 1 + 1e-12 and (lengths > 0).all()
    signs = np.random.default_rng(1).choice((-1.0, 1.0), rounds)
    longest = max(np.linalg.norm(matrix[:, chosen] @ signs[chosen]) for chosen in patterns(rounds, bands))
    aligned = max(np.linalg.norm(matrix[:, chosen].sum(axis=1)) for chosen in patterns(rounds, bands))
    most = participations(rounds, bands)
    assert max(longest, aligned) <= np.sqrt(most) + 1e-9
    assert most == max(len(chosen) for chosen in patterns(rounds, bands))
    plan = PrivacyPlan(
        1.0, 1.3, 1.0, 10, 1, rounds, 1e-5, unit="node", trust="central", bands=bands, separation=bands
    )
    assert plan.event() == Steps(1.0, 1.3, most)


@pytest.mark.parametrize(("rounds", "bands", "done"), [(9, 3, 0), (9, 3, 1), (9, 3, 5), (9, 4, 8), (8, 8, 1)])
def test_a_run_drawn_anew_costs_at_most_what_its_lost_rows_can_tell(rounds, bands, done):
    matrix = dense(square_root(bands), rounds)[done:]
    touched = max((np.abs(matrix[:, chosen]).sum(axis=0) > 0).sum() for chosen in patterns(rounds, bands))
    worst = max(np.linalg.norm(matrix[:, chosen].sum(axis=1)) for chosen in patterns(rounds, bands))
    assert touched <= left_over(rounds, bands, bands, done) <= participations(rounds, bands)
    assert worst <= np.sqrt(left_over(rounds, bands, bands, done)) + 1e-9


def test_the_error_of_running_sums_is_that_of_the_dense_matrices():
    column, rounds = square_root(4), 15
    sums = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(dense(column, rounds))
    assert running_error(column, rounds) == pytest.approx(np.sqrt((sums**2).sum(axis=1).mean()))


def test_turns_with_bands_beat_turns_without_by_the_published_factor():
    """100 nodes, 10 a round, 100 rounds: 1.916 against 4.481 at the same epsilon of 2."""
    noise = 6.30  # 10 participations: epsilon just below 2
    assert epsilon([Steps(1.0, noise, 10)], 1e-5) == pytest.approx(2.0, abs=0.01)
    assert noise / 10 * running_error(square_root(1), 100) == pytest.approx(4.481, rel=0.005)
    assert noise / 10 * running_error(square_root(10), 100) == pytest.approx(1.916, rel=0.005)


def test_the_noise_itself_has_that_error():
    fresh = np.random.default_rng(2).standard_normal((100, 400))
    for bands in (1, 10):
        measured = np.sqrt((np.cumsum(rows(square_root(bands), fresh), axis=0) ** 2).mean())
        assert measured == pytest.approx(running_error(square_root(bands), 100), rel=0.12)
