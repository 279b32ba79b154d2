"""Joining a coordinator: its CA by the token's fingerprint, then a signed request until it answers."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from fedpeft.errors import ConfigError, ExchangeError, FederationError
from fedpeft.protocol.enrolment import MAX_BYTES, PATH, Answer, Request, Token
from fedpeft.runstore import write_atomic
from fedpeft.runstore.files import sync_folder
from fedpeft.trust import certificate_fingerprint, fingerprint, lone_certificate
from fedpeft_clients.governance.organisation import GRANT, Grant, Organisation

SECONDS = 10.0
"""One try to reach the coordinator."""
PAUSE = 2.0


class Unreachable(FederationError):
    """Nobody answers; it may be another matter in a moment."""


@dataclass(frozen=True)
class Address:
    """One of a coordinator's two ports."""

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

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def join(
    organisation: Organisation,
    address: Address,
    token: Token,
    wait: float,
    emit: Callable[[str], None] = lambda line: None,
) -> Grant | None:
    """Ask to be let in, also while nobody answers, until the coordinator's operator has decided.

    Nothing is believed before the CA that ``address`` shows has the token's fingerprint; from then on TLS is
    verified against that CA. Private keys never leave.

    Args:
        organisation: who asks.
        address: of the public port.
        token: from the coordinator's operator.
        wait: seconds to wait for the approval; a later call with the same token goes on.
        emit: what happens, in plain lines.

    Returns:
        The grant; None if the operator has not decided yet.

    Raises:
        FederationError: the coordinator cannot be reached, is not the one of the token, or refuses.
    """
    deadline, emitted = time.monotonic() + wait, set[str]()
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
                return _save_grant(organisation, address, ca, answer)
            if answer.state == "refused":
                raise FederationError(f"the coordinator refuses: {answer.cause}")
        if line not in emitted:
            emit(line)
            emitted.add(line)
        if time.monotonic() + PAUSE > deadline:
            return None
        time.sleep(PAUSE)


def _request(organisation: Organisation, address: Address, token: Token, ca: bytes) -> tuple[Request, Answer]:
    """One signed request and its answer, which, if it lets the node in, is signed for this very request."""
    transport = organisation.transport.read_bytes()
    request = Request.make(organisation.name, token, transport, organisation.signer, int(time.time()))
    place = Address(address.host, token.port)
    status, data = _ask(place, ssl.create_default_context(cadata=ca.decode()), "POST", PATH, request.encode())
    if status == 404:
        raise FederationError(f"{place} takes no request of this version: upgrade fedpeft, here or there")
    if status != 200:
        raise Unreachable(f"the coordinator at {place} is busy or has a fault (HTTP {status})")
    answer = Answer.decode(data)
    if answer.state == "enrolled" and not answer.proven(request.fingerprint()):
        raise FederationError("the coordinator's answer is not signed for this request; do not go on")
    return request, answer


def fetch_ca(address: Address, token: Token) -> bytes:
    """The coordinator's CA certificate (PEM), which has the token's fingerprint, and no other beside it.

    Raises:
        FederationError: it cannot be fetched, or has another fingerprint.
    """
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    status, data = _ask(address, unverified, "GET", "/ca.crt")
    try:
        pem = lone_certificate(data if status == 200 else b"")
        shown = certificate_fingerprint(pem)
    except ExchangeError:
        pem, shown = b"", "none"
    if shown != token.ca:
        raise FederationError(
            f"{address} is not the coordinator of this token: its CA has fingerprint {shown}, the token says "
            f"{token.ca}; do not go on, ask the coordinator's operator"
        )
    return pem


def _ask(
    address: Address, context: ssl.SSLContext, method: str, path: str, body: bytes | None = None
) -> tuple[int, bytes]:
    """Status and body of an answer; no more of it is read than a message may have."""
    link = http.client.HTTPSConnection(address.host, address.port, timeout=SECONDS, context=context)
    try:
        link.request(method, path, body)
        response = link.getresponse()
        return response.status, response.read(MAX_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(
            f"no coordinator answers at {address} ({type(error).__name__}); check address and network"
        ) from None
    finally:
        link.close()


def _save_grant(organisation: Organisation, address: Address, ca: bytes, answer: Answer) -> Grant:
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
