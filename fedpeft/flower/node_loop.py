"""The node's side of a deployment: one process that runs only its own app and heals from every fault."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, Unpack

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedpeft.errors import FedPeftError
from fedpeft.flower.faults import Fault, RunEnded
from fedpeft.flower.fleet import Arrival, Connection, Fleet, Outgoing
from fedpeft.flower.heartbeat import Pulse, watched
from fedpeft.flower.messages import APP_FAILED, REFUSED, deserialise, error_reply, guarded, identify

Gate = Callable[[Message, Message], Message]
"""(what was asked, the reply) -> what leaves instead; called for every reply, errors included."""
LONGEST_PAUSE = 20.0
_FIRST_PAUSE = 0.25
_BEAT_SECONDS = 10.0


class Around(TypedDict, total=False):
    """What `serve_node` may be given besides: the gate, an event that ends it, where its lines go."""

    gate: Gate | None
    stop: threading.Event | None
    emit: Callable[[str], None]


def serve_node(
    connection: Connection,
    app: ClientApp,
    node_config: Mapping[str, Any],
    allowed: frozenset[str],
    **around: Unpack[Around],
) -> None:
    """Answer a SuperLink's messages with this process' own ClientApp until ``stop`` is set.

    No fault of the network or of the SuperLink ends it: it connects again after a pause of at most 20 s and
    emits each change of state as one line. A reply that is ready is kept and sent again, the same
    bytes, until the SuperLink has it or the run is over. The app bundle of a run is never downloaded: its
    hash is compared with ``allowed``. Errors leave as the name of their class only.

    ``stop`` is looked at between messages; a signal handler that raises `SystemExit` ends the call at once.
    Either way the node signs off at the coordinator. An app that works longer than
    ``connection.longest_step`` on one message ends the process with exit code 75. A gate that raises turns
    the reply into an error that names the class of what it raised, which passes the gate too; if that
    raises again, nothing leaves.

    Raises:
        ConfigError: the key or the certificates cannot be read.
    """
    fleet = Fleet(connection)
    work = _MessageInProgress(fleet, app, node_config, allowed, around.get("gate") or _open)
    stop, emit = around.get("stop") or threading.Event(), _Changes(around.get("emit", _print))
    pulse = Pulse(fleet.beat, _BEAT_SECONDS)
    try:
        _serve(work, connection, stop, emit)
    finally:
        pulse.end()
        fleet.close()


def _open(asked: Message, reply: Message) -> Message:
    return reply


def _print(line: str) -> None:
    print(f"fedpeft node: {line}", file=sys.stderr, flush=True)


class _Changes:
    """Passes on a line that differs from the one before."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit, self._last = emit, ""

    def __call__(self, line: str) -> None:
        if line != self._last:
            self._last = line
            self._emit(line)


def _serve(work: _MessageInProgress, connection: Connection, stop: threading.Event, emit: _Changes) -> None:
    pause = _FIRST_PAUSE
    while not stop.is_set():
        try:
            work.fleet.open()
            while not stop.is_set():
                worked = work.step(connection.longest_step, emit)
                emit(f"connected to {connection.address}")
                pause = _FIRST_PAUSE
                if not worked:
                    stop.wait(connection.poll)
        except Fault as fault:
            emit(str(fault))
            stop.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)


class _MessageInProgress:
    """What one node has in hand: at most one message, then its reply. A fault leaves it where it was."""

    def __init__(
        self,
        fleet: Fleet,
        app: ClientApp,
        node_config: Mapping[str, Any],
        allowed: frozenset[str],
        gate: Gate,
    ) -> None:
        self.fleet = fleet
        self._app, self._node_config, self._allowed, self._gate = app, dict(node_config), allowed, gate
        self._arrival: Arrival | None = None
        self._reply: Outgoing | None = None

    def step(self, longest: float | None, emit: Callable[[str], None]) -> bool:
        """Go on with what is in hand, or take the next message; whether there was any.

        Raises:
            Fault: call again once the SuperLink answers.
        """
        self._arrival = self._arrival or self.fleet.receive()
        if self._arrival is None:
            return False
        try:
            self._reply = self._reply or self._answer(self._arrival, longest, emit)
            if self._reply is not None:
                self.fleet.push(self._reply)
        except RunEnded:
            pass
        self._arrival = self._reply = None
        return True

    def _answer(
        self, arrival: Arrival, longest: float | None, emit: Callable[[str], None]
    ) -> Outgoing | None:
        digest = self.fleet.app_hash(arrival.run_id)
        objects = self.fleet.fetch(arrival)
        started = time.monotonic()
        identify(arrival.run_id, self.fleet.node_id)
        with watched(longest, lambda: self._give_up(longest, emit)):
            reply = self._passed(*self._worked(arrival, objects, digest), emit)
            return None if reply is None else _packed(arrival, reply, time.monotonic() - started)

    def _worked(self, arrival: Arrival, objects: dict[str, bytes], digest: str) -> tuple[Message, Message]:
        """What was asked, and the app's reply."""
        header = arrival.header
        try:
            asked = deserialise(header.metadata.message_id, objects)
        except Exception:
            return header, error_reply(header, APP_FAILED, "MalformedMessage")
        asked = _localised(asked)
        if digest not in self._allowed:
            return asked, error_reply(asked, REFUSED, "AppNotAllowed")
        context = Context(arrival.run_id, self.fleet.node_id, self._node_config, RecordDict(), {})
        return asked, guarded(self._app, asked, context)

    def _passed(self, asked: Message, reply: Message, emit: Callable[[str], None]) -> Message | None:
        """What the gate lets out of a reply; if it fails, of an error that says so; then nothing."""
        try:
            return self._gate(asked, reply)
        except Exception as error:
            why = str(error) if isinstance(error, FedPeftError | OSError) else ""
            emit(f"a reply was held back ({type(error).__name__}): {why}".rstrip(": "))
            plain = error_reply(asked, APP_FAILED, type(error).__name__)
        try:
            return self._gate(asked, plain)
        except Exception:
            return None

    def _give_up(self, longest: float | None, emit: Callable[[str], None]) -> None:
        emit(f"a step took longer than {longest} s; this process ends so that it can be started again")
        self.fleet.close()


def _localised(message: Message) -> Message:
    """The message dated by this machine's clock, as if made now: no skew makes it look expired."""
    message.metadata.__dict__["_created_at"] = time.time()
    return message


def _packed(arrival: Arrival, reply: Message, seconds: float) -> Outgoing:
    """The reply in Flower's form, dated by the coordinator's clock."""
    from flwr.app.message import remove_content_from_message
    from flwr.common.serde import message_to_proto
    from flwr.supercore.inflatable import inflatable_object

    asked, facts = arrival.header.metadata, reply.metadata.__dict__
    facts["_created_at"] = asked.created_at
    facts["_ttl"] = asked.ttl
    with inflatable_object.no_object_id_recompute():
        facts["_message_id"] = reply.object_id
        nested = inflatable_object.get_all_nested_objects(reply)
        tree = inflatable_object.get_object_tree(reply)
        objects = {key: nested[key].deflate() for key in nested}
    header = remove_content_from_message(reply) if reply.has_content() else reply
    return Outgoing(arrival.run_id, message_to_proto(header), tree, objects, seconds)
