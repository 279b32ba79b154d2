"""Who sends a request, from its headers alone: an enrolled node, or a process that holds the secret."""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedpeft.flower.faults import LARGEST_SKEW, NO_REGISTRATION, NOT_ACTIVATED
from fedpeft.flower.signature import DIGEST, SIGNATURE, TIME, of_key, of_secret, signed_digest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

Scope = MutableMapping[str, Any]
INSIDE = "inside"
"""The audience of requests to the port on loopback."""
_FLOWER = ("flwr-public-key", "flwr-signature", "flwr-timestamp")
ONCE = frozenset({SIGNATURE, TIME, DIGEST, *_FLOWER, "content-length", "content-type"})
"""Headers that a request may have once: two readers could each take another one for the right one."""
_FRESH_SECONDS = 5.0
_MOST_KEYS = 10_000


@dataclass(frozen=True)
class Proven:
    """A sender who is known.

    Attributes:
        who: its key, an OpenSSH public line; or `INSIDE`.
        digest: what the SHA-256 of the body must be; None: the sender signs no body (a stock node).
    """

    who: str
    digest: str | None


@dataclass(frozen=True)
class Refusal:
    """What a sender who is not known is answered."""

    status: int
    text: str
    kind: str = "text/plain"


Proof = Callable[[Scope], Proven | Refusal]
UNSIGNED = Refusal(401, "this request is not signed for this coordinator\n")
STOCK = Refusal(401, "this key was not enrolled as that of a stock Flower node\n")


@dataclass(frozen=True)
class NodeProof:
    """Knows the enrolled nodes by their signatures.

    A node of fedpeft signs the coordinator, the call, the time and the body. A stock Flower node signs the
    time alone; that is enough for a key that was enrolled as a stock node's, and for no other.

    Attributes:
        audience: the fingerprint of this coordinator's CA, as it is now.
        enrolled: whether a key (PEM) is registered at the SuperLink.
        stock: whether a key, an OpenSSH public line, is that of a stock node.
    """

    audience: Callable[[], str]
    enrolled: Callable[[bytes], bool]
    stock: Callable[[str], bool]

    def __call__(self, scope: Scope) -> Proven | Refusal:
        """Who sent a request; the body is not looked at."""
        headers = single_headers(scope)
        pem = _decoded(headers, _FLOWER[0])
        key = _public_key(pem)
        if headers is None or key is None:
            return UNSIGNED
        digest, line = None, _line(key)
        if SIGNATURE in headers:
            digest = signed_digest(self.audience(), call_of(scope), headers, of_key(key))
            if digest is None:
                return UNSIGNED
        elif not _signed_time(headers, key):
            return UNSIGNED
        if not self.enrolled(pem):
            return _stranger(scope["path"])
        if digest is None and not self.stock(line):
            return STOCK
        return Proven(line, digest)


@dataclass(frozen=True)
class SecretProof:
    """Knows the processes of this machine that hold the link's secret."""

    secret: bytes

    def __call__(self, scope: Scope) -> Proven | Refusal:
        """Who sent a request; the body is not looked at."""
        headers = single_headers(scope)
        if headers is None:
            return UNSIGNED
        digest = signed_digest(INSIDE, call_of(scope), headers, of_secret(self.secret))
        return UNSIGNED if digest is None else Proven(INSIDE, digest)


@dataclass
class Remembered:
    """A question to the SuperLink's database whose *yes* is good for five seconds; a *no* is asked again."""

    ask: Callable[[bytes], bool]
    clock: Callable[[], float] = time.monotonic
    _until: dict[bytes, float] = field(default_factory=dict)

    def __call__(self, key: bytes) -> bool:
        """Whether the key is registered."""
        now = self.clock()
        if self._until.get(key, 0.0) > now:
            return True
        if not self.ask(key):
            return False
        if len(self._until) >= _MOST_KEYS:
            self._until.clear()
        self._until[key] = now + _FRESH_SECONDS
        return True


def single_headers(scope: Scope) -> dict[str, str] | None:
    """The headers by name; None if one of `ONCE` stands there twice."""
    names = [name.decode("latin-1") for name, _ in scope["headers"]]
    if any(names.count(name) > 1 for name in ONCE):
        return None
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def call_of(scope: Scope) -> tuple[str, str]:
    """Method and target as they were sent."""
    target, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
    return scope["method"], f"{target}?{query}" if query else target


def _stranger(path: str) -> Refusal:
    """What Flower would say to a key that nobody enrolled."""
    code = {"activate-node": NOT_ACTIVATED, "register-node": NO_REGISTRATION}.get(path.rpartition("/")[2])
    if code is None:
        return Refusal(401, "this key is not enrolled here\n")
    detail = "this key is not enrolled here"
    return Refusal(412, json.dumps({"code": code, "detail": detail}), "application/json")


def _decoded(headers: Mapping[str, str] | None, name: str) -> bytes:
    """The bytes of a header in base64; none if it is missing or no base64."""
    try:
        return base64.b64decode((headers or {}).get(name, ""), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _public_key(pem: bytes) -> EllipticCurvePublicKey | None:
    """An EC key in Flower's form."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, EllipticCurvePublicKey) else None


def _line(key: EllipticCurvePublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    except ValueError:
        return ""


def _signed_time(headers: Mapping[str, str], key: EllipticCurvePublicKey) -> bool:
    """Whether a stock node signed a time that is now."""
    try:
        moment = headers[_FLOWER[2]]
        signed_at = datetime.datetime.fromisoformat(moment)
        off = (datetime.datetime.now(datetime.UTC) - signed_at).total_seconds()
        text = moment.encode("ascii")
    except (KeyError, ValueError, TypeError):
        return False
    return abs(off) <= LARGEST_SKEW and of_key(key)(text, _decoded(headers, _FLOWER[1]))
