"""Joining a coordinator: its CA by the token's fingerprint, then a signed request until it answers."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fedpeft.enrolment import MAX_BYTES, METHOD, SERVICE, Answer, Request, Token
from fedpeft.errors import ConfigError, ExchangeError, FederationError
from fedpeft.runstore import write_atomic
from fedpeft.runstore.files import sync_folder
from fedpeft.trust import certificate_fingerprint, fingerprint
from fedpeft_clients.organisation import GRANT, Grant, Organisation

SECONDS = 10.0
"""One try to reach the coordinator."""
PAUSE = 2.0


class Unreachable(FederationError):
    """Nobody answers; it may be another matter in a moment."""


@dataclass(frozen=True)
class Address:
    """A coordinator's public port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``host:port``; an IPv6 address stands in brackets.

        Raises:
            ConfigError: it is none.
        """
        host, _, port = text.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
            raise ConfigError(f"address {text!r} must be HOST:PORT, the coordinator's public port")
        return cls(host, int(port))

    def at(self, port: int) -> str:
        """``host:port`` of another port of the same machine."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    def __str__(self) -> str:
        return self.at(self.port)


def join(
    organisation: Organisation,
    address: Address,
    token: Token,
    wait: float,
    tell: Callable[[str], None] = lambda line: None,
) -> Grant | None:
    """Ask to be let in, also while nobody answers, until the coordinator's operator has decided.

    Nothing is believed before the CA that ``address`` shows has the token's fingerprint; from then on TLS is
    verified against that CA. Private keys never leave.

    Args:
        organisation: who asks.
        address: of the public port.
        token: from the coordinator's operator.
        wait: seconds to wait for the approval; a later call with the same token goes on.
        tell: what happens, in plain lines.

    Returns:
        The grant; None if the operator has not decided yet.

    Raises:
        FederationError: the coordinator cannot be reached, is not the one of the token, or refuses.
    """
    deadline, told = time.monotonic() + wait, set[str]()
    while True:
        try:
            ca = fetch_ca(address, token)
            request, answer = _request(organisation, address, token, ca)
            line = f"waiting for the coordinator's operator to approve fingerprint {request.fingerprint()}"
        except Unreachable as error:
            if time.monotonic() + PAUSE > deadline:
                raise
            line = f"{error}; trying again"
        else:
            if answer.state == "enrolled":
                return _stored(organisation, address, ca, answer)
            if answer.state == "refused":
                raise FederationError(f"the coordinator refuses: {answer.cause}")
        if line not in told:
            tell(line)
            told.add(line)
        if time.monotonic() + PAUSE > deadline:
            return None
        time.sleep(PAUSE)


def _request(organisation: Organisation, address: Address, token: Token, ca: bytes) -> tuple[Request, Answer]:
    """One signed request and its answer."""
    transport = organisation.transport.read_bytes()
    request = Request.make(organisation.name, token, transport, organisation.signer, int(time.time()))
    with _channel(address.at(token.port), ca) as channel:
        return request, _ask(channel, request)


def fetch_ca(address: Address, token: Token) -> bytes:
    """The coordinator's CA certificate (PEM), which has the token's fingerprint.

    Raises:
        FederationError: it cannot be fetched, or has another fingerprint.
    """
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    link = http.client.HTTPSConnection(address.host, address.port, timeout=SECONDS, context=unverified)
    try:
        link.request("GET", "/ca.crt")
        response = link.getresponse()
        pem = response.read(MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(
            f"no coordinator answers at {address} ({type(error).__name__}); check address and network"
        ) from None
    finally:
        link.close()
    try:
        found = certificate_fingerprint(pem) if response.status == 200 else "none"
    except ExchangeError:
        found = "none"
    if found != token.ca:
        raise FederationError(
            f"{address} is not the coordinator of this token: its CA has fingerprint {found}, the token says "
            f"{token.ca}; do not go on, ask the coordinator's operator"
        )
    return pem


def _channel(target: str, ca: bytes) -> Any:
    import grpc

    limits = [("grpc.max_receive_message_length", MAX_BYTES), ("grpc.enable_http_proxy", 0)]
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(ca), limits)


def _ask(channel: Any, request: Request) -> Answer:
    """One question; an answer that lets the node in is signed for this very request."""
    import grpc

    call = channel.unary_unary(f"/{SERVICE}/{METHOD}")
    try:
        answer = Answer.decode(call(request.encode(), timeout=SECONDS))
    except grpc.RpcError as error:
        code = error.code().name if isinstance(error, grpc.Call) else type(error).__name__
        raise Unreachable(
            f"the enrolment service of the token does not answer ({code}); check network and firewall"
        ) from None
    if answer.state == "enrolled" and not answer.proven(request.fingerprint()):
        raise FederationError("the coordinator's answer is not signed for this request; do not go on")
    return answer


def _stored(organisation: Organisation, address: Address, ca: bytes, answer: Answer) -> Grant:
    """Write the grant down, the certificate first."""
    key = bytes.fromhex(answer.coordinator)
    folder = organisation.path / "coordinators" / fingerprint(key)
    grant = Grant(str(address), answer.coordinator, answer.app, answer.federation, answer.issued, folder)
    write_atomic(grant.ca, ca)
    facts = asdict(grant)
    del facts["folder"]
    GRANT.write(folder / "grant.json", facts)
    sync_folder(folder)
    return grant
