"""Records of a person drawn one by one: epsilon against independent recomputations, and the accounts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom, norm

from fedpeft.errors import PrivacyError
from fedpeft.privacy import renyi
from fedpeft.privacy.accounting import (
    COARSE,
    GridSteps,
    MixtureSteps,
    Pure,
    Skellam,
    Steps,
    epsilon,
    renyi_epsilon,
)
from fedpeft.privacy.calibration import noise_multiplier
from fedpeft.privacy.event_json import event_from_json, event_to_json
from fedpeft.privacy.grid import Grid
from fedpeft.privacy.ledger.budget import Charge, Claim, joint
from fedpeft.privacy.ledger.composition_cache import running_epsilon
from fedpeft.privacy.mixture import Mixture, distribution, renyi_curve
from fedpeft.privacy.persons import caps, epsilon_in_nodes, event_in_nodes
from fedpeft.privacy.plan import PrivacyPlan

DELTA = 1e-5
PLAN = PrivacyPlan(0.1, 1.0, 1.0, 32, 4, 5, DELTA, unit="person", records_per_unit=4, drawn="record")
SETTINGS = [
    (0.1, 3.0, 4, 100),
    (0.01, 2.0, 16, 300),
    (0.5, 30.0, 16, 50),
    (0.1, 0.8, 2, 20),
    (0.9, 4.0, 3, 8),
]


def by_fft(rate, noise, records, repeats, delta):
    """Lower and upper bound of epsilon: losses of a fine cut of the line, rounded down and up, by FFT.

    Each cell of the line is one outcome. Its loss lies between those of its ends, as the ratio rises.
    """
    width, interval = noise / 4000, 1e-3
    edges = np.arange(-12 * noise, records + 12 * noise, width)
    shifts, chances = np.arange(records + 1), binom.pmf(np.arange(records + 1), records, rate)
    with np.errstate(divide="ignore", under="ignore"):
        logs = [
            chance * np.exp((i * edges - i * i / 2) / noise**2)
            for i, chance in zip(shifts, chances, strict=True)
        ]
        ratio = np.log(np.sum(logs, axis=0))
    mixed = sum(chance * ndtr((edges - i) / noise) for i, chance in zip(shifts, chances, strict=True))
    plain = ndtr(edges / noise)
    found = []
    for rounding, sign in ((np.floor, 0), (np.ceil, 1)):
        best = 0.0
        for masses, ends in (
            (np.diff(mixed), (ratio[:-1], ratio[1:])),
            (np.diff(plain), (-ratio[1:], -ratio[:-1])),
        ):
            places = rounding(ends[sign] / interval).astype(np.int64)
            best = max(best, composed_epsilon(places, masses, interval, repeats, delta))
        found.append(best)
    return found


def composed_epsilon(places, masses, interval, repeats, delta):
    mean, spread = np.average(places, weights=masses), np.sqrt(np.cov(places, aweights=masses))
    size = 1 << math.ceil(math.log2(30 * spread * math.sqrt(repeats) + 4 * np.ptp(places) + 10))
    law = np.zeros(size)
    np.add.at(law, (places - round(mean)) % size, masses)
    total = np.maximum(np.fft.irfft(np.fft.rfft(law) ** repeats, size), 0)
    losses = (np.fft.fftfreq(size, 1 / size) + repeats * round(mean)) * interval
    low, high = 0.0, 500.0
    for _ in range(60):
        middle = (low + high) / 2
        above = losses > middle
        spent = float((total[above] * -np.expm1(middle - losses[above])).sum())
        low, high = (low, middle) if spent <= delta else (middle, high)
    return high


@pytest.mark.parametrize(("rate", "noise", "records", "repeats"), SETTINGS)
def test_epsilon_is_never_below_an_independent_recomputation(rate, noise, records, repeats):
    low, high = by_fft(rate, noise, records, repeats, DELTA)
    ours = epsilon([MixtureSteps(rate, noise, records, 0.0, repeats)], DELTA)
    assert low * (1 - 1e-9) <= ours <= min(high, (low + high) / 2 * 1.02)
    assert high <= low * 1.1 + 0.2  # the recomputation itself says something
    assert ours <= epsilon([MixtureSteps(rate, noise, records, 0.0, repeats)], DELTA, COARSE) * (1 + 1e-9)


@pytest.mark.parametrize(("rate", "noise", "records", "repeats"), SETTINGS)
def test_one_step_dominates_the_exact_divergences_in_both_directions(rate, noise, records, repeats):
    step = distribution(Mixture(rate, noise, records), COARSE)
    x = np.linspace(-15 * noise, records + 15 * noise, 400_001)
    chances = binom.pmf(np.arange(records + 1), records, rate)
    mixed = sum(chance * norm.pdf(x, i, noise) for i, chance in enumerate(chances))
    plain = norm.pdf(x, 0, noise)
    for loss in (0.0, 0.1, 0.5, 1.0, 2.0):
        gap = max(
            np.trapezoid(np.maximum(upper - math.exp(loss) * lower, 0), x)
            for upper, lower in ((mixed, plain), (plain, mixed))
        )
        assert gap - 1e-9 <= step.get_delta_for_epsilon(loss) <= gap * 1.02 + 1e-6


@pytest.mark.parametrize(("rate", "noise", "records", "repeats"), SETTINGS[:2])
def test_epsilon_equals_dp_accountings(rate, noise, records, repeats):
    from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism

    shifts = np.arange(records + 1.0)
    theirs = from_mixture_gaussian_mechanism(
        noise, shifts, binom.pmf(shifts, records, rate), value_discretization_interval=COARSE
    )
    ours = epsilon([MixtureSteps(rate, noise, records, 0.0, repeats)], DELTA, COARSE)
    assert ours == pytest.approx(theirs.self_compose(repeats).get_epsilon_for_delta(DELTA), rel=1e-6)


def test_one_record_is_a_step_and_all_of_a_person_are_one_with_as_many_clips():
    assert epsilon([MixtureSteps(0.1, 1.0, 1, 0.0, 100)], DELTA) == epsilon([Steps(0.1, 1.0, 100)], DELTA)
    assert epsilon([MixtureSteps(1.0, 8.0, 4, 0.0, 10)], DELTA) == epsilon([Steps(1.0, 2.0, 10)], DELTA)
    ours = epsilon([MixtureSteps(1 - 1e-9, 8.0, 4, 0.0, 10)], DELTA)
    assert ours == pytest.approx(epsilon([Steps(1.0, 2.0, 10)], DELTA), rel=1e-3)


def test_more_records_never_cost_less_and_less_than_all_at_once():
    spent = [epsilon([MixtureSteps(0.1, 4.0, k, 0.0, 50)], DELTA, COARSE) for k in (1, 2, 4, 8, 16)]
    assert spent == sorted(spent) and spent[0] < spent[-1]
    for k, value in zip((2, 4, 8, 16), spent[1:], strict=True):
        assert value < epsilon([Steps(0.1, 4.0 / k, 50)], DELTA, COARSE)


@pytest.mark.parametrize(("rate", "noise", "records"), [(1e-6, 0.5, 3), (0.999999, 3.0, 5), (0.02, 9.0, 128)])
def test_hostile_edges_have_an_epsilon(rate, noise, records):
    value = epsilon([MixtureSteps(rate, noise, records, 0.0, 5)], DELTA)
    assert math.isfinite(value) and value >= 0


def test_no_noise_and_failures_of_rounding_are_no_guarantee():
    assert epsilon([MixtureSteps(0.1, 0.0, 4, 0.0, 1)], DELTA) == math.inf
    assert epsilon([MixtureSteps(0.1, 9.0, 4, 1e-5, 1)], DELTA) == math.inf
    failing = epsilon([MixtureSteps(0.1, 3.0, 4, 1e-7, 50)], DELTA)
    assert failing == pytest.approx(epsilon([MixtureSteps(0.1, 3.0, 4, 0.0, 50)], DELTA / 2), rel=1e-9)


@pytest.mark.parametrize("rate, noise, records, repeats", [(1e-3, 0.8, 16, 300), (1e-4, 0.8, 128, 100)])
def test_many_records_that_are_hardly_ever_drawn_together_cost_what_they_do(rate, noise, records, repeats):
    """RDP says 10,000 and more, as of all records at once; the loss distributions compose to what is true."""
    event = MixtureSteps(rate, noise, records, 0.0, repeats)
    assert renyi_epsilon([event], DELTA) > 1e4
    direct = distribution(Mixture(rate, noise, records), COARSE).self_compose(repeats)
    ours = epsilon([event], DELTA, COARSE)
    assert ours == pytest.approx(direct.get_epsilon_for_delta(DELTA), rel=1e-9) and ours < 10
    assert running_epsilon([event], DELTA) == pytest.approx(ours, rel=1e-9)


def test_releases_of_two_kinds_with_equal_numbers_are_never_merged_nor_read_from_one_cache():
    grid, drawn = GridSteps(0.01, 17.0, 100.0, 0.0, 100), MixtureSteps(0.01, 17.0, 100, 0.0, 100)
    little, much = epsilon([grid], DELTA, COARSE), epsilon([drawn], DELTA, COARSE)
    assert much > 10 * little
    for events in ([grid, drawn], [drawn, grid]):
        assert much < epsilon(events, DELTA, COARSE) < much + little
        assert running_epsilon(events, DELTA) == pytest.approx(epsilon(events, DELTA, COARSE), rel=1e-6)
    assert running_epsilon([grid], DELTA) == pytest.approx(little, rel=1e-6)


def test_events_are_equal_to_those_of_their_own_kind_alone():
    kinds = (Steps, GridSteps, MixtureSteps, Skellam, Pure)
    events = [kind(*([1] * len(kind._fields))) for kind in kinds]
    assert len(set(events)) == len(events)
    for event in events:
        assert event == type(event)(*event) and event != tuple(event) and tuple(event) != event


@pytest.mark.parametrize("noise", [1e-3, 1e-9])
def test_noise_too_little_for_any_promise_costs_no_memory(noise):
    orders = np.array([2.0, 64.0, 128.0])
    assert np.isinf(renyi_curve(Mixture(0.01, noise, 128), orders)).all()
    assert epsilon([MixtureSteps(0.01, noise, 128, 0.0, 10)], DELTA) == math.inf


@pytest.mark.parametrize("event", [MixtureSteps(0.1, 1.0, 0, 0.0, 1), MixtureSteps(0.1, 1.0, 129, 0.0, 1)])
def test_records_out_of_range_are_refused(event):
    with pytest.raises(PrivacyError):
        epsilon([event], DELTA)
    with pytest.raises(PrivacyError, match=r"records = .* must be a whole number from 1 to 128"):
        event_to_json(event)


def test_renyi_bounds_hold_and_mix_with_older_noise():
    event = MixtureSteps(0.1, 3.0, 4, 0.0, 50)
    assert epsilon([event], DELTA) < renyi_epsilon([event], DELTA)
    simple = renyi_epsilon([Steps(0.2, 2.0, 50)], DELTA)
    assert renyi_epsilon([MixtureSteps(0.2, 2.0, 1, 0.0, 50)], DELTA) == simple
    mixed = epsilon([event, Skellam(100.0, 10.0, 1e4, 3)], DELTA)
    assert mixed > renyi_epsilon([event], DELTA)
    assert epsilon([MixtureSteps(0.1, 0.3, 16, 0.0, 500)], DELTA) > 100


@pytest.mark.parametrize(("rate", "noise"), [(0.01, 1.0), (0.5, 4.0)])
def test_the_renyi_curve_of_one_record_is_the_gaussians(rate, noise):
    from fedpeft.privacy.mixture import renyi_curve

    ours = renyi_curve(Mixture(rate, noise, 1), renyi.ORDERS)
    np.testing.assert_allclose(ours[:100], renyi.gaussian(rate, noise)[:100], rtol=1e-9)


def test_an_event_survives_json_and_a_plan_makes_it():
    event = PLAN.event(7)
    assert event == MixtureSteps(0.1, 1.0, 4, 0.0, 7)
    assert event_from_json(event_to_json(event)) == event
    assert event_to_json(event)["kind"] == "mixture_steps"
    assert running_epsilon([event, event, Pure(0.1, 1)], DELTA) == pytest.approx(
        epsilon([event, event, Pure(0.1, 1)], DELTA), rel=2e-3
    )


def test_a_charge_is_a_mixture_for_a_person_and_two_steps_for_a_record():
    charge = Charge(1, 0.0, PLAN.event(20), Claim("person", "local"), DELTA, True)
    assert joint([charge], DELTA, Claim("person", "local")) == epsilon([PLAN.event(20)], DELTA)
    of_record = joint([charge], DELTA, Claim("record", "local"))
    steps = charge._replace(event=Steps(0.1, 1.0, 20))
    assert of_record == pytest.approx(joint([steps], DELTA, Claim("record", "local")), rel=1e-9)
    once = epsilon([Steps(0.1, 1.0, 20)], DELTA)
    assert 2 * once < of_record < 3 * once
    assert joint([charge], DELTA, Claim("node", "local")) == math.inf


def test_a_displaced_record_is_within_two_steps():
    """Two of three records are eligible: with one more, the sum's law is within two steps of one record."""
    rate, noise, x = 0.3, 1.5, np.linspace(-20, 20, 200_001)

    def law(centres):
        total = np.zeros_like(x)
        for mask in range(2 ** len(centres)):
            chosen = [c for place, c in enumerate(centres) if mask >> place & 1]
            chance = rate ** len(chosen) * (1 - rate) ** (len(centres) - len(chosen))
            total += chance * norm.pdf(x, sum(chosen), noise)
        return total

    before = law([1.0, 1.0])
    after = (law([1.0, 1.0]) + 2 * law([1.0, -1.0])) / 3  # the new record, -1, is in two of three pairs
    charge = Charge(1, 0.0, MixtureSteps(rate, noise, 2, 0.0, 1), Claim("person", "local"), DELTA, True)
    for delta in (1e-2, 1e-3, 1e-4):
        bound = joint([charge], delta, Claim("record", "local"))
        for upper, lower in ((before, after), (after, before)):
            assert np.trapezoid(np.maximum(upper - math.exp(bound) * lower, 0), x) <= delta


def test_noise_is_calibrated_for_drawn_records():
    noise = noise_multiplier(PLAN, 4.0)
    assert 3.98 < PLAN.with_noise(noise).epsilon() <= 4.0
    by_person = noise_multiplier(replace(PLAN, drawn="unit"), 4.0)
    assert by_person < noise < 4 * by_person


def test_plans_that_draw_records_are_of_persons_and_capped():
    with pytest.raises(PrivacyError, match="drawn = record must be 'unit' unless the unit is a person"):
        replace(PLAN, unit="record")
    with pytest.raises(PrivacyError, match="records_per_unit = 129 must be at most 128"):
        replace(PLAN, records_per_unit=129)
    assert replace(PLAN, reproducible=True).epsilon() == math.inf


def test_drawn_records_on_a_grid_are_a_mixture_of_its_clips():
    grid = Grid(1000, 16 * math.sqrt(1000), 2)
    shared = replace(PLAN, trust="distributed", steps_per_round=1, noise_multiplier=3.0, grid=grid)
    event = shared.event()
    one = grid.event(0.1, 3.0, 5)
    assert event == MixtureSteps(0.1, one.noise_multiplier, 4, 16 * one.failure, 5)
    for i in range(1, 5):  # as long as so many clips at most, each choice of records by itself
        assert replace(grid, steps_per_clip=i * grid.steps_per_clip).l2 <= i * grid.l2
    assert shared.bound_to(b"") != replace(shared, drawn="unit").bound_to(b"")


def test_a_person_in_several_nodes_is_bounded_without_any_exchange():
    local = replace(PLAN, drawn="unit", noise_multiplier=2.0)
    assert event_in_nodes(local, 3) == Steps(0.1, 2.0, 60)
    rows = epsilon_in_nodes(local, 3)
    assert [count for count, _ in rows] == [1, 2, 3]
    assert rows[0][1] == pytest.approx(local.epsilon(), rel=2e-3) and rows[0][1] < rows[1][1] < rows[2][1]
    grid = Grid(1000, 16 * math.sqrt(1000), 2)
    shared = replace(local, trust="distributed", steps_per_round=1, grid=grid)
    one = shared.event()
    assert isinstance(one, GridSteps)
    assert event_in_nodes(shared, 3) == MixtureSteps(0.1, one.noise_multiplier, 3, 3 * one.failure, 5)
    assert [count for count, _ in epsilon_in_nodes(shared, 20)] == [1, 2, 4, 8, 16, 20]
    single = replace(shared, drawn="record")
    assert event_in_nodes(single, 2).records == 8
    assert [count for count, _ in epsilon_in_nodes(replace(single, records_per_unit=50), 5)] == [1, 2]
    with pytest.raises(PrivacyError, match="give a record or a person"):
        event_in_nodes(replace(PLAN, unit="node", trust="central", drawn="unit"), 2)


def test_caps_are_compared_at_equal_epsilon():
    plan = PLAN.with_noise(noise_multiplier(PLAN, 8.0))
    rows = list(caps(plan, 1000, 4))
    assert [row.records for row in rows] == [1, 2, 4, 8, 16]
    assert rows[0].break_even == pytest.approx(1.0, rel=1e-9)
    assert all(0.2 < row.break_even <= 1 for row in rows)
    with pytest.raises(PrivacyError, match="caps are for"):
        list(caps(replace(PLAN, unit="record", drawn="unit", records_per_unit=1), 1000, 4))
