"""``fedpeft node run``: one warm process that serves one coordinator until it is stopped."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedpeft.errors import RunError
from fedpeft.runstore import write_json
from fedpeft_clients.governance.organisation import Grant, Organisation
from fedpeft_clients.governance.policy import Policy
from fedpeft_clients.governance.run_approval import CoordinatorLink


def serve(organisation: Organisation, grant: Grant, poll: float) -> None:
    """Serve a coordinator; returns on SIGTERM or SIGINT and recovers from every fault of the network.

    Raises:
        RunError: another process serves this coordinator already.
        PolicyError: the policy does not hold.
        ConfigError: keys or certificates cannot be read.
    """
    os.environ.setdefault("FLWR_HOME", str(organisation.path / "flower"))
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="fedpeft node: %(message)s")
    from fedpeft import flower
    from fedpeft_clients.app import app
    from fedpeft_clients.outbox.gate import OrganisationGate

    link = CoordinatorLink(organisation, grant)
    policy = link.policy()
    _limit_gpu(policy)
    flower.hush()
    node_config = {"organisation": str(organisation.path), "coordinator": grant.fingerprint}
    connection = flower.Connection(
        grant.address,
        grant.ca.read_bytes(),
        organisation.transport.read_bytes(),
        poll,
        longest_step=policy.limits.longest_step_s,
        memory=grant.folder / "flower.id",
    )
    with _alone(grant):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)
        teller, gate = _Teller(grant), OrganisationGate(link)
        try:
            flower.serve_node(connection, app, node_config, allowed_apps(policy), gate=gate, emit=teller)
        except SystemExit:
            teller("stopped")


def allowed_apps(policy: Policy) -> frozenset[str]:
    """Hashes of the Flower apps whose runs this node takes part in."""
    from fedpeft import flower

    return frozenset([flower.thin_app()[1]] if policy.apps == "own" else policy.apps)


class _Teller:
    """Writes each change of state to ``service.json`` and to standard error."""

    def __init__(self, grant: Grant) -> None:
        self._path, self._started = grant.service, time.time()
        self("starts")

    def __call__(self, line: str) -> None:
        print(f"fedpeft node: {line}", file=sys.stderr, flush=True)
        facts = {"state": line, "time": time.time(), "started": self._started, "pid": os.getpid()}
        try:
            write_json(self._path, facts)
        except OSError as error:
            print(
                f"fedpeft node: {self._path.name} not written: {error.strerror}", file=sys.stderr, flush=True
            )


def running(grant: Grant) -> bool:
    """Whether a process serves this coordinator now."""
    path = _lock(grant)
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _alone(grant: Grant) -> Generator[None]:
    """Hold the lock of this coordinator; the system lets it go however the process ends."""
    with _lock(grant).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another process serves coordinator {grant.fingerprint} already") from None
        yield


def _lock(grant: Grant) -> Path:
    return grant.folder / "lock"


def _limit_gpu(policy: Policy) -> None:
    """Let this process take no more of the GPU's memory than the policy says."""
    if policy.limits.memory_gib is None or policy.limits.device == "cpu":
        return
    import torch

    if torch.cuda.is_available():
        device = torch.device("cuda" if policy.limits.device == "auto" else policy.limits.device)
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, policy.limits.memory_gib * 2**30 / total), device)


def _leave(number: int, frame: Any) -> None:
    sys.exit(0)
