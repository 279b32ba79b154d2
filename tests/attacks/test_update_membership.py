"""Membership from updates: runs that leak, runs at chance, what is not covered, what the report says."""

import json

import numpy as np
import pytest

from fedpeft_attacks.audit_suite import audit
from fedpeft_attacks.report.html import render
from fedpeft_attacks.results.measures import MEMBERS
from fedpeft_attacks.update_membership.verdicts_by_stage import LINKED, NAME, ROUND

pytestmark = pytest.mark.portable


def noise(values, rng):
    return {name: rng.normal(size=value.shape).astype(np.float32) for name, value in values.items()}


def swapped(values, rng):
    """Each node's update is the other one's."""
    return dict(zip(values, reversed(values.values()), strict=True))


def attacked(run, names=(NAME,)):
    report = audit(run, list(names))
    return report, {finding.stage: finding for finding in report.findings if finding.attack == NAME}


def test_a_batchs_gradient_leaks_its_members_and_the_report_names_what_limits_it(make_members):
    report, findings = attacked(make_members())
    assert list(findings) == ["gradient", "envelope", "aggregate"]
    envelope = findings["envelope"]
    assert envelope.verdict == "leaks" and envelope.headline.name == ROUND
    assert envelope.value >= 0.9 and envelope.interval[0] > 0.8
    assert abs(envelope.baselines.control - 0.5) <= 0.2  # 16 members only
    assert envelope.measure(MEMBERS).value >= 0.3
    assert findings["aggregate"].verdict == "leaks"
    assert envelope.power.shares["the records of a batch, at 1 % false alarms"] is None  # 48 others are few
    assert "0.1 % false alarms take 999 other records" in envelope.note
    names = [measure.name for measure in envelope.measures]
    shown = {"members, by projection residual (ProjRes)", "members, by plain gradient cosine", LINKED}
    assert shown <= set(names)
    assert (envelope.work.views, envelope.work.steps) == (4, 2 * (2 * (48 + 24) + 24))
    page, card = render(report), (make_members.path / "audit" / "model-card.md").read_text()
    for text in (page, card):
        assert "Leaks membership" in text and "privacy.unit" in text and "exchange.secure.enabled" in text
    stored = (make_members.path / "audit" / "report.json").read_text()
    assert '"draws"' not in stored
    records = [record for name in make_members.nodes for record in make_members.records(name)]
    words = {word for record in records for word in record.prompt.split() if len(word) > 3}
    assert words and not any(word in text for text in (page, card, stored) for word in words)


def test_silence_of_other_attacks_does_not_hide_it(make_members):
    report, _ = attacked(make_members(), ["span", NAME])
    told = {risk.name: risk for risk in report.risks}
    assert report.verdict == told["membership"].verdict == "leaks"
    assert told["membership"].label.startswith("leaks: one organisation's envelope and the mean")
    assert "members of a round" in report.summary and told["text"].verdict == "not tested"
    coordinator = next(threat for threat in report.threats if threat.role == "coordinator")
    assert coordinator.verdict == "leaks" and ROUND in coordinator.reason


@pytest.mark.parametrize("replaced", [noise, swapped])
def test_an_update_of_other_data_is_at_chance(make_members, replaced):
    _, findings = attacked(make_members(replaced))
    for stage in ("gradient", "envelope"):
        finding = findings[stage]
        single = finding.measure(ROUND)
        assert finding.verdict == "not detected" and abs(single.value - 0.5) <= 0.15
    assert findings["aggregate"].verdict == ("leaks" if replaced is swapped else "not detected")
    assert findings["envelope"].power is not None and "0.9" in findings["envelope"].power.text


def test_a_secure_sum_hides_envelopes_and_not_the_mean(make_members):
    def masked(run):
        rng = np.random.default_rng(5)
        for file in run.glob("nodes/*/taps/r*/envelope.npz"):
            with np.load(file) as stored:
                size = stored["values"].size
            np.savez(file, values=rng.integers(-(2**31), 2**31, size).astype(np.float32))
        return run

    report, findings = attacked(masked(make_members()))
    assert findings["envelope"].verdict == "not detected"
    assert findings["aggregate"].verdict == report.verdict == "leaks"


def _without_draws(run):
    for file in run.glob("nodes/*/taps/r*/truth.json"):
        facts = json.loads(file.read_text())
        del facts["draws"]
        file.write_text(json.dumps(facts))


def _other_records(run):
    file = run / "nodes" / "bank" / "train.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(reversed(lines)) + "\n")


def _without_records(run):
    (run / "nodes" / "bank" / "train.jsonl").unlink()


def _without_start(run):
    for file in run.glob("nodes/*/taps/r*/start.npz"):
        file.unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without_draws, "which records each step drew"),
        (_other_records, "the records of bank are not those that round 2 drew"),
        (_without_records, "no records of bank"),
        (_without_start, "the adapter before each round"),
    ],
)
def test_what_cannot_be_tried_is_not_covered_and_not_silent(make_members, change, reason):
    run = make_members()
    change(run)
    report, findings = attacked(run)
    assert {stage: finding.verdict for stage, finding in findings.items()} == {"envelope": "not covered"}
    assert reason in findings["envelope"].reason and reason in report.summary
    assert report.verdict == "not covered" and not report.is_finished


def test_factors_that_start_anew_are_not_covered(make_members):
    dense = {"codec": "dense-fp32"}
    exchange = {"up": {**dense, "error_feedback": False}, "down": dense}
    run = make_members(adapter={"aggregation": "stack"}, exchange=exchange)
    report, findings = attacked(run)
    assert findings["envelope"].verdict == report.verdict == "not covered"
    assert "starts from another adapter" in findings["envelope"].reason


def test_the_truth_is_not_seen_by_the_attack(make_members):
    """Other draws in the truth change who is a member, and no score."""
    run, shown = make_members(), ("gradient", "envelope")
    _, before = attacked(run)
    for file in run.glob("nodes/*/taps/r*/truth.json"):
        facts = json.loads(file.read_text())
        drawn = set(facts["draws"][0])
        others = [place for place in range(48) if place not in drawn][: make_members.batch]
        from_ = [json.loads(line) for line in (file.parents[2] / "train.jsonl").read_text().splitlines()]
        rows = [_ids(run, from_[place]) for place in others]
        facts |= {"draws": [others], "token_ids": rows, "all_token_ids": rows}
        file.write_text(json.dumps(facts))
    _, after = attacked(run)
    assert all(before[stage].verdict == "leaks" for stage in shown)
    assert all(after[stage].verdict == "not detected" and after[stage].value < 0.6 for stage in shown)


def _ids(run, row):
    from fedpeft.bases import load_base
    from fedpeft.data import Record, tokenise
    from fedpeft.runstore import RunStore

    config = RunStore.open(run).config
    base = load_base(config.base)
    return tokenise([Record(row["prompt"], row["completion"])], base.tokenizer, config.data)[0].ids.tolist()


def test_a_claim_is_held_against_what_it_allows(make_members):
    privacy = {
        "unit": "record",
        "noise_multiplier": 1.0,
        "sampling_probability": 0.2,
        "max_noise_to_signal": 9999,
    }
    _, findings = attacked(make_members(privacy=privacy))
    assert "allows an area of" in findings["envelope"].note
    assert findings["gradient"].note is None or "allows" not in findings["gradient"].note


def test_the_same_run_gives_the_same_findings(make_members):
    run = make_members()
    assert attacked(run)[0].findings == attacked(run)[0].findings


@pytest.mark.parametrize("size", [1, 2])
def test_few_records_give_wide_figures_and_no_error(make_members, size):
    """A node that drew all its records, and almost nobody to compare with."""
    run = make_members()
    test = run / "data" / "test.jsonl"
    test.write_text("".join(line + "\n" for line in test.read_text().splitlines()[:size]))
    _, findings = attacked(run)
    assert findings["envelope"].measures
