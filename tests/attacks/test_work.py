"""Work is counted in steps; what the safety stop ends is not finished, in every place where it is told."""

import json
import time

import numpy as np
import pytest

from fedpeft.errors import AuditError
from fedpeft_attacks.report.compare import compare, read_report
from fedpeft_attacks.report.html import render
from fedpeft_attacks.report.model_card import model_card
from fedpeft_attacks.report.summaries import work_in_words
from fedpeft_attacks.results.findings import Report
from fedpeft_attacks.results.measures import WorkDone
from fedpeft_attacks.tokens.blocks import Block
from fedpeft_attacks.tokens.matching_pursuit import matching_pursuit
from fedpeft_attacks.tokens.sparse_bayes import sparse_bayes
from fedpeft_attacks.work import Meter, Work, worked

pytestmark = [
    pytest.mark.portable,
    pytest.mark.filterwarnings("ignore:'click.utils.get:DeprecationWarning"),
]
LORA = {"aggregation": "naive", "rank": 8}


def test_a_meter_ends_with_its_budget():
    meter = Meter(3)
    assert [meter.step() for _ in range(5)] == [True, True, True, False, False]
    assert meter.work == Work(3, 3, is_cut=True)


def test_a_search_that_ends_with_its_last_step_is_not_cut():
    meter = Meter(2)
    assert meter.step() and meter.step()
    assert not meter.is_over and meter.work == Work(2, 2)


def test_the_safety_stop_is_no_budget(monkeypatch):
    meter = Meter(3, seconds=10.0)
    assert meter.step()
    late = time.process_time() + 11
    monkeypatch.setattr(time, "process_time", lambda: late)
    assert not meter.step()
    assert meter.work == Work(1, 3, is_stopped=True)


def test_work_is_pooled_over_views():
    parts = [Work(9, 9, is_cut=True), Work(4, 9), Work(1, 9, is_stopped=True)]
    done = worked(parts)
    assert done == WorkDone(views=3, steps=14, allowed=9, cut=1, stopped=1)
    assert work_in_words(done) == (
        "14 steps in 3 views, at most 9 in each: 1 cut by this budget, 1 ended by the safety stop, "
        "1 searched to the end"
    )
    assert work_in_words(worked([Work(4)])) == "4 steps in 1 view, to the end"


def test_the_work_of_two_searches_on_one_view_adds_up():
    assert Work(9, 16, is_cut=True) + Work(3, 20) == Work(12, 36, is_cut=True)
    assert Work(4) + Work(2, 5, is_stopped=True) == Work(6, 5, is_stopped=True)
    assert Work(4) + Work(2) == Work(6)


@pytest.mark.parametrize("spoil", [0.0, 0.3])
def test_the_bayesian_recovery_takes_as_many_steps_whatever_it_reads(spoil):
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(100, 16))
    rows = rng.normal(size=(8, 6)) @ atoms[:6]
    meter = Meter()
    sparse_bayes([Block(rows + spoil * rng.normal(size=rows.shape), atoms)], np.full(100, 0.01), meter)
    assert meter.work.steps == 5 * 12 + 30


def test_the_pursuit_takes_a_step_for_each_choice():
    rng, meter = np.random.default_rng(1), Meter()
    atoms = rng.normal(size=(60, 20))
    found = matching_pursuit([Block(rng.normal(size=(5, 9)) @ atoms[:9], atoms)], 12, meter)
    assert meter.work.steps == len(found.chosen) == 9


def quiet_run(make_run):
    """A run whose envelopes hold noise, so that only what did not finish keeps it from being silent."""
    run = make_run(LORA, batch=2)
    files = [*run.glob("nodes/*/taps/r01/*.npz"), *run.glob("updates/r01/*.npz")]
    for number, file in enumerate(sorted(files)):
        size = np.load(file)["values"].size
        np.savez(file, values=np.random.default_rng(number).normal(size=size).astype(np.float32))
    return run


@pytest.fixture
def stopped(monkeypatch):
    """Every attack meets its safety stop at once."""
    from fedpeft_attacks import registry

    monkeypatch.setattr(registry.Attack.__call__, "__defaults__", (0.0,))


def test_an_audit_that_was_stopped_is_not_silent(make_run, command, stopped):
    run = quiet_run(make_run)
    answer = command(run, "--attacks", "sparse-recovery", "--fail-on-leak", "--json")
    assert answer.exit_code == 11
    report = Report.model_validate_json((run / "audit" / "report.json").read_text())
    assert {finding.verdict for finding in report.findings} == {"not finished"}
    assert report.verdict == "not finished"
    told = (report.summary, render(report), model_card(report), *(one.reason for one in report.threats))
    assert "not finished" in report.summary and "safety stop" in report.summary
    assert "Not finished" in told[1]
    assert "**Not finished.**" in told[2]
    envelope = next(one for one in report.findings if one.stage == "envelope")
    assert (envelope.work.stopped, envelope.work.views) == (2, 2)
    assert "safety stop ended 2 of 2 searches" in envelope.reason


def test_the_same_audit_that_ends_is_silent(make_run, command):
    run = quiet_run(make_run)
    answer = command(run, "--attacks", "sparse-recovery", "--fail-on-leak", "--json")
    assert answer.exit_code == 0
    facts = json.loads(answer.stdout)
    verdicts = {finding["stage"]: finding["verdict"] for finding in facts["findings"]}
    assert verdicts.pop("aggregate") == facts["verdict"] == "not tested"  # it has no other data beside it
    assert set(verdicts.values()) == {"not detected"}
    assert all(finding["work"]["steps"] > 0 for finding in facts["findings"])
    assert "How much was tried" in (run / "audit" / "report.html").read_text()


def test_power_that_could_not_be_measured_leaves_silence_unfinished(make_run, monkeypatch):
    from fedpeft_attacks import audit_suite

    measured = audit_suite.power_of

    def unfinished(attack, trials):
        power = measured(attack, trials)
        work = {share: done.model_copy(update={"stopped": 1}) for share, done in power.work.items()}
        return power.model_copy(update={"work": work})

    monkeypatch.setattr(audit_suite, "power_of", unfinished)
    report = audit_suite.audit(quiet_run(make_run), ["sparse-recovery"])
    assert report.verdict == "not finished"
    assert "trials of its power" in report.findings[0].reason


def test_a_leak_that_was_found_before_the_stop_is_a_leak(make_run, monkeypatch):
    """What an attack read stays read: the stop only spoils what it did not read."""
    from dataclasses import replace

    from fedpeft_attacks import audit_suite
    from fedpeft_attacks.registry import ATTACKS
    from fedpeft_attacks.views import Guess

    solve = ATTACKS["sparse-recovery"].solve

    def late(view, seconds):
        answer = solve(view, seconds)
        return replace(answer, work=Work(5, None, is_stopped=True)) if isinstance(answer, Guess) else answer

    monkeypatch.setitem(ATTACKS._objects, "sparse-recovery", replace(ATTACKS["sparse-recovery"], solve=late))
    report = audit_suite.audit(make_run(LORA, batch=1), ["sparse-recovery"])
    assert {finding.verdict for finding in report.findings} == {"leaks"}
    assert all(finding.work.stopped for finding in report.findings)


def test_a_comparison_names_the_settings_and_answers_that_differ(make_run):
    from fedpeft_attacks import audit_suite

    report = audit_suite.audit(make_run(LORA, batch=1), ["span"])
    loud = next(finding for finding in report.findings if finding.stage == "envelope")
    quiet = loud.model_copy(update={"verdict": "not detected", "reason": "nothing"})
    risks = tuple(risk.model_copy(update={"label": "new words"}) for risk in report.risks)
    other = report.model_copy(
        update={
            "findings": (quiet,),
            "risks": risks,
            "settings": report.settings | {"privacy.unit": "record"},
        }
    )
    found = compare(report, other)
    assert found.settings == (("privacy.unit", "setting", '"none"', '"record"'),)
    assert [row[3] for row in found.risks] == ["new words"] * 5
    assert ("span · envelope · coordinator", "verdict", loud.verdict, "not detected") in found.differences
    figure = next(row for row in found.figures if row[:2] == ("span · aggregate · peer", "tokens"))
    assert "[" in figure[2] and "baseline" in figure[2] and figure[3] == "–"
    assert "/" not in json.dumps({key: report.settings[key] for key in ("base.model", "data.source")})


def test_two_audits_are_compared(make_run, command, tmp_path):
    run = make_run(LORA, batch=1)
    assert command(run, "--attacks", "span").exit_code == 0
    assert command(run, "--attacks", "span", "--out", tmp_path / "other").exit_code == 0
    same = command("compare", run, tmp_path / "other")
    assert same.exit_code == 0 and " 0 differ" in same.stdout and "none" in same.stdout
    report = read_report(tmp_path / "other")
    first = report.findings[0]
    other = first.model_copy(update={"work": first.work.model_copy(update={"steps": 99})})
    found = compare(report, report.model_copy(update={"findings": (other, *report.findings[1:])}))
    assert [row[:2] for row in found.differences] == [("span · gradient · insider", "work")]
    (tmp_path / "other" / "report.json").write_text(
        report.model_copy(update={"verdict": "not finished"}).model_dump_json()
    )
    assert command("compare", run, tmp_path / "other").exit_code == 1
    with pytest.raises(AuditError, match="no report at"):
        read_report(tmp_path)
