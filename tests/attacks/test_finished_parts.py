"""An audit that was ended goes on behind its finished parts, and reuses none that anything could change."""

import numpy as np
import pytest

from fedpeft.progress_reports import Estimate, watching
from fedpeft_attacks import audit_suite
from fedpeft_attacks.audit_suite import audit
from fedpeft_attacks.finished_parts import FOLDER
from fedpeft_attacks.report.assemble import Delivery

pytestmark = pytest.mark.portable
LORA = {"aggregation": "naive", "rank": 8}
TOKENS = ["span", "sparse-recovery"]


@pytest.fixture
def judged(monkeypatch):
    """The attacks and stages that were judged anew, in order."""
    made, find = [], audit_suite.find

    def counting(trial, group):
        made.append((trial.name, group[0].view.stage))
        return find(trial, group)

    monkeypatch.setattr(audit_suite, "find", counting)
    return made


def test_a_second_audit_repeats_nothing_and_reports_the_same(make_run, judged):
    run = make_run(LORA, batch=2)
    first = audit(run, TOKENS)
    page = (run / "audit" / "report.html").read_bytes()
    assert len(judged) == 8
    assert audit(run, TOKENS) == first
    assert len(judged) == 8
    assert (run / "audit" / "report.html").read_bytes() == page


def test_an_audit_that_was_ended_goes_on(make_run, judged, monkeypatch):
    run = make_run(LORA, batch=2)
    example, calls = audit_suite.find, []

    def ended(trial, group):
        calls.append(trial.name)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return example(trial, group)

    with monkeypatch.context() as patch:
        patch.setattr(audit_suite, "find", ended)
        with pytest.raises(KeyboardInterrupt):
            audit(run, TOKENS)
    before = len(judged)
    resumed = audit(run, TOKENS)
    assert (before, len(judged)) == (5, 8)
    for path in (run / FOLDER).rglob("*.json"):
        path.unlink()
    assert audit(run, TOKENS) == resumed


def _set_threshold(run):
    config = run / "config.toml"
    config.write_text(config.read_text().replace("threshold = 0.1", "threshold = 0.2"))


def _spoil(run):
    path = run / "nodes" / "bank" / "taps" / "r01" / "envelope.npz"
    np.savez(path, values=-np.load(path)["values"])


@pytest.mark.parametrize("change", [_set_threshold, _spoil])
def test_a_changed_run_is_audited_anew(make_run, judged, change):
    run = make_run(LORA, batch=2)
    audit(run, ["span"])
    change(run)
    audit(run, ["span"])
    assert len(judged) == 8
    assert len(list((run / FOLDER).iterdir())) == 1  # parts of the other audit are gone


def test_other_attacks_code_or_delivery_are_audited_anew(make_run, judged, monkeypatch):
    from fedpeft_attacks import finished_parts

    run = make_run(LORA, batch=2)
    audit(run, ["span"])
    audit(run, TOKENS)
    assert len(judged) == 4 + 8
    audit(run, TOKENS, delivery=Delivery(own_copy=True))
    assert len(judged) == 4 + 16
    monkeypatch.setattr(finished_parts, "_version", lambda name: "99")
    audit(run, TOKENS, delivery=Delivery(own_copy=True))
    assert len(judged) == 4 + 24


def test_what_the_safety_stop_ended_is_tried_again(make_run, judged, monkeypatch):
    from fedpeft_attacks import registry

    run = make_run(LORA, batch=2)
    with monkeypatch.context() as patch:
        patch.setattr(registry.Attack.__call__, "__defaults__", (0.0,))
        stopped = audit(run, ["sparse-recovery"])
    assert any(finding.work.stopped for finding in stopped.findings)
    finished = audit(run, ["sparse-recovery"])
    assert len(judged) == 8
    assert not any(finding.work.stopped for finding in finished.findings)


def test_the_progress_counts_parts_stages_and_views(make_run):
    lines = []

    class Recording(Estimate):
        def report(self, name, done, total):
            super().report(name, done, total)
            lines.append(self.text)

    with watching(Recording()):
        audit(make_run(LORA, batch=2), TOKENS)
    assert any("part of the audit 3 of 3" in line for line in lines)
    assert any("stage 2 of 5" in line and "view 2 of 2" in line for line in lines)
    assert any("token of the sampled texts 64 of 64" in line for line in lines)
    assert any("until the last part of the audit is done" in line for line in lines)
