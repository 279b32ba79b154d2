"""The SuperLink: one in a thread for simulations, one with public routes only for a federation."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.errors import FederationError
from fedpeft.flower.proof import INSIDE, NodeProof, Remembered, SecretProof
from fedpeft.flower.signature import Signing, by_secret
from fedpeft.flower.superlink.ports import FAREWELL_SECONDS, bound, free_port, listening
from fedpeft.flower.superlink.public_routes import (
    FLEET,
    HEALTH,
    LARGEST_BODY,
    Handout,
    is_fleet_call,
    nobody,
    public_only,
)
from fedpeft.flower.superlink.request_check import Application, Entrance
from fedpeft.flower.superlink.uploads import DEFAULT_QUOTA, Quota
from fedpeft.trust import certificate_fingerprint

if TYPE_CHECKING:
    import uvicorn

    from fedpeft.flower.superlink.listener import Listener

IN_MEMORY = ":flwr-in-memory:"
LOOPBACK = "127.0.0.1"
_SECRET_BYTES = 32
_LARGEST_INSIDE = 2**30
"""Bytes of one request of a process on this machine that holds the secret."""
_INSIDE_CONNECTIONS = 1024
_INSIDE_STRANGERS = 512
"""Connections without the secret. The oldest goes, so that who proves it at once always gets in."""


def no_key(line: str) -> bool:
    """No key is that of a stock Flower node."""
    return False


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink on loopback: its address and the secret without which its port there answers nothing."""

    address: str
    secret: bytes

    @property
    def signing(self) -> Signing:
        """Signs the requests of a client of Flower's."""
        return Signing(INSIDE, by_secret(self.secret))


@dataclass(frozen=True)
class LinkSettings:
    """A SuperLink that organisations reach.

    Attributes:
        folder: holds Flower's database, ``state.db``.
        inside_port: port on loopback with all of Flower's API, without TLS, for who holds the secret.
        host, port: where nodes connect, over TLS, and find nothing but the Fleet API, ``/health`` and
            ``/ca.crt``.
        certificate, key: PEM files of the server; read again when they change.
        ca: PEM file of the authority that signed the certificate.
        secret: signs every request of a process on this machine; the same after a restart.
        handout: whether a node may have the app bundle of a run.
        quota: what each node may have lying here.
        stock: whether a key, an OpenSSH public line, was enrolled as that of a stock Flower node, which signs
            the time of a request and nothing else of it.
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
    stock: Callable[[str], bool] = no_key

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
    application = _application(link, database, authenticated=False)
    inside = _plain_server(_for_simulations(application, link.secret))
    with bound(LOOPBACK, int(link.address.rsplit(":")[1])) as listener, listening([(inside, listener)]):
        yield link


def serve_link(settings: LinkSettings, stop: threading.Event) -> None:
    """Run a SuperLink with node authentication until ``stop`` is set; it may be killed at any moment.

    Everything that it must not forget is in the database: nodes, runs, messages under way.

    Raises:
        ConfigError: the certificate or the key cannot be read.
        FederationError: a port is taken, or it stopped by itself.
    """
    from fedpeft.flower.superlink.node_guard import guard

    application = _application(settings.inside, str(settings.folder / "state.db"), authenticated=True)
    guard(application, settings.folder, settings.quota)
    outside = _outside(application, settings)
    with (
        bound(LOOPBACK, settings.inside_port) as near,
        bound(settings.host, settings.port) as far,
        listening([(_inside(application, settings.secret), near), (outside, far)]) as thread,
    ):
        while not stop.wait(1.0):
            if not thread.is_alive():
                raise FederationError("the SuperLink has stopped by itself; see the log before this line")


def _application(link: SuperLink, database: str, authenticated: bool) -> Any:
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.main import create_app

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # alembic's news for Flower
        return create_app(_configuration(link, database, authenticated), SuperLinkLifespan)


def _outside(application: Any, settings: LinkSettings) -> Listener:
    """What organisations reach: TLS, the Fleet API for enrolled nodes, and two public pages.

    Raises:
        ConfigError: the certificate or the key cannot be read.
    """
    from fedpeft.flower.superlink.listener import secured

    state = application.state.linkstate_factory

    def enrolled(key: bytes) -> bool:
        return state.state().get_node_id_by_public_key(key) is not None

    proof = NodeProof(
        lambda: certificate_fingerprint(settings.ca.read_bytes()), Remembered(enrolled), settings.stock
    )
    routes = public_only(application, settings.ca, settings.handout)
    entrance = Entrance(routes, proof, lambda method, path: not is_fleet_call(method, path), LARGEST_BODY)
    return secured(entrance, settings.certificate, settings.key)


def _inside(application: Any, secret: bytes) -> Listener:
    """What processes of this machine reach: everything, for who holds the secret; the main server."""
    from fedpeft.flower.superlink.connection_limits import Admission, Limits
    from fedpeft.flower.superlink.listener import Listener, configuration

    entrance = Entrance(application, SecretProof(secret), _is_health, _LARGEST_INSIDE, 2 * _LARGEST_INSIDE)
    # No rate: all come from one address, and a local user could use it up for the coordinator's own calls.
    limits = Limits(
        strangers=_INSIDE_STRANGERS,
        of_network=_INSIDE_STRANGERS,
        of_key=_INSIDE_CONNECTIONS,
        burst=math.inf,
        all_burst=math.inf,
    )
    return Listener(configuration(entrance), Admission(limits))


def _for_simulations(application: Any, secret: bytes) -> Application:
    """All of Flower's API on one plain port: the Fleet API for everybody, the rest with the secret."""
    guarded = Entrance(application, SecretProof(secret), _is_health, _LARGEST_INSIDE, 2 * _LARGEST_INSIDE)

    async def either(scope: Any, receive: Any, send: Any) -> None:
        fleet = scope.get("path", "").startswith(FLEET)
        await (application if fleet else guarded)(scope, receive, send)

    return either


def _is_health(method: str, path: str) -> bool:
    return method == "GET" and path == HEALTH


def _plain_server(application: Application) -> uvicorn.Server:
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            application,
            log_level="error",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=FAREWELL_SECONDS,
        )
    )


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
