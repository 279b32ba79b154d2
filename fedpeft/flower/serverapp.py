"""One ServerApp on a SuperLink, in the process that calls."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.serverapp import Grid, ServerApp

from fedpeft.errors import FederationError
from fedpeft.flower.control import end_run, start_run
from fedpeft.flower.faults import plain
from fedpeft.flower.heartbeat import Pulse
from fedpeft.flower.messages import identify
from fedpeft.flower.superlink.superlink import SuperLink
from fedpeft.runstore import write_atomic

if TYPE_CHECKING:
    from fedpeft.flower.coordinator_grid import PatientGrid

_BEAT_SECONDS = 10.0
_FAREWELL_SECONDS = 5.0
_TRIES = 5


def run_server_app(
    link: SuperLink, app: ServerApp, config: Mapping[str, Any], memory: Path | None = None
) -> None:
    """Run the given ServerApp as a new Flower run of the thin app, in this process.

    It goes on when the SuperLink is killed and comes back with the same database within about a minute; a
    longer outage ends the Flower run, and the caller starts the next one from its own checkpoint.

    Args:
        link: the SuperLink and its secret.
        app: what runs; its errors are raised as they are.
        config: its run config.
        memory: a file that holds the number of the Flower run; the one found there belonged to a process
            that died and is stopped, so that no node works for it.

    Raises:
        FederationError: the SuperLink does not hand out the task, or gave the Flower run up.
    """
    from fedpeft.flower.coordinator_grid import PatientGrid

    if memory is not None:
        _end_former(link, memory)
    grid = PatientGrid(link, _claim(link))
    with contextlib.closing(grid), _task(grid, link.address) as (run_id, context):
        if memory is not None:
            write_atomic(memory, str(run_id).encode())
        context.run_config = dict(config)
        app(grid=grid, context=context)


def public_keys(grid: Grid) -> dict[int, bytes]:
    """The key with which each node that is online proved itself: node id to OpenSSH public line.

    Empty for a grid whose nodes have no keys (`LocalGrid`, Flower's simulation).
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
    from flwr.superlink.grid import HttpGrid

    if not isinstance(grid, HttpGrid):
        return {}
    keys = {node.node_id: load_pem_public_key(node.public_key) for node in grid.get_nodes()}
    return {node: key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) for node, key in keys.items()}


def _end_former(link: SuperLink, memory: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        end_run(link, int(memory.read_text()))


@contextlib.contextmanager
def _task(grid: PatientGrid, address: str) -> Generator[tuple[int, Any]]:
    """The task that the grid's token is for: kept alive, and reported as done or failed at the end."""
    from flwr.common.serde import context_from_proto, run_from_proto
    from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest, SendTaskHeartbeatRequest

    inputs = grid.client.PullTaskInput(PullTaskInputRequest())
    run, context = run_from_proto(inputs.run), context_from_proto(inputs.context)
    identify(run.run_id, context.node_id, inputs.task_id)
    grid.set_run(run)
    with grid.impatient() as beating:
        pulse = Pulse(lambda: beating.SendTaskHeartbeat(SendTaskHeartbeatRequest()), _BEAT_SECONDS)
        status = "failed"
        try:
            yield run.run_id, context
            status = "completed"
        finally:
            pulse.end()
            with contextlib.suppress(FederationError):
                grid.hurry(_FAREWELL_SECONDS)
                grid.client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))


def _claim(link: SuperLink) -> str:
    """The token of a ServerApp task: one that nobody took up, or that of a new Flower run."""
    for _ in range(_TRIES):
        if token := _take_task(link):
            return token
        start_run(link)
    raise FederationError(f"the SuperLink at {link.address} has no ServerApp task to hand out")


def _take_task(link: SuperLink) -> str:
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient

    interceptors = [
        RuntimeVersionHttpInterceptor(component_name="SuperExec"),
        SuperExecAuthHttpInterceptor(
            master_secret=link.secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        ),
        link.signing,
    ]
    with (
        RuntimeHttpClient.from_server_address(link.address, True, None, interceptors) as client,
        plain(link.address),
    ):
        return client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"])).token
