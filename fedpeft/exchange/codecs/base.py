"""Codecs: how values become bytes and, checked against the layout, values again.

Every codec is canonical (one byte string per vector), refuses to encode what it cannot carry bit for bit, and
decodes hostile bytes in memory that the layout bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.codecs.dense import DenseBf16, DenseFp32, Int8
from fedpeft.exchange.codecs.public_ternary import PublicTernary
from fedpeft.exchange.codecs.sign import MaskedSign, Sign
from fedpeft.exchange.codecs.ternary import DeadZone, Ternary
from fedpeft.exchange.decoded import Decoded, Positions
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.message_context import Context
from fedpeft.exchange.support import PublicSupport


class Codec(Protocol):
    """Values to bytes and back; ``decode(encode(fit(x))) == fit(x)`` bit for bit.

    ``support`` holds the positions of all values that are not zero, where the caller knows them: it saves a
    search. A negative zero is sent as zero where zeros are not sent.
    """

    @property
    def name(self) -> str:
        """Name in configurations and reports."""
        ...

    @property
    def id(self) -> int:
        """Number in the envelope's header, 0 to 255."""
        ...

    def fit(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> FloatVector:
        """The values that are carried in place of these; idempotent."""
        ...

    def encode(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> bytes:
        """The canonical bytes; raises `ExchangeError` for values that are not carried exactly."""
        ...

    def decode(self, payload: bytes, layout: Layout) -> Decoded:
        """The values; raises `EnvelopeError` for bytes that `encode` does not make."""
        ...

    def max_bytes(self, layout: Layout) -> int:
        """No payload is longer."""
        ...


@dataclass(frozen=True)
class AnyOf:
    """Several codecs; an envelope takes the one that is shortest for its values and says which."""

    members: tuple[Codec, ...]

    name = "auto"
    id = 255

    def at(self, context: Context, released: Decoded | None) -> AnyOf:
        """All members for one message."""
        return replace(self, members=tuple(bound(member, context, released) for member in self.members))

    def choose(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> Codec:
        """The member whose bytes are fewest; of equals the first.

        Raises:
            ExchangeError: none carries these values.
        """
        sizes: dict[int, int] = {}
        for index, member in enumerate(self.members):
            try:
                sizes[index] = len(member.encode(values, layout, support))
            except ExchangeError:
                continue
        if not sizes:
            names = ", ".join(member.name for member in self.members)
            raise ExchangeError(f"none of {names} carries these values; put Choose() before")
        return self.members[min(sizes, key=sizes.__getitem__)]

    def fit(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> FloatVector:
        """The values themselves: `Choose` fits them."""
        return values

    def encode(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> bytes:
        """The shortest member's bytes."""
        return self.choose(values, layout, support).encode(values, layout, support)

    def decode(self, payload: bytes, layout: Layout) -> Decoded:
        """Not possible: the header says which member decodes."""
        raise EnvelopeError("auto is no codec of an envelope; its header names one")

    def max_bytes(self, layout: Layout) -> int:
        """What the longest member may take."""
        return max(member.max_bytes(layout) for member in self.members)


CODECS: Mapping[str, Codec] = {
    codec.name: codec for codec in (DenseFp32(), DenseBf16(), Int8(), Ternary(), Sign(), DeadZone())
}
"""The codecs that need to know nothing of the message; `MaskedSign`, `PublicTernary` and `AnyOf` are
made as configured."""


def codec_named(name: str) -> Codec:
    """The codec of a name.

    Raises:
        ExchangeError: there is none.
    """
    if name not in CODECS:
        raise ExchangeError(f"unknown codec {name!r}; there are {', '.join(sorted(CODECS))}")
    return CODECS[name]


def bound(codec: Codec, context: Context, released: Decoded | None) -> Codec:
    """The codec of one message."""
    return codec.at(context, released) if isinstance(codec, MaskedSign | PublicTernary | AnyOf) else codec


def public_support(codec: Codec) -> PublicSupport | None:
    """The share of the values that both ends know beforehand to be all that is sent; None: no such share."""
    support = codec.support if isinstance(codec, MaskedSign | PublicTernary) else None
    return support if support is not None and support.density < 1 else None


def chosen(codec: Codec, values: FloatVector, layout: Layout, support: Positions | None = None) -> Codec:
    """The codec that writes these values: itself, or the member that is shortest."""
    return codec.choose(values, layout, support) if isinstance(codec, AnyOf) else codec


def numbered(codec: Codec, number: int) -> Codec:
    """The codec that a header's number stands for, of those agreed on.

    Raises:
        EnvelopeError: it is another one.
    """
    members = codec.members if isinstance(codec, AnyOf) else (codec,)
    found = next((member for member in members if member.id == number), None)
    if found is None:
        raise EnvelopeError(f"envelope uses codec number {number}, this run agreed on {codec.name}")
    return found
