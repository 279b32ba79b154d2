"""What a client accepts as an answer: from the address that it asked, as it is, and no longer than agreed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx

from fedpeft.flower.faults import UNACCEPTABLE
from fedpeft.flower.messages import LARGEST_MESSAGE

LARGEST_ANSWER = 2**24
"""Bytes of an answer that carries no part of a message."""
_PARTS = "/v1/fleet/pull-object"


def harden(client: Any) -> None:
    """Let a client of Flower follow no redirect, take no compressed answer and none that is too long.

    Flower's own follows redirects to any address, also in plain HTTP and with the signature of the request,
    and inflates what it is sent without a bound.
    """
    http: httpx.Client = client._client
    http.follow_redirects = False
    http.headers["accept-encoding"] = "identity"
    http.event_hooks = {"request": [], "response": [_accept]}


def _accept(response: httpx.Response) -> None:
    """Refuse an answer before its body is read, or bound what is read of it.

    Raises:
        httpx.RemoteProtocolError: it is compressed or too long, or sends elsewhere.
    """
    if response.status_code // 100 == 3:
        raise _refused(response, "sends elsewhere (a redirect), which is never followed")
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise _refused(response, "is compressed, which was not asked for")
    most = LARGEST_MESSAGE if response.request.url.path == _PARTS else LARGEST_ANSWER
    assert isinstance(response.stream, httpx.SyncByteStream)
    response.stream = _Bounded(response.stream, most)


def _refused(response: httpx.Response, cause: str) -> httpx.RemoteProtocolError:
    return httpx.RemoteProtocolError(f"{UNACCEPTABLE}{cause}", request=response.request)


class _Bounded(httpx.SyncByteStream):
    """A body that ends with an error when it becomes too long."""

    def __init__(self, stream: httpx.SyncByteStream, most: int) -> None:
        self._stream, self._left = stream, most

    def __iter__(self) -> Iterator[bytes]:
        for block in self._stream:
            self._left -= len(block)
            if self._left < 0:
                raise httpx.RemoteProtocolError(f"{UNACCEPTABLE}is too long")
            yield block

    def close(self) -> None:
        """Close the stream behind."""
        self._stream.close()
