"""What an outsider may reach of a SuperLink: the Fleet API, its health, and its authority's certificate."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

Handout = Callable[[int, str], bool]
"""Whether the node with a key, an OpenSSH public line, may have the app bundle of a Flower run."""

FLEET = "/v1/fleet/"
BUNDLE = "/v1/fleet/get-fab"
HEALTH = "/health"
AUTHORITY = "/ca.crt"
LARGEST_BODY = 2**24
"""Bytes of one request; Flower's largest, one part of a reply, is about 5 MiB."""


def nobody(run: int, key: str) -> bool:
    """No node gets a bundle: fedpeft's own never ask for it."""
    return False


def public_only(application: Application, ca: Path, handout: Handout = nobody) -> Application:
    """The application without what only its own machine may use: Control and Runtime API, pages, sockets.

    Args:
        application: Flower's.
        ca: the authority's certificate.
        handout: asked of each node that has proved its key and wants the app bundle, to run what is in it.
    """

    async def outside(scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope.get("path", ""), scope.get("method", "")
        if scope["type"] != "http":
            return
        if path == AUTHORITY and method == "GET":
            await _answer(send, 200, ca.read_bytes())
        elif path == HEALTH and method == "GET":
            await application(scope, receive, send)
        elif is_fleet_call(method, path):
            if path == BUNDLE:
                await _hand_out(application, handout, scope, receive, send)
            else:
                await application(scope, receive, send)
        else:
            await _answer(send, 404, b"not here\n")

    return outside


async def _hand_out(
    application: Application, handout: Handout, scope: Scope, receive: Receive, send: Send
) -> None:
    """Let Flower answer who asks for the bundle, and hold that back from a node that may not have it."""
    body, answer = await _whole(receive), list[Any]()
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return unread.pop() if unread else await receive()

    async def keep(message: Any) -> None:
        answer.append(message)

    await application(scope, again, keep)
    succeeded = answer and answer[0]["status"] == 200
    if succeeded and not await asyncio.to_thread(handout, *_who(scope, body)):
        return await _answer(send, 403, b"this run is for nodes that bring their own code\n")
    for message in answer:
        await send(message)


async def _whole(receive: Receive) -> bytes:
    """The body of a request."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


def _who(scope: Scope, body: bytes) -> tuple[int, str]:
    """The run and the key of a request that Flower has found good."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
    from flwr.proto.fab_pb2 import GetFabRequest
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

    sent = dict(scope["headers"])[FLEET_HTTP_PUBLIC_KEY_HEADER.encode()]
    key = load_pem_public_key(base64.b64decode(sent))
    line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return int(GetFabRequest.FromString(body).run_id), line


def is_fleet_call(method: str, path: str) -> bool:
    """Whether a request is one of the Fleet API's calls, which are for enrolled nodes."""
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

    return path.startswith(FLEET) and (method, path) in PROTOBUF_REQUEST_TYPES


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
