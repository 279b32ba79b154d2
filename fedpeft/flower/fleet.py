"""A node's calls to Flower's Fleet API; whatever fails is a `Fault` that a later call may heal."""

from __future__ import annotations

import contextlib
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flwr.app import Message

from fedpeft.errors import ConfigError, ExchangeError
from fedpeft.flower.faults import KEY_IN_USE, Fault, NotAdmitted, RunEnded, plain
from fedpeft.flower.heartbeat import within
from fedpeft.flower.messages import LARGEST_MESSAGE
from fedpeft.flower.signature import Signing, by_key
from fedpeft.flower.wire import harden
from fedpeft.runstore import write_atomic
from fedpeft.trust import certificate_fingerprint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.supernode.fleet_http_client import FleetHttpClient

LEASE_INTERVAL = 30.0
"""Seconds; the SuperLink takes a node for lost two such intervals after its last heartbeat."""
_SETTLE_SECONDS = 1.0
_KNOWN_RUNS = 64


@dataclass(frozen=True)
class Connection:
    """How a node reaches its coordinator.

    Attributes:
        address: ``host:port`` of the SuperLink's public port.
        root_certificates: PEM of the authority that must have signed the SuperLink's certificate; each
            request is signed for it, so that no other coordinator can use one. `None` uses plain HTTP
            (loopback only).
        private_key: EC key, OpenSSH PEM; `None` makes a key for the life of the process, which a SuperLink
            with node authentication refuses.
        poll: polling interval, seconds.
        longest_step: seconds that the app may work on one message.
        memory: a file that remembers the node's number at the SuperLink, so that a restarted node is back
            at once and not after its old lease; the caller sees to it that one process uses it at a time.
    """

    address: str
    root_certificates: bytes | None = None
    private_key: bytes | None = None
    poll: float = 0.1
    longest_step: float | None = None
    memory: Path | None = None


@dataclass(frozen=True)
class Arrival:
    """A message that the SuperLink handed out: its header and the names of its parts."""

    header: Message
    tree: ObjectTree

    @property
    def run_id(self) -> int:
        """The Flower run that the message belongs to."""
        return self.header.metadata.run_id


@dataclass(frozen=True)
class Outgoing:
    """A reply as it leaves: header and tree in Flower's form, the parts' bytes by id, seconds of work."""

    run_id: int
    header: Any
    tree: ObjectTree
    objects: dict[str, bytes]
    seconds: float


class Fleet:
    """One node at one SuperLink. `open` may be called again after any fault; nothing here retries."""

    def __init__(self, connection: Connection) -> None:
        """Open no connection yet.

        Raises:
            ConfigError: the key or the certificates cannot be read.
        """
        self._address, self._memory = connection.address, connection.memory
        self._key = _key(connection.private_key)
        self._anonymous = connection.private_key is None
        self._client = _client(connection, self._key)
        self._node, self._former = 0, _remembered(connection.memory)
        self._apps: dict[int, str] = {}

    @property
    def node_id(self) -> int:
        """This node's number at the SuperLink, 0 before the first `open`."""
        return self._node

    def open(self) -> None:
        """Be online: keep the number that the node has, or have the key activated.

        The number is kept until there is another: a proxy may have made the refusal up.

        Raises:
            Fault: not now.
        """
        if self._node:
            with contextlib.suppress(NotAdmitted):
                return self.beat()
        if self._former:
            self._give_up_former_lease()
        if self._anonymous:
            self._register()
        self._activate()

    def beat(self) -> None:
        """Say that the node is alive."""
        from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest

        if not self._node:
            return
        request = SendNodeHeartbeatRequest(node=self._me(), heartbeat_interval=LEASE_INTERVAL)
        with plain(self._address):
            known = self._client.SendNodeHeartbeat(request).success
        if not known:
            raise NotAdmitted(f"{self._address} does not know this node any more")

    def close(self) -> None:
        """Go offline, so that the coordinator knows at once; at most 3 s, nothing is raised."""
        if self._node:
            within(3.0, lambda: self._deactivate(self._node))
        self._client.close()

    def receive(self) -> Arrival | None:
        """The next message for this node, without its content; Flower hands out each message once."""
        from flwr.common.serde import message_from_proto
        from flwr.proto.fleet_pb2 import PullMessagesRequest

        with plain(self._address):
            answer = self._client.PullMessages(PullMessagesRequest(node=self._me()))
            if not answer.messages_list:
                return None
            header = message_from_proto(answer.messages_list[0])
        return Arrival(header, answer.message_object_trees[0])

    def fetch(self, arrival: Arrival) -> dict[str, bytes]:
        """The content of a message, by object id.

        Raises:
            RunEnded: the run has ended or the content is gone.
        """
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
        from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_objects

        taken = 0

        def pull(key: str) -> bytes:
            nonlocal taken
            content = self._pull_object(arrival.run_id, key)
            taken += len(content)
            if taken > LARGEST_MESSAGE:
                raise RunEnded(f"a message of {self._address} is longer than {LARGEST_MESSAGE} bytes")
            return content

        try:
            objects = pull_objects(
                [node.object_id for node in iterate_object_tree(arrival.tree)],
                pull,
                max_time=arrival.header.metadata.ttl,
                initial_backoff=0.1,
                backoff_cap=0.5,
            )
        except ObjectPullError:
            raise RunEnded(f"a message of {self._address} was withdrawn before it was read") from None
        self._confirm(arrival)
        return objects

    def app_hash(self, run_id: int) -> str:
        """SHA-256 of the app bundle that the coordinator runs."""
        from flwr.proto.run_pb2 import GetRunRequest

        if run_id not in self._apps:
            with plain(self._address):
                run = self._client.GetRun(GetRunRequest(node=self._me(), run_id=run_id)).run
            if len(self._apps) >= _KNOWN_RUNS:
                self._apps.clear()
            self._apps[run_id] = run.fab_hash
        return self._apps[run_id]

    def push(self, outgoing: Outgoing) -> None:
        """Send a reply; sending the same one again is harmless.

        Raises:
            RunEnded: nobody waits for it any more.
        """
        from flwr.proto.fleet_pb2 import PushMessagesRequest
        from flwr.supercore.inflatable.inflatable_utils import push_object_contents_from_iterable

        request = PushMessagesRequest(
            node=self._me(),
            messages_list=[outgoing.header],
            message_object_trees=[outgoing.tree],
            clientapp_runtime_list=[outgoing.seconds],
        )
        with plain(self._address):
            answer = self._client.PushMessages(request)
        needed = set(answer.objects_to_push)
        push_object_contents_from_iterable(
            ((key, content) for key, content in outgoing.objects.items() if key in needed),
            lambda key, content: self._push_object(outgoing.run_id, answer.session_id, (key, content)),
        )

    def _pull_object(self, run_id: int, key: str) -> bytes:
        from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf

        def call(request: Any) -> Any:
            with plain(self._address):
                return self._client.PullObject(request)

        return make_pull_object_fn_protobuf(call, self._me(), run_id)(key)

    def _push_object(self, run_id: int, session: str, item: tuple[str, bytes]) -> None:
        from flwr.proto.message_pb2 import PushObjectRequest

        request = PushObjectRequest(
            node=self._me(),
            run_id=run_id,
            session_id=session,
            object_id=item[0],
            object_content=item[1],
        )
        with plain(self._address):
            accepted = self._client.PushObject(request).stored
        if not accepted:
            raise Fault(f"{self._address} did not store a part of a reply")

    def _confirm(self, arrival: Arrival) -> None:
        """Let the SuperLink free the message; if that fails, the end of the run frees it."""
        from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest

        request = ConfirmMessageReceivedRequest(
            node=self._me(), run_id=arrival.run_id, message_object_id=arrival.header.metadata.message_id
        )
        with contextlib.suppress(Fault), plain(self._address):
            self._client.ConfirmMessageReceived(request)

    def _register(self) -> None:
        from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest

        try:
            with plain(self._address):
                self._client.RegisterNode(RegisterNodeFleetRequest(public_key=self._public()))
        except Fault as fault:
            if fault.code != KEY_IN_USE:
                raise

    def _activate(self) -> None:
        from flwr.proto.fleet_pb2 import ActivateNodeRequest

        request = ActivateNodeRequest(public_key=self._public(), heartbeat_interval=LEASE_INTERVAL)
        with plain(self._address):
            self._node = self._client.ActivateNode(request).node_id
        if self._memory is not None:
            write_atomic(self._memory, str(self._node).encode())

    def _give_up_former_lease(self) -> None:
        """Deactivate what a process that died left online.

        What it had been handed dies with it, and the coordinator sees that in the moment offline.
        """
        try:
            self._deactivate(self._former)
            time.sleep(_SETTLE_SECONDS)
        except NotAdmitted:
            pass
        except Fault as fault:
            if not fault.code:
                raise
        self._former = 0

    def _deactivate(self, node_id: int) -> None:
        from flwr.proto.fleet_pb2 import DeactivateNodeRequest

        with plain(self._address):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))

    def _me(self) -> Any:
        from flwr.proto.node_pb2 import Node

        return Node(node_id=self._node)

    def _public(self) -> bytes:
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        return public_key_to_bytes(self._key.public_key())


def _key(private: bytes | None) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    if private is None:
        return ec.generate_private_key(ec.SECP256R1())
    try:
        key = load_ssh_private_key(private, None)
    except (ValueError, TypeError):
        raise ConfigError("the transport key must be an unencrypted OpenSSH private key (EC P-256)") from None
    return cast("EllipticCurvePrivateKey", key)


def _client(connection: Connection, key: EllipticCurvePrivateKey) -> FleetHttpClient:
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    interceptors: list[Any] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    certificates = connection.root_certificates
    try:
        if certificates is not None:
            interceptors.append(Signing(certificate_fingerprint(certificates), by_key(key)))
        client = FleetHttpClient.from_server_address(
            connection.address, certificates is None, certificates, interceptors
        )
    except (ssl.SSLError, ValueError, ExchangeError):
        raise ConfigError("the coordinator's authority (ca.crt) must be certificates in PEM form") from None
    harden(client)
    return client


def _remembered(memory: Path | None) -> int:
    try:
        return int(memory.read_text()) if memory is not None else 0
    except (OSError, ValueError):
        return 0
