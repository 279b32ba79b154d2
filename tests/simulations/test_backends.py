"""The three ways to run a federation give the same bits, leave nothing behind and continue after a stop."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fedpeft.errors import ConfigError, FederationError


@pytest.fixture
def reference(federation):
    prepared = federation("reference")
    prepared.go()
    return prepared


def same_bits(one, other):
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_same_seed_same_values_and_same_envelopes(federation, reference):
    again = federation("again")
    events = again.go()
    same_bits(again.final, reference.final)
    assert again.envelopes == reference.envelopes
    assert sorted(again.envelopes) == [
        "broadcasts/r02.fpd",
        "updates/r01/org-00.fpd",
        "updates/r01/org-01.fpd",
        "updates/r02/org-00.fpd",
        "updates/r02/org-01.fpd",
    ]
    assert [event["event"] for event in events] == ["coverage", "hello", "round", "round", "done"]
    written = [json.loads(line) for line in (again.run / "metrics.jsonl").read_text().splitlines()]
    assert all(event.pop("time") for event in written) and written == events


def test_another_seed_gives_other_values(federation, reference):
    other = federation("other", run={"seed": 5})
    other.go()
    assert not np.array_equal(other.final["values"], reference.final["values"])


COMMAND = """
import sys, json
from pathlib import Path
from fedpeft_simulations.backends import run_federation
run = Path(sys.argv[1])
told = []
run_federation(run, sorted((run / "nodes").iterdir()), sys.argv[2], told.append)
print(json.dumps([event["event"] for event in told]))
"""


@pytest.mark.parametrize("backend", ["ray", "deployment"])
def test_same_bits_on_every_backend(federation, reference, backend, tmp_path):
    other = federation("other")
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", COMMAND, str(other.run), backend]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ["coverage", "hello", "round", "round", "done"]
    same_bits(other.final, reference.final)
    assert other.envelopes == reference.envelopes
    assert not (tmp_path / "home" / ".flwr").exists()


def test_a_stopped_run_continues_from_its_checkpoint(federation, reference):
    prepared = federation("stopped")

    class Stop(Exception):
        pass

    def stop(event):
        if event.get("round") == 1:
            raise Stop

    from fedpeft_simulations.backends import run_federation

    with pytest.raises(Stop):
        run_federation(prepared.run, prepared.homes, "inprocess", stop)
    events = prepared.go()
    same_bits(prepared.final, reference.final)
    assert prepared.envelopes == reference.envelopes
    rounds = [json.loads(line) for line in (prepared.run / "metrics.jsonl").read_text().splitlines()]
    assert [event["round"] for event in rounds if event["event"] == "round"] == [1, 2]
    assert events[-1]["event"] == "done"


def test_running_a_finished_run_again_changes_nothing(reference):
    before = reference.final, reference.envelopes
    shutil.rmtree(reference.run / "state")
    assert [event["event"] for event in reference.go()] == ["done"]
    same_bits(reference.final, before[0])
    assert reference.envelopes == before[1]


@pytest.mark.parametrize(
    ("adapter", "exchange"),
    [
        ({"method": "miss"}, {}),
        ({"method": "ia3"}, {}),
        ({"aggregation": "naive"}, {}),
        ({"aggregation": "stack", "ranks": {"org-00": 3}}, {"codec": "dense-fp32", "error_feedback": False}),
        ({"aggregation": "stack"}, {"codec": "ternary", "error_feedback": False}),
        ({"aggregation": "reproject", "ranks": {"org-01": 1}}, {"codec": "int8"}),
    ],
)
def test_every_law_of_aggregation(federation, adapter, exchange):
    down = {"codec": "dense-fp32"} if adapter.get("aggregation") in ("stack", "reproject") else {}
    made = federation("law", adapter={"rank": 2, **adapter}, exchange={"up": exchange, "down": down})
    events = made.go()
    assert [event["applied"] for event in events if event["event"] == "round"] == [True, True]
    arrays = {name: value for name, value in made.final.items() if name != "facts"}
    assert all(np.isfinite(value).all() for value in arrays.values())
    assert any(np.abs(value).max() > 0 for value in arrays.values())
    if adapter.get("aggregation") == "naive":
        assert all(event["naive_error"] >= 0 for event in events if event["event"] == "round")
        assert "averages A and B apart" in events[2]["warning"]


def test_participation_is_sampled_and_stale_nodes_get_the_whole_state(federation):
    some = {"nodes": 3, "rounds": 4, "participation": 0.5, "quorum": 1}
    made = federation("part", federation=some, exchange={"cache_rounds": 0})
    events = [event for event in made.go() if event["event"] == "round"]
    assert [event["replies"] for event in events] == [2, 2, 2, 2]
    whole = list((made.run / "broadcasts").glob("*-full.fpd"))
    assert whole and all(path.stat().st_size > 1000 for path in whole)


def test_no_quorum_ends_with_the_causes(federation):
    made = federation("lame", federation={"nodes": 2, "quorum": 2})
    config = json.loads((made.homes[1] / "node.json").read_text())
    config["config"]["federation"]["lr"] = 0.5
    (made.homes[1] / "node.json").write_text(json.dumps(config))
    with pytest.raises(FederationError, match=r"1 of 2 nodes agree, 2 are needed; org-01: its agreed config"):
        made.go()


def test_unknown_backend_is_refused(reference):
    with pytest.raises(ConfigError, match="allowed are inprocess, ray, deployment"):
        reference.go("cloud")


def test_flower_writes_nothing_outside_the_run(reference):
    assert os.environ["FLWR_HOME"] == str(reference.run / "flower")
