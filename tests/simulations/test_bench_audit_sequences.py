"""The benchmark of sequence assembly: its scores, its stages and its tables."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.config.models import AdapterConfig
from fedpeft_attacks.sequences import Assembled
from fedpeft_attacks.work import Work
from fedpeft_bench.audit import sequences as bench

SMALL = AdapterConfig(skip_layers=(), aggregation="naive", rank=2, target_modules=("q_proj", "v_proj"))


@pytest.fixture
def case():
    from fedpeft.adapters import detach

    yield next(iter(bench._cases(SMALL, 1, [0])))
    detach()


def test_the_truth_scores_one_and_nothing_scores_zero(case):
    truth = Assembled(tuple(map(tuple, case.rows)), (True,), 0.0, Work(7))
    assert bench.scores(truth, case) == {
        "exact": 1.0,
        "rouge": 1.0,
        "secrets": 1.0,
        "certain": 1.0,
        "steps": 7.0,
    }
    found = bench.scores(Assembled((), (), 1.0), case)
    assert (found["exact"], found["rouge"], found["secrets"]) == (0.0, 0.0, 0.0)


def test_stages_are_steps_against_the_gradient(case):
    gradient = case.view.values
    assert np.array_equal(bench.staged(case, "gradient"), gradient)
    for stage in bench.STAGES[1:]:
        assert float(bench.staged(case, stage) @ gradient) < 0, stage
    ternary = bench.staged(case, "ternary 5 %")
    assert set(np.unique(ternary)) == {-1.0, 0.0, 1.0}
    assert np.mean(ternary != 0) == pytest.approx(0.05, abs=0.01)


def test_training_leaves_the_start_as_it_was(case):
    start = case.view.knowledge.start
    bench.staged(case, "AdamW, 6 steps")
    assert np.array_equal(start.attached.get(), start.state)


def test_means_and_tables(capsys):
    row = {"exact": 1.0, "rouge": 0.5, "secrets": 0.25, "certain": 0.0, "steps": 2.0}
    rows = [{"setting": "s", "batch": 1, "attack": "a", **row, "exact": exact} for exact in (0.0, 1.0)]
    means = bench._means(rows, ("setting", "batch", "attack"))
    assert means[0]["exact"] == 0.5 and means[0]["cases"] == 2
    assert bench.exact_cell(means[0]).startswith("0.50 (0.0")
    stage = {"stage": "sign", "cases": 2, "other": 0.1, **row}
    bench.show({"machine": "here", "means": means, "stages": [stage]})
    shown = capsys.readouterr().out
    assert "sign" in shown and "0.25" in shown
