"""A federation as a stream of events: the same run as the command's, which can be stopped and resumed."""

import hashlib

import pytest

from fedpeft.config import load_config
from fedpeft.config.scenarios import embedded_scenario
from fedpeft.errors import ConfigError, RunError
from fedpeft_simulations import Run, simulate
from fedpeft_simulations.federation_run import run

SMALL = {
    "federation.rounds": 3,
    "federation.nodes": 2,
    "federation.local_steps": 1,
    "federation.batch_size": 4,
    "data.samples": 16,
    "data.test_samples": 8,
    "adapter.rank": 4,
    "run.baselines": [],
    "audit.enabled": False,
}


def _adapter(path):
    return hashlib.sha256((path / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def by_callback(tmp_path_factory):
    """The run of the command: its events and its adapter."""
    out, events = tmp_path_factory.mktemp("runs") / "callback", []
    run(load_config(embedded_scenario(), SMALL), out, "new", events.append)
    return events, _adapter(out)


def test_the_stream_is_the_run_of_the_command(by_callback, tmp_path):
    simulation = simulate("embedded", SMALL, tmp_path / "run")
    events = list(simulation)
    finished = simulation.result()
    known, adapter = by_callback
    assert [event["event"] for event in events] == [event["event"] for event in known]
    assert _adapter(finished.path) == adapter


def test_the_tables_hold_what_the_run_recorded(tmp_path):
    finished = simulate(
        "embedded", SMALL | {"audit.enabled": True, "audit.attacks": ["span"]}, tmp_path / "run"
    )
    finished = finished.result()
    rounds, nodes, findings = finished.rounds, finished.nodes, finished.findings
    assert list(rounds.index) == [1, 2, 3]
    assert rounds["loss"].iloc[-1] == finished.summary["loss"]["federated"]
    assert rounds["bytes_up"].sum() == finished.summary["bytes"]["up"]
    assert sorted(nodes.index) == sorted(node["name"] for node in finished.summary["privacy"]["nodes"])
    assert nodes["bytes_up"].sum() == finished.summary["bytes"]["up"]
    assert set(findings["attack"]) == {"span"} and "envelope" in set(findings["stage"])


def test_a_stream_that_is_closed_stops_and_can_be_resumed(by_callback, tmp_path):
    simulation = simulate("embedded", SMALL, tmp_path / "run")
    for event in simulation:
        if event["event"] == "round":
            break
    simulation.close()
    with pytest.raises(RunError, match="mode='resume'"):
        simulation.result()
    assert list(Run(tmp_path / "run").rounds.index) == [1]
    resumed = simulate(out=tmp_path / "run", mode="resume").result()
    assert _adapter(resumed.path) == by_callback[1]


def test_an_error_of_the_run_reaches_who_reads_the_events(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "other.txt").touch()
    with pytest.raises(RunError, match="is not a run"):
        list(simulate("embedded", SMALL, tmp_path / "run"))


def test_scenarios_are_named_as_on_the_command_line(tmp_path):
    (tmp_path / "mine.toml").write_text("[federation]\nrounds = 3\n")
    assert simulate("embedded").config == load_config(embedded_scenario())
    assert simulate("defaults", {"run.seed": 5}).config == load_config(None, ["run.seed=5"])
    assert simulate(str(tmp_path / "mine.toml")).config.federation.rounds == 3


def test_wrong_scenarios_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"adapter\.rank"):
        simulate("embedded", {"adapter.rnak": 4})
    with pytest.raises(ConfigError, match="no scenario file"):
        simulate(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="beside a Config"):
        simulate(load_config(), {"adapter.rank": 4})
