"""A real SuperLink on loopback and one pinned node process per organisation."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedpeft import flower
from fedpeft_server.app import make_app
from fedpeft_simulations.backends.base import Progress

STOP_SECONDS = 10.0


def run_deployment(run: Path, homes: Sequence[Path], progress: Progress) -> None:
    """Run a federation as it is deployed: messages cross HTTP, nodes are processes.

    The SuperLink and the ServerApp live in this process; both end with the call, and so do the nodes.
    """
    with flower.superlink() as link, _nodes(link.address, homes, run / "flower"):
        flower.run_server_app(link, make_app(progress, run), {"run-dir": str(run)})


@contextmanager
def _nodes(address: str, homes: Sequence[Path], logs: Path) -> Generator[None]:
    """One node process per home, ended with the block; what they say lies in ``RUN/flower``."""
    logs.mkdir(parents=True, exist_ok=True)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for home in homes:
            started.append(_start(address, home, logs / f"{home.name}.log"))
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            _end(process)


def _start(address: str, home: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-P",
        "-m",
        "fedpeft_clients.service.node_process",
        "--home",
        str(home),
        "--superlink",
        address,
    ]
    environment = {**os.environ, "FLWR_HOME": str(home / "flower"), "OMP_NUM_THREADS": str(_threads())}
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _threads() -> int:
    import torch

    return torch.get_num_threads()
