"""The one module that touches private names of Flower (``flwr >=1.41,<1.42``).

Contract tests in ``tests/fedpeft/test_flower.py`` call every function here against the installed
version. Three ways to run the same ``ServerApp`` and ``ClientApp`` meet here: `run_local` (in process),
`run_ray` (Flower's simulation engine) and `superlink` + `run_server_app` + `serve_node` (deployment).
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import logging
import os
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

# Read by flwr and ray when they are imported: nothing is reported to anybody unless the user asks for it.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable import inflatable_object, inflatable_utils
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedpeft._version import __version__
from fedpeft.errors import ConfigError, FederationError

APP_FAILED = 2
EXPIRED = 3
REFUSED = 7
_SECRET_BYTES = 32
_START_SECONDS = 30.0


def hush() -> None:
    """Let Flower say only what went wrong; it logs every message otherwise."""
    logging.getLogger("flwr").setLevel(logging.ERROR)


def identify(run_id: int, node_id: int, task_id: int = 1) -> None:
    """Say on whose behalf this process makes messages; Flower needs it before ``Message(...)``."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, node_id


def error_reply(message: Message, code: int, reason: str) -> Message:
    """An error reply; the reason must be a plain word, never the text of an exception."""
    return Message(Error(code=code, reason=reason), reply_to=message)


def guarded(app: ClientApp, message: Message, context: Context) -> Message:
    """The app's reply, or an error reply that names only the class of what went wrong."""
    try:
        return app(message=message, context=context)
    except Exception as error:
        return error_reply(message, APP_FAILED, type(error).__name__)


def serialise(message: Message) -> tuple[str, dict[str, bytes]]:
    """The message as the content-addressed objects that cross a network: id and objects by id."""
    with inflatable_object.no_object_id_recompute():
        nested = inflatable_object.get_all_nested_objects(message)
        return message.object_id, {key: nested[key].deflate() for key in nested}


def deserialise(message_id: str, objects: Mapping[str, bytes]) -> Message:
    """The inverse of `serialise`."""
    message = cast(Message, inflatable_utils.inflate_object_from_contents(message_id, dict(objects)))
    message.metadata.__dict__["_message_id"] = message_id
    return message


class LocalGrid(Grid):
    """A grid whose nodes live in this process and answer one after the other.

    Every message is serialised and read back, so that nothing works here that would not cross a network.
    One worker thread serves all nodes: they share one base.
    """

    sequential = True

    def __init__(self, app: ClientApp, node_configs: Iterable[Mapping[str, Any]], run_id: int = 1) -> None:
        self._app, self._run_id = app, run_id
        self._contexts = {
            1000 + index: Context(run_id, 1000 + index, dict(node), RecordDict(), {})
            for index, node in enumerate(node_configs)
        }
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="fedpeft-nodes")
        self._pending: dict[str, concurrent.futures.Future[Message]] = {}
        self._pushed = 0
        identify(run_id, 1)

    def set_run(self, run: Run) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Run:
        """The one run."""
        return Run.create_empty(self._run_id)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes: they are always online."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; their ids."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there."""
        done = [key for key in message_ids if key in self._pending and self._pending[key].done()]
        return [self._pending.pop(key).result() for key in done]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Queue messages and wait for the replies."""
        keys = list(self.push_messages(messages))
        concurrent.futures.wait([self._pending[key] for key in keys], timeout=timeout)
        return self.pull_messages(keys)

    def wait(self, message_ids: Iterable[str], seconds: float) -> None:
        """Sleep until one of these replies is there, at most some seconds; a network can only be polled."""
        pending = [self._pending[key] for key in message_ids if key in self._pending]
        concurrent.futures.wait(pending, seconds, concurrent.futures.FIRST_COMPLETED)

    def close(self) -> None:
        """Drop what is still queued."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _push(self, message: Message) -> str:
        _, objects = serialise(message)
        self._pushed += 1
        key = f"local-{self._pushed}"
        self._pending[key] = self._pool.submit(self._answer, key, message.object_id, objects)
        return key

    def _answer(self, key: str, object_id: str, objects: dict[str, bytes]) -> Message:
        message = deserialise(object_id, objects)
        message.metadata.__dict__["_message_id"] = key
        if time.time() > message.metadata.created_at + message.metadata.ttl:
            return error_reply(message, EXPIRED, "expired")
        reply = guarded(self._app, message, self._contexts[message.metadata.dst_node_id])
        return deserialise(*serialise(reply))


def run_local(
    server_app: ServerApp,
    client_app: ClientApp,
    node_configs: Iterable[Mapping[str, Any]],
    config: Mapping[str, Any],
) -> None:
    """Run both apps in this process; an error of the ServerApp is raised as it is."""
    grid = LocalGrid(client_app, node_configs)
    try:
        server_app(grid=grid, context=Context(1, 0, {}, RecordDict(), dict(config)))
    finally:
        grid.close()


def run_ray(server_app: ServerApp, client_app: ClientApp, nodes: int, cpus_per_node: int = 1) -> None:
    """Run both apps on Flower's simulation engine; nodes are told apart by ``partition-id``.

    Raises:
        ConfigError: ray is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise ConfigError("backend 'ray' needs the package ray: pip install 'fedpeft[ray]'")
    from flwr.simulation.run_simulation import _run_simulation  # pyright: ignore[reportPrivateUsage]
    from flwr.supercore.telemetry import EventType

    _run_simulation(
        num_supernodes=nodes,
        exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app=client_app,
        server_app=server_app,
        backend_config={
            "client_resources": {"num_cpus": cpus_per_node, "num_gpus": 0.0},
            "init_args": {"include_dashboard": False, "log_to_driver": False},
        },
    )


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


def serve_node(
    address: str,
    app: ClientApp,
    node_config: Mapping[str, Any],
    allowed: frozenset[str],
    root_certificates: bytes | None = None,
    poll: float = 0.1,
) -> None:
    """Answer a SuperLink's messages with this process' own ClientApp until the process is ended.

    The app bundle of the run is never downloaded: its hash is compared with ``allowed`` and the local app
    is run, warm, in this process. Errors leave as the name of their class only.
    """
    from flwr.supercore.run import RunNotRunningException
    from flwr.supernode.fleet_http_connection import http_request_response

    with http_request_response(address, root_certificates is None, root_certificates) as link:
        node_id, receive = link[0], link[1]
        while True:
            if (received := receive()) is None:
                time.sleep(poll)
                continue
            try:
                _serve_one(_Fleet(node_id, *link[2:]), received, (app, dict(node_config)), allowed)
            except RunNotRunningException:
                continue


@dataclass(frozen=True)
class _Fleet:
    """What Flower's Fleet connection offers a node, in its order."""

    node_id: int
    send: Callable[..., Any]
    get_run: Callable[[int], Any]
    get_fab: Callable[..., Any]
    pull: Callable[[int, str], bytes]
    push: Callable[[int, str, str, bytes], None]
    confirm: Callable[[int, str], None]


def _serve_one(
    fleet: _Fleet,
    received: tuple[Message, Any],
    local: tuple[ClientApp, dict[str, Any]],
    allowed: frozenset[str],
) -> None:
    started, (header, tree) = time.monotonic(), received
    run_id, message_id = header.metadata.run_id, header.metadata.message_id
    wanted = [node.object_id for node in inflatable_object.iterate_object_tree(tree)]
    objects = inflatable_utils.pull_objects(wanted, lambda key: fleet.pull(run_id, key))
    fleet.confirm(run_id, message_id)
    message = deserialise(message_id, objects)
    identify(run_id, fleet.node_id)
    if fleet.get_run(run_id).fab_hash in allowed:
        reply = guarded(local[0], message, Context(run_id, fleet.node_id, local[1], RecordDict(), {}))
    else:
        reply = error_reply(message, REFUSED, "AppNotAllowed")
    _send(fleet, run_id, reply, time.monotonic() - started)


def _send(fleet: _Fleet, run_id: int, reply: Message, seconds: float) -> None:
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with inflatable_object.no_object_id_recompute():
        tree = inflatable_object.get_object_tree(reply)
        nested = inflatable_object.get_all_nested_objects(reply)
        needed, session = fleet.send(reply, tree, seconds)
        inflatable_utils.push_object_contents_from_iterable(
            ((key, nested[key].deflate()) for key in nested if key in needed),
            lambda key, content: fleet.push(run_id, session, key, content),
        )
