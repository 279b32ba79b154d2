"""Sparse codecs at the entropy of their symbols: ternary, and the dead-zone code of seven levels.

Payload, one bit string padded once to whole bytes::

    counts       of each tensor's nonzero values (dead-zone: then of those above the first level, above the
                 second)
    scales       of the tensors with nonzero values
    marks        where the nonzero values are (dead-zone: then which of them are above a level)
    signs        1 for negative, per nonzero value
    quotients    the unary parts of all gaps; the last bit that is one ends the payload

The fields are those of `fedpeft.exchange.codecs.bitfields`, the streams those of
`fedpeft.exchange.codecs.sparse_positions`. Everything but the values follows from the
layout and the counts by integer arithmetic: there is exactly one payload per vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.codecs.base import Codec
from fedpeft.exchange.codecs.bit_io import BitReader, Bits, to_bytes
from fedpeft.exchange.codecs.bitfields import (
    count_bits,
    fitting,
    read_counts,
    read_scales,
    scale_bits,
    write_counts,
    write_scales,
)
from fedpeft.exchange.codecs.public_ternary import PublicTernary
from fedpeft.exchange.codecs.sparse_positions import PositionCode
from fedpeft.exchange.decoded import Decoded, Positions
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.transforms import Quantise, Rounding, Sparsify, Transform
from fedpeft_kernels.golomb import Integers, Small
from fedpeft_kernels.ternary import group_sums, magnitude_sums, mean_magnitudes

if TYPE_CHECKING:
    from fedpeft.config.models import DirectionConfig, ExchangeConfig

MAX_VALUES = 1 << 28
_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Ternary(Codec):
    """Vectors with at most one magnitude per tensor, near the entropy of their symbols."""

    name = "ternary"
    wire_id = 3
    sends_all = False
    fills_zeros = False
    near_entropy = True
    choice_density = 1.0
    own_step = "ternarise"

    @classmethod
    def transforms(cls, direction: DirectionConfig) -> tuple[Transform, ...]:
        """The largest values, then one magnitude per tensor."""
        return (Sparsify(direction.density), Ternarise())

    @classmethod
    def summed(cls, exchange: ExchangeConfig) -> PublicTernary:
        """Ternary values on a public support, with public scales."""
        return PublicTernary.of_sum(exchange)

    def fit(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> FloatVector:
        """Give every nonzero value its tensor's mean magnitude, rounded down to 7 significant bits.

        The result's norm is never larger, per tensor. A tensor whose scale lies more than 15 octaves below
        the largest, or below the normal float32 range, becomes zero.
        """
        support, counts = _support(values, layout, support)
        numbers = values[support]
        scales = fitting(mean_magnitudes(np.abs(numbers), counts))
        return _placed(layout, support, np.copysign(np.repeat(scales, counts), numbers))

    def encode(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> bytes:
        """The canonical payload.

        Raises:
            ExchangeError: a tensor has two magnitudes, or one that the scale field cannot hold.
        """
        support, counts = _support(values, layout, support)
        numbers = values[support]
        scales = _first_of_each(np.abs(numbers), counts)
        if not np.array_equal(np.abs(numbers), np.repeat(scales, counts)):
            raise ExchangeError(
                "ternary carries one magnitude per tensor, a tensor has several; put Ternarise() before"
            )
        return _written(
            PositionCode(layout.sizes, counts), [(layout.sizes, counts)], scales, support, numbers
        )

    def decode(self, payload: bytes, layout: Layout) -> Decoded:
        """The values; memory is bounded by the layout, and every accepted payload is the canonical one."""
        reader = _opened(payload, self.max_bytes(layout))
        counts = read_counts(reader, layout.sizes)
        scales = _read_scales(reader, counts)
        code = PositionCode(layout.sizes, counts)
        positions, signs = _read_streams(reader, code, int(counts.sum()))
        return Decoded(layout, _signed(np.repeat(scales, counts), signs), positions)

    def max_bytes(self, layout: Layout) -> int:
        """Fields, and at most three bits per value."""
        fields = count_bits(layout.sizes) + scale_bits(len(layout.names))
        return (fields + 3 * layout.size + 7) // 8


@dataclass(frozen=True)
class Ternarise(Rounding):
    """Give every nonzero value its sign times its tensor's mean magnitude as the codec carries it."""

    name = "ternarise"

    @property
    def rounds_for(self) -> Ternary:
        """Ternary."""
        return Ternary()


@dataclass(frozen=True)
class DeadZone(Codec):
    """Seven levels per tensor: 0 and plus or minus one, two or four times a scale.

    For heavy-tailed vectors, whose few largest values one magnitude serves badly.
    """

    name = "dead-zone"
    wire_id = 5
    sends_all = False
    fills_zeros = False
    choice_density = 0.75  # seven levels take more bits per value

    @classmethod
    def transforms(cls, direction: DirectionConfig) -> tuple[Transform, ...]:
        """The largest values, then seven levels."""
        return (Sparsify(direction.density), Quantise(cls()))

    def fit(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> FloatVector:
        """Round every nonzero value to one, two or four times its tensor's scale.

        The scale starts at the least magnitude of the tensor and is then twice set to its optimum in L2 for
        the levels chosen, rounded down, so that the result's norm is never larger, per tensor. Tensors whose
        scale the fields cannot hold become zero.

        Raises:
            ExchangeError: a level is too large for float32.
        """
        support, counts = _support(values, layout, support)
        numbers = values[support]
        magnitudes = np.abs(numbers)
        scales, factors = _refitted(magnitudes, counts, _least(magnitudes, counts))
        scales, factors = _refitted(magnitudes, counts, scales)
        least = _least(factors, counts)  # the least level that is used becomes the first
        scales, factors = fitting(scales * least), factors // np.repeat(least, counts)
        rounded = np.repeat(scales, counts) * factors
        if rounded.max(initial=0) > _MAX:
            raise ExchangeError("a value is too large for dead-zone; clip the update before")
        return _placed(layout, support, np.copysign(rounded, numbers))

    def encode(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> bytes:
        """The canonical payload.

        Raises:
            ExchangeError: a tensor holds other magnitudes than one, two and four times its least.
        """
        support, counts = _support(values, layout, support)
        numbers = values[support]
        scales = _least(np.abs(numbers), counts)
        wide = np.repeat(scales, counts)
        factors = _factors(np.abs(numbers), wide)
        if not np.array_equal(np.abs(numbers), wide * factors):
            raise ExchangeError(
                "dead-zone carries one, two and four times one magnitude per tensor; put Quantise() before"
            )
        upper = np.flatnonzero(factors > 1)
        top = np.flatnonzero(factors[upper] > 2)
        second = group_sums((factors > 1).astype(np.int64), counts)
        third = group_sums((factors[upper] > 2).astype(np.int64), second)
        groups = [(layout.sizes, counts), (counts, second), (second, third)]
        code = _stacked(groups)
        start = layout.size
        positions = np.concatenate([support, start + upper, start + support.size + top])
        return _written(code, groups, scales, positions, numbers)

    def decode(self, payload: bytes, layout: Layout) -> Decoded:
        """The values; memory is bounded by the layout, and every accepted payload is the canonical one."""
        reader = _opened(payload, self.max_bytes(layout))
        counts = read_counts(reader, layout.sizes)
        second = read_counts(reader, counts)
        third = read_counts(reader, second)
        if np.any((counts > 0) & (second == counts)):
            raise EnvelopeError("a tensor uses no value of its first level")
        scales = _read_scales(reader, counts)
        total = int(counts.sum())
        code = _stacked([(layout.sizes, counts), (counts, second), (second, third)])
        positions, signs = _read_streams(reader, code, total)
        support, upper, top = np.split(positions, np.cumsum([total, int(second.sum())]))
        factors = np.ones(total, np.float32)
        factors[upper - layout.size] = 2
        factors[(upper - layout.size)[top - layout.size - total]] = 4
        with np.errstate(over="ignore"):
            numbers = np.repeat(scales, counts) * factors
        if not np.isfinite(numbers).all():
            raise EnvelopeError("a value is outside the range of float32")
        return Decoded(layout, _signed(numbers, signs), support)

    def max_bytes(self, layout: Layout) -> int:
        """Fields, and at most seven bits per value."""
        fields = 3 * count_bits(layout.sizes) + scale_bits(len(layout.names))
        return (fields + 7 * layout.size + 7) // 8


def _support(values: FloatVector, layout: Layout, support: Positions | None) -> tuple[Positions, Integers]:
    """Positions of the nonzero values and how many each tensor has."""
    if layout.size > MAX_VALUES:
        raise ExchangeError(f"a layout of {layout.size} values is too large; {MAX_VALUES} are possible")
    if support is None:
        support = np.flatnonzero(values)
    return support, np.diff(np.searchsorted(support, layout.offsets))


def _placed(layout: Layout, support: Positions, numbers: FloatVector) -> FloatVector:
    """Numbers at their positions, zero elsewhere, no negative zero."""
    values = np.zeros(layout.size, np.float32)
    values[support] = numbers + np.float32(0)
    return values


def _signed(magnitudes: FloatVector, signs: Bits) -> FloatVector:
    """Magnitudes with their sign bits set."""
    return (magnitudes.view(np.uint32) | (signs.astype(np.uint32) << 31)).view(np.float32)


def _first_of_each(magnitudes: FloatVector, counts: Integers) -> FloatVector:
    """The first magnitude of each tensor, 0 where there is none."""
    firsts = np.zeros(counts.size, np.float32)
    firsts[counts > 0] = magnitudes[(np.cumsum(counts) - counts)[counts > 0]]
    return firsts


def _least(numbers: np.ndarray, counts: Integers) -> np.ndarray:
    """The least number of each tensor, 0 where there is none."""
    least = np.zeros(counts.size, numbers.dtype)
    if (filled := counts > 0).any():
        least[filled] = np.minimum.reduceat(numbers, (np.cumsum(counts) - counts)[filled])
    return least


def _refitted(magnitudes: FloatVector, counts: Integers, scales: FloatVector) -> tuple[FloatVector, Integers]:
    """Each magnitude's level at these scales, and the scales that are optimal in L2 for the levels."""
    factors = _factors(magnitudes, np.repeat(scales, counts))
    weights = np.maximum(group_sums(factors * factors, counts), 1)
    return fitting(magnitude_sums(magnitudes * factors.astype(np.float64), counts) / weights), factors


def _factors(magnitudes: FloatVector, scales: np.ndarray) -> Integers:
    """The nearest of one, two and four for each magnitude over its scale."""
    with np.errstate(over="ignore"):
        return 1 + (magnitudes >= 1.5 * scales) + 2 * (magnitudes >= 3.0 * scales).astype(np.int64)


def _stacked(groups: list[tuple[Integers, Integers]]) -> PositionCode:
    sizes, counts = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    return PositionCode(sizes, counts)


def _written(
    code: PositionCode,
    groups: list[tuple[Integers, Integers]],
    scales: FloatVector,
    positions: Positions,
    numbers: FloatVector,
) -> bytes:
    streams, unary = code.write(positions)
    fields = [write_counts(sizes, counts) for sizes, counts in groups]
    signs = np.signbit(numbers).view(np.uint8)
    return to_bytes([*fields, write_scales(scales[groups[0][1] > 0]), *streams, signs, unary])


def _opened(payload: bytes, longest: int) -> BitReader:
    if len(payload) > longest:
        raise EnvelopeError(f"payload has {len(payload)} bytes, at most {longest} are possible")
    return BitReader.of(payload)


def _read_scales(reader: BitReader, counts: Integers) -> FloatVector:
    scales = np.zeros(counts.size, np.float32)
    scales[counts > 0] = read_scales(reader, int(np.count_nonzero(counts)))
    return scales


def _read_streams(reader: BitReader, code: PositionCode, signs: int) -> tuple[Positions, Bits]:
    read, bits = code.read(reader), reader.take(signs)
    return code.positions(read, _read_ends(reader, code)), bits


def _read_ends(reader: BitReader, code: PositionCode) -> Small:
    """Positions of the ones in the last stream; they must be as many as announced and end the payload."""
    bits, gaps = reader.rest, int(code.gaps.sum())
    ends = np.flatnonzero(bits)
    used = int(ends[-1]) + 1 if ends.size else 0
    if ends.size != gaps or bits.size - used > 7:
        raise EnvelopeError(
            f"the payload ends with {ends.size} gaps and {bits.size - used} free bits, not {gaps} gaps"
        )
    return ends.astype(np.int32)
