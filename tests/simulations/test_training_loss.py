"""The training loss stands in ``metrics.jsonl`` where nothing is promised; under DP a noisy one may."""

import json
from dataclasses import replace

import pytest

from fedpeft.config import load_config
from fedpeft.errors import ConfigError, FederationError
from fedpeft.runstore.overview import errors
from fedpeft.tracking.event_figures import figures
from fedpeft_simulations.federation_run import run

SMALL = (
    "federation.rounds=2",
    "federation.nodes=2",
    "federation.local_steps=2",
    "federation.batch_size=4",
    "data.samples=24",
    "data.test_samples=16",
    "adapter.rank=2",
    "base.threads=1",
    "base.device=cpu",
    "run.baselines=[]",
    "audit.enabled=false",
)
PRIVATE = ("privacy.unit=record", "privacy.noise_multiplier=1.0", "privacy.max_noise_to_signal=99")
SECURE = ("exchange.secure.enabled=true", "exchange.secure.min_nodes=2", "exchange.secure.colluders=0")


def test_each_round_tells_the_mean_and_each_nodes_loss(tmp_path):
    told = []
    store = run(load_config(overrides=SMALL), tmp_path / "run", "new", told.append)
    events = list(store.events("training"))
    assert [event["round"] for event in events] == [1, 2] and all(event["time"] for event in store.events())
    for event in events:
        assert len(event["nodes"]) == 2
        assert event["loss"] == pytest.approx(sum(event["nodes"].values()) / 2)
    assert [event["round"] for event in told if event["event"] == "training"] == [1, 2]


@pytest.mark.parametrize("settings", [PRIVATE, SECURE], ids=["DP", "secure sums"])
def test_where_an_update_is_to_say_nothing_else_there_is_none(tmp_path, settings):
    store = run(load_config(overrides=(*SMALL, *settings)), tmp_path / "run", "new", lambda event: None)
    assert not list(store.events("training")) and "loss" not in str(list(store.events("round")))


def released(monkeypatch, loss):
    """Nodes release this loss, whatever theirs is; None: they release none."""
    from fedpeft_clients.rounds import local_round

    right = local_round.train_local
    other = lambda *given, **named: replace(right(*given, **named), loss_released=loss)  # noqa: E731
    monkeypatch.setattr(local_round, "train_local", other)


def test_a_loss_that_is_paid_for_stands_there_with_its_error(tmp_path):
    store = run(
        load_config(overrides=(*SMALL, *PRIVATE, "privacy.loss_share=0.1")), tmp_path / "run", "new", list
    )
    events = list(store.events("training"))
    assert [event["round"] for event in events] == [1, 2]
    assert len({value for event in events for value in event["nodes"].values()}) == 4


def test_a_run_whose_released_loss_stands_still_ends_and_spends_no_more(tmp_path, monkeypatch):
    """After twice the patience, with the figures of the rounds that there were."""
    released(monkeypatch, 5.0)
    settings = (*SMALL, *PRIVATE, "federation.rounds=9", "privacy.loss_share=0.1", "federation.stop_after=2")
    told = []
    store = run(load_config(overrides=settings), tmp_path / "run", "new", told.append)
    events = list(store.events("training"))
    assert len(events) == len(list(store.events("round"))) == 4
    wanted = 1.0 * (1 + 0.01) ** 0.5 / 0.1 * 5 / 4 / 2**0.5 / 2**0.5
    for event in events:
        assert event["standard_error"] == pytest.approx(wanted)
        assert event["loss"] == pytest.approx(sum(event["nodes"].values()) / 2) and len(event["nodes"]) == 2
    summary = json.loads((store.path / "run.json").read_text())
    assert summary["rounds"] == len(events) == next(e["rounds"] for e in told if e["event"] == "done")
    assert all(node["steps"] == 2 * len(events) for node in summary["privacy"]["nodes"])
    assert summary["privacy"]["epsilon"] < summary["privacy"]["plan"]["epsilon"]
    assert [e["round"] for e in store.events("evaluation")] == [0, len(events)]
    assert figures(events[0], private=True) == {
        "training/loss": events[0]["loss"],
        "training/standard_error": pytest.approx(wanted),
    }
    assert errors(store) == {event["round"]: pytest.approx(wanted) for event in events}


def test_a_node_that_sends_none_is_left_out(tmp_path, monkeypatch):
    released(monkeypatch, None)
    settings = (*SMALL, *PRIVATE, "privacy.loss_share=0.1", "federation.rounds=3")
    with pytest.raises(FederationError, match="it sends 0 losses"):
        run(load_config(overrides=settings), tmp_path / "run", "new", lambda event: None)


def test_an_unknown_tracker_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="unknown tracker 'tensorbord'"):
        run(load_config(overrides=SMALL), tmp_path / "run", "new", lambda event: None, ["tensorbord"])
    assert not (tmp_path / "run").exists()
