"""Signed requests: whoever signs one names the coordinator, the call, the moment and the body.

Flower's node signs the time alone. What it sent to one coordinator, that one can send to another within five
minutes, with any body. A request of fedpeft's node bears a second signature, over all that it says and to
whom; the same form, with a secret in place of a key, protects the port on loopback.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpeft.flower.faults import LARGEST_SKEW

if TYPE_CHECKING:
    import httpx
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

SIGNATURE, TIME, DIGEST = "fedpeft-signature", "fedpeft-time", "fedpeft-digest"
Sign = Callable[[bytes], bytes]
Verify = Callable[[bytes, bytes], bool]
"""(text, signature) -> whether it is good."""


@dataclass(frozen=True)
class Request:
    """What is signed.

    Attributes:
        audience: whom the request is for: the fingerprint of a coordinator's CA, or ``inside``.
        method, target: of the call; the target is the path and query as sent.
        moment: seconds since the epoch, as sent.
        digest: SHA-256 of the body, hexadecimal.
    """

    audience: str
    method: str
    target: str
    moment: str
    digest: str

    def text(self) -> bytes:
        """The signed bytes: no two requests share them."""
        parts = [self.audience, self.method, self.target, self.moment, self.digest]
        return b"fedpeft-request-1\0" + json.dumps(parts).encode()

    def timely(self, now: float) -> bool:
        """Whether the request was made within `LARGEST_SKEW` of now; never raises."""
        try:
            return abs(now - float(self.moment)) <= LARGEST_SKEW
        except ValueError:
            return False


@dataclass(frozen=True)
class Signing:
    """Signs the requests of one of Flower's HTTP clients; one of its interceptors.

    Attributes:
        audience: as in `Request`.
        sign: makes the signature of a text.
    """

    audience: str
    sign: Sign

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Add the three headers and send the request."""
        sent = context.request
        target = sent.url.raw_path.decode("ascii")
        digest = hashlib.sha256(sent.content).hexdigest()
        asked = Request(self.audience, sent.method, target, f"{time.time():.3f}", digest)
        signature = base64.b64encode(self.sign(asked.text())).decode()
        sent.headers.update({SIGNATURE: signature, TIME: asked.moment, DIGEST: digest})
        return call_next(context)


def signed_digest(
    audience: str, call: tuple[str, str], headers: Mapping[str, str], verify: Verify
) -> str | None:
    """The digest that the body of a request must have; None if the request is not signed for this audience.

    Args:
        audience: who reads it.
        call: method and target.
        headers: of the request, names in lower case.
        verify: checks a signature.
    """
    try:
        signature = base64.b64decode(headers[SIGNATURE], validate=True)
        asked = Request(audience, *call, headers[TIME], headers[DIGEST])
    except (KeyError, binascii.Error, ValueError):
        return None
    return asked.digest if asked.timely(time.time()) and verify(asked.text(), signature) else None


def by_key(key: EllipticCurvePrivateKey) -> Sign:
    """Signs with a transport key: ECDSA-SHA256."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    return lambda text: key.sign(text, ECDSA(SHA256()))


def of_key(key: EllipticCurvePublicKey) -> Verify:
    """Verifies what `by_key` signed."""
    from flwr.supercore.primitives.asymmetric import verify_signature

    return lambda text, signature: verify_signature(key, text, signature)


def by_secret(secret: bytes) -> Sign:
    """Signs with a secret that both sides hold: HMAC-SHA256."""
    return lambda text: hmac.digest(secret, text, "sha256")


def of_secret(secret: bytes) -> Verify:
    """Verifies what `by_secret` signed."""
    sign = by_secret(secret)
    return lambda text, signature: hmac.compare_digest(sign(text), signature)
