"""What an outsider may reach of a SuperLink: the Fleet API, its health, and its authority's certificate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET = "/v1/fleet/"
HEALTH = "/health"
AUTHORITY = "/ca.crt"
LARGEST_BODY = 2**24
"""Bytes of one request. Flower reads a request before it looks at its signature; its largest, one part of a
reply, is about 5 MiB."""


def fenced(application: Application, ca: Path) -> Application:
    """The application without what only its own machine may use: Control and Runtime API, pages, sockets."""

    async def outside(scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope.get("path", ""), scope.get("method", "")
        if scope["type"] != "http":
            return
        if path == AUTHORITY and method == "GET":
            await _answer(send, 200, ca.read_bytes())
        elif path == HEALTH and method == "GET":
            await application(scope, receive, send)
        elif path.startswith(FLEET) and method == "POST":
            if _length(scope) > LARGEST_BODY:
                await _answer(send, 413, b"too large\n")
            else:
                await application(scope, receive, send)
        else:
            await _answer(send, 404, b"not here\n")

    return outside


def _length(scope: Scope) -> int:
    """The announced length of a body; none announced counts as too long."""
    announced = dict(scope["headers"]).get(b"content-length", b"")
    return int(announced) if announced.isdigit() else LARGEST_BODY + 1


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
