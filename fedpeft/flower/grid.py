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
from fedpeft.flower.messages import LARGEST_MESSAGE, UNREADABLE, deserialise

LONGEST_OUTAGE = 300.0
"""Seconds that a ServerApp waits for its SuperLink to come back."""
_LONGEST_UPLOAD = 180.0
_LONGEST_PAUSE = 2
_PUSHES = 3
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
class _Upload:
    """A reply whose parts are still coming in."""

    proto: Any
    wanted: list[str]
    since: float = field(default_factory=time.monotonic)
    parts: dict[str, bytes] = field(default_factory=dict[str, bytes])

    @property
    def fresh(self) -> bool:
        """Whether its sender may still be sending."""
        return time.monotonic() - self.since < _LONGEST_UPLOAD


class PatientGrid(HttpGrid):
    """Flower's grid that survives a restart of its SuperLink and that no sender can hold up or break.

    Flower's own waits up to 180 s for the parts of a reply that was announced; this one returns what is
    whole and looks again at the next call. A reply that cannot be read becomes an error reply.
    """

    def __init__(self, address: str, token: str) -> None:
        super().__init__(address, insecure=True, token=token)
        self._retry_invoker = patience(address)
        self._uploads: dict[str, _Upload] = {}

    @property
    def client(self) -> RuntimeHttpClient:
        """The calls of the Runtime API, each tried again until the SuperLink answers."""
        return self._runtime_client

    def impatient(self) -> RuntimeHttpClient:
        """The same calls, tried once; to be closed by the caller."""
        interceptors = [
            RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
            RuntimeTokenHttpInterceptor(token=self._token),
        ]
        return RuntimeHttpClient.from_server_address(self._addr, True, None, interceptors)

    def hurry(self, seconds: float) -> None:
        """From now on give a call up after some seconds."""
        self._retry_invoker.max_time = seconds

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; their ids, empty for a node that is gone."""
        queued = list(messages)
        for _ in range(_PUSHES - 1):
            try:
                return super().push_messages(queued)
            except ObjectPushError:
                continue
        return super().push_messages(queued)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are whole; never waits for the rest of one."""
        asked = set(message_ids)
        self._uploads = {key: upload for key, upload in self._uploads.items() if key in asked or upload.fresh}
        if new := asked - self._uploads.keys():
            self._announce(new)
        whole = [self._complete(key, self._uploads[key]) for key in sorted(asked & self._uploads.keys())]
        return [message for message in whole if message is not None]

    def _announce(self, message_ids: set[str]) -> None:
        answer = self.client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            wanted = [node.object_id for node in iterate_object_tree(tree)]
            self._uploads[proto.metadata.reply_to_message_id] = _Upload(proto, wanted)

    def _complete(self, asked_id: str, upload: _Upload) -> Message | None:
        """The reply if all of it is here, an error reply if it never will be."""
        cause = self._fetch(upload)
        if cause is None and len(upload.parts) < len(set(upload.wanted)):
            return None
        del self._uploads[asked_id]
        if cause is None:
            self._confirm(upload.proto.metadata.message_id)
            try:
                return _vouched(upload)
            except Exception:
                cause = "MalformedMessage"
        return make_message(
            metadata=metadata_from_proto(upload.proto.metadata), error=Error(code=UNREADABLE, reason=cause)
        )

    def _fetch(self, upload: _Upload) -> str | None:
        """Take the parts that are there; why the rest will never come."""
        for key in upload.wanted:
            if key in upload.parts:
                continue
            request = PullObjectRequest(node=self.node, run_id=self.run.run_id, object_id=key)
            answer = self.client.PullObject(request)
            if not answer.object_found:
                return "UploadAbandoned"
            if not answer.object_available:
                return None if upload.fresh else "UploadAbandoned"
            upload.parts[key] = answer.object_content
            if sum(map(len, upload.parts.values())) > LARGEST_MESSAGE:
                return "MessageTooLong"
        return None

    def _confirm(self, message_id: str) -> None:
        request = ConfirmMessageReceivedRequest(
            node=self.node, run_id=self.run.run_id, message_object_id=message_id
        )
        self.client.ConfirmMessageReceived(request)


def _vouched(upload: _Upload) -> Message:
    """The reply under the header that the SuperLink has checked; the header inside is the sender's word."""
    message = deserialise(upload.proto.metadata.message_id, upload.parts)
    message.__dict__["_metadata"] = metadata_from_proto(upload.proto.metadata)
    return message
