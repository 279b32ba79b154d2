"""The coordinator's side of a deployment: a SuperLink and the ServerApp that runs on it."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flwr.serverapp import ServerApp

from fedpeft._version import __version__
from fedpeft.errors import FederationError
from fedpeft.flower.messages import identify

_SECRET_BYTES = 32
_START_SECONDS = 30.0


def thin_app() -> tuple[bytes, str]:
    """A Flower app bundle that holds only names, and its SHA-256: both apps come from the installed wheel.

    Stored without compression and with fixed dates, so that all machines compute the same hash.
    """
    project = (
        f'[project]\nname = "fedpeft"\nversion = "{__version__}"\ndependencies = []\n'
        '[tool.flwr.app]\npublisher = "fedpeft"\n'
        '[tool.flwr.app.components]\nserverapp = "fedpeft_server.app:app"\n'
        'clientapp = "fedpeft_clients.app:app"\n'
        "[tool.flwr.app.config]\n"
    ).encode()
    manifest = f"pyproject.toml,{hashlib.sha256(project).hexdigest()},{len(project) * 8}\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as bundle:
        for name, content in (("pyproject.toml", project), (".info/CONTENT", manifest)):
            bundle.writestr(zipfile.ZipInfo(name), content)
    data = buffer.getvalue()
    return data, hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink on loopback: its address and the secret that lets a ServerApp take its task."""

    address: str
    secret: bytes


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def superlink(port: int | None = None, database: str = ":flwr-in-memory:") -> Generator[SuperLink]:
    """Run a SuperLink in a thread of this process, on loopback only.

    Raises:
        FederationError: it did not start within 30 s.
    """
    import uvicorn
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.main import create_app

    port, secret = port or free_port(), os.urandom(_SECRET_BYTES)
    application = create_app(_superlink_config(port, secret, database), SuperLinkLifespan)
    settings = uvicorn.Config(application, host="127.0.0.1", port=port, log_level="error", ws="none")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True, name="fedpeft-superlink")
    thread.start()
    try:
        _wait_until(
            lambda: server.started, thread, f"the SuperLink did not start on port {port}; is it in use?"
        )
        yield SuperLink(f"127.0.0.1:{port}", secret)
    finally:
        server.should_exit = True
        thread.join(10)


def _superlink_config(port: int, secret: bytes, database: str) -> Any:
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.config_loader import SuperLinkLifespanConfig

    return SuperLinkLifespanConfig(
        control_address="127.0.0.1:0",
        health_server_address=None,
        host="127.0.0.1",
        port=port,
        insecure=True,
        certificates=None,
        superexec_auth_secret=secret,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=False,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=database,
        isolation="process",
        runtime_dependency_install=False,
    )


def _wait_until(ready: Callable[[], bool], thread: threading.Thread, failure: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if time.monotonic() > deadline or not thread.is_alive():
            raise FederationError(failure)
        time.sleep(0.01)


def run_server_app(link: SuperLink, app: ServerApp, config: Mapping[str, Any]) -> None:
    """Submit the thin app to a SuperLink and run the given ServerApp for it in this process.

    Raises:
        FederationError: the SuperLink does not hand out the task.
    """
    from flwr.common.serde import context_from_proto, run_from_proto
    from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest
    from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
    from flwr.superlink.grid import HttpGrid

    _submit(link.address)
    grid = HttpGrid(link.address, insecure=True, token=_take_task(link))
    client = grid._runtime_client  # pyright: ignore[reportPrivateUsage]
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    status = "failed"
    try:
        given = client.PullTaskInput(PullTaskInputRequest())
        run, context = run_from_proto(given.run), context_from_proto(given.context)
        identify(run.run_id, context.node_id, given.task_id)
        grid.set_run(run)
        context.run_config = dict(config)
        app(grid=grid, context=context)
        status = "completed"
    finally:
        client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
        heartbeat.stop()
        grid.close()


def _submit(address: str) -> None:
    from flwr.common.serde import fab_to_proto
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.supercore.control.control_http_client import ControlHttpClient
    from flwr.supercore.fab import Fab
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    bundle, digest = thin_app()
    version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    with ControlHttpClient.from_server_address(address, True, None, [version]) as control:
        control.StartRun(StartRunRequest(fab=fab_to_proto(Fab(digest, bundle, {}))))


def _take_task(link: SuperLink) -> str:
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient

    interceptors = [
        RuntimeVersionHttpInterceptor(component_name="SuperExec"),
        SuperExecAuthHttpInterceptor(
            master_secret=link.secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        ),
    ]
    with RuntimeHttpClient.from_server_address(link.address, True, None, interceptors) as client:
        task = client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
    if not task.token:
        raise FederationError(f"the SuperLink at {link.address} has no ServerApp task to hand out")
    return task.token
