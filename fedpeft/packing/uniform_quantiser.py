"""The levels codec: every value rounded to a multiple of its tensor's step, and the multiples entropy-coded.

A step is a share of the root mean square of its tensor, so that all tensors lose the same share. The scale
with which levels become values again is not the one of least L2 error, which would shrink the tensor towards
zero: it is ``sum x^2 / sum x z`` for values ``x`` and levels ``z``, with which the result's projection on the
original is the original. Rounding errors of different values cancel in a layer's output, a shrinkage does
not: on trained adapters this matters more than the error itself (docs/adapter-files.md).

Payload::

    peaks    1 byte per tensor   the largest magnitude of a level, 0 to 127; 0: the tensor is zero
    scales   2 bytes per tensor  bfloat16
    streams  for alphabets of 3, 5, 15 and 255 levels, each only if a tensor needs it:
             length u32, then raw deflate without matches of the levels of its tensors, in the order of the
             layout, 5, 3, 2 or 1 to a byte
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.layout import FloatVector, Layout

Codes = NDArray[np.int8]

MAX_LEVEL = 127
_PER_BYTE = {3: 5, 5: 3, 15: 2, 255: 1}
_TINY, _MAX = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Quantised:
    """Values as levels.

    Attributes:
        layout: the tensors.
        codes: int8, shape ``(layout.size,)``.
        scales: float32 of 8 significant bits, shape ``(tensors,)``; 0 where a tensor is zero.
    """

    layout: Layout
    codes: Codes
    scales: FloatVector

    def values(self) -> FloatVector:
        """Codes times scales, float32, shape ``(layout.size,)``."""
        return self.codes.astype(np.float32) * np.repeat(self.scales, self.layout.sizes)


def quantise(values: FloatVector, layout: Layout, step: float) -> Quantised:
    """Round values to levels.

    Args:
        values: finite float32, shape ``(layout.size,)``.
        layout: the tensors.
        step: distance of two levels over the root mean square of a tensor. A tensor whose largest value lies
            more than 127 steps from zero gets the larger step that it needs, and one whose largest value
            lies within a step gets that value as its step.

    Raises:
        ExchangeError: the step is not positive.
    """
    if not 0 < step < np.inf:
        raise ExchangeError(f"step is {step}; it must be positive and finite")
    codes = np.zeros(layout.size, np.int8)
    scales = np.zeros(len(layout.names), np.float32)
    for index, tensor in enumerate(_slices(layout)):
        codes[tensor], scales[index] = _quantised(values[tensor].astype(np.float64), step)
    return Quantised(layout, codes, scales)


def encode(quantised: Quantised) -> bytes:
    """The payload; the same levels give the same bytes with the same zlib."""
    peaks = _peaks(quantised.codes, quantised.layout)
    parts = [peaks.tobytes(), (quantised.scales.view(np.uint32) >> 16).astype("<u2").tobytes()]
    for radix, tensors in _groups(peaks, quantised.layout):
        packed = _to_bytes(np.concatenate([quantised.codes[tensor] for tensor in tensors]), radix)
        # Huffman codes only: levels repeat too little for matches, and are coded four times faster without
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
        stream = deflate.compress(packed) + deflate.flush()
        parts += [struct.pack("<I", len(stream)), stream]
    return b"".join(parts)


def decode(payload: bytes, layout: Layout) -> Quantised:
    """The levels; memory is bounded by the layout.

    Raises:
        EnvelopeError: the payload is not one of this layout.
    """
    count = len(layout.names)
    if len(payload) < 3 * count:
        raise EnvelopeError(f"levels of {count} tensors need {3 * count} bytes before them")
    peaks = np.frombuffer(payload, np.uint8, count)
    bits = np.frombuffer(payload, "<u2", count, offset=count).astype(np.uint32) << 16
    scales = bits.view(np.float32)
    _check_scales(peaks, scales)
    codes, position = np.zeros(layout.size, np.int8), 3 * count
    for radix, tensors in _groups(peaks, layout):
        stream, position = _stream(payload, position)
        wanted = sum(tensor.stop - tensor.start for tensor in tensors)
        digits, start = _from_bytes(_inflated(stream, -(-wanted // _PER_BYTE[radix])), radix, wanted), 0
        for tensor in tensors:
            size = tensor.stop - tensor.start
            codes[tensor] = digits[start : start + size]
            start += size
    if position != len(payload) or not np.array_equal(_peaks(codes, layout), peaks):
        raise EnvelopeError("levels end early or late, or have other peaks than announced")
    return Quantised(layout, codes, scales)


def _quantised(values: NDArray[np.float64], step: float) -> tuple[Codes, float]:
    """Levels and scale of one tensor."""
    peak = float(np.abs(values).max())
    width = min(max(step * float(np.sqrt(np.mean(values**2))), peak / MAX_LEVEL), peak)
    if width < _TINY:
        return np.zeros(values.size, np.int8), 0.0
    codes = np.rint(values / width).astype(np.int8)
    scale = float(values @ values) / float(values @ codes)
    highest = _bits8(_MAX / round(peak / width), np.floor)
    return codes, max(min(_bits8(scale, np.rint), highest), _TINY)


def _bits8(number: float, rounding: Callable[[float], float]) -> float:
    """A number rounded to 8 significant bits."""
    fraction, exponent = np.frexp(number)
    return float(np.ldexp(rounding(np.ldexp(fraction, 8)), exponent - 8))


def _check_scales(peaks: NDArray[np.uint8], scales: FloatVector) -> None:
    """Each scale must be a positive normal number whose levels are finite, and 0 just where no level is."""
    finite = np.isfinite(scales) & (scales.astype(np.float64) * peaks <= _MAX)
    normal = np.where(peaks > 0, scales >= _TINY, scales.view(np.uint32) == 0)
    if not (finite & normal & (peaks <= MAX_LEVEL)).all():
        raise EnvelopeError("a tensor of levels has a scale or a peak that no encoder writes")


def _slices(layout: Layout) -> list[slice]:
    return [slice(int(a), int(b)) for a, b in zip(layout.offsets[:-1], layout.offsets[1:], strict=True)]


def _peaks(codes: Codes, layout: Layout) -> NDArray[np.uint8]:
    peaks = [max(int(codes[t].max()), -int(codes[t].min())) for t in _slices(layout)]
    return np.array(peaks, np.uint8)


def _groups(peaks: NDArray[np.uint8], layout: Layout) -> Iterator[tuple[int, list[slice]]]:
    """The tensors of each alphabet that is used."""
    needed = 2 * peaks.astype(np.int64) + 1
    below = 1
    for radix in _PER_BYTE:
        inside = (needed > below) & (needed <= radix)
        if inside.any():
            yield radix, [t for t, chosen in zip(_slices(layout), inside, strict=True) if chosen]
        below = radix


def _to_bytes(codes: Codes, radix: int) -> bytes:
    """Levels as digits of bytes; the last byte is filled up with levels of zero."""
    count = _PER_BYTE[radix]
    digits = np.full(-(-codes.size // count) * count, radix // 2, np.uint8)
    digits[: codes.size] = codes.astype(np.int16) + radix // 2
    packed = np.zeros(digits.size // count, np.uint8)
    for place in range(count):
        packed += digits[place::count] * np.uint8(radix**place)
    return packed.tobytes()


def _from_bytes(packed: bytes, radix: int, wanted: int) -> Codes:
    """The inverse of `_to_bytes`."""
    count = _PER_BYTE[radix]
    rest = np.frombuffer(packed, np.uint8)
    if rest.size and int(rest.max()) >= radix**count:
        raise EnvelopeError("levels hold a byte that is no group of levels")
    digits = np.empty(rest.size * count, np.uint8)
    for place in range(count):
        digits[place::count] = rest % radix
        rest = rest // radix
    if np.any(digits[wanted:] != radix // 2):
        raise EnvelopeError("levels are filled up with something else than zero")
    return (digits[:wanted].astype(np.int16) - radix // 2).astype(np.int8)


def _stream(payload: bytes, position: int) -> tuple[bytes, int]:
    """The stream at a position, and where it ends."""
    if position + 4 > len(payload):
        raise EnvelopeError("a stream of levels is missing")
    (length,) = struct.unpack_from("<I", payload, position)
    end = position + 4 + length
    if end > len(payload):
        raise EnvelopeError("a stream of levels is cut off")
    return payload[position + 4 : end], end


def _inflated(stream: bytes, wanted: int) -> bytes:
    """Exactly ``wanted`` bytes of a raw deflate stream; no more are ever made."""
    inflate = zlib.decompressobj(-15)
    try:
        data = inflate.decompress(stream, wanted + 1)
    except zlib.error:
        raise EnvelopeError("a stream of levels is damaged") from None
    if len(data) != wanted or not inflate.eof or inflate.unused_data:
        raise EnvelopeError("a stream of levels ends early or late")
    return data
