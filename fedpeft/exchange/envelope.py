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
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.codecs import codec_named
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.plan import ExchangePlan
from fedpeft.exchange.update import Update

if TYPE_CHECKING:
    from fedpeft.trust import Signer, Verifier

Direction = Literal["up", "down"]

MAGIC = b"\x89F"
VERSION = 1
HEADER_BYTES = 4
SIGNATURE_BYTES = 64
OVERHEAD_BYTES = HEADER_BYTES + SIGNATURE_BYTES
"""Bytes of an envelope that are not payload."""


@dataclass(frozen=True)
class Context:
    """What both ends know without being told; authenticated, never transmitted.

    Attributes:
        run: identifier of the run, 16 bytes.
        round: 1-based round number.
        sender: name of the signing node, or of the coordinator.
        base_state: digest of the state that the update is relative to, 32 bytes.
        direction: ``up`` from node to coordinator, ``down`` for the broadcast.

    Raises:
        ExchangeError: a field has the wrong length or range.
    """

    run: bytes
    round: int
    sender: str
    base_state: bytes
    direction: Direction

    def __post_init__(self) -> None:
        if len(self.run) != 16 or len(self.base_state) != 32:
            raise ExchangeError(
                "a context needs 16 bytes of run and 32 of base state, "
                f"got {len(self.run)} and {len(self.base_state)}"
            )
        if not 0 <= self.round < 1 << 63:
            raise ExchangeError(f"round {self.round} is out of range")
        if self.direction not in ("up", "down"):
            raise ExchangeError(f"direction is {self.direction!r}; it must be 'up' or 'down'")

    def encode(self) -> bytes:
        """Injective bytes of all fields."""
        sender = self.sender.encode()
        head = struct.pack("<16sQ32sB", self.run, self.round, self.base_state, self.direction == "up")
        return head + struct.pack("<I", len(sender)) + sender


def seal(update: Update, plan: ExchangePlan, context: Context, signer: Signer) -> bytes:
    """Encode and sign an update that has passed its plan.

    Raises:
        ExchangeError: the values are not what the plan's codec carries, or the rounds differ.
    """
    if update.round != context.round:
        raise ExchangeError(f"an update of round {update.round} cannot be sealed for round {context.round}")
    body = encode_body(update.values, update.layout, plan.codec)
    return body + signer.sign(_signed(body, update.layout, context))


def open_envelope(
    data: bytes, layout: Layout, codec: str, context: Context, verifier: Verifier
) -> FloatVector:
    """Verify and decode an envelope; the bytes are taken to be hostile.

    Lengths are bounded by the layout before anything else, the signature is checked before the payload is
    parsed, and parsing accepts only the one byte string that `seal` makes for the decoded values.

    Returns:
        float32, shape ``(layout.size,)``, finite.

    Raises:
        EnvelopeError: anything is wrong with the bytes.
    """
    longest = OVERHEAD_BYTES + codec_named(codec).max_bytes(layout)
    if not OVERHEAD_BYTES <= len(data) <= longest:
        raise EnvelopeError(
            f"envelope has {len(data)} bytes; {OVERHEAD_BYTES} to {longest} are possible for this layout"
        )
    body, signature = bytes(data[:-SIGNATURE_BYTES]), bytes(data[-SIGNATURE_BYTES:])
    _check_header(body, codec)
    if not verifier.verify(signature, _signed(body, layout, context)):
        raise EnvelopeError(
            f"signature of {context.sender!r} for round {context.round} ({context.direction}) does not "
            "verify: wrong key, round, run, state or layout, or changed bytes"
        )
    return decode_body(body, layout, codec)


def encode_body(values: FloatVector, layout: Layout, codec: str) -> bytes:
    """Header and payload without signature; see `seal`."""
    coder = codec_named(codec)
    return MAGIC + bytes([VERSION, coder.id]) + coder.encode(values, layout)


def decode_body(body: bytes, layout: Layout, codec: str) -> FloatVector:
    """Values of header and payload whose signature has been checked; see `open_envelope`."""
    _check_header(body, codec)
    return codec_named(codec).decode(body[HEADER_BYTES:], layout)


def _check_header(body: bytes, codec: str) -> None:
    if body[:2] != MAGIC:
        raise EnvelopeError("these bytes are not a fedpeft envelope")
    if len(body) < HEADER_BYTES or body[2] != VERSION:
        raise EnvelopeError(f"envelope is of a version that this fedpeft does not read; it reads {VERSION}")
    if body[3] != codec_named(codec).id:
        raise EnvelopeError(f"envelope uses codec number {body[3]}, this run agreed on {codec}")


def _signed(body: bytes, layout: Layout, context: Context) -> bytes:
    digest = hashlib.sha256(layout.digest + context.encode() + body).digest()
    return b"fedpeft-envelope-1\0" + digest
