"""SIGKILL at any moment, resume, and the result is the same to the last bit."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

CHILD = """
import sys
from pathlib import Path
from fedpeft_simulations.backends import run_federation
import torch, transformers, peft, fedpeft_server.app, fedpeft_clients.app
run = Path(sys.argv[1])
print("ready", flush=True)
run_federation(run, sorted((run / "nodes").iterdir()))
"""
ROUNDS = {"federation": {"nodes": 2, "rounds": 6}}


def start(run):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD, str(run)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def run_with_kills(run, kills, seconds):
    """Start the run again and again, killing it after a random share of its usual time."""
    rng = np.random.default_rng(0)
    for _ in range(kills):
        process = start(run)
        time.sleep(float(rng.uniform(0.1, 1.0)) * seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = start(run)
    last.communicate(timeout=3600)
    assert last.returncode == 0


def check(federation, kills):
    whole, killed = federation("whole", **ROUNDS), federation("killed", **ROUNDS)
    started = time.monotonic()
    whole.go()
    run_with_kills(killed.run, kills, time.monotonic() - started)
    assert killed.final["values"].tobytes() == whole.final["values"].tobytes()
    assert killed.envelopes == whole.envelopes
    lines = (killed.run / "metrics.jsonl").read_text().splitlines()
    rounds = [event["round"] for event in map(json.loads, lines) if event["event"] == "round"]
    assert rounds == [1, 2, 3, 4, 5, 6]


def test_three_kills(federation):
    check(federation, 3)


@pytest.mark.slow
def test_twenty_kills(federation):
    check(federation, 20)
