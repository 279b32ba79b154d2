"""A reverse proxy before the coordinator, as a hospital may have one: it ends TLS, and it fails to order.

It holds the coordinator's certificate, so that nodes trust it; what passes can be written down in plain text.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

Mode = Literal["pass", "refuse", "silent"]
STATUSES = {"http-500": 500, "http-502": 502, "http-429": 429}
CUTS = ("cut-before", "cut-after", "truncated", "twice")
CALLS = ("pull-messages", "push-messages", "push-object", "pull-object", "get-run", "confirm", "heartbeat")


@dataclass
class Order:
    """One fault for the next call of a kind.

    Attributes:
        kind: a status, or a cut: before the request is passed on, after it was answered, within the answer;
            ``twice`` passes the request on twice.
        call: part of the path that it waits for.
        hits: how many such calls it spoils.
        done: set when the last was spoilt.
    """

    kind: str
    call: str
    hits: int = 1
    done: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """Listens on a free port of a host, in a thread.

    Attributes:
        mode: refuse ends all connections at once, silent answers nothing.
        tap: all that passes in plain text, where a file is given.
    """

    def __init__(self, host: str, upstream: int, server: Path, tap: Path | None = None) -> None:
        self.host, self._upstream, self._server = host, upstream, server
        self.mode: Mode = "pass"
        self.orders: list[Order] = []
        self.port = 0
        self._tap: BinaryIO | None = tap.open("ab") if tap else None
        self._open: set[asyncio.StreamWriter] = set()
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True, name="proxy")
        self._thread.start()
        assert self._ready.wait(20)

    @property
    def address(self) -> str:
        """What nodes connect to."""
        return f"{self.host}:{self.port}"

    def spoil(self, order: Order, seconds: float) -> bool:
        """Do what is ordered with the next fitting calls; whether there were any in time."""
        self.orders.append(order)
        done = order.done.wait(seconds)
        with contextlib.suppress(ValueError):
            self.orders.remove(order)
        return done

    def cut(self, mode: Mode, seconds: float) -> None:
        """Be gone for a while."""
        self.mode = mode
        if mode == "refuse":
            self._call(self._drop)
        time.sleep(seconds)
        self.mode = "pass"
        self._call(self._drop)

    def close(self) -> None:
        """End."""
        self._call(self._drop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.run_until_complete(self._end())
        self._loop.close()
        if self._tap is not None:
            self._tap.close()

    async def _end(self) -> None:
        self._listening.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _call(self, act: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(act)

    def _drop(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._server / "server.crt", self._server / "server.key")
        listening = asyncio.start_server(self._connected, self.host, 0, ssl=context)
        self._listening = self._loop.run_until_complete(listening)
        self.port = self._listening.sockets[0].getsockname()[1]
        self._loop.set_exception_handler(lambda loop, context: None)
        self._ready.set()
        self._loop.run_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            await self._pass_on(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        trusted = ssl.create_default_context(cafile=str(self._server / "ca.crt"))
        there, back = await asyncio.open_connection(self.host, self._upstream, ssl=trusted)
        try:
            while True:
                request = await _message(reader)
                if self.mode != "pass":
                    await self._obey()
                    return
                order = self._order(request.split(b" ", 2)[1].decode())
                if order is not None and not await self._spoilt(order, request, (there, back), writer):
                    return
                if order is None:
                    await self._forward(request, (there, back), writer)
        finally:
            back.transport.abort()

    async def _obey(self) -> None:
        while self.mode == "silent":
            await asyncio.sleep(0.1)

    def _order(self, path: str) -> Order | None:
        for order in self.orders:
            if order.call in path and order.hits > 0:
                order.hits -= 1
                return order
        return None

    async def _forward(
        self,
        request: bytes,
        link: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        writer: asyncio.StreamWriter,
        length: int | None = None,
    ) -> None:
        """Pass a request on and its answer back, of which only a length if one is given."""
        link[1].write(request)
        await link[1].drain()
        answer = await _message(link[0])
        if self._tap is not None:
            self._tap.write(request + answer)
            self._tap.flush()
        writer.write(answer[:length])
        await writer.drain()

    async def _spoilt(
        self,
        order: Order,
        request: bytes,
        link: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Do what is ordered; whether the connection goes on."""
        try:
            if order.kind in STATUSES:
                reason = f"HTTP/1.1 {STATUSES[order.kind]} Proxy\r\ncontent-length: 6\r\n\r\nbroken"
                writer.write(reason.encode())
                await writer.drain()
                return True
            if order.kind == "twice":
                link[1].write(request)
                await link[1].drain()
                await _message(link[0])
                await self._forward(request, link, writer)
                return True
            if order.kind == "cut-after":
                await self._forward(request, link, writer, 0)
            elif order.kind == "truncated":
                await self._forward(request, link, writer, 60)
            return False
        finally:
            if order.hits == 0:
                order.done.set()


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One HTTP/1.1 message: head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.split(b":", 1) for line in head.lower().split(b"\r\n")[1:] if b":" in line)
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        return head + await _chunks(reader)
    return head + await reader.readexactly(int(fields.get(b"content-length", b"0")))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        body += line + await reader.readexactly(size + 2)
        if not size:
            return body
