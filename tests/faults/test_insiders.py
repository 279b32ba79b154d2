"""Ten nodes, three of them hostile in three ways at once: no honest node loses a round."""

import json
import statistics
import sys
from pathlib import Path

import pytest
from deployment import Deployment, await_end, rounds_of

REPOSITORY = Path(__file__).parents[2]
HOSTILE = {"mallory": "poison", "oscar": "flood", "trudy": "bomb"}
HONEST = [f"org-{index}" for index in range(7)]
ROUNDS, DEADLINE = 5, 120.0
LONGEST = 300.0 + ROUNDS * DEADLINE
"""Seconds of the run: a round ends with its deadline at the latest."""
MIB = 2**20


def peak_mib(pid):
    """Most memory that a process has held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
def test_three_kinds_of_insiders_at_once_cost_the_honest_nodes_no_round(tmp_path):
    deployment = Deployment(tmp_path)
    try:
        deployment.begin()
        files = list(deployment.write_data(("a", "b", "c", "d")).values())
        for index, name in enumerate([*HONEST, *HOSTILE]):
            node = deployment.join(name, files[index % len(files)])
            command = [sys.executable, str(Path(__file__).parent / "insider.py"), str(node.home)]
            extra = {"PYTHONPATH": str(REPOSITORY)} if name in HOSTILE else {}
            deployment.run(node, [*command, HOSTILE[name]] if name in HOSTILE else (), **extra)
        before = size_of(deployment.server)
        run = deployment.submit(
            "attacked",
            {"federation.rounds": ROUNDS, "federation.quorum": 7, "federation.deadline": DEADLINE},
        )
        peaks = {"link": 0, "run": 0}
        status = await_end(run, LONGEST, lambda: peaks.update(measured(deployment, peaks)))
        rounds = rounds_of(run)
    finally:
        left = deployment.close()
    counts = {
        name: json.loads((deployment.nodes[name].home / "insider.jsonl").read_text()) for name in HOSTILE
    }
    grown, seconds = size_of(deployment.server) - before, [event["total_s"] for event in rounds]
    print(f"\nrounds {len(rounds)}, median {statistics.median(seconds):.1f} s, worst {max(seconds):.1f} s")
    print(f"coordinator's folder grew by {grown / MIB:.1f} MiB; most memory, MiB: {peaks}")
    print(json.dumps(counts), {event["round"]: event["refused"] for event in rounds})
    assert status["state"] == "done" and not left
    assert [event["round"] for event in rounds] == list(range(1, ROUNDS + 1))
    for event in rounds[1:]:
        assert not set(HONEST) & event["refused"].keys()
        assert event["replies"] >= len(HONEST)
        assert {"oscar", "trudy"} <= event["refused"].keys()
        assert "PrivacyError" not in event["refused"].values(), "its own books stop no insider"
    assert any("mallory" in event["ledger"] for event in rounds[1:]), "its updates are honest"
    assert all(sum(acts.values()) >= ROUNDS for acts in counts.values()), "they have attacked all along"
    assert grown < 64 * MIB
    assert peaks["run"] < 2048 and peaks["link"] < 1024


def measured(deployment, peaks):
    found = {part: deployment.child(part) for part in peaks}
    return {part: max(peaks[part], peak_mib(pid)) for part, pid in found.items() if pid}
