"""What a node and a coordinator say to each other before they know each other: token, request, answer.

A node that holds a one-time token asks to be let in (`Request`), proving that it holds both of its private
keys; the coordinator answers `waiting` until its operator has approved the fingerprint, then `enrolled`.
Both messages are canonical JSON: equal messages have equal bytes, and anything else is refused.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self, cast

from fedpeft.errors import FederationError
from fedpeft.trust import (
    Signer,
    Verifier,
    certificate_fingerprint,
    fingerprint,
    is_public_line,
    prove,
    proves,
    public_line,
)

PATH = "/v1/join"
"""Where a request is posted; another form of it would have another path."""
MAX_BYTES = 2**16
"""No message of an enrolment is longer."""

State = Literal["waiting", "enrolled", "refused"]
STATES = ("waiting", "enrolled", "refused")
_TOKEN = re.compile(r"fp1-([0-9a-f]{32})-([1-9][0-9]{0,4})-([0-9a-f]{32})")
MAX_NAME = 64
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")
_KEY = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"(?:[0-9a-f]{2})*")


def valid_name(name: str) -> bool:
    """Whether an organisation may have this name: letters, digits, ``.``, ``_``, ``-``; at most 64."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Token:
    """A one-time token: whom to trust, where to ask, and the secret that lets one node in.

    Attributes:
        ca: fingerprint of the coordinator's CA certificate, with dashes.
        port: of the enrolment service.
        secret: 32 hex digits.
    """

    ca: str
    port: int
    secret: str

    @classmethod
    def make(cls, ca_pem: bytes, port: int) -> Token:
        """A new token for a CA certificate (PEM), its secret from the operating system's entropy."""
        return cls(certificate_fingerprint(ca_pem), port, secrets.token_hex(16))

    @classmethod
    def parse(cls, text: str) -> Token:
        """The inverse of ``str(token)``.

        Raises:
            FederationError: the text is no token; it is not repeated, as it may hold most of one.
        """
        match = _TOKEN.fullmatch(text.strip())
        if match is None or int(match[2]) > 65535:
            raise FederationError(
                "a token looks like fp1-<32 hex>-<port>-<32 hex>; copy the whole line of 'server enroll'"
            )
        ca = "-".join(match[1][start : start + 4] for start in range(0, 32, 4))
        return cls(ca, int(match[2]), match[3])

    def __str__(self) -> str:
        return f"fp1-{self.ca.replace('-', '')}-{self.port}-{self.secret}"

    def __repr__(self) -> str:
        return f"Token(ca={self.ca!r}, port={self.port})"


@dataclass(frozen=True)
class _Wire:
    """A message as canonical JSON of at most `MAX_BYTES`."""

    what: ClassVar[str]

    def encode(self) -> bytes:
        """The one valid form."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`; says nothing of signatures.

        Raises:
            FederationError: too long, unknown or missing keys, wrong types, or not the one valid form.
        """
        if len(data) > MAX_BYTES:
            raise FederationError(f"{cls.what} has {len(data)} bytes, allowed are {MAX_BYTES}")
        made = cls(**_table(cls, data))
        if made.encode() != data:
            raise FederationError(f"{cls.what} is not in its one valid form")
        made.check()
        return made

    def check(self) -> None:
        """Refuse values that no honest sender writes."""


def _table(kind: type[_Wire], data: bytes) -> dict[str, Any]:
    """The values of a message by name, each of its declared type."""
    try:
        table = json.loads(data)
    except (ValueError, RecursionError):
        raise FederationError(f"{kind.what} is no JSON") from None
    wanted = {entry.name: int if str(entry.type) == "int" else str for entry in fields(kind)}
    if not isinstance(table, dict) or set(cast("dict[str, Any]", table)) != set(wanted):
        raise FederationError(f"{kind.what} must have the keys {', '.join(sorted(wanted))} and no others")
    for name, declared in wanted.items():
        if type(table[name]) is not declared:
            raise FederationError(f"{name!r} of {kind.what} must be of type {declared.__name__}")
    return cast("dict[str, Any]", table)


@dataclass(frozen=True)
class Request(_Wire):
    """A node asks to be let in.

    Attributes:
        name: of the organisation, as the token was made for.
        token: the whole token.
        transport: OpenSSH public line of the node's transport key.
        signing: Ed25519 public key, 64 hex digits.
        issued: whole seconds since the epoch.
        signature: hex, of the Ed25519 key over `message`.
        possession: hex, of the transport key over `message`.
    """

    what: ClassVar[str] = "an enrolment request"

    name: str
    token: str
    transport: str
    signing: str
    issued: int
    signature: str = ""
    possession: str = ""

    @classmethod
    def make(cls, name: str, token: Token, private: bytes, signer: Signer, issued: int) -> Request:
        """A request signed with both keys; ``private`` is the transport key (OpenSSH PEM)."""
        line, signing = public_line(private).decode(), signer.public.hex()
        bare = cls(name, str(token), line, signing, issued)
        message = bare.message()
        return replace(bare, signature=signer.sign(message).hex(), possession=prove(private, message).hex())

    def message(self) -> bytes:
        """What both keys sign."""
        return b"fedpeft-join-1\0" + replace(self, signature="", possession="").encode()

    def fingerprint(self) -> str:
        """What both operators compare: of the transport line and the 32 bytes of the signing key."""
        return fingerprint(self.transport.encode() + bytes.fromhex(self.signing))

    def proven(self) -> bool:
        """Whether the sender holds both private keys; never raises."""
        message, line = self.message(), self.transport.encode()
        signed = Verifier(bytes.fromhex(self.signing)).verify(bytes.fromhex(self.signature), message)
        return signed and proves(line, bytes.fromhex(self.possession), message)

    def check(self) -> None:
        """Refuse names, keys and signatures that are none.

        Raises:
            FederationError: names the value.
        """
        if not valid_name(self.name):
            raise FederationError("the name must be 1 to 64 letters, digits, '.', '_' or '-'")
        if str(Token.parse(self.token)) != self.token:
            raise FederationError("the token must be given without anything around it")
        if not (self.transport.isascii() and is_public_line(self.transport.encode())):
            raise FederationError("the transport key must be one OpenSSH line of an EC P-256 key")
        if not _KEY.fullmatch(self.signing):
            raise FederationError("the signing key must be 64 hex digits")
        if not (_HEX.fullmatch(self.signature) and _HEX.fullmatch(self.possession)):
            raise FederationError("the signatures must be hex digits")
        _check_time(self.issued)


@dataclass(frozen=True)
class Answer(_Wire):
    """What the coordinator answers.

    Attributes:
        state: ``waiting`` for its operator, ``enrolled``, or ``refused``.
        cause: plain words; empty once enrolled.
        coordinator: Ed25519 public key, 64 hex digits; like all that follows empty before enrolment.
        app: SHA-256 of the only Flower app that its runs name.
        federation: name of the coordinator.
        issued: whole seconds since the epoch; 0 before enrolment.
        signature: hex, of the coordinator's key over `message`.
    """

    what: ClassVar[str] = "an enrolment answer"

    state: str
    cause: str = ""
    coordinator: str = ""
    app: str = ""
    federation: str = ""
    issued: int = 0
    signature: str = ""

    def message(self, fingerprint: str) -> bytes:
        """What the coordinator signs: the answer, for the request of this fingerprint."""
        bare = replace(self, signature="").encode()
        return b"fedpeft-answer-1\0" + fingerprint.encode() + b"\0" + bare

    def signed(self, signer: Signer, fingerprint: str) -> Answer:
        """The answer with the signature of ``signer``, whose key it names."""
        bare = replace(self, coordinator=signer.public.hex())
        return replace(bare, signature=signer.sign(bare.message(fingerprint)).hex())

    def proven(self, fingerprint: str) -> bool:
        """Whether the named coordinator's key signed this answer to this request; never raises."""
        if not self.coordinator:
            return False
        verifier = Verifier(bytes.fromhex(self.coordinator))
        return verifier.verify(bytes.fromhex(self.signature), self.message(fingerprint))

    def check(self) -> None:
        """Refuse states and keys that are none, and an enrolment that names no coordinator.

        Raises:
            FederationError: names the value.
        """
        if self.state not in STATES:
            raise FederationError(f"the state must be one of {', '.join(STATES)}")
        if not (_KEY.fullmatch(self.coordinator) or (self.state != "enrolled" and not self.coordinator)):
            raise FederationError("the coordinator's key must be 64 hex digits")
        if self.state == "enrolled" and not _KEY.fullmatch(self.app):
            raise FederationError("the app hash must be 64 hex digits")
        if not (self.cause.isprintable() and (valid_name(self.federation) or not self.federation)):
            raise FederationError("the cause must be printable and the federation's name a name")
        if not _HEX.fullmatch(self.signature):
            raise FederationError("the signature must be hex digits")
        _check_time(self.issued)


def _check_time(seconds: int) -> None:
    if not 0 <= seconds < 2**53:
        raise FederationError("the time of issue must be seconds since the epoch")
