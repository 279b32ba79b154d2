"""Nodes in this process."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from fedpeft.flower.messages import EXPIRED, deserialise, error_reply, guarded, identify, serialise
from fedpeft.progress_reports import at


class LocalGrid(Grid):
    """A grid whose nodes are in this process and answer one after the other.

    Every message is serialised and read back, so that nothing works here that would not cross a network.
    One worker thread serves all nodes: they share one base.
    """

    sequential = True

    def __init__(self, app: ClientApp, node_configs: Iterable[Mapping[str, Any]], run_id: int = 1) -> None:
        self._app, self._run_id = app, run_id
        self._contexts = {
            1000 + index: Context(run_id, 1000 + index, dict(node), RecordDict(), {})
            for index, node in enumerate(node_configs)
        }
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="fedpeft-nodes")
        self._pending: dict[str, concurrent.futures.Future[Message]] = {}
        self._pushed = 0
        identify(run_id, 1)

    def set_run(self, run: Run) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Run:
        """The one run."""
        return Run.create_empty(self._run_id)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes: they are always online."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; their ids."""
        batch = list(messages)
        return [self._push(message, place, len(batch)) for place, message in enumerate(batch)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there."""
        done = [key for key in message_ids if key in self._pending and self._pending[key].done()]
        return [self._pending.pop(key).result() for key in done]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Queue messages and wait for the replies."""
        keys = list(self.push_messages(messages))
        concurrent.futures.wait([self._pending[key] for key in keys], timeout=timeout)
        return self.pull_messages(keys)

    def wait(self, message_ids: Iterable[str], seconds: float) -> None:
        """Sleep until one of these replies is there, at most some seconds; a network can only be polled."""
        pending = [self._pending[key] for key in message_ids if key in self._pending]
        concurrent.futures.wait(pending, seconds, concurrent.futures.FIRST_COMPLETED)

    def close(self) -> None:
        """Drop what is still queued."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _push(self, message: Message, place: int, total: int) -> str:
        _, objects = serialise(message)
        self._pushed += 1
        key = f"local-{self._pushed}"
        self._pending[key] = self._pool.submit(self._turn, key, message.object_id, objects, (place, total))
        return key

    def _turn(self, key: str, object_id: str, objects: dict[str, bytes], turn: tuple[int, int]) -> Message:
        place, total = turn
        at("node", place, total)
        reply = self._answer(key, object_id, objects)
        at("node", place + 1, total)
        return reply

    def _answer(self, key: str, object_id: str, objects: dict[str, bytes]) -> Message:
        message = deserialise(object_id, objects)
        message.metadata.__dict__["_message_id"] = key
        if time.time() > message.metadata.created_at + message.metadata.ttl:
            return error_reply(message, EXPIRED, "expired")
        reply = guarded(self._app, message, self._contexts[message.metadata.dst_node_id])
        return deserialise(*serialise(reply))


def run_local(
    server_app: ServerApp,
    client_app: ClientApp,
    node_configs: Iterable[Mapping[str, Any]],
    config: Mapping[str, Any],
) -> None:
    """Run both apps in this process; an error of the ServerApp is raised as it is."""
    grid = LocalGrid(client_app, node_configs)
    try:
        server_app(grid=grid, context=Context(1, 0, {}, RecordDict(), dict(config)))
    finally:
        grid.close()
