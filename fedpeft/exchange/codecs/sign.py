"""One bit per value: the sign of every value, or of those on a support that both ends know already.

Payload, one bit string padded once to whole bytes::

    present  1 bit per tensor   whether it is sent; a tensor of zeros is not
    scales   of the tensors sent, as in `fedpeft.exchange.codecs.bitfields`
    signs    1 for negative, per value of the tensors sent

Source: signSGD (Bernstein et al. 2018, arXiv 1802.04434); with the mean magnitude as scale and error
feedback, EF-signSGD (Karimireddy et al. 2019, arXiv 1901.09847).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.codecs.base import Codec
from fedpeft.exchange.codecs.bit_io import BitReader, to_bytes
from fedpeft.exchange.codecs.bitfields import fitting, read_scales, scale_bits, write_scales
from fedpeft.exchange.codecs.public_ternary import PublicTernary
from fedpeft.exchange.decoded import Decoded, Positions
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.message_context import Context
from fedpeft.exchange.support import PublicSupport
from fedpeft_kernels.golomb import Integers
from fedpeft_kernels.ternary import mean_magnitudes

if TYPE_CHECKING:
    from fedpeft.config.models import DirectionConfig, ExchangeConfig


@dataclass(frozen=True)
class Sign(Codec):
    """Every value as its sign times its tensor's mean magnitude; a zero counts as positive."""

    name = "sign"
    wire_id = 4
    same_values = True

    @classmethod
    def summed(cls, exchange: ExchangeConfig) -> PublicTernary:
        """Ternary values on a public support: signs of many scales do not add up."""
        return PublicTernary.of_sum(exchange)

    def fit(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> FloatVector:
        """Signs times scales, rounded down to 7 significant bits; the norm is never larger, per tensor."""
        return _fit(values, layout.sizes)

    def encode(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> bytes:
        """The canonical payload; raises `ExchangeError` for values that `fit` does not make."""
        return _encode(values, layout.sizes)

    def decode(self, payload: bytes, layout: Layout) -> Decoded:
        """The values; every accepted payload is the canonical one."""
        return Decoded(layout, _decode(payload, layout.sizes))

    def max_bytes(self, layout: Layout) -> int:
        """One bit per value and tensor, and the scales."""
        return _max_bytes(layout.sizes)


@dataclass(frozen=True)
class MaskedSign(Codec):
    """Signs of the values on a support that both ends derive for themselves: no position is sent."""

    support: PublicSupport

    name = "masked-sign"
    wire_id = 6
    sends_all = False
    same_values = True

    def __repr__(self) -> str:
        return f"MaskedSign(density={self.support.density}, source={self.support.source!r})"

    @classmethod
    def configured(cls, direction: DirectionConfig) -> MaskedSign:
        """The codec of a support of the direction's density."""
        return cls(PublicSupport(direction.density, direction.support))

    @property
    def shared_support(self) -> PublicSupport:
        """Its support."""
        return self.support

    def at(self, context: Context, released: Decoded | None = None) -> MaskedSign:
        """The codec of one message."""
        return MaskedSign(self.support.at(context, released))

    def fit(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> FloatVector:
        """Signs times scales on the support, zero elsewhere."""
        positions, counts = self._places(layout)
        return Decoded(layout, _fit(values[positions], counts), positions).dense()

    def encode(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> bytes:
        """The canonical payload; raises `ExchangeError` for values that `fit` does not make."""
        positions, counts = self._places(layout)
        if np.count_nonzero(values) != np.count_nonzero(values[positions]):
            raise ExchangeError("masked-sign carries no value off its support; put Quantise() before")
        return _encode(values[positions], counts)

    def decode(self, payload: bytes, layout: Layout) -> Decoded:
        """The values; every accepted payload is the canonical one."""
        positions, counts = self._places(layout)
        return Decoded(layout, _decode(payload, counts), positions)

    def max_bytes(self, layout: Layout) -> int:
        """At most what all signs take."""
        return _max_bytes(layout.sizes)

    def _places(self, layout: Layout) -> tuple[Positions, Integers]:
        """Positions of the support and how many each tensor has."""
        positions = self.support.positions(layout)
        return positions, self.support.counts(positions, layout)


def _fit(values: FloatVector, sizes: Integers) -> FloatVector:
    scales = fitting(mean_magnitudes(np.abs(values), sizes))
    return np.where(values < 0, -np.repeat(scales, sizes), np.repeat(scales, sizes)) + np.float32(0)


def _encode(values: FloatVector, sizes: Integers) -> bytes:
    scales = np.zeros(sizes.size, np.float32)
    filled = sizes > 0
    scales[filled] = np.abs(values[(np.cumsum(sizes) - sizes)[filled]])
    if not np.array_equal(np.abs(values), np.repeat(scales, sizes)):
        raise ExchangeError("sign carries one magnitude per tensor; put Quantise() before")
    sent = scales > 0
    signs = np.signbit(values)[np.repeat(sent, sizes)]
    return to_bytes([sent.view(np.uint8), write_scales(scales[sent]), signs.view(np.uint8)])


def _decode(payload: bytes, sizes: Integers) -> FloatVector:
    if len(payload) > _max_bytes(sizes):
        raise EnvelopeError(f"payload has {len(payload)} bytes, at most {_max_bytes(sizes)} are possible")
    reader = BitReader.of(payload)
    sent = reader.take(sizes.size).view(np.bool_)
    scales = np.zeros(sizes.size, np.float32)
    scales[sent] = read_scales(reader, int(np.count_nonzero(sent)))
    if np.any(sent & (sizes == 0)):
        raise EnvelopeError("a tensor without values claims a scale")
    values = np.repeat(scales, sizes)
    signs = reader.take(int(sizes[sent].sum())).view(np.bool_)
    if reader.rest.size > 7 or reader.rest.any():
        raise EnvelopeError("the payload goes on after its last sign")
    values[np.repeat(sent, sizes)] *= np.where(signs, np.float32(-1), np.float32(1))
    return values


def _max_bytes(sizes: Integers) -> int:
    return (sizes.size + scale_bits(sizes.size) + int(sizes.sum()) + 7) // 8
