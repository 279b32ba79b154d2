"""Who signed what: Ed25519 keys of nodes and coordinators."""

from fedpeft.trust.keys import Signer, Verifier

__all__ = ["Signer", "Verifier"]
