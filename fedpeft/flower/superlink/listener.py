"""uvicorn behind a door that counts: who may connect, and how long anybody may take for what."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from ssl import SSLContext
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedpeft.errors import ConfigError
from fedpeft.flower.superlink.connection_limits import Admission, Visit
from fedpeft.flower.superlink.request_check import GUEST, LARGEST_HEAD, Application

STRANGER_SECONDS = 10.0
"""From a connection's first packet to the proof of a key; then it ends, whatever it is at."""
IDLE_SECONDS = 10.0
"""From an answer's last byte to the end of the next request's head, on a connection of an enrolled node."""
EXCHANGE_SECONDS = 600.0
"""From a head to the last byte of its answer: 16 MiB at 28 kB/s."""
GOODBYE_SECONDS = 3.0
"""From an answer to a stranger to the end of its connection, whoever has not read it."""
_LOOK_SECONDS = 1.0
_TICKS = 10
"""uvicorn's, between two looks at the certificate: a second."""
_READ_BUFFER = 2**16


class Listener(uvicorn.Server):
    """A server whose connections are admitted one by one.

    Args:
        configuration: of uvicorn; its certificate, if it has one, is for all connections, and read again when
            its files change.
        admission: who is connected.
    """

    def __init__(self, configuration: uvicorn.Config, admission: Admission) -> None:
        super().__init__(configuration)
        self.admission = admission
        self._dates = _dates(configuration)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the given sockets, as uvicorn would, but with our own door."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            self.should_exit = True
            return
        loop = asyncio.get_running_loop()
        self.servers = [await loop.create_server(lambda: _Door(self), sock=sock) for sock in sockets or ()]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if counter % _TICKS == 0:
            with contextlib.suppress(OSError):
                self._renew()
        return await super().on_tick(counter)

    def _renew(self) -> None:
        """Take a renewed certificate for all connections from now on; a half-written pair waits."""
        context, dates = self.config.ssl, _dates(self.config)
        if context is not None and self._dates != dates:
            self._dates = dates
            context.load_cert_chain(cast("Path", self.config.ssl_certfile), self.config.ssl_keyfile)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End; enrolled nodes are answered to the end, strangers are not."""
        self.admission.turn_out_strangers()
        await super().shutdown(sockets)


def _dates(configuration: uvicorn.Config) -> tuple[int, ...]:
    files = (configuration.ssl_certfile, configuration.ssl_keyfile)
    paths = [Path(file) for file in files if file is not None]
    return tuple(path.stat().st_mtime_ns for path in paths if path.exists())


class _Door(asyncio.Protocol):
    """A connection before TLS: counted, then handed to uvicorn's protocol."""

    def __init__(self, server: Listener) -> None:
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let the connection in, or close it."""
        outer = cast("asyncio.Transport", transport)
        peer: Any = outer.get_extra_info("peername")
        visit = self._server.admission.arrive(str(peer[0]) if peer else "", outer.abort)
        if visit is None:
            return outer.abort()
        visitor = _Visitor(self._server, visit, outer)
        if (context := self._server.config.ssl) is None:
            outer.set_protocol(visitor)
            return visitor.connection_made(outer)
        outer.pause_reading()
        task = asyncio.get_running_loop().create_task(self._shake_hands(outer, visitor, context))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return None

    async def _shake_hands(self, outer: asyncio.Transport, visitor: _Visitor, context: SSLContext) -> None:
        """TLS; who does not manage it in time is gone."""
        inner = None
        with contextlib.suppress(OSError):
            inner = await asyncio.get_running_loop().start_tls(
                outer,
                visitor,
                context,
                server_side=True,
                ssl_handshake_timeout=STRANGER_SECONDS,
                ssl_shutdown_timeout=EXCHANGE_SECONDS,  # the visitor's own clock ends it sooner
            )
        if inner is None:  # it was turned out, or hung up, meanwhile
            visitor.forget()
            return outer.abort()
        return visitor.connection_made(inner)


class _Visitor(H11Protocol):
    """uvicorn's connection, with an end to its patience.

    Args:
        server: to whom the connection was made.
        visit: the connection as it is counted.
        outer: its transport on the network: what TLS has encrypted waits there, and is counted nowhere else.
    """

    def __init__(self, server: Listener, visit: Visit, outer: asyncio.Transport) -> None:
        state = {**server.lifespan.state, GUEST: self}
        super().__init__(server.config, server.server_state, state)
        self._admission, self._visit, self._outer = server.admission, visit, outer
        self._begun, self._early, self._exchange_end = False, b"", 0.0
        self._end = self.loop.call_later(STRANGER_SECONDS, visit.close)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; little is read ahead of who reads it."""
        limit = getattr(transport, "set_read_buffer_limits", None)
        if limit is not None:
            limit(high=_READ_BUFFER)
        super().connection_made(transport)
        early, self._early, self._begun = self._early, b"", True
        if early:
            self.data_received(early)

    def data_received(self, data: bytes) -> None:
        """Take in bytes, unless the last answer has been given; TLS may bring some with its last packet."""
        if not self._begun:
            self._early += data
        elif not self.transport.is_closing():
            super().data_received(data)

    def prove(self, key: str) -> None:
        """The sender of the request holds an enrolled key, or the secret."""
        self._admission.prove(self._visit, key)
        self._exchange_end = self.loop.time() + EXCHANGE_SECONDS
        self._end_at(self._exchange_end)

    def on_response_complete(self) -> None:
        """The answer is written, not sent: send it, then wait for the next request for a while."""
        if self._visit.key:
            self._wait_idle()
        else:
            self._end_at(min(self._end.when(), self.loop.time() + GOODBYE_SECONDS))
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count no more."""
        self.forget()
        super().connection_lost(exc)

    def forget(self) -> None:
        """The connection is over."""
        self._end.cancel()
        self._admission.leave(self._visit)

    def _wait_idle(self) -> None:
        """A slow reader is idle from the last byte on, and has the time of an exchange until then."""
        now = self.loop.time()
        if not self._outer.get_write_buffer_size():
            self._end_at(now + IDLE_SECONDS)
        elif now >= self._exchange_end:
            self._visit.close()
        else:
            self._end.cancel()
            self._end = self.loop.call_at(min(now + _LOOK_SECONDS, self._exchange_end), self._wait_idle)

    def _end_at(self, moment: float) -> None:
        self._end.cancel()
        self._end = self.loop.call_at(moment, self._visit.close)


def configuration(application: Any, **options: Any) -> uvicorn.Config:
    """What uvicorn must know to serve an application behind a `Listener`."""
    return uvicorn.Config(
        application,
        http="h11",  # the only one of uvicorn's that bounds a head
        h11_max_incomplete_event_size=LARGEST_HEAD,
        timeout_keep_alive=int(EXCHANGE_SECONDS),  # the visitor's own clock ends it sooner
        timeout_graceful_shutdown=int(GOODBYE_SECONDS),
        ws="none",
        log_level="error",
        server_header=False,
        proxy_headers=False,  # who says to ask for another is not believed
        **options,
    )


def secured(
    application: Application, certificate: Path, key: Path, admission: Admission | None = None
) -> Listener:
    """A listener over TLS.

    Args:
        application: what is served.
        certificate: PEM file, read again when it changes.
        key: PEM file, the same.
        admission: who may connect; default: as `Admission` has it.

    Raises:
        ConfigError: the certificate or the key cannot be read.
    """
    configured = configuration(
        application,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        ssl_ciphers="ECDHE+AESGCM:ECDHE+CHACHA20",
        lifespan="off",
    )
    try:
        configured.load()
    except OSError as error:
        raise ConfigError(
            f"the server's certificate {certificate} and key cannot be read: {type(error).__name__};"
            " make them again"
        ) from None
    return Listener(configured, admission or Admission())
