"""The node's side of a deployment: Flower's Fleet API, spoken by a process that runs only its own app."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable import inflatable_object, inflatable_utils

from fedpeft.flower.messages import REFUSED, deserialise, error_reply, guarded, identify


def serve_node(
    address: str,
    app: ClientApp,
    node_config: Mapping[str, Any],
    allowed: frozenset[str],
    root_certificates: bytes | None = None,
    poll: float = 0.1,
) -> None:
    """Answer a SuperLink's messages with this process' own ClientApp until the process is ended.

    The app bundle of the run is never downloaded: its hash is compared with ``allowed`` and the local app
    is run, warm, in this process. Errors leave as the name of their class only.
    """
    from flwr.supercore.run import RunNotRunningException
    from flwr.supernode.fleet_http_connection import http_request_response

    with http_request_response(address, root_certificates is None, root_certificates) as link:
        node_id, receive = link[0], link[1]
        while True:
            if (received := receive()) is None:
                time.sleep(poll)
                continue
            try:
                _serve_one(_Fleet(node_id, *link[2:]), received, (app, dict(node_config)), allowed)
            except RunNotRunningException:
                continue


@dataclass(frozen=True)
class _Fleet:
    """What Flower's Fleet connection offers a node, in its order."""

    node_id: int
    send: Callable[..., Any]
    get_run: Callable[[int], Any]
    get_fab: Callable[..., Any]
    pull: Callable[[int, str], bytes]
    push: Callable[[int, str, str, bytes], None]
    confirm: Callable[[int, str], None]


def _serve_one(
    fleet: _Fleet,
    received: tuple[Message, Any],
    local: tuple[ClientApp, dict[str, Any]],
    allowed: frozenset[str],
) -> None:
    started, (header, tree) = time.monotonic(), received
    run_id, message_id = header.metadata.run_id, header.metadata.message_id
    wanted = [node.object_id for node in inflatable_object.iterate_object_tree(tree)]
    objects = inflatable_utils.pull_objects(wanted, lambda key: fleet.pull(run_id, key))
    fleet.confirm(run_id, message_id)
    message = deserialise(message_id, objects)
    identify(run_id, fleet.node_id)
    if fleet.get_run(run_id).fab_hash in allowed:
        reply = guarded(local[0], message, Context(run_id, fleet.node_id, local[1], RecordDict(), {}))
    else:
        reply = error_reply(message, REFUSED, "AppNotAllowed")
    _send(fleet, run_id, reply, time.monotonic() - started)


def _send(fleet: _Fleet, run_id: int, reply: Message, seconds: float) -> None:
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with inflatable_object.no_object_id_recompute():
        tree = inflatable_object.get_object_tree(reply)
        nested = inflatable_object.get_all_nested_objects(reply)
        needed, session = fleet.send(reply, tree, seconds)
        inflatable_utils.push_object_contents_from_iterable(
            ((key, nested[key].deflate()) for key in nested if key in needed),
            lambda key, content: fleet.push(run_id, session, key, content),
        )
