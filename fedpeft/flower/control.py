"""Calls to a SuperLink's Control API, on loopback and signed with its secret: nodes admitted, runs ended."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedpeft.errors import ConfigError, FederationError
from fedpeft.flower.bundle import thin_app
from fedpeft.flower.faults import GONE, KEY_IN_USE, Fault, plain
from fedpeft.flower.superlink.superlink import SuperLink

if TYPE_CHECKING:
    from flwr.supercore.control.control_http_client import ControlHttpClient

_UNREGISTERED = "unregistered"


def node_numbers(link: SuperLink) -> dict[bytes, int]:
    """The registered nodes by their transport keys (PEM).

    Raises:
        Fault: the SuperLink does not answer.
    """
    from flwr.proto.control_pb2 import ListNodesRequest

    with _control(link) as control:
        nodes = control.ListNodes(ListNodesRequest()).nodes_info
    return {node.public_key: node.node_id for node in nodes if node.status != _UNREGISTERED}


def register_node(link: SuperLink, public_line: bytes, known: Mapping[bytes, int] | None = None) -> None:
    """Let a node with this transport key (OpenSSH line) in; doing it twice is harmless.

    Args:
        link: where.
        public_line: the key.
        known: `node_numbers`, asked once by who registers many; None: ask now.

    Raises:
        ConfigError: the line is no EC key.
        FederationError: the key was revoked here before; Flower takes a key once only.
        Fault: the SuperLink does not answer.
    """
    from flwr.proto.control_pb2 import RegisterNodeRequest

    pem = _pem(public_line)
    if pem in (node_numbers(link) if known is None else known):
        return
    try:
        with _control(link) as control:
            control.RegisterNode(RegisterNodeRequest(public_key=pem))
    except Fault as fault:
        if fault.code != KEY_IN_USE:
            raise
        if pem not in node_numbers(link):
            raise FederationError(
                "this transport key was revoked here and cannot come back; the node must make a new one"
            ) from None


def unregister_node(link: SuperLink, public_line: bytes, known: Mapping[bytes, int] | None = None) -> None:
    """Shut a node out, at once; doing it twice is harmless, an unknown key too.

    Args:
        link: where.
        public_line: its key, an OpenSSH line.
        known: as for `register_node`.

    Raises:
        ConfigError: the line is no EC key.
        Fault: the SuperLink does not answer.
    """
    from flwr.proto.control_pb2 import UnregisterNodeRequest

    pem = _pem(public_line)
    if (node_id := (node_numbers(link) if known is None else known).get(pem)) is None:
        return
    with _unless_gone(), _control(link) as control:
        control.UnregisterNode(UnregisterNodeRequest(node_id=node_id))


def start_run(link: SuperLink) -> int:
    """Start a Flower run of the thin app; its id."""
    from flwr.common.serde import fab_to_proto
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.supercore.fab import Fab

    bundle, digest = thin_app()
    with _control(link) as control:
        return control.StartRun(StartRunRequest(fab=fab_to_proto(Fab(digest, bundle, {})))).run_id


def end_run(link: SuperLink, run_id: int) -> None:
    """Stop a Flower run, so that no node works for it; one that is over or unknown is left alone."""
    from flwr.proto.control_pb2 import StopRunRequest

    with _unless_gone(), _control(link) as control:
        control.StopRun(StopRunRequest(run_id=run_id))


def _pem(public_line: bytes) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

    try:
        key = load_ssh_public_key(public_line)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("a node's transport key must be one OpenSSH public line (EC P-256)") from None
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@contextmanager
def _control(link: SuperLink) -> Generator[ControlHttpClient]:
    from flwr.supercore.control.control_http_client import ControlHttpClient
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    interceptors = [RuntimeVersionHttpInterceptor(component_name="flwr CLI"), link.signing]
    with (
        ControlHttpClient.from_server_address(link.address, True, None, interceptors) as client,
        plain(link.address),
    ):
        yield client


@contextmanager
def _unless_gone() -> Generator[None]:
    try:
        yield
    except Fault as fault:
        if fault.code not in GONE:
            raise
