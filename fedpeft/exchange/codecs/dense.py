"""Dense codecs: every value in 32, 16 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.codecs.base import Codec
from fedpeft.exchange.decoded import Decoded, Positions
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.transforms import Transform

if TYPE_CHECKING:
    from fedpeft.config.models import DirectionConfig

_MAX = float(np.finfo(np.float32).max)
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class DenseFp32(Codec):
    """Every value as little-endian float32: the baseline, 32 bits per value."""

    name = "dense-fp32"
    wire_id = 0
    same_values = True
    fills_zeros = False
    exact = True

    @classmethod
    def transforms(cls, direction: DirectionConfig) -> tuple[Transform, ...]:
        """No step: all values leave as they are."""
        return ()

    def fit(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> FloatVector:
        """The values themselves."""
        return values

    def encode(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> bytes:
        """Four bytes per value."""
        _require_finite(values)
        return values.astype("<f4").tobytes()

    def decode(self, payload: bytes, layout: Layout) -> Decoded:
        """Exact values; every one must be finite."""
        _require_length(payload, self.max_bytes(layout))
        return Decoded(layout, _finite(np.frombuffer(payload, "<f4").astype(np.float32)))

    def max_bytes(self, layout: Layout) -> int:
        """Four bytes per value."""
        return 4 * layout.size


@dataclass(frozen=True)
class DenseBf16(Codec):
    """Every value as little-endian bfloat16, rounded to nearest even: 16 bits per value."""

    name = "dense-bf16"
    wire_id = 1
    same_values = True
    fills_zeros = False

    def fit(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> FloatVector:
        """Values rounded to 8 significant bits.

        Raises:
            ExchangeError: a value rounds to infinity.
        """
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        result = rounded.astype(np.uint32).view(np.float32)
        _require_finite(result)
        return result

    def encode(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> bytes:
        """Two bytes per value."""
        _require_finite(values)
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        if np.any(bits & 0xFFFF):
            raise ExchangeError(
                "dense-bf16 cannot carry these values exactly; put Quantise('dense-bf16') before"
            )
        return (bits >> 16).astype("<u2").tobytes()

    def decode(self, payload: bytes, layout: Layout) -> Decoded:
        """Exact bfloat16 values as float32; every one must be finite."""
        _require_length(payload, self.max_bytes(layout))
        bits = np.frombuffer(payload, "<u2").astype(np.uint32) << 16
        return Decoded(layout, _finite(bits.view(np.float32)))

    def max_bytes(self, layout: Layout) -> int:
        """Two bytes per value."""
        return 2 * layout.size


@dataclass(frozen=True)
class Int8(Codec):
    """Eight bits per value and one float32 scale per tensor, symmetric, rounded to nearest.

    The scale is the largest magnitude over 127, rounded up to 16 significant bits, so that ``127 * scale``
    is exact and the scale can be read back from the values. In a tensor that is not zero some code is 127
    or -127.
    """

    name = "int8"
    wire_id = 2
    same_values = True
    fills_zeros = False

    def fit(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> FloatVector:
        """Multiples of each tensor's scale; a tensor too small for a normal scale becomes zero.

        Raises:
            ExchangeError: a scale is too large for float32.
        """
        result = np.empty_like(values)
        for tensor in _slices(layout):
            scale = _int8_scale(values[tensor])
            result[tensor] = np.rint(values[tensor] / scale) * scale if scale else 0
        result += np.float32(0)
        return result

    def encode(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> bytes:
        """Scales of all tensors, then codes of all values."""
        _require_finite(values)
        codes = np.empty(layout.size, np.int8)
        scales = np.zeros(len(layout.names), "<f4")
        for index, tensor in enumerate(_slices(layout)):
            scales[index] = scale = _int8_scale(values[tensor])
            codes[tensor] = np.rint(values[tensor] / scale) if scale else 0
            if not np.array_equal(codes[tensor] * scale, values[tensor]):
                raise ExchangeError("int8 cannot carry these values exactly; put Quantise('int8') before")
        return scales.tobytes() + codes.tobytes()

    def decode(self, payload: bytes, layout: Layout) -> Decoded:
        """Codes times scales."""
        _require_length(payload, self.max_bytes(layout))
        count = len(layout.names)
        scales = np.frombuffer(payload, "<f4", count).astype(np.float32)
        codes = np.frombuffer(payload, np.int8, offset=4 * count)
        values = np.empty(layout.size, np.float32)
        for scale, tensor in zip(scales, _slices(layout), strict=True):
            peak = max(int(codes[tensor].max()), -int(codes[tensor].min()))
            if peak != (127 if scale else 0) or not _is_int8_scale(scale):
                raise EnvelopeError("an int8 tensor has a scale that its codes do not imply")
            values[tensor] = codes[tensor] * scale
        return Decoded(layout, _finite(values))

    def max_bytes(self, layout: Layout) -> int:
        """One byte per value and four per tensor."""
        return layout.size + 4 * len(layout.names)


def _slices(layout: Layout) -> list[slice]:
    return [slice(start, end) for start, end in zip(layout.offsets[:-1], layout.offsets[1:], strict=True)]


def _int8_scale(values: FloatVector) -> np.float32:
    """Largest magnitude over 127, rounded up to 16 significant bits; 0 below the normal range."""
    exact = float(np.abs(values).max(initial=0)) / 127
    fraction, exponent = np.frexp(exact)
    scale = np.ldexp(np.ceil(np.ldexp(fraction, 16)), exponent - 16)
    if scale * 127 > _MAX:
        raise ExchangeError("a value is too large for int8; clip the update before")
    return np.float32(scale if scale >= _TINY else 0)


def _is_int8_scale(scale: np.float32) -> bool:
    """Not negative (nor -0), zero or normal, at most 16 significant bits, 127 times it is finite."""
    if np.isnan(scale) or np.signbit(scale) or float(scale) * 127 > _MAX:
        return False
    return not int(scale.view(np.uint32)) & 0xFF and bool(scale == 0 or scale >= _TINY)


def _require_finite(values: FloatVector) -> None:
    if not np.isfinite(values).all():
        raise ExchangeError("values to send must be finite; refuse or zero NaN and infinity before")


def _require_length(payload: bytes, expected: int) -> None:
    if len(payload) != expected:
        raise EnvelopeError(f"payload has {len(payload)} bytes, this layout and codec need {expected}")


def _finite(values: FloatVector) -> FloatVector:
    if not np.isfinite(values).all():
        raise EnvelopeError("payload holds a value that is not finite")
    return values
