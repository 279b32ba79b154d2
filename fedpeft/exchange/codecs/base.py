"""Codecs: how values become bytes and, checked against the layout, values again.

Every codec is canonical (one byte string per vector), refuses to encode what it cannot carry bit for bit, and
decodes hostile bytes in memory that the layout bounds. `fedpeft.plugins.CODECS` has them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from fedpeft.errors import EnvelopeError
from fedpeft.exchange.decoded import Decoded, Positions
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.message_context import Context
from fedpeft.exchange.support import PublicSupport
from fedpeft.exchange.transforms import Quantise, Transform
from fedpeft.plugins import CODECS

if TYPE_CHECKING:
    from fedpeft.config.models import DirectionConfig, ExchangeConfig


class Codec(ABC):
    """Values to bytes and back; ``decode(encode(fit(x))) == fit(x)`` bit for bit.

    ``support`` holds the positions of all values that are not zero, where the caller knows them: it saves a
    search. A negative zero is sent as zero where zeros are not sent.

    What a codec does not declare has the value that promises least, so that a policy treats it strictly.

    Attributes:
        name: in reports and messages.
        wire_id: number in the envelope's header, 0 to 255; each codec has its own.
        sends_all: it may send every value, whatever ``density`` says.
        same_values: all nodes of a round send the same values: all, or those of a public support.
        fills_zeros: what it carries may be other than zero where the values are zero.
        exact: it carries every finite vector bit for bit, so that no step has to round for it.
        error_feedback: what it does not carry may be sent later.
        rounds_at_random: its errors do not depend on the values, so that what it carries is longer on
            average: a bound on the norm is lost, and noise that relies on one must be added before.
        near_entropy: its bytes are held against the entropy of its symbols (`fedpeft.exchange.entropy_bits`).
        choice_density: as a member of `AnyOf`: density over that of ternary; None: it is not cut.
        own_step: name of the step that rounds for it, where that is not ``quantise``.
    """

    name: ClassVar[str]
    wire_id: ClassVar[int]
    sends_all: ClassVar[bool] = True
    same_values: ClassVar[bool] = False
    fills_zeros: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    error_feedback: ClassVar[bool] = True
    rounds_at_random: ClassVar[bool] = False
    near_entropy: ClassVar[bool] = False
    choice_density: ClassVar[float | None] = None
    own_step: ClassVar[str | None] = None

    @classmethod
    def configured(cls, direction: DirectionConfig) -> Codec:
        """The codec of one direction of a run."""
        return cls()

    @classmethod
    def transforms(cls, direction: DirectionConfig) -> tuple[Transform, ...]:
        """The steps of that direction's plan, error feedback aside; the last rounds for the codec."""
        return (Quantise(cls.configured(direction)),)

    @classmethod
    def summed(cls, exchange: ExchangeConfig) -> Codec | None:
        """The codec in its place where a secure sum adds values up; None: its values cannot be summed."""
        return None

    @property
    def shared_support(self) -> PublicSupport | None:
        """The values that both ends know beforehand to be all that is sent; None: there are no such."""
        return None

    @property
    def writers(self) -> tuple[Codec, ...]:
        """The codecs whose numbers an envelope may bear."""
        return (self,)

    def at(self, context: Context, released: Decoded | None = None) -> Codec:
        """The codec of one message; see `ExchangePlan.at`."""
        return self

    def writer(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> Codec:
        """The one of `writers` that an envelope takes for these values."""
        return self

    @abstractmethod
    def fit(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> FloatVector:
        """The values that are carried in place of these; idempotent."""

    @abstractmethod
    def encode(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> bytes:
        """The canonical bytes; raises `ExchangeError` for values that are not carried exactly."""

    @abstractmethod
    def decode(self, payload: bytes, layout: Layout) -> Decoded:
        """The values; raises `EnvelopeError` for bytes that `encode` does not make."""

    @abstractmethod
    def max_bytes(self, layout: Layout) -> int:
        """No payload is longer."""


def codec_named(name: str) -> Codec:
    """The codec of a name that needs no settings.

    Raises:
        ExchangeError: there is none.
    """
    return CODECS[name]()


def public_support(codec: Codec) -> PublicSupport | None:
    """The share of the values that both ends know beforehand to be all that is sent; None: no such share."""
    support = codec.shared_support
    return support if support is not None and support.density < 1 else None


def numbered(codec: Codec, number: int) -> Codec:
    """The codec with a header's number, of those agreed on.

    Raises:
        EnvelopeError: it is another one.
    """
    match = next((writer for writer in codec.writers if writer.wire_id == number), None)
    if match is None:
        raise EnvelopeError(f"envelope uses codec number {number}, this run agreed on {codec.name}")
    return match
