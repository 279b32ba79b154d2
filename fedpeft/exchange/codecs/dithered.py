"""Two, three or four bits per value: rounded at random, right on average, entropy-coded.

A value ``x`` of a tensor with step ``s`` is sent as the integer ``k`` nearest to ``x / s + u``, with ``u``
uniform on (-1/2, 1/2): ``x / s`` rounded up or down at random, right on average (QSGD, Alistarh et al. 2017,
arXiv 1610.02132). Both ends derive ``u`` from what they know of the message, and the reader takes it off:
it decodes ``(k - u) s``. The error is then uniform on (-s/2, s/2) and independent of ``x``, with half the
mean square that rounding at random leaves by itself (subtractive dither: Roberts 1962; Ziv 1985, "On
universal quantization"; in federated learning Shlezinger et al. 2021, arXiv 2006.03262). A random rotation
with levels made for a Gaussian (EDEN, arXiv 2108.08842) errs as much at as many bits and is not needed
(docs/decisions/0080).

The dither is no secret and depends on no data: on values that bear their noise already, rounding is
post-processing and costs no privacy.

Payload::

    present  1 bit per tensor   whether it is sent; a tensor of zeros is not
    scales   of the tensors sent, as in `fedpeft.exchange.codecs.bitfields`: their steps
    highest  7 bits             the largest magnitude of an integer
    counts   of the integers from -highest to highest, as in `fedpeft.exchange.codecs.bitfields`
    stream   from the next whole byte on: the integers, as in `fedpeft_kernels.ans`

``highest``, ``counts`` and ``stream`` are left out where no tensor is sent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.codecs.base import Codec
from fedpeft.exchange.codecs.bit_io import BitReader, field_bits, to_bytes
from fedpeft.exchange.codecs.bitfields import (
    count_bits,
    fitting,
    read_counts,
    read_scales,
    scale_bits,
    write_counts,
    write_scales,
)
from fedpeft.exchange.decoded import Decoded, Positions
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.message_context import Context
from fedpeft.exchange.support import PublicSupport
from fedpeft_kernels import ans
from fedpeft_kernels.golomb import Integers
from fedpeft_kernels.ternary import SIGNIFICAND_BITS, mean_magnitudes

if TYPE_CHECKING:
    from fedpeft.config.models import DirectionConfig

Wide = NDArray[np.float64]

_LEVEL_BITS = 7
_MAX_LEVEL = (1 << _LEVEL_BITS) - 1
_MAX = float(np.finfo(np.float32).max)
_DITHER_BITS = 24
_COARSEST = 5 / 3
"""Step over mean magnitude at two bits: integers of Gaussian values then have an entropy of 1.82 bits."""
_OCTAVES_ABOVE = 4
"""A step is less than ``2^4`` times the largest decoded magnitude: at most 5/3 of the largest value, of which
rounding leaves a sixth at least."""


@dataclass(frozen=True)
class Dithered(Codec):
    """Values on a public support, each as an integer times its tensor's step, less a dither both ends know.

    The step is a share of the mean magnitude, rounded down to 7 significant bits, or what brings the largest
    value within 124 steps. Every value is right on average, to within 2^-25 of a step, and at most half a
    step off; but for float32's rounding. A tensor more than 15 octaves below the largest becomes zero.
    """

    support: PublicSupport

    bits: ClassVar[int]
    """No more bits per Gaussian value; heavier tails take fewer."""
    sends_all = False
    same_values = True
    rounds_at_random = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}(density={self.support.density}, source={self.support.source!r})"

    @classmethod
    def configured(cls, direction: DirectionConfig) -> Self:
        """The codec of a support of the direction's density."""
        return cls(PublicSupport(direction.density, direction.support))

    @property
    def shared_support(self) -> PublicSupport:
        """Its support."""
        return self.support

    def at(self, context: Context, released: Decoded | None = None) -> Self:
        """The codec of one message."""
        return type(self)(self.support.at(context, released))

    def fit(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> FloatVector:
        """The values that are decoded; zero off the support.

        Raises:
            ExchangeError: a value is too large for float32 after rounding, or no message is set by `at`.
        """
        places = _Places.of(self.support, layout)
        numbers = values[places.positions].astype(np.float64)
        if places.read(numbers) is None:
            scales = self._scales(np.abs(numbers), places.sizes)
            steps = np.repeat(scales, places.sizes)
            safe = np.where(steps > 0, steps, 1)
            numbers = places.values(np.rint(numbers / safe + places.dither), scales)
            if np.abs(numbers).max(initial=0) > _MAX:
                raise ExchangeError(f"a value is too large for {self.name}; clip the update before")
        return Decoded(layout, _single(numbers), places.positions).dense()

    def encode(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> bytes:
        """The canonical payload; raises `ExchangeError` for values that `fit` does not make."""
        places = _Places.of(self.support, layout)
        numbers = values[places.positions].astype(np.float64)
        carried = places.read(numbers)
        if carried is None or np.count_nonzero(values) != np.count_nonzero(numbers):
            raise ExchangeError(f"{self.name} cannot carry these values exactly; put Quantise() before")
        codes, scales = carried
        sent = scales > 0
        codes = codes[np.repeat(sent, places.sizes)]
        head = [sent.view(np.uint8), write_scales(scales[sent].astype(np.float32))]
        if not codes.size:
            return to_bytes(head)
        highest = int(np.abs(codes).max())
        counts = np.bincount(codes + highest, minlength=2 * highest + 1).astype(np.int64)
        limits = np.full(counts.size, codes.size)
        head += [field_bits([highest], [_LEVEL_BITS]), write_counts(limits, counts)]
        return to_bytes(head) + ans.encode(codes + highest, counts)

    def decode(self, payload: bytes, layout: Layout) -> Decoded:
        """The values; every accepted payload is the canonical one."""
        if len(payload) > self.max_bytes(layout):
            raise EnvelopeError(
                f"payload has {len(payload)} bytes, at most {self.max_bytes(layout)} are possible"
            )
        places = _Places.of(self.support, layout)
        codes, scales = _parsed(payload, places.sizes)
        numbers = places.values(codes, scales)
        if np.abs(numbers).max(initial=0) > _MAX:
            raise EnvelopeError("payload holds a value that is not finite")
        single = _single(numbers)
        carried = places.read(single.astype(np.float64))
        if carried is None or not all(map(np.array_equal, carried, (codes, scales))):
            raise EnvelopeError(f"a payload of {self.name} is not written as its values are")
        return Decoded(layout, single, places.positions)

    def max_bytes(self, layout: Layout) -> int:
        """At most one byte per value, the scales, the counts and the states of the stream."""
        size = layout.size
        return _head_bytes(layout.sizes) + (ans.max_bytes(size, 2 * _MAX_LEVEL + 1) if size else 0)

    def _scales(self, magnitudes: Wide, sizes: Integers) -> Wide:
        """The step of each tensor, as its field holds it."""
        means = mean_magnitudes(magnitudes.astype(np.float32), sizes)
        peaks = np.zeros(sizes.size)
        filled = sizes > 0
        if filled.any():
            peaks[filled] = np.maximum.reduceat(magnitudes, (np.cumsum(sizes) - sizes)[filled])
        steps = np.maximum(means * (_COARSEST * 2.0 ** (2 - self.bits)), peaks / (_MAX_LEVEL - 3))
        return fitting(np.minimum(steps, _MAX)).astype(np.float64)


class Dithered2(Dithered):
    """Two bits."""

    name = "dithered-2"
    wire_id = 9
    bits = 2


class Dithered3(Dithered):
    """Three bits."""

    name = "dithered-3"
    wire_id = 10
    bits = 3


class Dithered4(Dithered):
    """Four bits."""

    name = "dithered-4"
    wire_id = 11
    bits = 4


@dataclass(frozen=True)
class _Places:
    """Which values of a layout a message carries, how many of each tensor, and the dither of each."""

    positions: Positions
    sizes: Integers
    dither: Wide

    @classmethod
    def of(cls, support: PublicSupport, layout: Layout) -> _Places:
        """Those of a support that is bound to a message."""
        if support.context is None:
            raise ExchangeError("a dither needs the message's context: bind the plan with at() first")
        positions = support.positions(layout)
        dither = _dither(support.context, layout, positions.size)
        return cls(positions, support.counts(positions, layout), dither)

    def values(self, codes: NDArray[np.floating], scales: Wide) -> Wide:
        """Codes less the dither, times the step: exact in float64."""
        return (codes - self.dither) * np.repeat(scales, self.sizes)

    def read(self, numbers: Wide) -> tuple[Integers, Wide] | None:
        """The codes and scales that numbers of float32 are the values of; None: of none."""
        codes, scales = np.zeros(numbers.size, np.int64), np.zeros(self.sizes.size)
        ends = np.cumsum(self.sizes)
        for index, (start, end) in enumerate(zip(ends - self.sizes, ends, strict=True)):
            part = slice(start, end)
            if not numbers[part].any():
                continue
            if (scale := _scale_of(numbers[part], self.dither[part])) is None:
                return None
            scales[index], codes[part] = scale, np.rint(numbers[part] / scale + self.dither[part])
        return codes, scales


def _dither(context: Context, layout: Layout, size: int) -> Wide:
    """Uniform on (-1/2, 1/2), never 0, in 24 bits; the same for both ends of a message.

    Only the raw output of the generator is used, which numpy keeps the same in all versions.
    """
    key = hashlib.sha256(b"fedpeft-dither-1\0" + layout.digest + context.encode()).digest()
    raw = np.random.PCG64(np.random.SeedSequence(int.from_bytes(key, "little"))).random_raw(-(-size // 2))
    drawn = (raw.astype("<u8").view("<u4")[:size] >> (32 - _DITHER_BITS)).astype(np.float64)
    return (drawn + 0.5) * 2.0**-_DITHER_BITS - 0.5


def _scale_of(numbers: Wide, dither: Wide) -> float | None:
    """The largest step that all numbers are codes of, less their dither; None: there is none."""
    place = int(np.argmax(np.abs(numbers)))
    peak = numbers[place : place + 1]
    least, greatest = np.frexp(peak / (_MAX_LEVEL + 1))[1][0], np.frexp(peak)[1][0] + _OCTAVES_ABOVE
    exponents = np.arange(greatest, least - 1, -1)[:, None]
    significands = np.arange((1 << SIGNIFICAND_BITS) - 1, (1 << (SIGNIFICAND_BITS - 1)) - 1, -1)
    scales = np.ldexp(significands.astype(np.float64), exponents - SIGNIFICAND_BITS).ravel()
    for scale in scales[_carries(peak, dither[place : place + 1], scales)]:
        if _carries(numbers, dither, scale).all():
            return float(scale)
    return None


def _carries(
    numbers: Wide | np.float64, dither: Wide | np.float64, scale: Wide | np.float64
) -> NDArray[np.bool_]:
    """Whether numbers are codes less their dither times a step, after rounding to float32."""
    codes = np.rint(numbers / scale + dither)
    with np.errstate(over="ignore"):
        values = ((codes - dither) * scale).astype(np.float32)
    return (values == numbers) & (np.abs(codes) <= _MAX_LEVEL)


def _single(numbers: Wide) -> FloatVector:
    """Numbers rounded to float32; no zero is negative."""
    return numbers.astype(np.float32) + np.float32(0)


def _parsed(payload: bytes, sizes: Integers) -> tuple[Wide, Wide]:
    """Codes and scales of all tensors; zero for those that are not sent."""
    reader = BitReader.of(payload[: _head_bytes(sizes)])
    sent = reader.take(sizes.size).view(np.bool_)
    codes, scales = np.zeros(int(sizes.sum())), np.zeros(sizes.size)
    scales[sent] = read_scales(reader, int(np.count_nonzero(sent)))
    marked = np.repeat(sent, sizes)
    size = int(np.count_nonzero(marked))
    if not size:
        if len(payload) != -(-reader.cursor // 8) or reader.rest.any():
            raise EnvelopeError("the payload goes on after its last scale")
        return codes, scales
    (highest,) = reader.fields([_LEVEL_BITS])
    counts = read_counts(reader, np.full(2 * highest + 1, size))
    if counts.sum() != size or counts[0] + counts[-1] == 0:
        raise EnvelopeError("the counts of the integers do not add up to the values sent, or have empty ends")
    if reader.take(-reader.cursor % 8).any():
        raise EnvelopeError("the counts of the integers are filled up with something else than zero")
    symbols = ans.decode(payload[reader.cursor // 8 :], counts)
    if symbols is None or not np.array_equal(np.bincount(symbols, minlength=counts.size), counts):
        raise EnvelopeError("a stream of integers is damaged, or ends early or late")
    codes[marked] = symbols - highest
    return codes, scales


def _head_bytes(sizes: Integers) -> int:
    """The most bytes before the stream."""
    counts = count_bits(np.full(2 * _MAX_LEVEL + 1, int(sizes.sum())))
    return -(-(sizes.size + scale_bits(sizes.size) + _LEVEL_BITS + counts) // 8)
