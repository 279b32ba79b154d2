"""The training loss stands in ``metrics.jsonl`` where nothing is promised, and nowhere under DP."""

import pytest

from fedpeft.config import load_config
from fedpeft.errors import ConfigError
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


def test_an_unknown_tracker_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="unknown tracker 'tensorbord'"):
        run(load_config(overrides=SMALL), tmp_path / "run", "new", lambda event: None, ["tensorbord"])
    assert not (tmp_path / "run").exists()
