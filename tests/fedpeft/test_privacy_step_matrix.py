"""Correlated noise of local steps, against dense matrices, enumeration and an own accountant."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.errors import PrivacyError
from fedpeft.privacy import PrivacyPlan, noise
from fedpeft.privacy.accounting import Steps
from fedpeft.privacy.calibration import noise_multiplier
from fedpeft.privacy.csprng import seeded
from fedpeft.privacy.grid import Grid
from fedpeft.privacy.loss_share import LossShare
from fedpeft.privacy.matrix import optimised, running_error, square_root
from fedpeft.privacy.noise_to_signal import remedies, signal
from fedpeft.privacy.plan_builder import plan_from_config
from fedpeft.privacy.step_matrix import StepMatrix
from fedpeft.training import LocalPlan, train_local
from fedpeft.training.dp import dpsgd
from fedpeft.training.local import Extras

PLAN = PrivacyPlan(0.2, 1.3, 0.1, 64, 3, 8, 1e-5, bands=3)
UNITS = [f"record {number}".encode() for number in range(600)]


def dense(column, steps):
    """The naive twin of C."""
    matrix = np.zeros((steps, steps))
    for row, col in itertools.product(range(steps), repeat=2):
        if 0 <= row - col < len(column):
            matrix[row, col] = column[row - col]
    return matrix


def groups_of(matrix, units):
    """The group of each unit, -1 for one that takes no part."""
    groups = np.full(len(units), -1)
    for group, pool in enumerate(matrix.pools(units)):
        groups[pool] = group
    return groups


# --- the noise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bands", [1, 2, 3, 6])
def test_rows_have_the_covariance_of_the_inverse_matrix(bands):
    """Through storage after each step, with a source whose words never repeat."""
    steps, size, source = 6, 40_000, seeded(bytes(32))
    matrix = StepMatrix.begin(PrivacyPlan(0.1, 1.0, 1.0, 10, 6, 1, 1e-5, bands=bands), source)
    matrix.pools(UNITS)
    rows = []
    for _ in range(steps):
        rows.append(matrix.next_row(noise.gaussian(size, source)))
        matrix = StepMatrix.restored({name: value.copy() for name, value in matrix.arrays().items()})
    inverse = np.linalg.inv(dense(optimised(bands, steps), steps))
    wanted = inverse @ inverse.T
    scale = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    assert (np.abs(np.cov(rows) - wanted) < 6 * np.sqrt(2 / size) * scale).all()
    assert len(matrix.history) == bands - 1 and matrix.done == steps


def test_rounds_of_training_bear_the_rows_of_one_matrix_whatever_their_support(
    toy, toy_examples, monkeypatch
):
    """Three rounds against the dense matrix: each gradient less its own sum is the row of C^-1 Z."""
    plan, fresh, rows = replace(PLAN, rounds=3, sampling_probability=1 / 3), [], []
    attached, examples = toy(), toy_examples(12)
    real, inner = dpsgd.summed, noise.gaussian

    def summed(*arguments):
        return np.zeros_like(real(*arguments))

    def gaussian(size, source):
        fresh.append(inner(size, source))
        return fresh[-1]

    def noisy_gradient(attached, batches, mechanism):
        rows.append(real_step(attached, batches, mechanism))
        return rows[-1]

    real_step = dpsgd.noisy_gradient
    monkeypatch.setattr(dpsgd, "summed", summed)
    monkeypatch.setattr(dpsgd.noise, "gaussian", gaussian)
    monkeypatch.setattr("fedpeft.training.local.noisy_gradient", noisy_gradient)
    matrix = StepMatrix.begin(plan)
    supports = [None, np.arange(0, attached.layout.size, 2), np.arange(1, attached.layout.size, 3)]
    local = LocalPlan(steps=3, batch_size=4, optimiser="sgd", lr=0.1)
    for support in supports:
        train_local(attached, examples, local, None, plan, Extras(support=support, matrix=matrix))
        matrix = StepMatrix.restored(matrix.arrays())
    wanted = np.linalg.solve(dense(optimised(3, 9), 9), np.array(fresh))
    wanted *= plan.noise_multiplier * plan.clip / plan.expected_batch_size
    for step, row in enumerate(rows):
        support = slice(None) if supports[step // 3] is None else supports[step // 3]
        np.testing.assert_allclose(row[support], wanted[step, support], rtol=1e-5, atol=1e-7)
        assert np.count_nonzero(row) == row[support].size


def test_a_round_by_itself_has_a_matrix_of_its_own(toy, toy_examples):
    plan = LocalPlan(steps=3, batch_size=4, optimiser="sgd")
    train_local(toy(), toy_examples(5), plan, None, PLAN)
    with pytest.raises(PrivacyError, match="3 bands: give its step matrix"):
        dpsgd.noisy_gradient(toy(), [], dpsgd.Mechanism(PLAN))
    with pytest.raises(PrivacyError, match="needs trust 'local'"):
        StepMatrix.begin(PrivacyPlan(1.0, 1.0, 1.0, 5, 1, 9, 1e-5, "node", "central", bands=2, separation=2))


# --- who takes part when -----------------------------------------------------------------------------------


def test_a_units_group_depends_on_the_unit_and_the_key_alone():
    key_a, key_b = (StepMatrix.begin(PLAN, seeded(bytes([number]) * 32)) for number in (1, 2))
    mine = groups_of(key_a, UNITS)
    assert np.bincount(mine, minlength=3).min() > 600 / 3 - 6 * np.sqrt(600 * 2 / 9)
    for units, index in ((UNITS[::-1], slice(None, None, -1)), (UNITS[5:], slice(5, None))):
        again = StepMatrix(key_a.column, key_a.key)
        np.testing.assert_array_equal(groups_of(again, units), mine[index])
    assert 0.2 < np.mean(groups_of(key_b, UNITS) == mine) < 0.47


def test_what_is_edited_or_added_takes_no_part_and_copies_are_no_more_than_at_first():
    matrix = StepMatrix.begin(PLAN)
    before = groups_of(matrix, [*UNITS, UNITS[7]])
    assert before.min() == 0 and before[7] == before[-1]
    matrix = StepMatrix.restored(matrix.arrays())
    edited = [*UNITS[:3], b"another record 3", *UNITS[4:], UNITS[7], UNITS[7], UNITS[8], b"new"]
    after = groups_of(matrix, edited)
    np.testing.assert_array_equal(after[[0, 1, 2, *range(4, 600)]], before[[0, 1, 2, *range(4, 600)]])
    assert after[3] == -1 and (after[600:] == [before[7], -1, -1, -1]).all()
    assert groups_of(matrix, []).size == 0


@pytest.mark.parametrize("unit", ["record", "person"])
def test_under_edits_no_unit_is_drawn_twice_in_b_steps_and_all_at_b_times_the_rate(toy, toy_examples, unit):
    """Four rounds of nine steps while records come, go, are edited and change places."""
    plan = replace(PLAN, sampling_probability=0.3, steps_per_round=9, unit=unit, expected_batch_size=4)
    attached, examples = toy(), toy_examples(40)
    examples = [replace(example, person=f"p{index}") for index, example in enumerate(examples)]
    matrix, drawn = StepMatrix.begin(plan), {index: [] for index in range(40)}
    rng, steps = np.random.default_rng(3), itertools.count()
    for _ in range(4):
        present = rng.permutation(rng.choice(40, 30, replace=False)) if drawn[0] else rng.permutation(40)
        records = [examples[index] for index in present]
        if any(drawn.values()):
            records.append(replace(examples[0], weights=examples[0].weights * 0.5, person="p0"))

        def note(indices, present=present):
            step = next(steps)
            for index in indices:
                drawn[present[index] if index < len(present) else 0].append(step)

        extras = Extras(matrix=matrix, on_draw=note)
        train_local(attached, records, LocalPlan(9, 4, "sgd"), None, plan, extras)
        matrix = StepMatrix.restored(matrix.arrays())
    gaps = [np.diff(sorted(set(times))) for times in drawn.values()]
    assert all((gap % 3 == 0).all() for gap in gaps) and next(steps) == 36
    chances = 40 * 12
    assert 0.6 < sum(map(len, drawn.values())) / chances < 1


def test_a_step_draws_its_group_at_the_rate_of_the_plan(toy, toy_examples):
    plan, sizes = replace(PLAN, sampling_probability=0.3, steps_per_round=300, rounds=1), []
    matrix = StepMatrix.begin(plan)
    examples = toy_examples(30)
    extras = Extras(matrix=matrix, on_draw=lambda indices: sizes.append(len(list(indices))))
    attached = toy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpsgd, "summed", lambda attached, *_: np.zeros(attached.layout.size))
        train_local(attached, examples, LocalPlan(300, 4, "sgd"), None, plan, extras)
    deviation = np.sqrt(30 * 100 * 0.9 * 0.1)
    assert abs(sum(sizes) - 30 * 100 * 0.9) < 6 * deviation


# --- what it costs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "bands"), [(6, 2), (9, 3), (8, 4), (7, 3), (12, 6)])
def test_no_draws_move_the_release_by_more_than_as_many_gaussian_releases(steps, bands):
    """All draws of all groups and directions of gradients that need not agree."""
    matrix = dense(optimised(bands, steps), steps)
    rng = np.random.default_rng(0)
    for group in range(bands):
        turns = np.arange(group, steps, bands)
        for flags in itertools.product((0, 1), repeat=len(turns)):
            chosen = turns[np.array(flags, bool)]
            gradients = np.zeros((steps, 3))
            directions = rng.standard_normal((len(chosen), 3))
            gradients[chosen] = directions / np.linalg.norm(directions, axis=1, keepdims=True)
            moved = np.linalg.norm(matrix @ gradients)
            assert moved <= np.sqrt(len(chosen)) + 1e-9
            assert moved > 0.5 * np.sqrt(len(chosen)) - 1e-9
        assert len(turns) <= -(-steps // bands)


def fft_delta(rate, multiplier, count, epsilon, spacing=2e-4, reach=30.0):
    """Hockey-stick divergence of ``count`` sampled Gaussians, both directions, by FFT of losses on a grid.

    Losses are rounded to the nearest grid point, so that this is an estimate and no bound: its error is
    some ``sqrt(count) * spacing``.
    """
    points = np.arange(-1_200_000, 1_200_001) * (reach * multiplier / 1_200_000)
    width, deltas = points[1] - points[0], []
    out = np.exp(-(points**2) / (2 * multiplier**2)) / np.sqrt(2 * np.pi) / multiplier
    ins = np.exp(-((points - 1) ** 2) / (2 * multiplier**2)) / np.sqrt(2 * np.pi) / multiplier
    mixed = (1 - rate) * out + rate * ins
    loss = np.logaddexp(np.log1p(-rate), np.log(rate) + (2 * points - 1) / (2 * multiplier**2))
    for density, losses in ((mixed, loss), (out, -loss)):
        cells = 2 ** int(np.ceil(np.log2(2 * count * 12 / spacing)))
        index = np.rint(np.clip(losses, -12, 12) / spacing).astype(int)
        mass = np.bincount(index % cells, density * width, cells)
        total = np.fft.irfft(np.fft.rfft(mass) ** count, cells)
        values = np.fft.fftfreq(cells, 1 / cells) * spacing
        deltas.append(float(np.sum(np.maximum(-np.expm1(epsilon - values), 0) * total * (values > epsilon))))
    return max(deltas)


@pytest.mark.parametrize(("epsilon", "bands"), [(8.0, 3), (2.0, 3), (8.0, 2)])
def test_epsilon_is_that_of_an_own_convolution(epsilon, bands):
    steps = 3 if bands == 3 else 4
    plan = replace(PLAN, bands=bands, steps_per_round=steps, rounds=24 // steps)
    plan = plan.with_noise(noise_multiplier(plan, epsilon))
    assert plan.event() == Steps(bands * 0.2, plan.noise_multiplier, 24 // bands)
    claimed = plan.epsilon()
    assert fft_delta(bands * 0.2, plan.noise_multiplier, 24 // bands, claimed * 1.001) <= 1e-5
    assert fft_delta(bands * 0.2, plan.noise_multiplier, 24 // bands, claimed * 0.98) > 1e-5


def test_the_charges_of_the_rounds_are_the_runs():
    rounds = [PLAN.event(PLAN.steps_per_round)] * PLAN.rounds
    assert rounds[0] == Steps(pytest.approx(0.6), 1.3, 1)
    assert sum(event.repeats for event in rounds) == PLAN.event().repeats == 8
    assert PLAN.event(1).repeats == PLAN.event(2).repeats == 1 and PLAN.event(4).repeats == 2
    assert replace(PLAN, reproducible=True).epsilon() == np.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bands": 2}, "bands = 2 must be a divisor of the 3 steps of a round"),
        ({"sampling_probability": 0.34}, r"bands = 3 must be at most 1 / the rate 0\.34"),
        ({"loss": LossShare(0.2, 8.0)}, "must be None with bands"),
        ({"grid": Grid(300, 500.0, 1, limit=2**50)}, "their noise is no integer"),
        ({"unit": "person", "records_per_unit": 3, "drawn": "record"}, "must be 'unit' with bands"),
        ({"bands": 0}, "bands = 0 must be at least 1"),
    ],
)
def test_bands_that_do_not_fit_are_refused(change, message):
    with pytest.raises(PrivacyError, match=message):
        replace(PLAN, **change)


def test_a_rate_of_a_third_fills_its_groups_exactly():
    assert replace(PLAN, sampling_probability=1 / 3).step_rate == 1.0


# --- coefficients, and what they are worth -----------------------------------------------------------------


JAX_PRIVACY = {
    (24, 2): 2.7055197951721666,
    (24, 3): 2.387361790514398,
    (24, 4): 2.221001063860342,
    (24, 5): 2.1204702879428177,
    (96, 12): 2.7850924503470047,
    (100, 10): 2.9465019766793414,
    (1000, 20): 5.772759279829852,
}
"""Running errors by releases and bands of jax-privacy 2.0.0 with jax 0.10.2 in float64, 2026-11-29:
``jnp.sqrt(jnp.mean(toeplitz.per_query_error(strategy_coef=c, n=n)))`` of ``c =
toeplitz.optimize_banded_toeplitz(n, bands)`` (jax_privacy.matrix_factorization); `fedpeft bench matrix`."""


@pytest.mark.parametrize(("releases", "bands"), JAX_PRIVACY)
def test_optimised_coefficients_have_the_errors_of_jax_privacy(releases, bands):
    column = optimised(bands, releases)
    assert column.shape == (bands,) and np.linalg.norm(column) == pytest.approx(1, abs=1e-12)
    assert running_error(column, releases) == pytest.approx(JAX_PRIVACY[releases, bands], rel=1e-8)
    assert running_error(column, releases) < running_error(square_root(bands), releases)
    rng = np.random.default_rng(0)
    for size in (1e-3, 0.03):
        other = column + size * rng.standard_normal(bands)
        assert running_error(other / np.linalg.norm(other), releases) > running_error(column, releases)


def test_coefficients_of_few_releases():
    np.testing.assert_array_equal(optimised(1, 9), [1.0])
    assert len(optimised(7, 3)) == 3 and len(optimised(4, 1)) == 1
    with pytest.raises(PrivacyError, match="bands = 0 must be at least 1"):
        optimised(0, 3)


def calibrated(bands, epsilon):
    plan = replace(PLAN, bands=bands)
    return plan.with_noise(noise_multiplier(plan, epsilon))


@pytest.mark.parametrize(("epsilon", "low", "high"), [(8.0, 0.83, 0.85), (2.0, 1.0, 1.03)])
def test_the_demo_gains_from_three_bands_at_epsilon_8_and_not_at_2(epsilon, low, high):
    """24 steps at a rate of 0.2: noise of the last iterate over that of independent noise, by the plan."""
    plain, banded = (signal(calibrated(bands, epsilon), 100, 4).whole_run for bands in (1, 3))
    assert low < banded / plain < high


def test_a_config_has_its_bands_and_too_much_noise_names_them():
    from fedpeft.config import build_config

    privacy = {"unit": "record", "epsilon": 8.0, "sampling_probability": 0.2, "bands": 3}
    federation = {"rounds": 8, "local_steps": 3, "optimiser": "sgd", "momentum": 0.0}
    config = build_config({"privacy": privacy, "federation": federation})
    plan = plan_from_config(config)
    assert (plan.bands, plan.groups, plan.step_rate) == (3, 3, pytest.approx(0.6))
    plain, banded = calibrated(1, 8.0), calibrated(3, 8.0)
    changes = {remedy.change: remedy.whole_run for remedy in remedies(plain, 1000, 4)}
    assert changes["privacy.bands = 3 with SGD and no momentum"] == pytest.approx(
        signal(banded, 1000, 4).whole_run, rel=0.01
    )
    others = {remedy.change for remedy in remedies(banded, 1000, 4)}
    assert "federation.batch_size = 256" in others and not any("bands" in change for change in others)
