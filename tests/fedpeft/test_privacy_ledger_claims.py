"""Whose privacy was spent on what: units, trusts, attempts, years, and events that nobody knows."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import COARSE, GridSteps, Pure, Skellam, Steps, epsilon
from fedpeft.privacy.event_json import event_from_json, event_to_json
from fedpeft.privacy.grid import Grid
from fedpeft.privacy.ledger import Budget, Ledger
from fedpeft.privacy.ledger.budget import TRUSTS, UNITS, YEAR
from fedpeft.privacy.ledger.chain import Chain
from fedpeft.privacy.ledger.composition_cache import running_epsilon
from fedpeft.privacy.ledger.store import insert, rows, session, transaction
from fedpeft.privacy.plan import PrivacyPlan

RECORD = PrivacyPlan(0.1, 1.0, 1.0, 8, 5, 4, 1e-5)
PERSON = replace(RECORD, unit="person", records_per_unit=3, noise_multiplier=1.5)
NODE = PrivacyPlan(1.0, 4.0, 1.0, 8, 1, 4, 1e-5, unit="node", trust="central")
SECURE = replace(NODE, trust="distributed", grid=Grid(100, 10.0, 4))
EVENTS = [Steps(0.1, 1.0, 5), Steps(1.0, 0.0, 1), Skellam(3.0, 2.0, 16.0, 2), Pure(0.5, 3)]
GRID_STEPS = GridSteps(0.1, 3.0, 9.0, 1e-20, 2)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.sqlite")


def written(ledger, body):
    """Append an entry as another version of this package might have written it."""
    with session(ledger.path) as db, transaction(db):
        insert(db, Chain().extended(rows(db)).next_row(body, None))


@pytest.mark.parametrize("event", [*EVENTS, GRID_STEPS])
def test_events_survive_json(event):
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "quantum"},
        {"kind": None},
        {"kind": ["steps"]},
        {"kind": "pure"},
        {"extra": 1},
        {"repeats": 0},
        {"repeats": 1.0},
        {"repeats": True},
        {"sampling_probability": 0.0},
        {"sampling_probability": 1.01},
        {"sampling_probability": "0.1"},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": float("inf")},
        {"noise_multiplier": float("nan")},
        {"noise_multiplier": None},
    ],
)
def test_events_that_are_not_known_exactly_are_refused(change):
    with pytest.raises(PrivacyError, match="event"):
        event_from_json(event_to_json(Steps(0.1, 1.0, 5)) | change)


@pytest.mark.parametrize(
    ("change", "allowed"),
    [({"l2": 0}, "finite and above 0"), ({"failure": 1}, r"in \[0, 1\)"), ({"deviation": -1}, "at least 0")],
)
def test_a_sum_on_a_grid_is_refused_with_what_is_allowed(change, allowed):
    with pytest.raises(PrivacyError, match=allowed):
        event_from_json(event_to_json(GRID_STEPS) | change)


def test_other_values_are_no_events():
    missing = event_to_json(Pure(0.5, 3))
    del missing["repeats"]
    for nonsense in (None, [], "steps", {}, missing):
        with pytest.raises(PrivacyError, match="event"):
            event_from_json(nonsense)
    with pytest.raises(PrivacyError, match="event"):
        event_to_json((0.1, 1.0, 5))
    with pytest.raises(PrivacyError, match="noise_multiplier"):
        event_to_json(Steps(0.1, float("nan"), 5))


@pytest.mark.parametrize("kept", range(len(UNITS)))
@pytest.mark.parametrize("asked", range(len(UNITS)))
def test_a_coarser_unit_covers_a_finer_one_and_never_the_reverse(ledger, kept, asked):
    ledger.spend("patients", "count", Pure(0.5, 1), 1e-5, UNITS[kept], "local")
    spent = ledger.spent("patients", unit=UNITS[asked], trust="local")
    assert math.isfinite(spent) == (kept >= asked)


@pytest.mark.parametrize("kept", range(len(TRUSTS)))
@pytest.mark.parametrize("asked", range(len(TRUSTS)))
def test_a_stronger_trust_covers_a_weaker_one_and_never_the_reverse(ledger, kept, asked):
    ledger.spend("patients", "count", Pure(0.5, 1), 1e-5, "node", TRUSTS[kept])
    spent = ledger.spent("patients", unit="node", trust=TRUSTS[asked])
    assert math.isfinite(spent) == (kept >= asked)


def test_unit_and_trust_are_those_of_the_newest_private_reservation(ledger):
    ledger.reserve("patients", "a", 1, NODE, 1)
    assert ledger.spent("patients") == pytest.approx(epsilon([Steps(1.0, 4.0, 1)], 1e-5))
    assert ledger.spent("patients", trust="local") == math.inf
    ledger.reserve("patients", "b", 1, RECORD, 5)
    assert ledger.spent("patients") == math.inf, "central noise protects no record from the coordinator"
    assert ledger.spent("patients", unit="node", trust="central") == math.inf
    as_node, as_record = Steps(1.0, 4.0, 1), Steps(0.1, 1.0, 5)
    joint = ledger.spent("patients", trust="central")
    assert joint > 2 * epsilon([as_node], 1e-5) + epsilon([as_record], 1e-5)


@pytest.mark.parametrize(("first", "then", "unit"), [(PERSON, RECORD, "record"), (RECORD, PERSON, "record")])
def test_a_promise_per_person_is_broken_by_no_promise_per_record(tmp_path, first, then, unit):
    """Each unit is its own promise: what cannot be converted is refused before anything is spent."""
    ledger = Ledger(tmp_path / "ledger.sqlite", 20.0)
    ledger.reserve("patients", "a", 1, first, 5)
    before = ledger.head()
    with pytest.raises(PrivacyError, match=rf"per person, trust local.*protects per {unit} with trust local"):
        ledger.reserve("patients", "b", 1, then, 5)
    assert ledger.head() == before
    ledger.reserve("patients", "a", 2, first, 5)
    ledger.reserve("staff", "b", 1, then, 5)


def test_the_distributed_event_is_composed_too(ledger):
    ledger.reserve("patients", "a", 1, SECURE, 1)
    ledger.spend("patients", "count", Pure(0.1, 1), 1e-5, "node", "local")
    assert ledger.spent("patients") == pytest.approx(epsilon([SECURE.event(1), Pure(0.1, 1)], 1e-5))


@pytest.mark.parametrize(("unit", "trust"), [("household", "local"), ("record", "blind")])
def test_unknown_units_and_trusts_are_refused(ledger, unit, trust):
    with pytest.raises(PrivacyError, match="unknown"):
        ledger.spend("patients", "count", Pure(0.5, 1), 1e-5, unit, trust)
    with pytest.raises(PrivacyError, match="unknown"):
        ledger.spent("patients", unit=unit, trust=trust)
    assert ledger.head().seq == 0


@pytest.mark.parametrize("plan", [None, replace(RECORD, reproducible=True)])
def test_a_round_without_a_guarantee_is_recorded_as_not_private(tmp_path, plan):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    reservation = ledger.reserve("patients", "run", 1, plan, 5)
    body = ledger.entries()[0].body
    assert body["event"] == {
        "kind": "steps",
        "sampling_probability": 1.0,
        "noise_multiplier": 0.0,
        "repeats": 5,
    }
    assert body["unit"] is body["trust"] is body["delta"] is None
    assert reservation.epsilon == ledger.spent("patients") == math.inf
    with pytest.raises(PrivacyError, match=r"budget of 8.* because it is not private; nothing was spent"):
        Ledger(tmp_path / "other.sqlite", 8.0).reserve("patients", "run", 1, plan, 5)


def test_a_reservation_that_never_started_is_handed_out_again(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", RECORD.epsilon(5) * 1.001)
    first = ledger.reserve("patients", "run", 1, RECORD, 5)
    again = Ledger(ledger.path, ledger.budget).reserve("patients", "run", 1, RECORD, 5)
    assert (again.head, again.attempt) == (first.head, 1)
    assert again.epsilon == pytest.approx(first.epsilon)
    assert len(ledger.entries()) == 1
    ledger.started(again)
    with pytest.raises(PrivacyError, match="budget"):
        ledger.reserve("patients", "run", 1, RECORD, 5)


@pytest.mark.parametrize(
    ("plan", "steps"),
    [(RECORD, 4), (replace(RECORD, clip=2.0), 5), (replace(RECORD, delta=1e-6), 5), (PERSON, 5), (None, 5)],
)
def test_another_price_is_another_reservation(ledger, plan, steps):
    ledger.reserve("patients", "run", 1, RECORD, 5)
    assert ledger.reserve("patients", "run", 1, plan, steps).attempt == 2
    assert ledger.reserve("patients", "run", 2, RECORD, 5).attempt == 1
    assert ledger.reserve("patients", "other", 1, RECORD, 5).attempt == 1


def test_a_reservation_is_started_once_by_one_process(ledger):
    first = ledger.reserve("patients", "run", 1, RECORD, 5)
    rival = Ledger(ledger.path).reserve("patients", "run", 1, RECORD, 5)
    assert rival.head == first.head
    assert ledger.started(first).seq == 2
    with pytest.raises(PrivacyError, match="started before"):
        ledger.started(rival)
    assert ledger.reserve("patients", "run", 1, RECORD, 5).attempt == 2


def test_one_reservation_releases_one_sequence_of_bytes(ledger):
    reservation = ledger.reserve("patients", "run", 1, RECORD, 5)
    ledger.started(reservation)
    head = ledger.released(reservation, "ab" * 32)
    assert ledger.released(reservation, "ab" * 32) == head
    with pytest.raises(PrivacyError, match="other bytes"):
        ledger.released(reservation, "cd" * 32)
    with pytest.raises(PrivacyError, match="no SHA-256"):
        ledger.released(reservation, "the update")
    with pytest.raises(PrivacyError, match="no reservation of this ledger"):
        ledger.released(replace(reservation, head=head), "ab" * 32)


def test_other_outputs_spend_the_same_budget(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", 3.0)
    ledger.reserve("patients", "run", 1, RECORD, 5)
    head = ledger.spend("patients", "accuracy", Pure(0.3, 1), 1e-5)
    assert ledger.head() == head
    assert ledger.spent("patients") == pytest.approx(epsilon([Steps(0.1, 1.0, 5), Pure(0.3, 1)], 1e-5))
    with pytest.raises(PrivacyError, match=r"'patients': this would spend .* of a budget of 3 .*nothing was"):
        ledger.spend("patients", "another", Pure(3.0, 1), 1e-5)
    with pytest.raises(PrivacyError, match="delta"):
        ledger.spend("patients", "another", Pure(0.1, 1), 0.0)
    assert ledger.head() == head
    assert sum(entry.body["steps"] for entry in ledger.entries() if entry.concerns("patients")) == 5


def test_what_was_spent_a_year_ago_counts_for_life_only(tmp_path):
    now = [1e9]
    yearly = RECORD.epsilon(10) * 1.001
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(20.0, yearly), clock=lambda: now[0])
    for round in (1, 2):
        ledger.started(ledger.reserve("patients", "run", round, RECORD, 5))
    with pytest.raises(PrivacyError, match="yearly budget"):
        ledger.reserve("patients", "run", 3, RECORD, 5)
    now[0] += YEAR + 1
    ledger.confirm_clock()
    assert ledger.reserve("patients", "run", 3, RECORD, 5).epsilon > yearly
    assert ledger.spent("patients", since=now[0] - YEAR) == pytest.approx(RECORD.epsilon(5))
    assert ledger.spent("patients") == pytest.approx(RECORD.epsilon(15))
    ledger.started(ledger.reserve("patients", "run", 4, RECORD, 5))
    with pytest.raises(PrivacyError, match="yearly budget"):
        ledger.reserve("patients", "run", 5, RECORD, 5)


def test_a_reservation_counts_for_the_year_in_which_its_data_are_opened(tmp_path):
    now = [1e9]
    ledger = Ledger(
        tmp_path / "ledger.sqlite", Budget(yearly=RECORD.epsilon(5) * 1.001), clock=lambda: now[0]
    )
    ledger.reserve("patients", "run", 1, RECORD, 5)
    now[0] += YEAR + 1
    ledger.confirm_clock()
    ledger.started(ledger.reserve("patients", "run", 1, RECORD, 5))
    with pytest.raises(PrivacyError, match="yearly budget"):
        ledger.reserve("patients", "run", 2, RECORD, 5)


def test_edited_or_renamed_data_inherit_what_was_spent(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", RECORD.epsilon(10) * 1.001)
    for content in ("aa" * 32, "bb" * 32):
        ledger.started(ledger.reserve("patients", content, 1, RECORD, 5, content))
    with pytest.raises(PrivacyError, match="budget"):
        ledger.reserve("patients", "run", 1, RECORD, 5, "cc" * 32)
    ledger.path.rename(tmp_path / "renamed.sqlite")
    moved = Ledger(tmp_path / "renamed.sqlite", ledger.budget)
    assert [e.body["content"] for e in moved.entries() if e.kind == "reserve"] == ["aa" * 32, "bb" * 32]
    with pytest.raises(PrivacyError, match="budget"):
        moved.reserve("patients", "run", 1, RECORD, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"event": {"kind": "quantum", "repeats": 1}},
        {"event": {"kind": "steps", "sampling_probability": 0.1, "noise_multiplier": 1.0}},
        {"event": None},
        {"unit": "household"},
        {"trust": "blind"},
        {"kind": "lend"},
        {"delta": "small"},
    ],
)
def test_an_entry_of_another_version_refuses_its_lineage_and_no_other(ledger, change):
    ledger.reserve("patients", "run", 1, RECORD, 5)
    written(ledger, ledger.entries()[0].body | change)
    calls = (
        lambda: ledger.reserve("patients", "run", 2, RECORD, 5),
        lambda: ledger.spend("patients", "count", Pure(0.1, 1), 1e-5),
        lambda: ledger.spent("patients"),
    )
    for call in calls:
        with pytest.raises(PrivacyError, match=r"ledger entry 2\b.*nothing more can be spent"):
            call()
    ledger.reserve("staff", "run", 2, RECORD, 5)
    ledger.verify()


def test_an_entry_that_names_no_lineage_may_concern_every_one(ledger):
    written(ledger, {"kind": "merge", "of": ["patients", "staff"]})
    with pytest.raises(PrivacyError, match="unknown to this version"):
        ledger.reserve("patients", "run", 1, RECORD, 5)


def test_what_was_composed_step_by_step_equals_what_is_composed_at_once():
    mixed = [Steps(0.1, 1.0, 5), Steps(0.02, 0.8, 30), Pure(0.2, 1), Steps(1.0, 9.0, 2)]
    for count in range(1, 4 * len(mixed)):
        events = [mixed[index % 4] for index in range(count)]
        assert running_epsilon(events, 1e-6) == pytest.approx(epsilon(events, 1e-6, COARSE), rel=1e-3)
    assert running_epsilon([], 1e-6) == 0.0
    assert running_epsilon([Steps(0.1, 0.0, 1), Pure(0.1, 1)], 1e-6) == math.inf
    secure = [SECURE.event(1), Steps(0.1, 1.0, 5)]
    assert running_epsilon(secure, 1e-6) == pytest.approx(epsilon(secure, 1e-6, COARSE), rel=1e-3)
    for alone in (Skellam(3.0, 2.0, 16.0, 2), Steps(1.0, 0.001, 9)):
        assert running_epsilon([alone], 1e-6) == epsilon([alone], 1e-6)
