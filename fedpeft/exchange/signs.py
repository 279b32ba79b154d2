"""One bit per value: the sign of every value, or of those on a support that both ends know already.

Payload, one bit string padded once to whole bytes::

    present  1 bit per tensor   whether it is sent; a tensor of zeros is not
    scales   of the tensors sent, as in `fedpeft.exchange.fields`
    signs    1 for negative, per value of the tensors sent

Source: signSGD (Bernstein et al. 2018, arXiv 1802.04434); with the mean magnitude as scale and error
feedback, EF-signSGD (Karimireddy et al. 2019, arXiv 1901.09847).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.bits import BitReader, to_bytes
from fedpeft.exchange.context import Context
from fedpeft.exchange.decoded import Decoded, Positions
from fedpeft.exchange.fields import fitting, read_scales, scale_bits, write_scales
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft_kernels.golomb import Integers
from fedpeft_kernels.ternary import mean_magnitudes
from fedpeft_kernels.threshold import largest

Source = Literal["seed", "released"]

EXPLORED = 0.2
"""Share of a support of the last release that the seed draws, so that every value is sent at times."""


@dataclass(frozen=True)
class Sign:
    """Every value as its sign times its tensor's mean magnitude; a zero counts as positive."""

    name = "sign"
    id = 4

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
class MaskedSign:
    """Signs of the values on a support that both ends derive for themselves: no position is sent.

    From ``seed`` the support is random and differs from round to round; it depends on no data and is the same
    for all nodes of a round. From ``released`` most of it is where the newest broadcast that this node has
    read was largest, so it costs no privacy that the broadcast has not cost; the seed draws the rest, and
    more where the broadcast has few values. A node that was sent a whole state takes the seed's.

    Attributes:
        density: share of the values on the support.
        source: where the support comes from.
        context: what both ends know of the message; set by `at`.
        released: the newest broadcast delta, float32, shape ``(layout.size,)``; set by `at`.
    """

    density: float
    source: Source = "seed"
    context: Context | None = None
    released: Decoded | None = None

    name = "masked-sign"
    id = 6

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ExchangeError(f"density is {self.density}; it must be above 0 and at most 1")

    def __repr__(self) -> str:
        return f"MaskedSign(density={self.density}, source={self.source!r})"

    def at(self, context: Context, released: Decoded | None) -> MaskedSign:
        """The codec of one message."""
        return replace(self, context=context, released=released if self.source == "released" else None)

    def fit(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> FloatVector:
        """Signs times scales on the support, zero elsewhere."""
        positions, counts = self._support(layout)
        return Decoded(layout, _fit(values[positions], counts), positions).dense()

    def encode(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> bytes:
        """The canonical payload; raises `ExchangeError` for values that `fit` does not make."""
        positions, counts = self._support(layout)
        if np.count_nonzero(values) != np.count_nonzero(values[positions]):
            raise ExchangeError("masked-sign carries no value off its support; put Quantise() before")
        return _encode(values[positions], counts)

    def decode(self, payload: bytes, layout: Layout) -> Decoded:
        """The values; every accepted payload is the canonical one."""
        positions, counts = self._support(layout)
        return Decoded(layout, _decode(payload, counts), positions)

    def max_bytes(self, layout: Layout) -> int:
        """At most what all signs take."""
        return _max_bytes(layout.sizes)

    def _support(self, layout: Layout) -> tuple[Positions, Integers]:
        """Positions of the support and how many each tensor has."""
        if self.context is None:
            raise ExchangeError("masked-sign needs the message's context: bind the plan with at() first")
        key = hashlib.sha256(b"fedpeft-support-1\0" + layout.digest + self.context.shared()).digest()
        if self.released is None:
            chosen = _drawn(key, layout.size, self.density)
        else:
            count = round((1 - EXPLORED) * self.density * layout.size)
            count = min(count, self.released.nonzero)
            chosen = _drawn(key, layout.size, self.density - count / max(1, layout.size))
            chosen[largest(self.released.dense(), count)] = True
        positions = np.flatnonzero(chosen)
        return positions, np.diff(np.searchsorted(positions, layout.offsets))


def _drawn(key: bytes, size: int, density: float) -> np.ndarray:
    """Flags of a random support: each value with this probability, to a multiple of 2^-16.

    Only the raw output of the generator is used, which numpy keeps the same in all versions.
    """
    raw = np.random.PCG64(np.random.SeedSequence(int.from_bytes(key, "little"))).random_raw(-(-size // 4))
    return raw.astype("<u8").view("<u2")[:size] < round(density * 65536)


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
