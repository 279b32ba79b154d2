"""Trackers get the figures of a run; under DP nothing that the claim does not cover."""

import importlib.metadata
import sys
from types import SimpleNamespace

import pytest

from fedpeft.config import load_config
from fedpeft.errors import ConfigError
from fedpeft.plugins import TRACKERS
from fedpeft.tracking import Tracker, figures, open_trackers, tracking

ROUND = {
    "event": "round",
    "round": 2,
    "replies": 3,
    "bytes_up": 900,
    "bytes_down": 700,
    "density": 0.25,
    "train_s": 1.5,
    "epsilon": {"a": 1.0, "b": 1.5},
}
EVALUATION = {"event": "evaluation", "arm": "federated", "round": 2, "loss": 2.5, "accuracy": None}
TRAINING = {"event": "training", "round": 2, "loss": 3.5, "nodes": {"a": 3.0, "b": 4.0}}
PRIVATE = ["privacy.unit=record", "privacy.epsilon=8"]


class Notes(Tracker):
    """A tracker that writes down what it is sent."""

    def __init__(self, run):
        self.seen, self.is_closed = [], False
        MADE.append(self)

    def log(self, figures, step, seconds):
        self.seen.append((dict(figures), step, seconds))

    def close(self):
        self.is_closed = True


class Broken(Notes):
    """A tracker whose server is gone."""

    def log(self, figures, step, seconds):
        raise OSError("the server is gone")


MADE: list[Notes] = []


@pytest.fixture
def made():
    """The trackers ``notes`` and ``broken`` are known; those that a run has opened, in their order."""
    MADE.clear()
    TRACKERS.register("notes", Notes)
    TRACKERS.register("broken", Broken)
    yield MADE
    TRACKERS.forget("notes")
    TRACKERS.forget("broken")


def test_numbers_become_figures_by_name():
    assert figures(EVALUATION) == {"federated/loss": 2.5}
    assert figures(TRAINING) == {"training/loss": 3.5}
    assert figures(ROUND) == {
        "round/epsilon": 1.5,
        "round/replies": 3,
        "round/bytes_up": 900,
        "round/bytes_down": 700,
        "round/density": 0.25,
        "round/train_s": 1.5,
    }
    assert figures({"event": "hello", "nodes": ["a"]}) == {}


def test_under_privacy_only_what_the_released_adapter_says_is_sent():
    assert figures(ROUND, private=True) == {"round/epsilon": 1.5}
    assert figures(TRAINING, private=True) == {}
    assert figures(EVALUATION, private=True) == {"federated/loss": 2.5}


def test_a_registered_tracker_follows_a_run(made, tmp_path):
    with tracking(["notes"], tmp_path, load_config()) as pass_on:
        for event in (ROUND, TRAINING, {"event": "done"}, EVALUATION | {"time": "2026-01-01T00:00:10+00:00"}):
            pass_on(event)
    (notes,) = made
    assert [(sorted(seen), step) for seen, step, _ in notes.seen][1:] == [
        (["training/loss"], 2),
        (["federated/loss"], 2),
    ]
    assert notes.seen[-1][2] == 1767225610.0 and notes.is_closed


def test_a_private_run_sends_its_tracker_no_losses_of_records(made, tmp_path):
    with tracking(["notes"], tmp_path, load_config(overrides=PRIVATE)) as pass_on:
        pass_on(TRAINING)
        pass_on(ROUND)
    (notes,) = made
    assert [seen for seen, _, _ in notes.seen] == [{"round/epsilon": 1.5}]


def test_a_tracker_that_fails_ends_no_run(made, tmp_path, caplog):
    with tracking(["broken", "notes"], tmp_path, load_config()) as pass_on:
        pass_on(EVALUATION)
        pass_on(EVALUATION)
    _, notes = made
    assert len(notes.seen) == 2
    assert [record.message for record in caplog.records] == [
        "Broken fails and is left out: the server is gone"
    ]


def test_an_unknown_tracker_names_the_nearest(tmp_path):
    with pytest.raises(
        ConfigError, match="unknown tracker 'tensorbord'; the nearest tracker is 'tensorboard'"
    ):
        open_trackers(["tensorbord"], tmp_path, load_config())


@pytest.mark.parametrize("name", ["mlflow", "tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_says_which_extra_it_needs(name, tmp_path, monkeypatch):
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'fedpeft\[{name}\]'"):
        open_trackers([name], tmp_path, load_config())


def test_mlflow_gets_metrics_with_step_and_time(tmp_path, monkeypatch):
    calls = []

    class Client:
        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return "7"

        def create_run(self, experiment, run_name):
            calls.append(("run", experiment, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id="r"))

        def log_param(self, run, key, value):
            assert not key.startswith(("data.", "base."))

        def log_metric(self, *metric, timestamp, step):
            calls.append((*metric, timestamp, step))

        def set_terminated(self, run):
            calls.append(("end", run))

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Client))
    with tracking(["mlflow"], tmp_path, load_config()) as pass_on:
        pass_on(EVALUATION | {"time": "2026-01-01T00:00:10+00:00"})
    assert calls == [("run", "7", "embedded"), ("r", "federated/loss", 2.5, 1767225610000, 2), ("end", "r")]


def test_weights_and_biases_gets_figures_over_the_round(tmp_path, monkeypatch):
    logged = []
    run = SimpleNamespace(define_metric=lambda *a, **k: None, log=logged.append, finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **settings: run))
    with tracking(["wandb"], tmp_path, load_config()) as pass_on:
        pass_on(EVALUATION)
    assert logged == [{"federated/loss": 2.5, "round": 2}]


def _has(package):
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(not _has("tensorboard"), reason="the extra tensorboard is not installed")
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_back_what_was_sent(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracking(["tensorboard"], tmp_path, load_config()) as pass_on:
        pass_on(EVALUATION)
        pass_on(EVALUATION | {"round": 3, "loss": 2.0})
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    assert [(point.step, point.value) for point in accumulator.Scalars("federated/loss")] == [
        (2, 2.5),
        (3, 2.0),
    ]
