"""The ledger: durable before data, append-only, chained, never above the budget."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import COARSE, Steps, epsilon
from fedpeft.privacy.ledger import Budget, Head, Ledger
from fedpeft.privacy.plan import PrivacyPlan

PLAN = PrivacyPlan(
    sampling_probability=0.1,
    noise_multiplier=1.0,
    clip=1.0,
    expected_batch_size=8,
    steps_per_round=5,
    rounds=4,
    delta=1e-5,
)

WORKER = """
import sys, time
from pathlib import Path
from fedpeft.errors import PrivacyError
from fedpeft.privacy.ledger import Ledger
from fedpeft.privacy.plan import PrivacyPlan
plan = PrivacyPlan(0.1, 1.0, 1.0, 8, 5, 4, 1e-5)
ledger = Ledger(Path(sys.argv[1]), budget=float(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
for round in range(1, 1000):
    try:
        reservation = ledger.reserve("patients", sys.argv[3], round, plan, 5)
    except PrivacyError:
        print("refused", flush=True)
        break
    print(f"reserved {reservation.head.seq} {reservation.head.hash}", flush=True)
"""


def worker(path, budget, name):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), str(budget), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def close(process):
    for stream in (process.stdin, process.stdout):
        stream.close()
    process.wait()


def raw(path, *statements):
    with sqlite3.connect(path) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "node" / "ledger.sqlite")


def test_epsilon_is_joint_over_runs(ledger):
    other = replace(PLAN, noise_multiplier=1.5)
    ledger.reserve("patients", "run-a", 1, PLAN, 5)
    ledger.reserve("patients", "run-a", 2, PLAN, 5)
    last = ledger.reserve("patients", "run-b", 1, other, 4)
    ledger.reserve("staff", "run-b", 1, other, 4)
    expected = epsilon([Steps(0.1, 1.0, 10), Steps(0.1, 1.5, 4)], 1e-5)
    assert ledger.spent("patients") == pytest.approx(expected)
    assert last.epsilon == pytest.approx(expected, rel=0.01) and last.epsilon >= expected
    assert ledger.spent("staff") < ledger.spent("patients")
    assert ledger.spent("nobody") == 0.0


def test_delta_is_that_of_the_newest_round_unless_the_owner_has_one(ledger):
    ledger.reserve("patients", "run", 1, replace(PLAN, delta=1e-7), 5)
    assert ledger.reserve("patients", "run", 2, PLAN, 5).delta == 1e-5
    assert ledger.spent("patients") == ledger.spent("patients", 1e-5) < ledger.spent("patients", 1e-7)
    owned = Ledger(ledger.path, Budget(delta=1e-6))
    assert owned.spent("patients") == ledger.spent("patients", 1e-6)


def test_a_round_that_was_started_is_charged_again(ledger):
    first = ledger.reserve("patients", "run", 1, PLAN, 5)
    ledger.started(first)
    again = ledger.reserve("patients", "run", 1, PLAN, 5)
    assert (first.attempt, again.attempt) == (1, 2)
    assert again.epsilon > first.epsilon


def test_the_budget_holds_to_the_last_round(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", budget=PLAN.epsilon())
    for round in range(1, 5):
        assert ledger.reserve("patients", "run", round, PLAN, 5).epsilon <= PLAN.epsilon()
    before = ledger.head()
    with pytest.raises(PrivacyError, match="nothing was spent"):
        ledger.reserve("patients", "run", 5, PLAN, 5)
    assert ledger.head() == before
    assert ledger.spent("patients") <= PLAN.epsilon()
    ledger.reserve("staff", "run", 5, PLAN, 5)


def test_a_round_without_a_plan_is_not_private(ledger, tmp_path):
    assert ledger.reserve("patients", "run", 1, None, 5).epsilon == float("inf")
    assert ledger.spent("patients") == float("inf")
    with pytest.raises(PrivacyError, match="budget"):
        Ledger(tmp_path / "other.sqlite", budget=8.0).reserve("patients", "run", 1, None, 5)


@pytest.mark.parametrize("steps", [0, -1, 6])
def test_nonsense_steps_are_refused(ledger, steps):
    with pytest.raises(PrivacyError, match="step"):
        ledger.reserve("patients", "run", 1, PLAN, steps)
    assert ledger.head() == Head(0, "0" * 64)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("inf"), float("nan")])
def test_nonsense_budgets_are_refused(tmp_path, budget):
    with pytest.raises(PrivacyError, match="budget"):
        Ledger(tmp_path / "ledger.sqlite", budget=budget)


def test_a_release_is_recorded_and_costs_nothing(ledger):
    reservation = ledger.reserve("patients", "run", 1, PLAN, 5)
    before = ledger.spent("patients")
    head = ledger.released(reservation, "ab" * 32)
    assert head.seq == 2 and ledger.verify(reservation.head) == head
    assert ledger.spent("patients") == before
    assert ledger.entries()[1].body["sha256"] == "ab" * 32


def test_sql_cannot_change_or_delete(ledger):
    ledger.reserve("patients", "run", 1, PLAN, 5)
    for statement in ("UPDATE entries SET body = ''", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw(ledger.path, statement)
    ledger.verify()


@pytest.mark.parametrize(
    "attack",
    [
        "UPDATE entries SET body = replace(body, '\"steps\": 5', '\"steps\": 1') WHERE seq = 2",
        "UPDATE entries SET hash = lower(hash) || '0' WHERE seq = 3",
        "DELETE FROM entries WHERE seq = 2",
        "DELETE FROM entries WHERE seq = 1",
        "INSERT INTO entries VALUES (9, '{}', '', 'x', NULL)",
    ],
)
def test_tampering_is_detected_and_stops_all_spending(ledger, attack):
    for round in range(1, 4):
        ledger.reserve("patients", "run", round, PLAN, 5)
    raw(ledger.path, "DROP TRIGGER no_update", "DROP TRIGGER no_delete", attack)
    calls = [
        ledger.verify,
        ledger.head,
        lambda: ledger.spent("patients"),
        lambda: ledger.reserve("patients", "run", 4, PLAN, 5),
    ]
    for call in calls:
        with pytest.raises(PrivacyError, match="ledger was changed"):
            call()


def test_a_rolled_back_ledger_does_not_extend_its_known_head(ledger):
    ledger.reserve("patients", "run", 1, PLAN, 5)
    newest = ledger.reserve("patients", "run", 2, PLAN, 5).head
    assert ledger.verify(newest) == newest
    raw(ledger.path, "DROP TRIGGER no_delete", "DELETE FROM entries WHERE seq = 2")
    with pytest.raises(PrivacyError, match="rolled back"):
        ledger.verify(newest)


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(PrivacyError, match="not a readable ledger"):
        Ledger(tmp_path / "ledger.sqlite")


def test_every_connection_waits_for_the_disk(ledger):
    from fedpeft.privacy.ledger import store

    with store.connect(ledger.path) as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_entries_hold_the_public_plan(ledger):
    ledger.reserve("patients", "run", 1, PLAN, 5)
    body = ledger.entries()[0].body
    assert body["plan"] == json.loads(json.dumps(PLAN.fields()))
    assert {"lineage", "run", "round", "steps", "attempt", "version", "time"} <= set(body)


def test_kill_9_loses_no_acknowledged_reservation(tmp_path):
    path, acknowledged = tmp_path / "ledger.sqlite", []
    for attempt in range(3):
        process = worker(path, 1e6, f"run-{attempt}")
        process.stdout.readline()
        process.stdin.write("\n")
        process.stdin.flush()
        lines = [process.stdout.readline() for _ in range(1 + attempt)]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        close(process)
        acknowledged += [line.split()[1:] for line in lines if line.startswith("reserved")]
    ledger = Ledger(path)
    recorded = [[str(entry.seq), entry.hash] for entry in ledger.entries()]
    assert len(acknowledged) >= 6
    assert all(entry in recorded for entry in acknowledged if len(entry) == 2)
    assert ledger.spent("patients") >= epsilon([Steps(0.1, 1.0, 5 * len(acknowledged))], 1e-5)
    ledger.reserve("patients", "after", 1, PLAN, 5)
    ledger.verify()


def test_two_racing_processes_never_exceed_the_budget(tmp_path):
    path, budget = tmp_path / "ledger.sqlite", 3.0
    racers = [worker(path, budget, name) for name in ("one", "two")]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    outputs = [racer.stdout.read().splitlines() for racer in racers]
    for racer in racers:
        close(racer)
    ledger = Ledger(path)
    granted = sum(line.startswith("reserved") for lines in outputs for line in lines)
    assert all(lines[-1] == "refused" for lines in outputs)
    assert granted == len(ledger.entries())
    assert ledger.spent("patients") <= budget
    assert epsilon([Steps(0.1, 1.0, 5 * (granted + 1))], 1e-5, COARSE) > budget


def test_a_larger_delta_of_an_older_run_makes_no_epsilon_smaller(ledger):
    ledger.reserve("patients", "run", 1, replace(PLAN, delta=1e-3), 5)
    ledger.reserve("patients", "run", 2, PLAN, 5)
    assert ledger.spent("patients") == ledger.spent("patients", 1e-5) > ledger.spent("patients", 1e-3)
