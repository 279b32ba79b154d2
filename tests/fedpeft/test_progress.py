"""What is being worked on and how long it takes, from reports deep in the work to a line for people."""

import time

import pytest

from fedpeft import progress_reports as progress
from fedpeft.cli import show_progress as shown
from fedpeft.progress_reports import Estimate, at, duration, each, watching


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_nested_work_is_one_line_with_the_time_that_is_left(clock):
    estimate = Estimate(clock)
    assert estimate.text == ""
    with watching(estimate):
        at("loading the base")
        assert estimate.text == "loading the base"
        at("round", 0, 4)
        at("node", 0, 2)
        at("step", 0, 5)
        assert estimate.text == "round 1 of 4 · node 1 of 2 · step 1 of 5"
        clock.now = 10.0
        at("step", 2, 5)
        assert estimate.text.startswith("round 1 of 4 · node 1 of 2 · step 3 of 5 · about 3 min 10 s until")
        at("step", 5, 5)
        assert estimate.text == "round 1 of 4 · node 1 of 2 · about 1 min 10 s until the last round is done"
        at("node", 1, 2)
        at("comparing")
        assert estimate.text.startswith("round 1 of 4 · node 2 of 2 · comparing · about 1 min 10 s until")
        at("node", 2, 2)
        at("round", 1, 4)
        assert estimate.text == "round 2 of 4 · about 30 s until the last round is done"
        at("round", 4, 4)
        assert estimate.text == ""
    at("unseen")
    assert estimate.text == ""


def test_a_resumed_run_is_not_paid_for_what_was_done_before(clock):
    estimate = Estimate(clock)
    estimate.report("round", 6, 8)
    clock.now = 60.0
    estimate.report("round", 7, 8)
    assert estimate.text == "round 8 of 8 · about 1 min 0 s until the last round is done"


def test_each_reports_every_item_and_its_end():
    seen = []
    estimate = Estimate()
    with watching(estimate):
        for item in each("ab", "letter"):
            seen.append((item, estimate.text.partition(" · ")[0]))
    assert seen == [("a", "letter 1 of 2"), ("b", "letter 2 of 2")] and estimate.text == ""


def test_nobody_who_does_not_watch_pays():
    assert not progress.LOG.isEnabledFor(10) and not progress.LOG.propagate


def test_durations_are_short():
    assert [duration(s) for s in (0.4, 75, 4000)] == ["0 s", "1 min 15 s", "1 h 6 min"]


def test_without_a_terminal_a_line_comes_also_while_one_step_lasts(capsys, monkeypatch):
    monkeypatch.setattr(shown, "LINE_SECONDS", 0.01)
    with shown.progress(to_stderr=True) as say:
        say("round 1: two updates")
        at("node", 1, 3)
        lines = []
        while len([line for line in lines if "node 2 of 3" in line]) < 2:
            time.sleep(0.02)
            lines += capsys.readouterr().err.splitlines()
    assert lines[0] == "round 1: two updates"


def test_quiet_is_quiet(capsys, monkeypatch):
    monkeypatch.setattr(shown, "LINE_SECONDS", 0.001)
    with shown.progress(quiet=True) as say:
        say("a line")
        at("node", 1, 3)
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_training_and_evaluation_say_how_far_they_are(tiny_adapter, monkeypatch):
    import numpy as np

    from fedpeft.config.models import FederationConfig
    from fedpeft.data import Example
    from fedpeft.evaluation.metrics import evaluate
    from fedpeft.training import LocalPlan, train_local

    ids = np.arange(1, 9, dtype=np.int64)
    examples = [Example(ids, np.ones(8, np.float32), 4)] * 4
    seen, report = [], Estimate.report
    monkeypatch.setattr(Estimate, "report", lambda self, *facts: (seen.append(facts), report(self, *facts)))
    plan = LocalPlan.of(FederationConfig(local_steps=2, batch_size=2), 1)
    with watching(Estimate()):
        train_local(tiny_adapter, examples, plan, np.random.default_rng(0))
        evaluate(tiny_adapter, examples, None, None)
    assert seen[:3] == [("step", 0, 2), ("step", 1, 2), ("step", 2, 2)]
    assert seen[3] == ("held-out record", 0, 4) and seen[-1] == ("held-out record", 4, 4)
