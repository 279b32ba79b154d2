"""Counting, intervals and verdicts."""

import numpy as np
import pytest

from fedpeft_attacks.results.token_scores import (
    Control,
    Counts,
    Score,
    bootstrap,
    loudest,
    measure,
    pool,
    rare_tokens,
    score,
    verdict_of,
    wilson,
)
from fedpeft_attacks.views import Guess

PRIOR = np.array([0.0, 0.5, 0.3, 0.1, 0.04, 0.03, 0.02, 0.01])


def test_rare_tokens_lie_outside_the_commonest_ninety_percent():
    assert rare_tokens(PRIOR) == {0, 4, 5, 6, 7}


def test_score_counts_hits_of_attack_prior_and_control():
    guess, other = Guess([1, 5, 6, 2, 3, 4, 7], 2, ""), Guess([7, 6, 5, 4, 3, 2, 1], 0, "")
    found = score(guess, {1, 5, 7}, PRIOR, {0}, Control(other, frozenset({3, 7})))
    assert found.all == Counts(tokens=3, hits=2, chance=pytest.approx(9 / 7), prior=1, control=2)
    assert found.rare == Counts(tokens=2, hits=1, chance=pytest.approx(6 / 7), prior=0, control=2)
    assert (found.claimed, found.claimed_hits) == (2, 2)


def test_a_guess_that_suits_other_data_as_well_is_no_reading():
    popular, poor = Guess([5, 6, 7, 1, 2, 3, 4], 0, ""), Guess([1, 2, 3, 4, 5, 6, 7], 0, "")
    found = score(popular, {5, 6}, PRIOR, {0}, Control(poor, frozenset({5, 6})))
    assert (found.all.hits, found.all.control) == (2, 2)


def test_wilson_matches_known_values_and_covers():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    rng = np.random.default_rng(0)
    inside = [low <= 0.3 <= high for low, high in (wilson(int(k), 40) for k in rng.binomial(40, 0.3, 2000))]
    assert np.mean(inside) > 0.93


def test_bootstrap_over_views_is_reproducible_and_holds_the_spread():
    parts = [Counts(10, hits, 1.0, 1) for hits in (2, 8, 5)]
    assert bootstrap(parts) == bootstrap(parts) == (0.2, 0.8)


def test_pool_has_a_control_only_if_all_have():
    both = [Counts(10, 5, 1.0, 2, 3), Counts(10, 7, 1.0, 2, 1)]
    assert pool(both) == Counts(20, 12, 2.0, 4, 4)
    assert pool([both[0], Counts(10, 7, 1.0, 2)]).control == -1
    assert measure([both[0], Counts(10, 7, 1.0, 2)]).baselines.control is None
    assert measure([Counts(0, 0, 0.0, 0)]) is None


def _scores(every, rare):
    return [Score(every, rare, 0, 0)]


@pytest.mark.parametrize(
    ("every", "rare", "verdict"),
    [
        (Counts(100, 60, 5.0, 40, 30), Counts(0, 0, 0.0, 0), "leaks"),
        (
            Counts(100, 45, 5.0, 40, 30),
            Counts(0, 0, 0.0, 0),
            "not detected",
        ),  # below threshold
        (
            Counts(100, 60, 5.0, 40, 58),
            Counts(0, 0, 0.0, 0),
            "not detected",
        ),  # other data do it
        (Counts(5, 3, 0.2, 1, 2), Counts(0, 0, 0.0, 0), "not detected"),  # too few tokens
        (Counts(100, 30, 5.0, 40, 30), Counts(30, 15, 1.0, 0, 3), "leaks"),  # rare tokens alone
        (Counts(100, 30, 5.0, 40), Counts(30, 15, 1.0, 0), "not tested"),  # without control
    ],
)
def test_verdicts(every, rare, verdict):
    assert verdict_of(_scores(every, rare), threshold=0.1)[0] == verdict


def test_a_leak_in_one_round_is_a_leak():
    quiet, loud = Counts(300, 30, 30.0, 100, 90), Counts(60, 55, 5.0, 20, 18)
    assert loudest([quiet] * 4, 0.1) is None
    assert loudest([quiet] * 4 + [loud], 0.1) == loud
    assert loudest([loud] * 2, 0.1) == pool([loud] * 2)
    scores = [Score(part, part, 0, 0) for part in (*[quiet] * 4, loud)]
    reason = "rare tokens of one update alone are recovered beyond every baseline (92 % against 33 %)"
    assert verdict_of(scores, 0.1) == ("leaks", reason)
