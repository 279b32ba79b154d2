"""Ctrl-C says with which command the run goes on, and that command finishes it."""

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

FEDPEFT = str(Path(sys.executable).parent / "fedpeft")
SMALL = (
    "federation.rounds=6",
    "federation.nodes=2",
    "data.samples=24",
    "data.test_samples=16",
    "run.baselines=[]",
    "audit.enabled=false",
)


def test_an_interrupted_run_names_the_command_that_finishes_it(tmp_path):
    out = tmp_path / "my run"
    options = [part for setting in SMALL for part in ("--set", setting)]
    command = [FEDPEFT, "simulate", "--out", out, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=_interruptible, **pipes) as running:
        while not (out / "checkpoints").exists():
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=3600)
    assert running.returncode == 130
    message, _, continuation = errors.strip().partition(": ")
    assert message == "interrupted; continue with" and "\n" not in continuation
    assert not (out / "run.json").exists()
    program, *arguments = shlex.split(continuation)
    assert program == "fedpeft"
    subprocess.run([FEDPEFT, *arguments, "--quiet"], check=True, capture_output=True)
    assert (out / "run.json").exists()


def _interruptible():
    """Commands that a shell starts in the background ignore Ctrl-C, and their children inherit it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
