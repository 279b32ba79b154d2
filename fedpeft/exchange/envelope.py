"""Envelopes: the bytes that leave.

::

    offset  bytes  field
    0       2      magic 89 46
    2       1      version, 1
    3       1      codec
    4       ..     payload of the codec
    -64     64     Ed25519 signature

The signature covers the bytes before it and, without sending them, everything both ends already agree on:
run, round, sender, direction, the state that the update is relative to, and the layout. An envelope that is
replayed in another round, applied to another state or passed off as another node's does not verify.
Ed25519 is deterministic, so the same update sealed by the same key gives the same bytes (RFC 8032).
Confidentiality is left to the transport (TLS).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.codecs.base import Codec, numbered
from fedpeft.exchange.decoded import Decoded
from fedpeft.exchange.layout import Layout
from fedpeft.exchange.message_context import Context
from fedpeft.exchange.plan import ExchangePlan
from fedpeft.exchange.transforms import Update

if TYPE_CHECKING:
    from fedpeft.trust import Signer, Verifier

MAGIC = b"\x89F"
VERSION = 1
HEADER_BYTES = 4
SIGNATURE_BYTES = 64
MASKED = 8
"""Codec number of a masked vector."""
OVERHEAD_BYTES = HEADER_BYTES + SIGNATURE_BYTES
"""Bytes of an envelope that are not payload."""


def seal(update: Update, plan: ExchangePlan, context: Context, signer: Signer) -> bytes:
    """Encode and sign an update that has passed its plan.

    Raises:
        ExchangeError: the values are not what the plan's codec carries, or the rounds differ.
    """
    if update.round != context.round:
        raise ExchangeError(f"an update of round {update.round} cannot be sealed for round {context.round}")
    body = encode_body(update, plan.codec)
    return body + signer.sign(_signed(body, update.layout, context))


def seal_payload(payload: bytes, layout: Layout, context: Context, signer: Signer) -> bytes:
    """Sign a masked vector: bytes that only the sum of all nodes' gives a meaning to."""
    body = MAGIC + bytes([VERSION, MASKED]) + payload
    return body + signer.sign(_signed(body, layout, context))


def open_payload(data: bytes, size: int, layout: Layout, context: Context, verifier: Verifier) -> bytes:
    """Verify an envelope of `seal_payload` and return its payload of exactly ``size`` bytes.

    Raises:
        EnvelopeError: anything is wrong with the bytes.
    """
    if len(data) != OVERHEAD_BYTES + size:
        raise EnvelopeError(f"a masked envelope has {OVERHEAD_BYTES + size} bytes here, got {len(data)}")
    body = bytes(data[:-SIGNATURE_BYTES])
    if body[:HEADER_BYTES] != MAGIC + bytes([VERSION, MASKED]):
        raise EnvelopeError("these bytes are not a masked fedpeft envelope")
    _verify(data, body, layout, context, verifier)
    return body[HEADER_BYTES:]


def open_envelope(data: bytes, layout: Layout, codec: Codec, context: Context, verifier: Verifier) -> Decoded:
    """Verify and decode an envelope; the bytes are taken to be hostile.

    Lengths are bounded by the layout before anything else, the signature is checked before the payload is
    parsed, and parsing accepts only the one byte string that `seal` makes for the decoded values.

    Returns:
        The values, all finite; nothing of the size of the layout is made where the codec is sparse.

    Raises:
        EnvelopeError: anything is wrong with the bytes.
    """
    longest = OVERHEAD_BYTES + codec.max_bytes(layout)
    if not OVERHEAD_BYTES <= len(data) <= longest:
        raise EnvelopeError(
            f"envelope has {len(data)} bytes; {OVERHEAD_BYTES} to {longest} are possible for this layout"
        )
    body = bytes(data[:-SIGNATURE_BYTES])
    _codec_of(body, codec)
    _verify(data, body, layout, context, verifier)
    return decode_body(body, layout, codec)


def encode_body(update: Update, codec: Codec) -> bytes:
    """Header and payload without signature; see `seal`."""
    coder = codec.writer(update.values, update.layout, update.support)
    payload = coder.encode(update.values, update.layout, update.support)
    return MAGIC + bytes([VERSION, coder.wire_id]) + payload


def decode_body(body: bytes, layout: Layout, codec: Codec) -> Decoded:
    """Values of header and payload whose signature has been checked; see `open_envelope`."""
    return _codec_of(body, codec).decode(body[HEADER_BYTES:], layout)


def codec_of(data: bytes, codec: Codec) -> str:
    """Name of the codec that an envelope was written with, of those agreed on."""
    return _codec_of(data, codec).name


def _codec_of(body: bytes, codec: Codec) -> Codec:
    if body[:2] != MAGIC:
        raise EnvelopeError("these bytes are not a fedpeft envelope")
    if len(body) < HEADER_BYTES or body[2] != VERSION:
        raise EnvelopeError(f"envelope is of a version that this fedpeft does not read; it reads {VERSION}")
    return numbered(codec, body[3])


def _verify(data: bytes, body: bytes, layout: Layout, context: Context, verifier: Verifier) -> None:
    if not verifier.verify(bytes(data[-SIGNATURE_BYTES:]), _signed(body, layout, context)):
        raise EnvelopeError(
            f"signature of {context.sender!r} for round {context.round} ({context.direction}) does not "
            "verify: wrong key, round, run, state or layout, or changed bytes"
        )


def _signed(body: bytes, layout: Layout, context: Context) -> bytes:
    digest = hashlib.sha256(layout.digest + context.encode() + body).digest()
    return b"fedpeft-envelope-1\0" + digest
