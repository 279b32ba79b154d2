"""The benchmark of epsilon's audits: each planted fault is seen by the audit that is there for it."""

from __future__ import annotations

import pytest

from fedpeft.privacy import csprng, noise
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.training import privacy_units
from fedpeft.training.dp import dpsgd
from fedpeft_attacks.dp_audit import check, sampling_rate
from fedpeft_bench.audit import epsilon as audit_epsilon
from fedpeft_bench.audit.epsilon_faults import FAULTS

PLAN = PrivacyPlan(0.2, 1.2, 0.25, 64, 3, 4, 1e-5)
SEEN_BY = {
    "noise x 0.5": {check.STEPS, check.RELEASE, check.TAPPED},
    "noise x 0.7": {check.STEPS, check.RELEASE, check.TAPPED},
    "clip skipped": {check.FAMILY, check.DRAWS},
    "no sampling": {check.FAMILY, check.DRAWS},
    "shuffle for Poisson": {check.DRAWS},
    "one seed on two nodes": {check.SHARED},
}
"""Audits that must see it in each run: their power is above 1 - 1e-6 here."""


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(audit_epsilon, "COORDINATES", 20_000)


def wrong(checks):
    return {one.method for one in checks if one.verdict == "contradicts the claim"}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_seen_and_taken_out_again(fault):
    parts = (noise.gaussian, dpsgd.clipped_sum, privacy_units.poisson, csprng.os)
    assert SEEN_BY[fault.name] <= wrong(audit_epsilon.audited(PLAN, 1, fault.planted))
    assert (noise.gaussian, dpsgd.clipped_sum, privacy_units.poisson, csprng.os) == parts


def test_the_crowd_is_powerful_enough_to_be_asked_in_each_run():
    assert sampling_rate.power(PLAN, check.RISK) > 1 - 1e-6


def test_right_runs_agree():
    """Nine checks at one in a thousand: three wrong ones at once would be the platform's fault."""
    assert len(wrong(audit_epsilon.audited(PLAN, 2))) <= 2


def test_what_no_audit_of_one_node_sees_is_left_to_named_tests():
    """Every fault names daily tests that exist."""
    from pathlib import Path

    tests = Path(__file__).parents[1]
    for fault in FAULTS:
        path, name = fault.test.split("::")
        assert f"def {name}(" in (tests / path).read_text(encoding="utf-8")


def test_the_tables_are_printed(monkeypatch, capsys):
    monkeypatch.setattr(audit_epsilon, "CANARIES", (60, 120, 120))
    monkeypatch.setattr(audit_epsilon, "planned", lambda epsilon: PLAN)
    rows = audit_epsilon.release_rows(4.0, [0], 4)
    assert len(rows) == 2 * 4 and all(row["share"] <= 1.5 for row in rows)
    releases = [{**row, "epsilon": epsilon} for epsilon in (1.0, 2.0, 4.0, 8.0) for row in rows]
    monkeypatch.setattr(audit_epsilon, "FAULTS", FAULTS[-1:])
    facts = {
        "machine": "here",
        "releases": releases,
        "right": audit_epsilon.right_rows(1.0, [0], 1),
        "broken": audit_epsilon.broken_rows(1.0, [0], 1),
        "others": [],
    }
    audit_epsilon.show(facts)
    printed = capsys.readouterr().out
    assert "one Gaussian release" in printed and "broken runs" in printed
