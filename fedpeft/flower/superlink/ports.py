"""Ports of this process: bound before anything is served, and served on one event loop in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.errors import FederationError
from fedpeft.flower.superlink.connection_limits import Admission, Limits
from fedpeft.flower.superlink.request_check import Application

if TYPE_CHECKING:
    import uvicorn

FAREWELL_SECONDS = 3
"""What is under way when servers end has so long to be done."""
_START_SECONDS = 60.0


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bound(host: str, port: int) -> socket.socket:
    """A bound socket; a port that a process left a moment ago is free.

    Raises:
        FederationError: the port is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if host == "::" and socket.has_dualstack_ipv6():
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise FederationError(
            f"cannot listen on {host}:{port}: {error.strerror}; end what uses it or choose another"
        ) from None
    return listener


@contextmanager
def listening(listeners: list[tuple[uvicorn.Server, socket.socket]]) -> Generator[threading.Thread]:
    """Servers of one process on one event loop in a thread, for the time of the block.

    Raises:
        FederationError: they did not start within 60 s.
    """

    async def serve() -> None:
        await asyncio.gather(*(server.serve(sockets=[listener]) for server, listener in listeners))

    servers = [server for server, _ in listeners]
    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True, name="fedpeft-ports")
    thread.start()
    try:
        _wait_until(lambda: all(server.started for server in servers), thread)
        yield thread
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(2 * FAREWELL_SECONDS)


@contextmanager
def public_port(
    application: Application, host: str, port: int, pair: tuple[Path, Path], limits: Limits
) -> Generator[Admission]:
    """Serve an application over TLS to whoever connects, for the time of the block.

    Args:
        application: an ASGI application; it is for strangers, who prove no key.
        host: address on which it listens.
        port: where on it.
        pair: PEM files of certificate and key; read again when they change.
        limits: what strangers may take.

    Yields:
        Who is connected.

    Raises:
        ConfigError: the certificate or the key cannot be read.
        FederationError: the port is taken.
    """
    from fedpeft.flower.superlink.listener import secured

    server = secured(application, *pair, Admission(limits))
    with bound(host, port) as listener, listening([(server, listener)]):
        yield server.admission


def _wait_until(ready: Callable[[], bool], thread: threading.Thread) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if time.monotonic() > deadline or not thread.is_alive():
            raise FederationError("the server did not start; see the log before this line")
        time.sleep(0.01)
