"""Masks: AES-256-CTR key streams added to integers in place, and the keys that they come from.

NIST SP 800-38A section 6.5 (CTR), RFC 7748 (X25519), RFC 5869 (HKDF). All keys have 256 bits and serve one
stream each: they are derived with the context's digest, so that no two rounds or pairs share a stream.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedpeft.secagg.context import SecureContext
from fedpeft.secagg.errors import SecureAggregationError
from fedpeft.secagg.messages import encoded

CHUNK = 1 << 18
"""Bytes of key stream at a time: what is added is still in the processor's cache."""

BLOCK_BYTES = 16
_ZEROS = bytes(CHUNK)


def add_stream(total: NDArray[Any], key: bytes, sign: int) -> None:
    """Add (sign 1) or subtract (sign -1) the key stream of ``key`` in place, wrapping.

    The stream's bytes from counter zero are read as little-endian integers of the array's own type, which
    is unsigned and contiguous.
    """
    cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(BLOCK_BYTES))).encryptor()
    buffer = bytearray(CHUNK + BLOCK_BYTES - 1)
    stream = np.frombuffer(buffer, total.dtype, CHUNK // total.itemsize)
    zeros, change = memoryview(_ZEROS), np.add if sign > 0 else np.subtract
    for start in range(0, total.size, stream.size):
        part = total[start : start + stream.size]
        cipher.update_into(zeros[: part.nbytes], buffer)
        change(part, stream[: part.size], out=part)


def add_pair(context: SecureContext, total: NDArray[Any], node: str, peer: str, agreed: bytes) -> None:
    """Add the mask of ``node`` against ``peer``: the first of the two names adds, the other subtracts."""
    first, last = sorted((node, peer))
    key = derive(context, "mask", agreed, first, last)
    add_stream(total, key, 1 if node == first else -1)


def add_self(context: SecureContext, total: NDArray[Any], node: str, seed: bytes, sign: int = 1) -> None:
    """Add or subtract the mask that a node derives from its own seed."""
    add_stream(total, derive(context, "self", seed, node), sign)


def derive(context: SecureContext, purpose: str, secret: bytes, *names: str) -> bytes:
    """A 256-bit key for one purpose, one context and these nodes, in this order."""
    info = b"fedpeft-secagg-key-1\0" + encoded(purpose.encode(), context.digest, *(n.encode() for n in names))
    return HKDF(SHA256(), 32, None, info).derive(secret)


def public_key(secret: bytes) -> bytes:
    """The X25519 public key of a private one, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def check_key(public: bytes, node: str) -> None:
    """Refuse a public key of low order, with which no key can be agreed.

    Raises:
        SecureAggregationError: it is one.
    """
    exchange(os.urandom(32), public, node)


def exchange(secret: bytes, public: bytes, peer: str) -> bytes:
    """The X25519 shared secret, 32 bytes.

    Raises:
        SecureAggregationError: the peer's key is a point of low order.
    """
    try:
        private = X25519PrivateKey.from_private_bytes(secret)
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise SecureAggregationError(
            f"the key of {peer!r} is no usable X25519 key; leave the node out"
        ) from error
