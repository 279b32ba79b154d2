"""Who signed what, and who connects: Ed25519 signing keys, EC transport keys and fingerprints."""

from fedpeft.trust.keys import Signer, Verifier
from fedpeft.trust.transport import (
    certificate_fingerprint,
    fingerprint,
    is_public_line,
    lone_certificate,
    new_transport_key,
    prove,
    proves,
    public_line,
)

__all__ = [
    "Signer",
    "Verifier",
    "certificate_fingerprint",
    "fingerprint",
    "is_public_line",
    "lone_certificate",
    "new_transport_key",
    "prove",
    "proves",
    "public_line",
]
