"""Transport keys (EC P-256, OpenSSH form, as Flower's node authentication wants them) and fingerprints."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from fedpeft.errors import ExchangeError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.x509 import Certificate

FINGERPRINT_DIGITS = 32
_GROUP = 4


def fingerprint(data: bytes) -> str:
    """A name of a key or certificate for people to compare: 32 hex digits of SHA-256, in groups of four."""
    digits = hashlib.sha256(data).hexdigest()[:FINGERPRINT_DIGITS]
    return "-".join(digits[start : start + _GROUP] for start in range(0, FINGERPRINT_DIGITS, _GROUP))


def certificate_fingerprint(pem: bytes) -> str:
    """The fingerprint of a certificate: of its DER bytes, however its PEM file is laid out.

    Raises:
        ExchangeError: the bytes hold no certificate.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    return fingerprint(_certificate(pem).public_bytes(Encoding.DER))


def lone_certificate(pem: bytes) -> bytes:
    """The first certificate of a PEM file in its one form, without anything that stood beside it.

    Whoever checks a fingerprint must go on with this: a reader of a whole file trusts all that it holds.

    Raises:
        ExchangeError: the bytes hold no certificate.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    return _certificate(pem).public_bytes(Encoding.PEM)


def new_transport_key() -> bytes:
    """A new private key from the operating system's entropy, OpenSSH PEM without a password."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def public_line(private: bytes) -> bytes:
    """The public half as one OpenSSH line without a comment.

    Raises:
        ExchangeError: the bytes are no EC P-256 private key in OpenSSH form.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return _private(private).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def prove(private: bytes, message: bytes) -> bytes:
    """The ECDSA-SHA256 signature (DER) of a message; it differs each time.

    Raises:
        ExchangeError: as `public_line`.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    return _private(private).sign(message, ec.ECDSA(SHA256()))


def proves(public_line: bytes, signature: bytes, message: bytes) -> bool:
    """Whether this message was signed by the key of this exact OpenSSH line; never raises."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    key = _public(public_line)
    if key is None:
        return False
    try:
        key.verify(signature, message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def is_public_line(line: bytes) -> bool:
    """Whether these bytes are the one OpenSSH line of an EC P-256 key, without a comment; never raises."""
    return _public(line) is not None


def _certificate(pem: bytes) -> Certificate:
    """The first certificate of a PEM file."""
    from cryptography.x509 import load_pem_x509_certificate

    try:
        return load_pem_x509_certificate(pem)
    except ValueError:
        raise ExchangeError("what should be a certificate (PEM) is none; fetch it again") from None


def _private(private: bytes) -> EllipticCurvePrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        key = load_ssh_private_key(private, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ExchangeError("a transport key must be an unencrypted OpenSSH private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ExchangeError(f"a transport key must be EC P-256, got {type(key).__name__}")
    return key


def _public(line: bytes) -> EllipticCurvePublicKey | None:
    """The key of a line that is in its one valid form."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

    try:
        key = load_ssh_public_key(line)
    except (ValueError, UnsupportedAlgorithm):
        return None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        return None
    return key if key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) == line else None
