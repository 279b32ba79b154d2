"""The messages of secure aggregation: of fixed length, signed under the context."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from fedpeft.secagg.context import SecureContext
from fedpeft.secagg.errors import SecureAggregationError
from fedpeft.secagg.shamir import SECRET_BYTES
from fedpeft.trust import Signer, Verifier

SIGNATURE_BYTES = 64
ADVERTISEMENT_BYTES = 3 * 32 + SIGNATURE_BYTES
RECEIPT_BYTES = 32 + SIGNATURE_BYTES
SHARES_BYTES = 2 * SECRET_BYTES
COMMITMENTS_BYTES = 64
NONCE_BYTES = 12
SHARE_MESSAGE_BYTES = COMMITMENTS_BYTES + NONCE_BYTES + SHARES_BYTES + 16


class Advertisement(NamedTuple):
    """A node's keys of one secure sum: two X25519 public keys and the commitment to its self-mask seed."""

    mask_key: bytes
    share_key: bytes
    seed_commitment: bytes


def encoded(*parts: bytes) -> bytes:
    """The parts, each after its length: no two sequences give the same bytes."""
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def encoded_names(names: Iterable[str]) -> bytes:
    """A set of names, independent of its order."""
    return encoded(*(name.encode() for name in sorted(set(names))))


def statement(kind: str, context: SecureContext, name: str, *parts: bytes) -> bytes:
    """What a node signs: kind of message, context, its own name, content."""
    return b"fedpeft-secagg-signed-1\0" + encoded(kind.encode(), context.digest, name.encode(), *parts)


def sign(signer: Signer, kind: str, context: SecureContext, name: str, *parts: bytes) -> bytes:
    """The node's signature of a `statement`, 64 bytes."""
    return signer.sign(statement(kind, context, name, *parts))


def check(signature: bytes, kind: str, context: SecureContext, name: str, *parts: bytes) -> None:
    """Check a node's signature of a `statement` by the key that the roster has for it.

    Raises:
        SecureAggregationError: it is by another key or about something else.
    """
    key = context.keys.get(name)
    if key is None:
        raise SecureAggregationError(f"{kind} of {name!r}: the roster has no such node")
    if not Verifier(key).verify(signature, statement(kind, context, name, *parts)):
        raise SecureAggregationError(
            f"{kind} of {name!r} is not signed by its key for this round; leave it out"
        )


def split_signed(message: bytes, length: int, kind: str, name: str) -> tuple[bytes, bytes]:
    """Content and signature of a message.

    Raises:
        SecureAggregationError: the message has another length.
    """
    if len(message) != length:
        raise SecureAggregationError(f"{kind} of {name!r} has {len(message)} bytes, it must have {length}")
    return message[:-SIGNATURE_BYTES], message[-SIGNATURE_BYTES:]


def read_advertisement(context: SecureContext, name: str, message: bytes) -> Advertisement:
    """The keys of a node after the check of its signature under this context.

    Raises:
        SecureAggregationError: wrong length, wrong signature, or a node that is not in the roster.
    """
    content, signature = split_signed(message, ADVERTISEMENT_BYTES, "advertisement", name)
    check(signature, "advertisement", context, name, content)
    return Advertisement(content[:32], content[32:64], content[64:])


def commit_seed(context: SecureContext, name: str, seed: bytes) -> bytes:
    """SHA-256 commitment of a node to its self-mask seed."""
    return hashlib.sha256(statement("seed", context, name, seed)).digest()


def commit_shares(context: SecureContext, dealer: str, holder: str, shares: bytes) -> bytes:
    """Commitments of a dealer to both shares of a holder, 64 bytes: who changes a share is found out."""
    halves = (shares[:SECRET_BYTES], shares[SECRET_BYTES:])
    parts = (statement(f"share-{i}", context, dealer, holder.encode(), half) for i, half in enumerate(halves))
    return b"".join(hashlib.sha256(part).digest() for part in parts)
