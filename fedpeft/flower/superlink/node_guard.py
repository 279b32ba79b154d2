"""What a node that has proved its key may do at a SuperLink: answer what it was asked, as itself.

Flower's Fleet API checks who calls, but not what the call says: a node may put a message into any queue in
any name, preregister names of parts that others will need, store what nobody asked for, and read or delete
parts of others. This guard stands behind Flower's own check of the signature and before its handlers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from starlette.concurrency import run_in_threadpool

from fedpeft.flower.superlink.message_parts import KINDS, BadPart, places, read_part
from fedpeft.flower.superlink.uploads import OverQuota, Quota, Shelf, Upload, Uploads

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send

COORDINATOR = 1
"""Number of the SuperLink, from which orders come and to which replies go."""
LONGEST_HEADER = 2**14
"""Bytes of a reply's header; an error's text is part of it."""
UPLOADS = "uploads"
LANES = 4
"""Calls of one node that are worked on at a time; a node of ours makes three."""
PENALTY = 1.0
"""Seconds until a call that does nothing for a round is answered."""
_FLEET = "/v1/fleet/"
_COPIED = ("run_id", "src_node_id", "dst_node_id", "reply_to_message_id", "group_id", "message_type")


class Refused(Exception):
    """A call that no honest node makes, or that is too large; the HTTP status and one plain line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class _Useless(Exception):
    """A call that an honest node makes now and then, too late; it is answered as if all were well."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer


def guard(application: FastAPI, folder: Path, quota: Quota) -> None:
    """Bind what nodes may do at a SuperLink with node authentication; to be called before it serves.

    Args:
        application: Flower's.
        folder: where replies lie until they are whole.
        quota: of each node.
    """
    from starlette.middleware import Middleware

    counter = _Counter(application, folder / UPLOADS, quota)
    application.user_middleware.append(Middleware(_Guarded, handlers=counter.handlers()))


class _Guarded:
    """Answers the calls that it has handlers for, in Flower's way; all others pass.

    Each node has the same few calls worked on at a time, and one that does nothing for a round takes its
    sender a while, so no node takes more than its share of the link's work.
    """

    def __init__(self, app: ASGIApp, handlers: dict[str, Callable[[Any], Any]]) -> None:
        self._app, self._handlers = app, handlers
        self._lanes: dict[int, asyncio.Semaphore] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = scope.get("state", {}).get("protobuf_request")
        if request is None or not scope["path"].startswith(_FLEET) or not hasattr(request, "node"):
            return await self._app(scope, receive, send)
        async with self._lanes.setdefault(request.node.node_id, asyncio.Semaphore(LANES)):
            await self._work(request, scope, receive, send)

    async def _work(self, request: Any, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["path"])
        if handler is None:
            return await self._app(scope, receive, send)
        try:
            answer = await run_in_threadpool(handler, request)
        except Refused as refusal:
            await asyncio.sleep(PENALTY)
            return await _send(send, refusal.status, json.dumps({"detail": str(refusal)}).encode())
        except _Useless as useless:
            await asyncio.sleep(PENALTY)
            answer = useless.answer
        if answer is None:
            return await self._app(scope, receive, send)
        scope["state"]["protobuf_response"] = answer
        await _send(send, 200, b"")


class _Counter:
    """The guarded calls; each is given a request whose sender has proved that it is ``request.node``."""

    def __init__(self, application: FastAPI, folder: Path, quota: Quota) -> None:
        self._state: Any = application.state.linkstate_factory.state()
        store = self._state.object_store
        shelf = Shelf(lambda order: self._order(order) is not None, lambda root: root in store)
        self._uploads = Uploads(folder, quota, shelf)

    def handlers(self) -> dict[str, Callable[[Any], Any]]:
        """By path: a response of Flower's, or None to let Flower answer."""
        return {
            f"{_FLEET}push-messages": self.announce,
            f"{_FLEET}push-object": self.take,
            f"{_FLEET}pull-object": self.read,
            f"{_FLEET}confirm-message-received": self.confirm,
        }

    def announce(self, request: Any) -> Any:
        """Expect the parts of a reply to a message that the caller was handed and has not answered."""
        from flwr.proto.fleet_pb2 import PushMessagesResponse, Reconnect

        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise Refused(400, "one reply at a time")
        header, tree, node = request.messages_list[0], request.message_object_trees[0], request.node.node_id
        metadata = header.metadata
        nothing = PushMessagesResponse(reconnect=Reconnect(reconnect=5), results={metadata.message_id: 0})
        order = self._order(metadata.reply_to_message_id)
        if order is None or self._uploads.answered(node, metadata.reply_to_message_id):
            raise _Useless(nothing)
        _check_header(header, order, node)
        if metadata.message_id != tree.object_id:
            raise Refused(400, "a reply has the name of its first part")
        try:
            parts = places(tree, self._uploads.quota.parts)
            upload = Upload(node, metadata.reply_to_message_id, header, tree, parts, Path())
            session = self._uploads.begin(upload)
        except BadPart as error:
            raise Refused(400, str(error)) from None
        except OverQuota as error:
            raise Refused(413, str(error)) from None
        nothing.objects_to_push.extend(parts)
        nothing.session_id = session
        return nothing

    def take(self, request: Any) -> Any:
        """Keep a part that the caller has announced; with the last one the reply becomes Flower's."""
        from flwr.proto.message_pb2 import PushObjectResponse

        node, session, name = request.node.node_id, request.session_id, request.object_id
        try:
            whole = self._uploads.put(node, session, name, request.object_content)
        except KeyError:
            raise _Useless(PushObjectResponse(stored=False)) from None
        except BadPart as error:
            raise Refused(400, str(error)) from None
        except OverQuota as error:
            raise Refused(413, str(error)) from None
        if whole is not None:
            self._hand_on(whole)
        return PushObjectResponse(stored=True)

    def read(self, request: Any) -> Any:
        """Let the caller read parts of what it was asked, and nothing of anybody else's."""
        from flwr.proto.message_pb2 import PullObjectResponse

        if self._is_asked_of(request.node.node_id, request.object_id):
            return None
        raise _Useless(PullObjectResponse(object_found=False, object_available=False))

    def confirm(self, request: Any) -> Any:
        """Let the caller free a message that it was handed, once it is whole, and nobody else's.

        The coordinator is still sending the parts of one that is not, and would find that they have no place.
        """
        from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse
        from flwr.supercore.utils import int64_to_uint64

        order = self._order(request.message_object_id)
        mine = order is not None and int64_to_uint64(order["dst_node_id"]) == request.node.node_id
        if not mine or not self._is_whole(request.message_object_id):
            raise _Useless(ConfirmMessageReceivedResponse())

    def _hand_on(self, upload: Upload) -> None:
        """Give a whole reply to Flower: every name in its store comes with its content."""
        from flwr.common.serde import message_from_proto

        complete = False
        try:
            _check_first(upload)
            message, run = message_from_proto(upload.header), upload.header.metadata.run_id
            session = self._state.start_session(run)
            accepted, missing = self._state.store_message_and_object_tree(message, upload.tree, session)
            for name in missing:
                if not self._state.store_object(run, session, name, upload.part(name)):
                    raise Refused(503, "a part of the reply could not be stored; send it again")
            complete = accepted  # only now: a node whose reply is half stored must be asked for it again
        finally:
            self._uploads.end(upload, complete)

    def _order(self, name: str) -> dict[str, Any] | None:
        """A message that waits for its reply."""
        return cast("dict[str, Any] | None", self._state.get_valid_message_ins(name)) if name else None

    def _is_whole(self, root: str) -> bool:
        """Whether all parts of a message are here."""
        from flwr.supercore.state.schema.objectstore_models import ObjectChild, StoredObject
        from sqlalchemy import select

        lacking = select(StoredObject.object_id).where(StoredObject.is_available == 0)
        names = {root}
        with self._state.session() as session:
            for _ in KINDS:
                if session.scalar(lacking.where(StoredObject.object_id.in_(names)).limit(1)):
                    return False
                names = set(
                    session.scalars(select(ObjectChild.child_id).where(ObjectChild.parent_id.in_(names)))
                )
        return True

    def _is_asked_of(self, node: int, name: str) -> bool:
        """Whether a part belongs to a message for the node, by way of the parts that contain it."""
        from flwr.supercore.state.schema.linkstate_models import MessageIns
        from flwr.supercore.state.schema.objectstore_models import ObjectChild
        from flwr.supercore.utils import uint64_to_int64
        from sqlalchemy import select

        mine = select(MessageIns.message_id).where(MessageIns.dst_node_id == uint64_to_int64(node))
        names = {name}
        with self._state.session() as session:
            for _ in KINDS:
                if session.scalar(mine.where(MessageIns.message_id.in_(names)).limit(1)):
                    return True
                above = select(ObjectChild.parent_id).where(ObjectChild.child_id.in_(names))
                names = set(session.scalars(above))
        return False


def _check_header(header: Any, order: dict[str, Any], node: int) -> None:
    """See that a reply is the caller's own, to a message that it was handed, and says nothing at odds."""
    from flwr.supercore.utils import int64_to_uint64

    metadata = header.metadata
    expected = (
        int64_to_uint64(order["run_id"]),
        int64_to_uint64(order["dst_node_id"]),
        COORDINATOR,
        order["message_id"],
        order["group_id"],
        order["message_type"],
    )
    if node != expected[1] or not order["delivered_at"]:
        raise Refused(403, "a node answers only what it was asked")
    if tuple(getattr(metadata, name) for name in _COPIED) != expected:
        raise Refused(403, "a reply is valid for its sender and for the message that it answers only")
    if header.content.ByteSize():
        raise Refused(400, "a reply's content comes in parts, not with its header")
    if header.ByteSize() > LONGEST_HEADER:
        raise Refused(413, f"a reply's header has at most {LONGEST_HEADER} bytes")


def _check_first(upload: Upload) -> None:
    """See that a reply says inside what its header says: its name is then no other message's."""
    from flwr.proto.message_pb2 import Message as Header
    from google.protobuf.message import DecodeError

    content = upload.part(upload.tree.object_id)
    try:
        inside = Header.FromString(content[read_part(content).body :]).metadata
    except DecodeError:
        raise Refused(400, "the first part of a reply cannot be read") from None
    outside = upload.header.metadata
    if any(getattr(inside, name) != getattr(outside, name) for name in _COPIED):
        raise Refused(403, "a reply says another thing inside than in its header")


async def _send(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
