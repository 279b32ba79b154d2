"""Two processes share the baselines of a run: each is computed once, by whoever comes first."""

import fcntl
import json
import sys
from types import SimpleNamespace

import pytest

from fedpeft.progress_reports import Estimate, watching
from fedpeft_simulations import baseline_training, baselines
from fedpeft_simulations.baselines import result_file, run_baselines


def _store(path):
    run = SimpleNamespace(baselines=["local_only", "centralised"])
    return SimpleNamespace(path=path, config=SimpleNamespace(run=run))


def test_what_is_free_is_computed_once_and_only_if_it_was_asked_for(tmp_path):
    store, computed = _store(tmp_path), []
    runners = {
        name: lambda _, name=name: computed.append(name) or {"loss": 1.0}
        for name in ("private", "local_only", "centralised")
    }
    run_baselines(store, runners)
    run_baselines(store, dict(reversed(runners.items())))
    assert computed == ["local_only", "centralised"]
    assert json.loads(result_file(store, "local_only").read_text()) == {"loss": 1.0}


def test_a_baseline_that_another_process_is_at_is_left_to_it(tmp_path):
    store, computed = _store(tmp_path), []
    runners = {
        name: lambda _, name=name: computed.append(name) or {} for name in ("local_only", "centralised")
    }
    lock = result_file(store, "local_only").with_suffix(".lock")
    lock.parent.mkdir()
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        run_baselines(store, runners)
        assert computed == ["centralised"]
    run_baselines(store, runners)  # it was killed
    assert computed == ["centralised", "local_only"]


def test_local_only_goes_on_with_the_organisations_that_are_left(tmp_path, monkeypatch):
    trained = []

    def train(held_out, examples, name, pooled):
        if name == "bank" and not trained.count("bank"):
            trained.append(name)
            raise KeyboardInterrupt  # killed in the middle of the second organisation
        trained.append(name)
        return SimpleNamespace(figures={"loss": float(examples), "accuracy": None, "macro_f1": None})

    monkeypatch.setattr(baseline_training, "_train_alone", train)
    monkeypatch.setattr(baseline_training, "_node_data", lambda *_: [("agency", 1), ("bank", 3)])
    monkeypatch.setattr(baseline_training, "write_predictions", lambda *_: None)
    monkeypatch.setattr(baseline_training, "HeldOut", SimpleNamespace(of=lambda _: None))
    with pytest.raises(KeyboardInterrupt):
        run_baselines(_store(tmp_path), {"local_only": baseline_training.TRAINED["local_only"]})
    run_baselines(_store(tmp_path), {"local_only": baseline_training.TRAINED["local_only"]})
    assert trained == ["agency", "bank", "bank"]
    result = json.loads(result_file(_store(tmp_path), "local_only").read_text())
    assert (result["loss"], result["accuracy"], result["nodes"]["bank"]["loss"]) == (2.0, None, 3.0)


def test_who_waits_for_the_baselines_sees_how_far_they_are(tmp_path, monkeypatch):
    script = "import time; print('  [0 s] round of a baseline 3 of 12', flush=True); time.sleep(2.5)"
    monkeypatch.setattr(baselines, "_command", lambda store: [sys.executable, "-c", script])
    estimate, seen = Estimate(), []
    monkeypatch.setattr(estimate, "report", lambda name, done, total: seen.append(name))
    with watching(estimate), baselines.companion(_store(tmp_path)):
        pass
    assert seen[-1] == "waiting for the baselines: [0 s] round of a baseline 3 of 12"
