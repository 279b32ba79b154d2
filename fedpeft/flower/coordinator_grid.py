"""The coordinator's calls while a run goes on: patient with its SuperLink, impatient with slow senders."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx
from flwr.app import Error, Message
from flwr.app.message import make_message
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from fedpeft.flower.faults import Fault, RunEnded
from fedpeft.flower.messages import APP_FAILED, LARGEST_MESSAGE, UNREADABLE, deserialise
from fedpeft.flower.superlink.message_parts import FRAMES, LARGEST_FRAME, most_parts, payload_bytes
from fedpeft.flower.superlink.superlink import SuperLink

LONGEST_OUTAGE = 300.0
"""Seconds that a ServerApp waits for its SuperLink to come back."""
_LONGEST_UPLOAD = 180.0
_LONGEST_PAUSE = 2
_PUSHES = 3
_ABANDONED = "UploadAbandoned"
_TURNS = 8
"""Parts of each reply that one call fetches; a small reply has fewer."""
_FINAL = frozenset({400, 401, 403, 404, 412, 413})


def patience(address: str, seconds: float = LONGEST_OUTAGE) -> RetryInvoker:
    """Calls again until the SuperLink on this machine answers; Flower's own would end the process on a 401.

    Raises (from the call):
        RunEnded: the SuperLink does not take the token: the Flower run is over.
        Fault: no answer for so many seconds.
    """

    def final(error: Exception) -> bool:
        if not isinstance(error, httpx.HTTPStatusError):
            return False
        if error.response.status_code in (401, 403):
            raise RunEnded(f"the SuperLink at {address} has ended this Flower run; start a new one")
        return error.response.status_code in _FINAL

    def give_up(state: Any) -> None:
        if not isinstance(state.exception, httpx.HTTPStatusError) or not final(state.exception):
            raise Fault(f"the SuperLink at {address} has not answered for {seconds:.0f} s")

    return RetryInvoker(
        lambda: exponential(0.1, 2, _LONGEST_PAUSE),
        (httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=seconds,
        on_giveup=give_up,
        should_giveup=final,
    )


@dataclass
class _Reply:
    """A reply whose parts are still to be fetched."""

    proto: Any
    wanted: list[str]
    since: float = field(default_factory=time.monotonic)
    parts: dict[str, bytes] = field(default_factory=dict[str, bytes])

    @property
    def fresh(self) -> bool:
        """Whether its sender may still be sending."""
        return time.monotonic() - self.since < _LONGEST_UPLOAD

    @property
    def whole(self) -> bool:
        """Whether nothing is left to fetch."""
        return len(self.parts) == len(self.wanted)


class PatientGrid(HttpGrid):
    """Flower's grid that survives a restart of its SuperLink and that no sender can hold up or break.

    Flower's own waits up to 180 s for the parts of a reply that was announced; this one returns what is
    whole and looks again at the next call. Replies are fetched in turns, one part of each, so that a reply of
    many parts delays itself and no other. A reply that cannot be read, or whose parts or bytes are more than
    the largest payload needs, becomes an error reply before anything is made of it. Replies that come when
    nobody asks for them any more are freed, unread.

    Attributes:
        largest: bytes that the payload of a reply may have.
        busy: whether the last call left something that the next can fetch at once.
    """

    def __init__(self, link: SuperLink, token: str) -> None:
        super().__init__(link.address, insecure=True, token=token)
        self._signing = link.signing
        self._retry_invoker = patience(link.address)
        self._replies: dict[str, _Reply] = {}
        self._unanswered: set[str] = set()
        self.largest = LARGEST_MESSAGE
        self.busy = False

    @property
    def client(self) -> RuntimeHttpClient:
        """The calls of the Runtime API, each tried again until the SuperLink answers."""
        return self._runtime_client

    def _connect(self) -> None:
        super()._connect()
        assert self._client is not None
        self._client._interceptors += (self._signing,)  # pyright: ignore[reportPrivateUsage]

    def impatient(self) -> RuntimeHttpClient:
        """The same calls, tried once; to be closed by the caller."""
        interceptors = [
            RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
            RuntimeTokenHttpInterceptor(token=self._token),
            self._signing,
        ]
        return RuntimeHttpClient.from_server_address(self._addr, True, None, interceptors)

    def hurry(self, seconds: float) -> None:
        """From now on give a call up after some seconds."""
        self._retry_invoker.max_time = seconds

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; their ids, empty for a node that is gone.

        Raises:
            Fault: the SuperLink does not take them.
        """
        queued = list(messages)
        for _ in range(_PUSHES):
            try:
                return self._sent(queued)
            except ObjectPushError:
                continue
        raise Fault(f"the SuperLink at {self._addr} does not take the parts of a message")

    def _sent(self, messages: list[Message]) -> list[str]:
        keys = list(super().push_messages(messages))
        self._unanswered |= set(keys) - {""}
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are whole; never waits for the rest of one."""
        asked = set(message_ids)
        for key in self._replies.keys() - asked:
            self._confirm(self._replies.pop(key).proto.metadata.message_id)
        if new := (asked | self._unanswered) - self._replies.keys():
            self._announce(new, asked)
        done: list[Message] = []
        self.busy, turns = True, 0
        while self.busy and turns < _TURNS:
            before = self._fetched
            done += [reply for key in sorted(self._replies) if (reply := self._turn(key)) is not None]
            self.busy, turns = bool(self._replies) and self._fetched != before, turns + 1
        return done

    @property
    def _fetched(self) -> tuple[int, int]:
        return len(self._replies), sum(len(reply.parts) for reply in self._replies.values())

    def _announce(self, message_ids: set[str], asked: set[str]) -> None:
        """Learn which replies there are; those that nobody asks for any more are freed."""
        answer = self.client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            key = proto.metadata.reply_to_message_id
            self._unanswered.discard(key)
            if key in asked:
                wanted = [node.object_id for node in iterate_object_tree(tree)]
                self._replies[key] = _Reply(proto, list(dict.fromkeys(wanted)))
            else:
                self._confirm(proto.metadata.message_id)

    def _turn(self, key: str) -> Message | None:
        """Fetch one part of a reply: the reply if that was the last, an error reply if it never will be."""
        reply = self._replies[key]
        cause = "MessageTooLong" if len(reply.wanted) > most_parts(self.largest) else self._fetch(reply)
        if cause is None and not reply.whole:
            return None
        del self._replies[key]
        self._confirm(reply.proto.metadata.message_id)
        try:
            return self._read(reply) if cause is None else _unreadable(reply, cause)
        except Exception:
            return _unreadable(reply, "MalformedMessage")

    def _fetch(self, reply: _Reply) -> str | None:
        """Take the next part if it is there; why the rest will never come."""
        key = next((key for key in reply.wanted if key not in reply.parts), None)
        if key is None:
            return None
        request = PullObjectRequest(node=self.node, run_id=self.run.run_id, object_id=key)
        answer = self.client.PullObject(request)
        if answer.object_found and answer.object_available:
            reply.parts[key] = answer.object_content
            size = sum(map(len, reply.parts.values()))
            return "MessageTooLong" if size > self.largest + FRAMES * LARGEST_FRAME else None
        return None if answer.object_found and reply.fresh else _ABANDONED

    def _read(self, reply: _Reply) -> Message:
        """The reply under the header that the SuperLink has checked, not the one that its sender wrote."""
        name = reply.proto.metadata.message_id
        if payload_bytes(name, reply.parts) > self.largest:
            return _unreadable(reply, "MessageTooLong")
        message = deserialise(name, reply.parts)
        message.__dict__["_metadata"] = metadata_from_proto(reply.proto.metadata)
        return message

    def _confirm(self, message_id: str) -> None:
        request = ConfirmMessageReceivedRequest(
            node=self.node, run_id=self.run.run_id, message_object_id=message_id
        )
        self.client.ConfirmMessageReceived(request)


def _unreadable(reply: _Reply, cause: str) -> Message:
    """An error in place of a reply that never comes, or that is as no honest node makes it."""
    code = UNREADABLE if cause == _ABANDONED else APP_FAILED
    error = Error(code=code, reason=cause)
    return make_message(metadata=metadata_from_proto(reply.proto.metadata), error=error)
