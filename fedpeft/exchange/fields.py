"""The small fields in front of the streams: how many values of each tensor, and at which scale.

Counts::

    spare    5 bits   leading bits that no count below uses
    counts   per tensor, in the bits its size needs less the spare ones (at least one)

Scales, of the tensors that have one::

    exponent 8 bits   biased binary exponent of the largest scale; 0 when there is none
    scales   4 bits octaves below the largest, 6 bits significand
"""

from __future__ import annotations

import numpy as np

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.bits import BitReader, Bits, field_bits
from fedpeft.exchange.layout import FloatVector
from fedpeft_kernels.golomb import Integers
from fedpeft_kernels.ternary import SIGNIFICAND_BITS, round_down

_BIAS = 127
_OCTAVE_BITS = 4
_FRACTION_BITS = SIGNIFICAND_BITS - 1
_SCALE_BITS = _OCTAVE_BITS + _FRACTION_BITS
_SPARE_BITS = 5
_LOWEST = -126  # exponent of the smallest normal float32


def write_counts(sizes: Integers, counts: Integers) -> Bits:
    """The fields of counts, each at most its size; a tensor without positions takes no bit."""
    open_sizes, open_counts = sizes[sizes > 0].tolist(), counts[sizes > 0].tolist()
    spare = _spare(open_sizes, open_counts)
    widths = [_width(size, spare) for size in open_sizes]
    return field_bits([spare, *open_counts], [_SPARE_BITS, *widths])


def read_counts(reader: BitReader, sizes: Integers) -> Integers:
    """The inverse of `write_counts`.

    Raises:
        EnvelopeError: a count exceeds its size, or the fields are wider than they must be.
    """
    open_sizes = sizes[sizes > 0].tolist()
    spare = reader.fields([_SPARE_BITS])[0]
    numbers = reader.fields([_width(size, spare) for size in open_sizes])
    counts = np.zeros(sizes.size, np.int64)
    counts[sizes > 0] = numbers
    if np.any(counts > sizes) or spare != _spare(open_sizes, numbers):
        raise EnvelopeError("a tensor claims more values than it has, or a count field is too wide")
    return counts


def count_bits(sizes: Integers) -> int:
    """The most bits that `write_counts` takes."""
    return _SPARE_BITS + sum(int(size).bit_length() for size in sizes)


def fitting(means: np.ndarray) -> FloatVector:
    """Scales that the fields can hold: rounded down to 7 significant bits, float32.

    A scale more than 15 octaves below the largest, or below the normal float32 range, becomes 0.
    """
    scales = round_down(means)
    exponents = np.frexp(scales)[1] - 1
    highest = int(exponents[scales > 0].max(initial=_LOWEST))
    kept = exponents >= max(_LOWEST, highest - (1 << _OCTAVE_BITS) + 1)
    return np.where(kept, scales, 0).astype(np.float32)


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
    octaves = highest - exponents
    fits = (significands == np.floor(significands)) & (octaves < 1 << _OCTAVE_BITS) & (exponents > _LOWEST)
    if not (fits & (scales > 0)).all():
        raise ExchangeError("a scale does not fit its field of 7 significant bits; fit the values before")
    biased = highest - 1 + _BIAS if scales.size else 0
    fields = (octaves << _FRACTION_BITS) + significands.astype(np.int64) - (1 << _FRACTION_BITS)
    return field_bits([biased, *fields.tolist()], [8, *[_SCALE_BITS] * scales.size])


def read_scales(reader: BitReader, count: int) -> FloatVector:
    """The inverse of `write_scales`, for a number of scales.

    Raises:
        EnvelopeError: no scale has the largest exponent, or one is outside the normal range.
    """
    biased, *numbers = reader.fields([8, *[_SCALE_BITS] * count])
    fields = np.array(numbers, np.int64)
    octaves = fields >> _FRACTION_BITS
    if count and octaves.min() != 0:
        raise EnvelopeError("no scale has the exponent of the largest")
    if not (octaves.max() < biased < 2 * _BIAS + 1 if count else biased == 0):
        raise EnvelopeError("a scale is outside the normal range of float32")
    significands = (fields & ((1 << _FRACTION_BITS) - 1)) + (1 << _FRACTION_BITS)
    scales = np.ldexp(significands.astype(np.float64), biased - _BIAS - _FRACTION_BITS - octaves)
    return scales.astype(np.float32)


def scale_bits(count: int) -> int:
    """The bits that `write_scales` takes for a number of scales."""
    return 8 + _SCALE_BITS * count


def _width(size: int, spare: int) -> int:
    return max(1, size.bit_length() - spare)


def _spare(sizes: list[int], counts: list[int]) -> int:
    """The most leading bits that can be left out of every count field."""
    pairs = zip(sizes, counts, strict=True)
    free = [size.bit_length() - count.bit_length() for size, count in pairs if count > 1]
    return min([*free, (1 << _SPARE_BITS) - 1])
