"""Epsilon, calibration and plans against dp-accounting, Opacus PRV and RDP."""

from __future__ import annotations

import logging
import math
import warnings

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fedpeft.config.models import Config
from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import COARSE, FINE, Steps, epsilon
from fedpeft.privacy.calibration import noise_multiplier
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.privacy.plan_builder import plan_from_config

SETTINGS = [
    (0.01, 1.0, 1000),
    (0.08, 0.8, 100),
    (0.032, 2.0, 940),
    (0.128, 1.0, 235),
    (0.5, 4.0, 30),
    (1.0, 10.0, 30),
]
DELTA = 1e-5


def event(rate, noise, count):
    return SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), count)


def plan(**changes):
    values = {
        "sampling_probability": 0.08,
        "noise_multiplier": 1.0,
        "clip": 1.0,
        "expected_batch_size": 16,
        "steps_per_round": 10,
        "rounds": 10,
        "delta": DELTA,
    }
    return PrivacyPlan(**(values | changes))


@pytest.mark.parametrize(("rate", "noise", "count"), SETTINGS)
@pytest.mark.parametrize("interval", [COARSE, FINE])
def test_equals_dp_accounting_called_directly(rate, noise, count, interval):
    accountant = PLDAccountant(value_discretization_interval=interval)
    accountant.compose(event(rate, noise, count))
    expected = accountant.get_epsilon(DELTA)
    assert epsilon([Steps(rate, noise, count)], DELTA, interval) == pytest.approx(expected, rel=1e-9)


def test_joint_composition_equals_dp_accounting_and_beats_the_sum():
    runs = [Steps(0.08, 1.2, 40), Steps(0.02, 1.5, 200), Steps(1.0, 8.0, 5), Steps(0.08, 1.2, 60)]
    accountant = PLDAccountant(value_discretization_interval=FINE)
    for run in runs:
        accountant.compose(event(*run))
    joint = epsilon(runs, DELTA)
    assert joint == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)
    assert joint < sum(epsilon([run], DELTA) for run in runs)
    assert joint == epsilon(list(reversed(runs)), DELTA)


@pytest.mark.parametrize(("rate", "noise", "count"), SETTINGS)
def test_below_prv_and_rdp_but_not_below_the_lower_bound(rate, noise, count):
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        from opacus.accountants import PRVAccountant

        prv, rdp = PRVAccountant(), RdpAccountant()
        prv.history = [(noise, rate, count)]
        opacus = prv.get_epsilon(DELTA)
        rdp.compose(event(rate, noise, count))
        renyi = rdp.get_epsilon(DELTA)
        logging.disable(logging.NOTSET)
    ours = epsilon([Steps(rate, noise, count)], DELTA)
    assert ours <= opacus
    assert ours <= renyi
    optimistic = from_gaussian_mechanism(
        noise, sampling_prob=rate, pessimistic_estimate=False, use_connect_dots=False
    ).self_compose(count)
    lower = optimistic.get_epsilon_for_delta(DELTA)
    assert lower <= ours <= 1.02 * lower + 0.02


def test_the_coarse_bound_is_an_upper_bound():
    for setting in SETTINGS:
        fine, coarse = (epsilon([Steps(*setting)], DELTA, interval) for interval in (FINE, COARSE))
        assert fine <= coarse * (1 + 1e-9) and coarse <= fine * 1.01


def test_no_steps_cost_nothing_and_no_noise_costs_everything():
    assert epsilon([], DELTA) == 0.0
    assert epsilon([Steps(0.1, 1.0, 0)], DELTA) == 0.0
    assert epsilon([Steps(0.1, 0.0, 1)], DELTA) == math.inf


@pytest.mark.parametrize(("target", "rate", "count"), [(0.3, 0.5, 60), (1.0, 0.08, 100), (8.0, 0.08, 30)])
def test_calibration_never_exceeds_the_target_and_wastes_little(target, rate, count):
    shape = plan(sampling_probability=rate, steps_per_round=count, rounds=1)
    noise = noise_multiplier(shape, target)
    accountant = PLDAccountant(value_discretization_interval=FINE)
    accountant.compose(event(rate, noise, count))
    spent = accountant.get_epsilon(DELTA)
    assert spent <= target
    assert spent >= target * 0.998


def test_an_unreachable_target_is_refused():
    with pytest.raises(PrivacyError, match="cannot be reached"):
        noise_multiplier(plan(sampling_probability=1.0, rounds=10_000, delta=1e-12), 1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": math.nan},
        {"sampling_probability": 0.0},
        {"sampling_probability": 1.5},
        {"clip": 0.0},
        {"clip": math.inf},
        {"expected_batch_size": 0},
        {"steps_per_round": 0},
        {"rounds": 0},
        {"delta": 0.0},
        {"delta": 0.5},
    ],
)
def test_nonsense_plans_are_refused(change):
    with pytest.raises(PrivacyError, match=next(iter(change))):
        plan(**change)


def test_a_plan_agrees_with_its_event():
    accountant = PLDAccountant(value_discretization_interval=FINE)
    accountant.compose(event(0.08, 1.0, 100))
    assert plan().epsilon() == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-9)
    assert plan().epsilon(10) < plan().epsilon(50) < plan().epsilon()
    described = plan().describe()
    assert described["unit"] == "record" and described["adjacency"] == "add-or-remove-one"
    assert described["trust"] == "local" and described["epsilon"] == plan().epsilon()


def config(**privacy):
    data = privacy.pop("data", {})
    return Config.model_validate({"privacy": {"unit": "record", **privacy}, "data": data})


def test_config_without_dp_has_no_plan():
    assert plan_from_config(Config()) is None


def test_config_with_epsilon_is_solved_within_it():
    solved = plan_from_config(config(epsilon=8.0))
    assert solved is not None
    assert solved.epsilon() <= 8.0
    assert solved.sampling_probability == 16 / 200
    assert solved.expected_batch_size == 16


def test_config_with_noise_keeps_it():
    solved = plan_from_config(config(noise_multiplier=1.25, sampling_probability=0.1))
    assert solved is not None
    assert (solved.noise_multiplier, solved.sampling_probability) == (1.25, 0.1)


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({}, "exactly one"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "exactly one"),
        ({"epsilon": 1.0, "data": {"source": "own.jsonl"}}, "not derived from the private number"),
        ({"epsilon": 1.0, "public_records": 5}, "above the 5 public records"),
    ],
)
def test_unsound_configs_are_refused(privacy, message):
    with pytest.raises(PrivacyError, match=message):
        plan_from_config(config(**privacy))
