"""Plans of every unit and trust from a configuration: public constants only, never above the target."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from fedpeft.config.models import Config
from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import COARSE, GridSteps, Steps, epsilon
from fedpeft.privacy.calibration import noise_multiplier
from fedpeft.privacy.grid import Grid
from fedpeft.privacy.plan import AdaptiveClip, PrivacyPlan
from fedpeft.privacy.plan_builder import limit_of, plan_from_config

SIZE = 2_000


def config(**sections):
    return Config.model_validate(sections)


def nodes(trust="central", nodes=20, rounds=30, secure=None, federation=None, **privacy):
    if not {"epsilon", "noise_multiplier"} & set(privacy):
        privacy["epsilon"] = 8.0
    return config(
        privacy={"unit": "node", "trust": trust, **privacy},
        federation={"nodes": nodes, "rounds": rounds, **(federation or {})},
        exchange={"secure": secure or {}},
    )


def records(**privacy):
    federation = {"batch_size": privacy.pop("batch_size", 16), "rounds": privacy.pop("rounds", 10)}
    return config(privacy={"unit": "record", "public_records": 200, **privacy}, federation=federation)


def summed(bits=32, size=4, rounds=10, **privacy):
    return config(
        privacy={"unit": "record", "trust": "distributed", "public_records": 200, **privacy},
        federation={"batch_size": 16, "rounds": rounds, "nodes": size, "local_steps": 1, "optimiser": "sgd"},
        exchange={
            "up": {"codec": "ternary", "error_feedback": False},
            "secure": {"enabled": True, "bits": bits},
        },
    )


CYCLIC = {"selection": "cyclic", "participation": 0.25}
POISSON = {"selection": "poisson", "participation": 0.25}
INTEGERS = {"enabled": True, "bits": 32}
KINDS = {
    "record": lambda target: records(epsilon=target),
    "person": lambda target: records(epsilon=target, unit="person", records_per_person=4),
    "person, records": lambda target: records(
        epsilon=target, unit="person", records_per_person=4, sampling="record"
    ),
    "record, integers": lambda target: records(epsilon=target, noise="discrete"),
    "node, all": lambda target: nodes(epsilon=target),
    "node, sampled": lambda target: nodes(epsilon=target, federation=POISSON),
    "node, banded": lambda target: nodes(epsilon=target, federation=CYCLIC, bands=4),
    "node, adaptive": lambda target: nodes(epsilon=target, adaptive_clip=True),
    "node, distributed": lambda target: nodes("distributed", epsilon=target, secure=INTEGERS),
    "record, distributed": lambda target: summed(epsilon=target),
    "person, distributed": lambda target: summed(epsilon=target, unit="person", records_per_person=4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [1.0, 3.0])
def test_no_kind_of_plan_exceeds_its_target(kind, target):
    plan = plan_from_config(KINDS[kind](target), SIZE)
    assert plan is not None
    assert 0.99 * target < plan.epsilon() <= target
    assert plan.with_noise(plan.noise_multiplier * 0.98).epsilon() > target


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    target=some.floats(0.3, 12.0),
    batch=some.integers(1, 64),
    rounds=some.integers(1, 40),
    delta=some.sampled_from([1e-3, 1e-5, 1e-7]),
)
def test_calibration_never_exceeds_any_target(target, batch, rounds, delta):
    asked = records(epsilon=target, batch_size=batch, rounds=rounds, delta=delta)
    plan = plan_from_config(asked)
    assert plan is not None and plan.epsilon() <= target


@settings(max_examples=4, deadline=None)
@given(target=some.floats(0.3, 8.0), rounds=some.integers(1, 100), bands=some.integers(1, 8))
def test_calibration_of_nodes_never_exceeds_any_target(target, rounds, bands):
    plan = PrivacyPlan(1.0, 1.0, 1.0, 5, 1, rounds, 1e-5, "node", "central", bands=bands, separation=bands)
    assert plan.with_noise(noise_multiplier(plan, target)).epsilon() <= target


@settings(max_examples=40, deadline=None)
@given(
    target=some.floats(0.2, 40.0),
    rounds=some.integers(1, 200),
    size=some.integers(1, 10**7),
    fineness=some.floats(0.5, 32.0),
)
def test_calibration_of_integers_never_exceeds_any_target(target, rounds, size, fineness):
    grid = Grid(size, fineness * math.sqrt(size), 3)
    plan = PrivacyPlan(1.0, 1.0, 1.0, 5, 1, rounds, 1e-5, "node", "distributed", grid=grid)
    assert plan.with_noise(noise_multiplier(plan, target)).epsilon() <= target


def test_one_more_private_record_changes_nothing():
    plans = [
        plan_from_config(config(privacy={"unit": "record", "epsilon": 8.0, "public_records": 128}, data=data))
        for data in ({"source": "128.jsonl"}, {"source": "129.jsonl", "samples": 129})
    ]
    assert plans[0] == plans[1] and plans[0] is not None
    assert (plans[0].sampling_probability, plans[0].expected_batch_size) == (16 / 128, 16)


def test_q_b_and_t_are_the_configured_constants():
    plan = plan_from_config(records(noise_multiplier=1.0, batch_size=20, rounds=7))
    assert plan is not None
    assert (plan.sampling_probability, plan.expected_batch_size, plan.steps) == (0.1, 20, 70)
    sampled = plan_from_config(nodes(federation=POISSON, noise_multiplier=1.0))
    assert sampled is not None
    assert (sampled.sampling_probability, sampled.expected_batch_size, sampled.steps) == (0.25, 5, 30)
    turns = plan_from_config(nodes(federation=CYCLIC, bands=4, noise_multiplier=1.0))
    assert turns is not None
    assert (turns.sampling_probability, turns.expected_batch_size, turns.bands) == (1.0, 5, 4)


def test_nodes_that_a_roster_shows_get_no_amplification():
    plan = plan_from_config(nodes("distributed", secure=INTEGERS, noise_multiplier=3.0), SIZE)
    assert plan is not None and plan.sampling_probability == 1.0
    assert plan.event().repeats == 30


def test_a_banded_run_counts_participations():
    plan = plan_from_config(nodes(federation=CYCLIC, bands=4, noise_multiplier=3.0))
    assert plan is not None
    assert plan.event() == Steps(1.0, 3.0, 8)
    assert [plan.event(count).repeats for count in (1, 4, 5, 29)] == [1, 1, 2, 8]


def test_an_adaptive_clip_costs_the_sum_a_few_percent():
    from fedpeft.aggregation.central_dp import sum_multiplier

    fixed, adaptive = plan_from_config(nodes()), plan_from_config(nodes(adaptive_clip=True))
    assert fixed is not None and adaptive is not None and adaptive.adaptive is not None
    assert adaptive.noise_multiplier == fixed.noise_multiplier
    assert adaptive.noise_multiplier < sum_multiplier(adaptive) < 1.04 * fixed.noise_multiplier
    assert adaptive.adaptive.count_noise >= 20 / 20


def test_a_reproducible_plan_has_the_noise_but_no_guarantee():
    private, seeded = (plan_from_config(records(epsilon=1.0, randomness=way)) for way in ("system", "seeded"))
    assert private is not None and seeded is not None
    assert seeded.noise_multiplier == private.noise_multiplier
    assert seeded.epsilon() == math.inf and seeded.describe()["epsilon"] == "unbounded"


def test_the_event_adds_up_round_by_round():
    for kind in KINDS.values():
        plan = plan_from_config(kind(1.0), SIZE)
        assert plan is not None
        rounds = [plan.epsilon(plan.steps_per_round * count, COARSE) for count in (1, 5, 10)]
        assert rounds == sorted(rounds) and rounds[-1] <= plan.epsilon(interval=COARSE)


@pytest.mark.parametrize("bits", [16, 32])
def test_rounding_costs_little(bits):
    """Against the Gaussian of the same epsilon, on the finest grid that the integers hold."""
    gaussian = plan_from_config(nodes())
    rounded = plan_from_config(nodes("distributed", secure={"enabled": True, "bits": bits}), SIZE)
    assert gaussian is not None and rounded is not None and rounded.grid is not None
    assert 1 < rounded.noise_multiplier / gaussian.noise_multiplier < {16: 1.04, 32: 1.01}[bits]
    assert (rounded.grid.least_nodes, rounded.grid.colluders) == (13, 1)  # of 20, 14 open a sum


@pytest.mark.parametrize("count", [4, 16])
def test_nodes_that_share_the_noise_of_records_need_as_much_as_one_that_has_it_alone(count):
    """One node's multiplier serves the sum of all; only rounding and the failures add to it."""
    shared = plan_from_config(summed(16, count, rounds=40, epsilon=8.0), SIZE)
    assert shared is not None
    alone = noise_multiplier(replace(shared, trust="local", grid=None), 8.0)
    assert 1 < shared.noise_multiplier / alone < 1.05
    assert shared.adjacency == "add-or-remove-one"


def test_the_event_is_the_gaussian_of_the_least_noise_over_the_rounded_sensitivity():
    """Recomputed from the plan's own numbers; the failures of all releases are taken off delta."""
    plan = plan_from_config(summed(16, epsilon=3.0), SIZE)
    assert plan is not None and plan.grid is not None
    grid = plan.grid
    event = plan.event()
    assert isinstance(event, GridSteps)
    root = math.sqrt(SIZE)
    spread = math.sqrt(2 * math.log(1e20)) * (grid.steps_per_clip + root / 2)
    assert event.l2 == pytest.approx(math.sqrt(grid.steps_per_clip**2 + SIZE / 4 + spread))
    least = grid.least_nodes * grid.share(plan.noise_multiplier)
    assert event.deviation == pytest.approx(math.sqrt(least - 9))
    assert least == pytest.approx((plan.noise_multiplier * grid.steps_per_clip) ** 2)
    steps = [Steps(0.08, event.deviation / event.l2, 10)]
    assert event.failure == 1e-20 and event.repeats == 10
    assert plan.epsilon() == pytest.approx(epsilon(steps, 1e-5 - 1e-19), rel=1e-12)


def test_failures_are_paid_for_by_delta():
    event = GridSteps(0.1, 10.0, 20.0, 1e-6, 9)
    assert epsilon([event], 1e-5) == pytest.approx(epsilon([Steps(0.1, 2.0, 9)], 1e-6), rel=1e-9)
    assert epsilon([event._replace(repeats=10)], 1e-5) == math.inf
    assert epsilon([event, Steps(1.0, 5.0, 1)], 1e-5) > epsilon(
        [Steps(0.1, 2.0, 9), Steps(1.0, 5.0, 1)], 1e-5
    )


def test_too_little_noise_for_the_grid_is_none():
    """Below three steps a node nothing is known of sums: infinite epsilon, not a small error."""
    grid = Grid(size=100, steps_per_clip=10.0, least_nodes=4)
    plan = PrivacyPlan(1.0, 0.59, 1.0, 6, 1, 1, 1e-5, "node", "distributed", grid=grid)
    assert plan.epsilon() == math.inf and math.isfinite(plan.with_noise(0.61).epsilon())


@pytest.mark.parametrize("rate", [0.2, 1.0])
@pytest.mark.parametrize("shift", [1, 9])
def test_one_release_is_no_less_private_than_it_is_accounted_for(rate, shift):
    """Exact hockey-stick divergences of the sum of discrete Gaussian shares, in both directions."""
    least, deviation = 3, 4.0
    k = np.arange(-200, 201)
    share = np.exp(-(k**2) / (2 * deviation**2))
    share /= share.sum()
    whole = np.convolve(np.convolve(share, share), share)
    moved = np.roll(whole, shift)
    drawn = (1 - rate) * whole + rate * moved
    accounted = math.sqrt(least * deviation**2 - 9)
    for target in (0.05, 0.5, 2.0):
        exact = max(
            np.maximum(drawn - math.exp(target) * whole, 0).sum(),
            np.maximum(whole - math.exp(target) * drawn, 0).sum(),
        )
        if exact > 1e-12:
            assert epsilon([GridSteps(rate, float(shift), accounted, 0.0, 1)], exact) >= target * (1 - 1e-3)


def test_a_grid_that_fits_at_once_is_solved_for_once():
    noise_multiplier.cache_clear()
    plan_from_config(summed(32, epsilon=5.5), SIZE)
    assert noise_multiplier.cache_info().misses == 1


def test_noise_that_no_table_holds_takes_a_coarser_grid():
    plan = plan_from_config(summed(32, noise_multiplier=3.0), 30_000_000)
    assert plan is not None and plan.grid is not None
    assert plan.grid.steps_per_clip < 16 * math.sqrt(30_000_000)
    assert plan.grid.share(3.0) < 1e10


def test_what_integers_mean_is_bound_to_grid_and_noise():
    plan = plan_from_config(summed(16, noise_multiplier=1.0), SIZE)
    assert plan is not None and plan.grid is not None
    public = bytes(32)
    assert plan.bound_to(public) == replace(plan).bound_to(public) != plan.bound_to(b"\1" * 32)
    for other in (plan.with_noise(1.01), replace(plan, grid=replace(plan.grid, steps_per_clip=9.0))):
        assert other.bound_to(public) != plan.bound_to(public)


def test_bits_that_are_too_few_are_refused():
    asked = nodes("distributed", secure={"enabled": True, "bits": 16})
    with pytest.raises(PrivacyError, match=r"bits = 16 do not hold .* exchange\.secure\.bits = 32"):
        plan_from_config(asked, 100_000_000)
    with pytest.raises(PrivacyError, match="give the size"):
        plan_from_config(asked)


def test_no_sum_within_the_limit_leaves_its_integers():
    """All values at their limit and the noise of all nodes at its subgaussian end."""
    plan = plan_from_config(summed(16, 16, epsilon=2.0), 5_000)
    assert plan is not None and plan.grid is not None
    grid = plan.grid
    assert grid.limit >= 4 * grid.steps_per_clip
    deviation = math.sqrt(16 * grid.share(plan.noise_multiplier))
    left = 2**15 - 1 - 16 * grid.limit
    assert left > 0
    chance = 2 * math.exp(-(left**2) / (2 * deviation**2))
    assert chance * grid.size * plan.steps <= 1e-12
    assert limit_of(plan, grid, 16, 16) == grid.limit < limit_of(plan, grid, 16, 32)


@pytest.mark.parametrize(
    "change",
    [
        {"unit": "record", "trust": "central"},
        {"unit": "person", "trust": "distributed"},
        {"unit": "record", "trust": "distributed", "steps_per_round": 2, "grid": Grid(10, 10.0, 3)},
        {"unit": "node", "trust": "local"},
        {"bands": 2},
        {"adaptive": AdaptiveClip(0.5, 0.2, 3.0)},
        {"grid": Grid(10, 10.0, 3)},
        {"unit": "node", "trust": "distributed"},
        {"unit": "node", "trust": "central", "bands": 2, "sampling_probability": 0.5},
        {"records_per_unit": 0},
        {"expected_batch_size": math.nan},
    ],
)
def test_contradictory_plans_are_refused(change):
    values = {"sampling_probability": 1.0, "noise_multiplier": 1.0, "clip": 1.0, "expected_batch_size": 5}
    with pytest.raises(PrivacyError):
        PrivacyPlan(**(values | {"steps_per_round": 1, "rounds": 5, "delta": 1e-5} | change))


@pytest.mark.parametrize("values", [(0, 1.0, 3), (10, 0.0, 3), (10, math.inf, 3), (10, 1.0, 0)])
def test_nonsense_grids_are_refused(values):
    with pytest.raises(PrivacyError, match="Grid"):
        Grid(*values)


@pytest.mark.parametrize("values", [(0.0, 0.2, 1.0), (1.0, 0.2, 1.0), (0.5, 0.0, 1.0), (0.5, 0.2, math.nan)])
def test_nonsense_adaptive_clips_are_refused(values):
    with pytest.raises(PrivacyError, match="AdaptiveClip"):
        AdaptiveClip(*values)


def test_a_target_of_nothing_is_refused():
    plan = plan_from_config(records(noise_multiplier=1.0))
    assert plan is not None
    for target in (0.0, -1.0, math.nan):
        with pytest.raises(PrivacyError, match="above 0"):
            noise_multiplier(plan, target)


def test_a_cached_epsilon_is_composed_once(monkeypatch):
    from fedpeft.privacy import accounting

    events, composed = [Steps(0.05 + i / 1000, 1.0, 10) for i in range(5)], []
    real = accounting.composed
    monkeypatch.setattr(accounting, "composed", lambda *given: composed.append(given) or real(*given))
    accounting._epsilon.cache_clear()
    first = epsilon(events, 1e-5, COARSE)
    assert len(composed) == 5
    assert {epsilon(reversed(events), 1e-5, COARSE) for _ in range(50)} == {first}
    assert len(composed) == 5


def test_a_nodes_own_integers_are_accounted_for_on_their_grid():
    """Rounding at random lengthens what a unit adds, and smooth noise is a little smaller: both cost."""
    config = records(epsilon=4.0, noise="discrete")
    plan, plain = plan_from_config(config, 1000), plan_from_config(records(epsilon=4.0))
    assert plan.grid == Grid(1000, 64 * math.sqrt(1000), 1, limit=2**50)
    assert plan.event() == plan.grid.event(plan.sampling_probability, plan.noise_multiplier, plan.steps)
    assert plan.epsilon() <= 4.0 and plain.noise_multiplier < plan.noise_multiplier
    assert plan.noise_multiplier < plain.noise_multiplier * 1.01
    assert plan.grid.share(plan.noise_multiplier) == (plan.noise_multiplier * plan.grid.steps_per_clip) ** 2
    with pytest.raises(PrivacyError, match="give the size"):
        plan_from_config(config)


def test_a_grid_is_coarser_where_no_table_holds_the_noise():
    plan = plan_from_config(records(noise_multiplier=20.0, noise="discrete"), 1_000_000)
    assert plan.grid.steps_per_clip == 4 * 1000
    with pytest.raises(PrivacyError, match=r"privacy\.noise = 'gaussian'"):
        plan_from_config(records(noise_multiplier=2e4, noise="discrete"), 1_000_000)


def test_drawn_records_come_from_the_config():
    plan = plan_from_config(records(epsilon=4.0, unit="person", records_per_person=4, sampling="record"))
    assert (plan.unit, plan.drawn, plan.records_per_unit) == ("person", "record", 4)
    assert plan_from_config(records(epsilon=4.0, unit="person", records_per_person=4)).drawn == "unit"
