"""The SuperLink: one in a thread for simulations, one behind a fence for a federation."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.errors import ConfigError, FederationError
from fedpeft.flower.fence import Handout, fenced, nobody
from fedpeft.flower.uploads import DEFAULT_QUOTA, Quota

if TYPE_CHECKING:
    import uvicorn

IN_MEMORY = ":flwr-in-memory:"
LOOPBACK = "127.0.0.1"
_SECRET_BYTES = 32
_START_SECONDS = 60.0
_FAREWELL_SECONDS = 3


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


@dataclass(frozen=True)
class LinkSettings:
    """A SuperLink that organisations reach.

    Attributes:
        folder: holds Flower's database, ``state.db``.
        inside_port: port on loopback with all of Flower's API, without TLS.
        host, port: where nodes connect, over TLS, and find nothing but the Fleet API, ``/health`` and
            ``/ca.crt``.
        certificate, key: PEM files of the server; read again when they change.
        ca: PEM file of the authority that signed the certificate.
        secret: lets a ServerApp on this machine take its task; the same after a restart.
        handout: whether a node may have the app bundle of a run.
        quota: what each node may have lying here.
    """

    folder: Path
    inside_port: int
    host: str
    port: int
    certificate: Path
    key: Path
    ca: Path
    secret: bytes
    handout: Handout = nobody
    quota: Quota = DEFAULT_QUOTA

    @property
    def inside(self) -> SuperLink:
        """The SuperLink as a ServerApp on this machine sees it."""
        return SuperLink(f"{LOOPBACK}:{self.inside_port}", self.secret)


@contextmanager
def superlink(
    port: int | None = None, database: str = IN_MEMORY, secret: bytes | None = None
) -> Generator[SuperLink]:
    """Run a SuperLink in a thread of this process, on loopback only, without node authentication.

    Raises:
        FederationError: it did not start within 60 s.
    """
    link = SuperLink(f"{LOOPBACK}:{port or free_port()}", secret or os.urandom(_SECRET_BYTES))
    inside = _server(_application(link, database, authenticated=False))
    with _socket(LOOPBACK, int(link.address.rsplit(":")[1])) as listener, _listening([(inside, listener)]):
        yield link


def serve_link(settings: LinkSettings, stop: threading.Event) -> None:
    """Run a SuperLink with node authentication until ``stop`` is set; it may be killed at any moment.

    Everything that it must not forget is in the database: nodes, runs, messages under way.

    Raises:
        ConfigError: the certificate or the key cannot be read.
        FederationError: a port is taken, or it stopped by itself.
    """
    from fedpeft.flower.guard import guard

    application = _application(settings.inside, str(settings.folder / "state.db"), authenticated=True)
    guard(application, settings.folder, settings.quota)
    outside = _server(fenced(application, settings.ca, settings.handout), settings)
    with (
        _socket(LOOPBACK, settings.inside_port) as near,
        _socket(settings.host, settings.port) as far,
        _listening([(_server(application), near), (outside, far)]) as thread,
    ):
        dates = _dates(settings)
        while not stop.wait(1.0):
            if not thread.is_alive():
                raise FederationError("the SuperLink has stopped by itself; see the log before this line")
            if (now := _dates(settings)) != dates:
                dates = now
                _load_certificate(outside, settings)


def _dates(settings: LinkSettings) -> tuple[int, ...]:
    return tuple(path.stat().st_mtime_ns for path in (settings.certificate, settings.key) if path.exists())


def _load_certificate(server: uvicorn.Server, settings: LinkSettings) -> None:
    """Take a renewed certificate for all connections from now on; a half-written pair is left for later."""
    context = server.config.ssl
    assert context is not None
    with contextlib.suppress(OSError):
        context.load_cert_chain(settings.certificate, settings.key)


def _application(link: SuperLink, database: str, authenticated: bool) -> Any:
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.main import create_app

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # alembic's news for Flower
        return create_app(_configuration(link, database, authenticated), SuperLinkLifespan)


def _server(application: Any, settings: LinkSettings | None = None) -> uvicorn.Server:
    """A server of the application: with TLS if there are settings, otherwise plain and its main listener."""
    import uvicorn

    common: dict[str, Any] = {
        "log_level": "error",
        "ws": "none",
        "server_header": False,
        "timeout_graceful_shutdown": _FAREWELL_SECONDS,
    }
    if settings is None:
        return uvicorn.Server(uvicorn.Config(application, **common))
    common |= {"ssl_certfile": settings.certificate, "ssl_keyfile": settings.key, "lifespan": "off"}
    configuration = uvicorn.Config(application, **common)
    try:
        configuration.load()
    except OSError as error:
        raise ConfigError(
            f"the server's certificate {settings.certificate} and key cannot be read: {type(error).__name__};"
            " make them again"
        ) from None
    return uvicorn.Server(configuration)


def _socket(host: str, port: int) -> socket.socket:
    """A bound socket; a port that a process left a moment ago is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise FederationError(
            f"cannot listen on {host}:{port}: {error.strerror}; end what uses it or choose another"
        ) from None
    return listener


@contextmanager
def _listening(listeners: list[tuple[uvicorn.Server, socket.socket]]) -> Generator[threading.Thread]:
    """Servers of one process on one event loop in a thread, for the time of the block."""

    async def serve() -> None:
        await asyncio.gather(*(server.serve(sockets=[listener]) for server, listener in listeners))

    servers = [server for server, _ in listeners]
    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True, name="fedpeft-superlink")
    thread.start()
    try:
        _wait_until(lambda: all(server.started for server in servers), thread)
        yield thread
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(2 * _FAREWELL_SECONDS)


def _configuration(link: SuperLink, database: str, authenticated: bool) -> Any:
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.config_loader import SuperLinkLifespanConfig

    host, port = link.address.rsplit(":", 1)
    return SuperLinkLifespanConfig(
        control_address=f"{LOOPBACK}:0",
        health_server_address=None,
        host=host,
        port=int(port),
        insecure=True,
        certificates=None,
        superexec_auth_secret=link.secret,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=authenticated,
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


def _wait_until(ready: Callable[[], bool], thread: threading.Thread) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if time.monotonic() > deadline or not thread.is_alive():
            raise FederationError("the SuperLink did not start; see the log before this line")
        time.sleep(0.01)
