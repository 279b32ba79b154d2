"""The enrolment service: one unary gRPC method over TLS, bytes in and bytes out, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import grpc

from fedpeft.enrolment import MAX_BYTES, METHOD, SERVICE, Answer, Request
from fedpeft.errors import FederationError, FedPeftError
from fedpeft.limits import RateLimit, network_of
from fedpeft_server.home import ServerHome
from fedpeft_server.registry import Registry, Ruling
from fedpeft_server.supervisor_log import Tell

BURST = 60
PER_SECOND = 2.0
_WORKERS = 64
"""A call without a message holds one until its connection ends, so there are as many as calls are taken."""
_STOP_SECONDS = 2.0
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_BYTES),
    ("grpc.max_send_message_length", MAX_BYTES),
    ("grpc.max_metadata_size", 8192),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_allowed_incoming_connections", 256),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_connection_age_ms", 20_000),
    ("grpc.max_connection_age_grace_ms", 5_000),
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True)
class Desk:
    """Answers requests; every one of them, however wrong, gets a plain cause."""

    home: ServerHome
    tell: Tell
    clock: Callable[[], float] = time.time

    def answer(self, data: bytes, peer: str) -> Answer:
        """The answer to the bytes of a request."""
        try:
            request = Request.decode(data)
        except FederationError as error:
            return self._refused(str(error), peer)
        ruling = Registry(self.home).judge(request, self.clock())
        if ruling.state == "refused":
            return self._refused(ruling.cause, peer, request.name)
        return self._granted(request, ruling)

    def _refused(self, cause: str, peer: str, name: str = "") -> Answer:
        self.tell("enrolment refused", "warning", peer=peer, node=name, cause=cause)
        return Answer("refused", cause)

    def _granted(self, request: Request, ruling: Ruling) -> Answer:
        if ruling.state == "waiting":
            return Answer("waiting", ruling.cause)
        answer = Answer(
            "enrolled", app=self._app, federation=self.home.settings.name, issued=int(self.clock())
        )
        return answer.signed(self.home.signer, request.fingerprint())

    @cached_property
    def _app(self) -> str:
        from fedpeft.flower import thin_app

        return thin_app()[1]


@contextmanager
def serving(home: ServerHome, tell: Tell) -> Generator[None]:
    """Serve enrolments in threads of this process; a renewed certificate is used without a restart.

    Raises:
        FederationError: the port is taken.
    """
    settings = home.settings
    server = grpc.server(
        ThreadPoolExecutor(_WORKERS, thread_name_prefix="fedpeft-enrolment"),
        options=_OPTIONS,
        maximum_concurrent_rpcs=_WORKERS,
    )
    server.add_generic_rpc_handlers((_handlers(Desk(home, tell)),))
    host = f"[{settings.bind}]" if ":" in settings.bind else settings.bind
    try:
        server.add_secure_port(f"{host}:{settings.enrolment_port}", _credentials(home))
    except RuntimeError:
        raise FederationError(
            f"port {settings.enrolment_port} on {settings.bind} cannot be used for enrolment: "
            "is something else listening there? ('fedpeft server doctor')"
        ) from None
    server.start()
    try:
        yield
    finally:
        server.stop(_STOP_SECONDS).wait()


def _handlers(desk: Desk) -> grpc.GenericRpcHandler:
    """The one method; bytes are checked by `Request.decode`, not by gRPC."""
    limit = RateLimit(BURST, PER_SECOND)

    def join(data: bytes, context: grpc.ServicerContext) -> bytes:
        peer = peer_address(context.peer())
        if not limit.allows(network_of(peer), time.monotonic()):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests: wait a minute")
        try:
            return desk.answer(data, peer).encode()
        except (FedPeftError, OSError) as error:
            desk.tell("enrolment failed", "error", peer=peer, cause=f"{type(error).__name__}: {error}")
            context.abort(grpc.StatusCode.UNAVAILABLE, "the coordinator has a fault: try again later")
            raise

    method: Any = grpc.unary_unary_rpc_method_handler(join)
    return grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})


def peer_address(peer: str) -> str:
    """The address in gRPC's name of a peer: of ``ipv4:10.0.0.1:5`` or ``ipv6:[::1]:5``, without brackets."""
    kind, _, rest = peer.partition(":")
    return unquote(rest).rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer


def _credentials(home: ServerHome) -> grpc.ServerCredentials:
    """TLS with the certificate that is in the folder when a connection is made."""

    def current() -> grpc.ServerCertificateConfiguration:
        pair = ((home.path / "server.key").read_bytes(), (home.path / "server.crt").read_bytes())
        return grpc.ssl_server_certificate_configuration([pair])

    return grpc.dynamic_ssl_server_credentials(current(), current, require_client_authentication=False)
