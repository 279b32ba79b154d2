"""What one node can change before the noise, and the noise itself."""

import math

import numpy as np
import pytest
from scipy import stats

from fedpeft.aggregation.central_dp import Account, CentralNoise, clipped_sum, sum_multiplier
from fedpeft.errors import PrivacyError
from fedpeft.exchange import Decoded, Layout
from fedpeft.privacy import Ledger, PrivacyPlan, noise
from fedpeft.privacy.accounting import Steps, epsilon
from fedpeft.privacy.matrix import optimised, square_root
from fedpeft.privacy.plan import AdaptiveClip

SIZE = 30
LAYOUT = Layout.of({"w": np.zeros(SIZE)})


def plan_of(**changes):
    settings = {
        "sampling_probability": 1.0,
        "noise_multiplier": 1.0,
        "clip": 2.0,
        "expected_batch_size": 5,
        "steps_per_round": 1,
        "rounds": 10,
        "delta": 1e-5,
    }
    return PrivacyPlan(**(settings | changes), unit="node", trust="central")


def contributions(*vectors, weight=1.0, layout=LAYOUT):
    return [(f"n{i:03d}", weight, Decoded(layout, np.asarray(v, np.float32))) for i, v in enumerate(vectors)]


def vectors(count, scale=1.0, seed=0):
    return list(scale * np.random.default_rng(seed).standard_normal((count, SIZE)))


HOSTILE = {
    "small": np.full(SIZE, 1e-3),
    "at the clip": np.full(SIZE, 2 / math.sqrt(SIZE)),
    "large": np.full(SIZE, 7.0),
    "largest float": np.full(SIZE, np.finfo(np.float32).max),
    "smallest float": np.full(SIZE, 1e-45),
    "nan": np.full(SIZE, np.nan),
    "inf": np.where(np.arange(SIZE) == 3, np.inf, 1.0),
    "zero": np.zeros(SIZE),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("others", [0, 1, 40])
@pytest.mark.parametrize("weight", [1.0, 0.0, -3.0, 1e9, float("nan")])
def test_one_node_moves_the_sum_by_at_most_the_clip_and_the_count_by_half(name, others, weight):
    rest = contributions(*vectors(others, scale=10.0))
    (extra,) = contributions(HOSTILE[name], weight=weight)
    before, count = clipped_sum(SIZE, rest, 2.0)
    after, recount = clipped_sum(SIZE, [*rest, ("z", *extra[1:])], 2.0)
    assert np.linalg.norm(after - before) <= 2.0
    assert abs(recount - count) <= 0.5
    assert np.isfinite(after).all()


@pytest.mark.parametrize("replies", [0, 1, 3, 5, 20])
def test_before_its_noise_a_release_moves_by_at_most_the_clip_over_the_public_divisor(monkeypatch, replies):
    """Whatever the number of replies: neither divisor nor noise follow it."""
    drawn = []
    monkeypatch.setattr(noise, "gaussian", lambda size, source: drawn.append(size) or np.zeros(size))
    law = CentralNoise.of(plan_of())
    given = contributions(*vectors(replies, scale=50.0))
    mean, _, facts = law.mean(SIZE, given)
    for name, hostile in HOSTILE.items():
        (extra,) = contributions(hostile)
        other, _, other_facts = law.mean(SIZE, [*given, (f"z {name}", *extra[1:])])
        assert np.linalg.norm(other - mean) <= 2.0 / 5
        assert other_facts == facts == {"clip": 2.0, "noise": 2.0 / 5}
    assert set(drawn) == {SIZE}


def test_small_updates_pass_unchanged_and_their_direction_always_does():
    small, large = np.full(SIZE, 0.1), np.linspace(-9, 9, SIZE)
    total, _ = clipped_sum(SIZE, contributions(small), 2.0)
    np.testing.assert_array_equal(total, small.astype(np.float32))
    total, _ = clipped_sum(SIZE, contributions(large), 2.0)
    np.testing.assert_allclose(total, 2.0 * large / np.linalg.norm(large), rtol=2e-6)


@pytest.mark.parametrize("clip", [1e-3, 2.0, 1e9])
@pytest.mark.parametrize("size", [0.0, 1e-44])
def test_an_update_of_next_to_nothing_passes_without_a_warning(clip, size):
    """Warnings are errors here: a clip divided by a norm of 0 is one."""
    vector = np.full(SIZE, size)
    total, count = clipped_sum(SIZE, contributions(vector), clip)
    np.testing.assert_array_equal(total, vector.astype(np.float32))
    assert count == 0.5


def test_sparse_updates_count_as_their_dense_twins():
    positions = np.array([1, 4, 29])
    sparse = Decoded(LAYOUT, np.array([3.0, -4.0, 12.0], np.float32), positions)
    dense = Decoded(LAYOUT, sparse.dense())
    results = [clipped_sum(SIZE, [("a", 1.0, values)], 2.0) for values in (sparse, dense)]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] == -0.5


def test_a_node_counts_once():
    (one,) = contributions(np.ones(SIZE))
    with pytest.raises(PrivacyError, match="counts once"):
        clipped_sum(SIZE, [one, one], 2.0)
    with pytest.raises(PrivacyError, match="expected 3 values"):
        clipped_sum(3, [one], 2.0)


def test_the_noise_has_the_declared_size_also_without_any_reply():
    size = 20_000
    for replies in (0, 2):
        given = [("a", 1.0, Decoded(Layout.of({"w": np.zeros(size)}), np.zeros(size, np.float32)))] * min(
            replies, 1
        )
        law = CentralNoise.of(plan_of(noise_multiplier=1.7, clip=0.3, expected_batch_size=8))
        mean, _, facts = law.mean(size, given)
        assert mean.dtype == np.float64
        assert facts["noise"] == pytest.approx(1.7 * 0.3 / 8)
        assert stats.kstest(mean / facts["noise"], "norm").pvalue > 1e-7
        assert not np.array_equal(mean, mean.astype(np.float32))  # float64 until the end


def test_two_releases_and_two_runs_share_no_noise():
    law, nothing = CentralNoise.of(plan_of()), contributions()
    first, later, _ = law.mean(20_000, nothing)
    second, _, _ = later.mean(20_000, nothing)
    again, _, _ = law.mean(20_000, nothing)
    for other in (second, again):
        assert abs(np.corrcoef(first, other)[0, 1]) < 6 / math.sqrt(20_000)


def test_bands_correlate_the_noise_of_rounds_as_the_inverse_matrix_says():
    size, law = 20_000, CentralNoise.of(plan_of(bands=3, separation=3, noise_multiplier=2.0, clip=0.5))
    column, means = optimised(3, law.plan.rounds), []
    for _ in range(6):
        mean, law, _ = law.mean(size, contributions())
        means.append(5 * mean)
        law = law.restored({name: values.copy() for name, values in law.arrays().items()})
    assert law.arrays()["history"].shape == (2, size)
    mixed = [sum(c * means[t - j] for j, c in enumerate(column) if t >= j) for t in range(6)]
    covariance = np.cov(mixed)
    np.testing.assert_allclose(covariance, np.eye(6), atol=0.07)  # (z * clip)^2 = 1, independent again


@pytest.mark.parametrize("column", [None, square_root(3)])
def test_rows_of_other_coefficients_are_dropped(column):
    """A checkpoint of another version: a column of both matrices could be longer than 1."""
    plan = plan_of(bands=3, separation=3)
    _, law, _ = CentralNoise.of(plan).mean(SIZE, contributions())
    arrays = law.arrays()
    assert len(law.restored(arrays).history) == 1
    del arrays["coefficients"]
    older = arrays if column is None else arrays | {"coefficients": column}
    assert not law.restored(older).history.size
    law.restored(older).mean(SIZE, contributions())  # a new matrix begins


def test_sum_and_count_together_cost_what_one_plain_release_costs():
    adaptive = AdaptiveClip(0.5, 0.2, count_noise=3.0)
    plan = plan_of(noise_multiplier=1.2, adaptive=adaptive)
    of_sum, of_count = sum_multiplier(plan), 2 * adaptive.count_noise
    assert of_sum > 1.2
    assert of_sum**-2 + of_count**-2 == pytest.approx(1.2**-2)
    pair = [Steps(1.0, of_sum, 10), Steps(1.0, of_count, 10)]
    assert epsilon(pair, 1e-5) == pytest.approx(plan.epsilon(10), rel=2e-3)
    with pytest.raises(PrivacyError, match="count"):
        CentralNoise.of(plan_of(noise_multiplier=1.2, adaptive=AdaptiveClip(0.5, 0.2, count_noise=0.6)))


@pytest.mark.parametrize("start", [0.1, 3.0])
@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_an_adaptive_clip_finds_its_quantile_from_below_and_from_above(start, quantile):
    """Norms in (0.8, 1.2), where a known implementation runs away from either side."""
    nodes, rng = 200, np.random.default_rng(0)
    plan = plan_of(
        clip=start,
        expected_batch_size=nodes,
        noise_multiplier=1.0,
        adaptive=AdaptiveClip(quantile, 0.2, count_noise=nodes / 20),
    )
    law, trace = CentralNoise.of(plan), []
    for _ in range(120):
        norms = rng.uniform(0.8, 1.2, nodes)
        updates = contributions(*(norm * np.eye(SIZE)[0] for norm in norms))
        _, law, facts = law.mean(SIZE, updates)
        trace.append(facts["clip"])
        law = law.restored(law.arrays())
    assert trace[0] == start
    assert np.mean(trace[-30:]) == pytest.approx(0.8 + 0.4 * quantile, abs=0.06)


def test_the_next_clip_is_what_the_noisy_count_says_and_nothing_else(monkeypatch):
    monkeypatch.setattr(noise, "gaussian", lambda size, source: np.ones(size))
    plan = plan_of(adaptive=AdaptiveClip(0.5, 0.2, count_noise=1.5))
    updates = contributions(np.zeros(SIZE), np.full(SIZE, 9.0), np.full(SIZE, 9.0))  # 1 of 3 within: -1/2
    _, law, _ = CentralNoise.of(plan).mean(SIZE, updates)
    assert law.clip == pytest.approx(2.0 * math.exp(-0.2 * (-0.5 + 1.5) / 5))


def test_only_a_plan_that_guarantees_nothing_follows_the_seed():
    plan = plan_of(bands=2, separation=2, reproducible=True)
    assert plan.epsilon() == math.inf

    def release(plan, seed):
        law = CentralNoise.of(plan, seed)
        first, law, _ = law.mean(SIZE, contributions())
        second, _, _ = law.restored(law.arrays()).mean(SIZE, contributions())
        return np.concatenate([first, second])

    np.testing.assert_array_equal(release(plan, 3), release(plan, 3))
    values = [
        release(plan, 3),
        release(plan, 4),
        release(plan_of(bands=2, separation=2), 3),
        release(plan_of(bands=2, separation=2), 3),
    ]
    assert len({tuple(v) for v in values}) == 4
    assert len(set(values[0])) == 2 * SIZE


def test_only_a_central_plan_makes_central_noise():
    plan = PrivacyPlan(0.1, 1.0, 1.0, 4, 2, 3, 1e-5)
    with pytest.raises(PrivacyError, match="central"):
        CentralNoise.of(plan)


def test_each_round_is_reserved_and_a_repeated_one_is_charged_again(tmp_path):
    plan = plan_of(sampling_probability=0.2, noise_multiplier=1.5)
    account = Account(Ledger(tmp_path / "ledger.sqlite"), "run", "ab", plan)
    with pytest.raises(PrivacyError, match="reserved"):
        account.released(1, np.zeros(3))
    spent = []
    for number in (1, 2, 3, 3):
        spent.append(account.reserve(number).epsilon)
        account.released(number, np.full(3, number))
    assert spent == sorted(set(spent))
    assert spent[-1] == pytest.approx(plan.epsilon(4), rel=2e-3)


def test_a_banded_run_is_reserved_once_and_its_repetition_is_charged_for_what_is_left(tmp_path):
    plan = plan_of(bands=4, separation=4, noise_multiplier=1.5, rounds=20)

    def account():
        return Account(Ledger(tmp_path / "ledger.sqlite"), "run", "ab", plan)

    first = account()
    spent = [first.reserve(number).epsilon for number in range(1, 21)]
    assert len(set(spent)) == 1
    assert spent[0] == pytest.approx(epsilon([Steps(1.0, 1.5, 5)], 1e-5), rel=2e-3)
    for number in range(1, 21):
        first.released(number, np.full(3, number))
    again = account().reserve(18)  # 3 rounds, which the columns of 3 more reach into
    assert again.epsilon == pytest.approx(epsilon([Steps(1.0, 1.5, 7)], 1e-5), rel=2e-3)


def test_an_adaptive_plan_is_reserved_like_any_other(tmp_path):
    plan = plan_of(adaptive=AdaptiveClip(0.5, 0.2, 3.0))
    account = Account(Ledger(tmp_path / "ledger.sqlite"), "run", "ab", plan)
    assert account.reserve(1).epsilon == pytest.approx(plan.epsilon(1), rel=2e-3)


def test_no_round_is_reserved_beyond_the_budget(tmp_path):
    plan = plan_of(rounds=3)
    account = Account(Ledger(tmp_path / "ledger.sqlite", plan.epsilon()), "run", "ab", plan)
    for number in (1, 2, 3):
        account.reserve(number)
    with pytest.raises(PrivacyError, match="budget"):
        account.reserve(3)


@pytest.mark.parametrize("clip", [0.1, 40.0])
def test_noise_and_bound_follow_the_clip_in_force(clip, monkeypatch):
    """Where the clip has moved away from the configured one, noise for that one covers nothing.

    A clip that grew 20-fold under noise of its first value turns a claimed epsilon of 3.3 into 146.
    """
    plan = plan_of(adaptive=AdaptiveClip(0.5, 0.2, count_noise=1.5))
    law = CentralNoise.of(plan).restored({**CentralNoise.of(plan).arrays(), "clip": np.array([clip])})
    updates = contributions(np.full(SIZE, 1e6))
    with monkeypatch.context() as patch:
        patch.setattr(noise, "gaussian", lambda size, source: np.zeros(size))
        signal, _, facts = law.mean(SIZE, updates)
    assert np.linalg.norm(signal) * 5 == pytest.approx(clip, rel=1e-5)
    found = np.concatenate([law.mean(SIZE, [])[0] for _ in range(200)])
    assert found.std() * 5 / clip == pytest.approx(sum_multiplier(plan), rel=0.05)
    assert facts["clip"] == clip and facts["noise"] == pytest.approx(found.std(), rel=0.05)
