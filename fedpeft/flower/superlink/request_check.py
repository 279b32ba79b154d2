"""Before anything of a request's body is read: is its head short, and has its sender proved who it is?"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedpeft.flower.proof import Proof, Refusal, Scope

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

GUEST = "guest"
"""Key of a connection in the state of its requests."""
LARGEST_HEAD = 2**14
"""Bytes of a request's headers."""
MOST_UNDER_WAY = 2**25
"""Bytes of bodies that one sender may have under way at once: Flower's nodes send two parts of 5 MiB."""
_IN_A_THREAD = 2**18


class Guest(Protocol):
    """A connection whose sender can be set."""

    def prove(self, key: str) -> None:
        """The sender of the request holds this key."""


@dataclass
class Entrance:
    """Lets a request in whose sender is known, or that asks for what is open to all.

    A stranger gets one answer a connection and sends no body. A body is read whole, and must be the one that
    its sender signed, before the application sees any of it.

    Attributes:
        application: what stands behind.
        proof: who sends a request.
        is_open: whether a method and path is open to everybody.
        largest: bytes of a body.
        most_under_way: bytes of bodies of one sender at once.
    """

    application: Application
    proof: Proof
    is_open: Callable[[str, str], bool]
    largest: int
    most_under_way: int = MOST_UNDER_WAY
    _under_way: Counter[str] = field(default_factory=Counter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "lifespan":
            await self.application(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _head(scope) > LARGEST_HEAD:
            return await answer(send, Refusal(431, "the headers are too long\n"))
        if self.is_open(scope["method"], scope["path"]):
            return await self.application(scope, _again(b"", receive), _last(send))
        length = body_length(scope)
        if length is None or length > self.largest:
            return await answer(send, Refusal(413, "too large\n"))
        result = await asyncio.to_thread(self.proof, scope)
        if isinstance(result, Refusal):
            return await answer(send, result)
        guest: Guest | None = scope.get("state", {}).get(GUEST)
        if guest is not None:
            guest.prove(result.who)
        if self._under_way[result.who] + length > self.most_under_way:
            return await answer(send, Refusal(429, "too much at once\n"))
        self._under_way[result.who] += length
        try:
            body = await _whole(receive, length)
            if body is None or (result.digest is not None and await _digest(body) != result.digest):
                return await answer(send, Refusal(401, "this body is not the one that was signed\n"))
            await self.application(scope, _again(body, receive), send)
        finally:
            self._under_way[result.who] -= length
            self._under_way += Counter()  # drops who has nothing under way
        return None


@dataclass
class OpenCall:
    """An application of one call that is open to all: one short body, one answer, one connection.

    Attributes:
        path: to which the body is posted.
        largest: bytes of it; none that is longer, or announces no length, is read.
        call: from the body and its sender's address to the answer (JSON) or a refusal; it runs in a thread.
        most_under_way: calls at once; a fault that holds them up must not gather bodies.
    """

    path: str
    largest: int
    call: Callable[[bytes, str], bytes | Refusal]
    most_under_way: int = 128
    _under_way: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "http":
            await answer(send, await self._answer(scope, receive))

    async def _answer(self, scope: Scope, receive: Receive) -> bytes | Refusal:
        if _head(scope) > LARGEST_HEAD:
            return Refusal(431, "the headers are too long\n")
        if (scope["method"], scope["path"]) != ("POST", self.path):
            return Refusal(404, "not here\n")
        length = body_length(scope)
        if length is None or length > self.largest:
            return Refusal(413, "too large\n")
        body = await _whole(receive, length)
        if body is None:
            return Refusal(400, "this body is not as long as announced\n")
        return await self._called(body, scope["client"][0] if scope["client"] else "")

    async def _called(self, body: bytes, address: str) -> bytes | Refusal:
        if self._under_way >= self.most_under_way:
            return Refusal(503, "busy: try again later\n")
        self._under_way += 1
        try:
            return await asyncio.to_thread(self.call, body, address)
        finally:
            self._under_way -= 1


def body_length(scope: Scope) -> int | None:
    """The announced length of a body; None: it is not announced, or not once."""
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if len(lengths) == 1 and lengths[0].isdigit() else None


async def answer(send: Send, response: Refusal | bytes) -> None:
    """Answer a request, with JSON or a refusal, and end its connection."""
    if isinstance(response, bytes):
        status, kind, body = 200, "application/json", response
    else:
        status, kind, body = response.status, response.kind, response.text.encode()
    headers = [
        (b"content-type", kind.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _head(scope: Scope) -> int:
    sent = len(scope["raw_path"]) + len(scope["query_string"])
    return sent + sum(len(name) + len(value) for name, value in scope["headers"])


def _last(send: Send) -> Send:
    """The same, for the last answer on a connection."""

    async def close(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await send(message)

    return close


async def _whole(receive: Receive, length: int) -> bytes | None:
    """The body of a request; None if its sender went away or sent another length."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > length:
            return None
    return bytes(body) if len(body) == length else None


def _again(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then what comes after it."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Any:
        return unread.pop() if unread else await receive()

    return read


async def _digest(body: bytes) -> str:
    if len(body) < _IN_A_THREAD:
        return hashlib.sha256(body).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(body).hexdigest())
