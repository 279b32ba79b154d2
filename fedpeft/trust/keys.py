"""Ed25519 signing keys (RFC 8032) over the `cryptography` package."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.errors import ExchangeError
from fedpeft.runstore.files import write_atomic

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_BYTES = 32


@dataclass(frozen=True)
class Signer:
    """A private key. It is 32 bytes long and is never printed.

    Raises:
        ExchangeError: the key has another length.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ExchangeError(f"a signing key has {KEY_BYTES} bytes, got {len(self.secret)}")

    @classmethod
    def generate(cls) -> Signer:
        """A new key from the operating system's entropy."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Signer:
        """A reproducible key for simulations; whoever knows the seed can sign."""
        return cls(hashlib.sha256(b"fedpeft-simulated-key-1\0" + seed).digest())

    @classmethod
    def load_or_create(cls, path: Path) -> Signer:
        """The key in a file; a new one is written, readable by the owner only, when there is none.

        Raises:
            ExchangeError: the file holds something else.
        """
        if not path.exists():
            write_atomic(path, os.urandom(KEY_BYTES))
        return cls(path.read_bytes())

    @cached_property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes; the same message always gives the same one."""
        return self._key.sign(message)

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.secret)


@dataclass(frozen=True)
class Verifier:
    """A public key, 32 bytes.

    Raises:
        ExchangeError: the key has another length.
    """

    public: bytes

    def __post_init__(self) -> None:
        if len(self.public) != KEY_BYTES:
            raise ExchangeError(f"a public key has {KEY_BYTES} bytes, got {len(self.public)}")

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature of this message is by this key; never raises."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True
