"""What each promise of a lineage allows: units by group privacy, runs by their plan, years by the clock."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import Event, Pure, Steps, epsilon
from fedpeft.privacy.ledger import Budget, Ledger
from fedpeft.privacy.ledger.budget import TRUSTS, UNITS, YEAR, Charge, Claim, joint
from fedpeft.privacy.ledger.clock import LEAP
from fedpeft.privacy.plan import PrivacyPlan

RECORD = PrivacyPlan(0.1, 1.0, 1.0, 8, 5, 4, 1e-5)
PERSON = replace(RECORD, unit="person", records_per_unit=3, noise_multiplier=2.0)
DAY = 86400.0


def charge(event: Event, unit: str, trust: str = "local") -> Charge:
    return Charge(0, 0.0, event, Claim(unit, trust), 1e-5, True)


@pytest.mark.parametrize("unit", ["person", "node"])
def test_a_coarser_guarantee_covers_two_steps_of_a_record(unit):
    """Pure privacy has no delta: a record more in a person's data costs exactly two steps of the person's."""
    spent = [charge(Pure(0.3, 2), unit), charge(Pure(0.2, 1), "record")]
    assert joint(spent, 1e-9, Claim("record", "local")) == pytest.approx(2 * 0.6 + 0.2, rel=1e-2)
    assert joint(spent[:1], 1e-9, Claim("record", "local")) == pytest.approx(1.2, rel=1e-2)
    assert joint(spent, 1e-9, Claim(unit, "local")) == math.inf


def test_the_conversion_is_no_less_than_the_true_loss_of_a_replaced_person():
    """Without sampling the truth is known: a person whose data change moves the sum by two clips, not one."""
    for noise, repeats in itertools.product((3.0, 8.0, 20.0), (1, 10)):
        truth = epsilon([Steps(1.0, noise / 2, repeats)], 1e-5)
        ours = joint([charge(Steps(1.0, noise, repeats), "person")], 1e-5, Claim("record", "local"))
        once = epsilon([Steps(1.0, noise, repeats)], 1e-5)
        assert once < truth <= ours < 3 * truth


@pytest.mark.parametrize(("rate", "noise"), [(0.05, 1.0), (0.3, 1.0), (0.3, 3.0), (0.9, 2.0)])
def test_the_conversion_bounds_a_sampled_person_whose_data_change(rate, noise):
    """By integration: in the worst case the person's part turns from one clip into its opposite."""
    grid = np.linspace(-12 * noise - 1, 12 * noise + 1, 200_001)

    def density(mean):
        return np.exp(-(((grid - mean) / noise) ** 2) / 2) / (noise * math.sqrt(2 * math.pi))

    def failure(bound):
        """Delta at an epsilon: the hockey-stick divergence of the two outputs."""
        one, other = ((1 - rate) * density(0) + rate * density(mean) for mean in (1.0, -1.0))
        return float(np.maximum(one - math.exp(bound) * other, 0).sum() * (grid[1] - grid[0]))

    claimed = joint([charge(Steps(rate, noise, 1), "person")], 1e-5, Claim("record", "local"))
    assert failure(claimed) <= 1e-5
    assert failure(epsilon([Steps(rate, noise, 1)], 1e-5)) > 1e-5, "once would not be enough"


def test_mixed_units_are_at_least_each_of_them_alone_and_grow_with_each():
    record, person = charge(RECORD.event(5), "record"), charge(PERSON.event(5), "person")
    claim = Claim("record", "local")
    alone = joint([record], 1e-5, claim), joint([person], 1e-5, claim)
    both, more = joint([record, person], 1e-5, claim), joint([record, person, person], 1e-5, claim)
    assert both > max(alone) and more > both
    assert joint([record, person], 1e-5, claim, None) >= both * 0.999, "coarse is an upper bound, too"


@pytest.mark.parametrize("kept", list(itertools.product(UNITS, TRUSTS)))
def test_no_charge_is_left_out_of_any_account_with_a_budget(tmp_path, kept):
    """Whatever promise comes first, a later one that says nothing for it is refused, in one line."""
    for index, later in enumerate(itertools.product(UNITS, TRUSTS)):
        ledger = Ledger(tmp_path / f"{index}.sqlite", 5.0)
        ledger.spend("patients", "first", Pure(0.5, 1), 1e-5, *kept)
        sound = all(
            one.steps_to(other) is not None
            for one, other in itertools.product((Claim(*kept), Claim(*later)), repeat=2)
        )
        if sound:
            ledger.spend("patients", "second", Pure(0.5, 1), 1e-5, *later)
        else:
            with pytest.raises(
                PrivacyError, match=r"inf of a budget of 5 .* because .* protects per"
            ) as said:
                ledger.spend("patients", "second", Pure(0.5, 1), 1e-5, *later)
            assert "\n" not in str(said.value)


def released(ledger, run, round, plan=RECORD, steps=5):
    reservation = ledger.reserve("patients", run, round, plan, steps)
    ledger.started(reservation)
    return ledger.released(reservation, f"{reservation.head.seq:064x}")


def test_a_run_never_spends_more_than_its_plan_however_often_round_1_is_asked_for(tmp_path):
    """Adversary: a coordinator with a large budget to spend, which asks for more rounds, or for one again.

    That a round is reserved again only where no answer of it is stored is the node's to see to.
    """
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(40.0, 40.0, 1e-5, 2))
    for round in range(1, RECORD.rounds + 1):
        released(ledger, "run", round)
    before = ledger.head()
    with pytest.raises(PrivacyError, match=r"promised 20 noisy releases .* 20 have left"):
        released(ledger, "run", RECORD.rounds + 1)
    assert ledger.head() == before
    assert ledger.spent("patients") <= RECORD.epsilon()
    for _ in range(2):
        released(ledger, "run", 1)
    with pytest.raises(PrivacyError, match=r"3 rounds were cut off .* allowed are 2"):
        released(ledger, "run", 1)
    assert ledger.spent("patients") <= RECORD.epsilon(5 * (RECORD.rounds + 2))
    released(ledger, "another", 1)


def test_rounds_of_fewer_steps_are_counted_by_their_steps(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(repeats=0))
    for round in range(1, 11):
        released(ledger, "run", round, steps=2)
    with pytest.raises(PrivacyError, match="20 have left"):
        ledger.reserve("patients", "run", 11, RECORD, 1)


@pytest.mark.parametrize("cut", [1, 2, RECORD.rounds])
def test_a_crash_after_release_and_before_the_answer_was_stored_costs_no_round_of_the_run(tmp_path, cut):
    """The round is asked for again, and all others get their turn; nothing of its first release has left."""
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(40.0, 40.0, 1e-5, 1))
    for round in range(1, RECORD.rounds + 1):
        for _ in range(1 + (round == cut)):
            released(ledger, "run", round)
    with pytest.raises(PrivacyError, match="20 have left"):
        released(ledger, "run", RECORD.rounds + 1)
    assert ledger.spent("patients") > RECORD.epsilon(), "but it is charged"


def test_a_round_that_a_crash_cut_off_is_no_release_and_may_be_repeated_as_often_as_is_allowed(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(40.0, None, 1e-5, 2))
    for _ in range(3):
        ledger.started(ledger.reserve("patients", "run", 1, RECORD, 5))
    with pytest.raises(PrivacyError, match=r"3 rounds were cut off .* allowed are 2"):
        ledger.reserve("patients", "run", 1, RECORD, 5)
    patient = Ledger(ledger.path, Budget(40.0, None, 1e-5, 3))
    for round in range(1, RECORD.rounds + 1):
        released(patient, "run", round)
    with pytest.raises(PrivacyError, match="have left"):
        released(patient, "run", 5)


def test_a_reservation_that_was_never_opened_counts_for_nothing(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(repeats=0))
    for round in range(1, RECORD.rounds + 1):
        ledger.reserve("patients", "run", round, RECORD, 5)
    for round in range(1, RECORD.rounds + 1):
        released(ledger, "run", round)


@pytest.mark.parametrize("tiny", [1e-10, 1e-12, 1e-14, 1e-20])
def test_a_run_at_a_tiny_delta_takes_no_more_of_the_budget_than_its_noise(tmp_path, tiny):
    """Adversary: another coordinator, which starves the lineage by one round at a delta of its choice."""
    plan = PrivacyPlan(0.05, 0.9, 1.0, 16, 5, 10, 1e-5)
    poison = replace(plan, noise_multiplier=500.0, delta=tiny, rounds=1)
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(8.0, 8.0, 1e-5))
    ledger.started(ledger.reserve("notes", "B", 1, poison, 5))
    for round in range(1, 11):
        reservation = ledger.reserve("notes", "A", round, plan, 5)
        ledger.started(reservation)
    assert (reservation.delta, reservation.epsilon) == (1e-5, pytest.approx(plan.epsilon(), rel=0.01))
    assert ledger.spent("notes") == pytest.approx(plan.epsilon(), rel=0.01)


def test_the_budget_is_read_at_the_owners_delta_and_the_reservation_at_the_plans(tmp_path):
    lax = replace(RECORD, delta=1e-2)
    at_plans, at_owners = (epsilon([RECORD.event(5)], delta) for delta in (1e-2, 1e-6))
    with pytest.raises(PrivacyError, match="delta 1e-06"):
        Ledger(tmp_path / "a.sqlite", Budget(at_owners * 0.99, delta=1e-6)).reserve("notes", "A", 1, lax, 5)
    found = Ledger(tmp_path / "b.sqlite", Budget(at_owners * 1.01, delta=1e-6)).reserve(
        "notes", "A", 1, lax, 5
    )
    assert (found.delta, found.epsilon) == (1e-2, pytest.approx(at_plans, rel=0.01))


@pytest.mark.parametrize("wrong", [{"delta": 0.0}, {"delta": 0.5}, {"delta": math.nan}, {"repeats": -1}])
def test_nonsense_limits_are_refused(wrong):
    with pytest.raises(PrivacyError):
        Budget(**wrong)


class Clocked:
    """A ledger whose yearly budget allows two rounds, and its clock."""

    def __init__(self, path):
        self.now = 1e9
        yearly = RECORD.epsilon(10) * 1.001
        self.ledger = Ledger(path, Budget(100.0, yearly), clock=lambda: self.now)

    def spend(self, run):
        self.ledger.started(self.ledger.reserve("patients", run, 1, RECORD, 5))


@pytest.fixture
def clocked(tmp_path):
    made = Clocked(tmp_path / "ledger.sqlite")
    made.spend("a")
    made.spend("b")
    return made


@pytest.mark.parametrize("leap", [LEAP + 1, YEAR + 1, 30 * YEAR, 1e30])
def test_a_clock_that_leaps_ahead_neither_resets_nor_empties_the_year(clocked, leap):
    before, day = clocked.ledger.head(), clocked.now
    clocked.now += leap
    for call in (lambda: clocked.spend("c"), lambda: clocked.ledger.require_affordable("patients", RECORD)):
        with pytest.raises(PrivacyError, match="clock"):
            call()
    assert clocked.ledger.head() == before, "nothing is dated in the future"
    clocked.now = day + DAY
    with pytest.raises(PrivacyError, match="yearly budget"):
        clocked.spend("c")
    clocked.ledger.reserve("staff", "c", 1, RECORD, 5)


@pytest.mark.parametrize("back", [DAY, YEAR + 1, 1e9])
def test_a_clock_that_is_set_back_makes_nothing_old(clocked, back):
    clocked.now -= back
    with pytest.raises(PrivacyError, match="yearly budget"):
        clocked.spend("c")
    clocked.ledger.reserve("staff", "c", 1, RECORD, 5)
    times = [entry.time for entry in clocked.ledger.entries()]
    assert times == sorted(times)
    clocked.now += back + LEAP
    with pytest.raises(PrivacyError, match="yearly budget"):
        clocked.spend("c")


def test_a_leap_while_data_are_reserved_or_open_opens_and_releases_nothing(clocked):
    one, two = (clocked.ledger.reserve("staff", run, 1, RECORD, 5) for run in ("c", "d"))
    clocked.ledger.started(one)
    clocked.now += YEAR
    with pytest.raises(PrivacyError, match="clock"):
        clocked.ledger.started(two)
    with pytest.raises(PrivacyError, match="clock"):
        clocked.ledger.released(one, "ab" * 32)


def test_a_year_of_rest_counts_once_the_owner_confirms_the_clock(clocked):
    clocked.now += YEAR + DAY
    clocked.ledger.confirm_clock()
    clocked.spend("c")
    clocked.spend("d")
    with pytest.raises(PrivacyError, match="yearly budget"):
        clocked.spend("e")


def test_entries_of_a_wrong_future_count_from_the_day_on_which_the_owner_sets_it_right(tmp_path):
    made = Clocked(tmp_path / "ledger.sqlite")
    made.now += 20 * YEAR
    made.spend("a")
    made.spend("b")
    made.now -= 20 * YEAR
    made.ledger.confirm_clock()
    with pytest.raises(PrivacyError, match="yearly budget"):
        made.spend("c")
    for _ in range(13):
        made.now += LEAP - DAY
        made.ledger.reserve("staff", "x", 1, RECORD, 5)
        made.ledger.started(made.ledger.reserve(f"staff {made.now}", "x", 1, RECORD, 5))
    made.spend("c")


def test_without_a_yearly_budget_no_time_matters(tmp_path):
    made = Clocked(tmp_path / "ledger.sqlite")
    made.ledger.budget = Budget(100.0)
    for step in (YEAR, 5 * YEAR, -9 * YEAR):
        made.now += step
        made.spend(json.dumps(step))


@pytest.mark.parametrize("plan", [None, RECORD])
def test_a_leap_is_refused_to_whoever_shares_a_ledger_with_a_yearly_budget(clocked, plan):
    """A round without privacy, of another lineage and without a budget, dated all that follow."""
    other = Ledger(clocked.ledger.path, clock=lambda: clocked.now, strict=True)
    head = clocked.ledger.head()
    clocked.now += YEAR + DAY
    with pytest.raises(PrivacyError, match="clock"):
        other.reserve("public", "z", 1, plan, 5)
    with pytest.raises(PrivacyError, match="clock"):
        other.declare([], {"kind": "declared"})
    assert other.head() == head
    clocked.now -= YEAR
    with pytest.raises(PrivacyError, match="yearly budget"):
        clocked.spend("c")
