"""The small fields in front of the streams: how many values of each tensor, and at which scale.

Counts, as exponential Golomb codes of order ``k`` (Teuhola 1978) with their parts side by side::

    order    4 bits   k: the order, the least of those that take the fewest bits
    lengths  per tensor the length of ``(count >> k) + 1`` in unary, less one: zeros, then a one
    heads    per tensor that number without its leading bit
    tails    per tensor the ``k`` low bits of the count

Scales, of the tensors that have one::

    exponent 8 bits   biased binary exponent of the largest scale; 0 when there is none
    width    3 bits   bits of an octave: as few as the largest needs
    scales   per tensor the octaves below the largest, and 6 bits of significand
"""

from __future__ import annotations

import numpy as np

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.codecs.bit_io import BitReader, Bits, field_bits
from fedpeft.exchange.layout import FloatVector
from fedpeft_kernels.golomb import Integers
from fedpeft_kernels.ternary import SIGNIFICAND_BITS, round_down

_BIAS = 127
_OCTAVES = 16
_WIDTH_BITS = 3
_FRACTION_BITS = SIGNIFICAND_BITS - 1
_ORDER_BITS = 4
_LONGEST = 32  # bits of a length in unary: counts are below 2^31
_LOWEST = -126  # exponent of the smallest normal float32


def write_counts(sizes: Integers, counts: Integers) -> Bits:
    """The fields of counts, each at most its size; a tensor without positions takes no bit."""
    coded = counts[sizes > 0]
    order = _order(coded)
    numbers = (coded >> order) + 1
    lengths = _lengths(numbers)
    unary = np.zeros(int(lengths.sum()), np.uint8)
    unary[np.cumsum(lengths) - 1] = 1
    heads = field_bits((numbers - (1 << (lengths - 1))).tolist(), (lengths - 1).tolist())
    tails = field_bits((coded & ((1 << order) - 1)).tolist(), [order] * coded.size)
    return np.concatenate([field_bits([order], [_ORDER_BITS]), unary, heads, tails])


def read_counts(reader: BitReader, sizes: Integers) -> Integers:
    """The inverse of `write_counts`.

    Raises:
        EnvelopeError: a count exceeds its size, or the order is not the best one.
    """
    some = sizes > 0
    (order,) = reader.fields([_ORDER_BITS])
    lengths = _read_lengths(reader, int(np.count_nonzero(some)))
    heads = reader.fields((lengths - 1).tolist())
    tails = reader.fields([order] * lengths.size)
    coded = ((np.array(heads, np.int64) + (np.int64(1) << (lengths - 1)) - 1) << order) + np.array(
        tails, np.int64
    )
    counts = np.zeros(sizes.size, np.int64)
    counts[some] = coded
    if np.any(counts > sizes) or order != _order(coded):
        raise EnvelopeError("a tensor claims more values than it has, or a count is not written shortest")
    return counts


def count_bits(sizes: Integers) -> int:
    """The most bits that `write_counts` takes: no more than at order 0."""
    return _ORDER_BITS + int((2 * _lengths(sizes + 1) - 1).sum())


def fitting(means: np.ndarray) -> FloatVector:
    """Scales that the fields can hold: rounded down to 7 significant bits, float32.

    A scale more than 15 octaves below the largest, or below the normal float32 range, becomes 0.
    """
    scales = round_down(means)
    exponents = np.frexp(scales)[1] - 1
    highest = int(exponents[scales > 0].max(initial=_LOWEST))
    in_range = exponents >= max(_LOWEST, highest - _OCTAVES + 1)
    return np.where(in_range, scales, 0).astype(np.float32)


def write_scales(scales: FloatVector) -> Bits:
    """The fields of positive scales.

    Raises:
        ExchangeError: a scale is not one that `fitting` gives.
    """
    if not np.isfinite(scales).all():
        raise ExchangeError("values to send must be finite; refuse or zero NaN and infinity before")
    fractions, exponents = np.frexp(scales.astype(np.float64))
    significands = np.ldexp(fractions, _FRACTION_BITS + 1)
    highest = int(exponents.max(initial=_LOWEST))
    octaves = (highest - exponents).astype(np.int64)
    fits = (significands == np.floor(significands)) & (octaves < _OCTAVES) & (exponents > _LOWEST)
    if not (fits & (scales > 0)).all():
        raise ExchangeError("a scale does not fit its field of 7 significant bits; fit the values before")
    biased = highest - 1 + _BIAS if scales.size else 0
    width = int(octaves.max(initial=0)).bit_length()
    fields = (octaves << _FRACTION_BITS) + significands.astype(np.int64) - (1 << _FRACTION_BITS)
    widths = [8, _WIDTH_BITS, *[width + _FRACTION_BITS] * scales.size]
    return field_bits([biased, width, *fields.tolist()], widths)


def read_scales(reader: BitReader, count: int) -> FloatVector:
    """The inverse of `write_scales`, for a number of scales.

    Raises:
        EnvelopeError: octaves do not start at the largest, are wider than they must be, or leave the
            normal range.
    """
    biased, width = reader.fields([8, _WIDTH_BITS])
    fields = np.array(reader.fields([width + _FRACTION_BITS] * count), np.int64)
    octaves = fields >> _FRACTION_BITS
    lowest = int(octaves.max(initial=0))
    if (count and octaves.min() != 0) or width != lowest.bit_length() or lowest >= _OCTAVES:
        raise EnvelopeError("the octaves of the scales do not start at the largest, or are too wide")
    if not (lowest < biased < 2 * _BIAS + 1 if count else biased == 0):
        raise EnvelopeError("a scale is outside the normal range of float32")
    significands = (fields & ((1 << _FRACTION_BITS) - 1)) + (1 << _FRACTION_BITS)
    scales = np.ldexp(significands.astype(np.float64), biased - _BIAS - _FRACTION_BITS - octaves)
    return scales.astype(np.float32)


def scale_bits(count: int) -> int:
    """The most bits that `write_scales` takes for a number of scales."""
    return 8 + _WIDTH_BITS + (_OCTAVES.bit_length() - 1 + _FRACTION_BITS) * count


def _order(counts: Integers) -> int:
    """The least order that takes the fewest bits."""
    orders = range(1 << _ORDER_BITS)
    return min(orders, key=lambda order: int((2 * _lengths((counts >> order) + 1) + order).sum()))


def _lengths(numbers: Integers) -> Integers:
    """Bits of positive numbers."""
    return np.frexp(numbers.astype(np.float64))[1].astype(np.int64)


def _read_lengths(reader: BitReader, count: int) -> Integers:
    """So many lengths in unary."""
    ends = np.flatnonzero(reader.rest[: _LONGEST * count])[:count]
    if ends.size != count:
        raise EnvelopeError("envelope is cut off in its counts, or one is too large")
    reader.take(int(ends[-1]) + 1 if count else 0)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max(initial=0) > _LONGEST - 1:
        raise EnvelopeError("a count is too large")
    return lengths
