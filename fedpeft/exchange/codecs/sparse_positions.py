"""Which positions of each segment are marked, near the entropy of that many marks.

Segments are the tensors of a layout (or what a codec makes of them). Sizes and counts are known to both
ends; all else follows from them by integer arithmetic, so that there is one code per set of positions. Where
more than half of a segment is marked, the others are coded. By the share of the positions that are coded:

* below 34 %, Golomb codes of the gaps;
* below 43 %, a fixed Huffman code of three positions at a time: 2 bits for none, 3 for one, 3 or 4 for more;
* else one bit per position.

With one bit for each sign, the cost over the entropy of the symbols is at most 1.5 % at any share above 1 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import EnvelopeError
from fedpeft.exchange.codecs.bit_io import BitReader, Bits
from fedpeft.exchange.decoded import Positions
from fedpeft_kernels.golomb import Code, Integers, Small, parameters

Flags = NDArray[np.bool_]

_RANKS = np.array([0, 1, 2, 4, 3, 5, 6, 7], np.uint8)  # rank: a triple's place in the Huffman code
_TRIPLES = np.argsort(_RANKS).astype(np.uint8)  # the triple (as a number) of each rank
_TRIPLE_BITS = ((_TRIPLES[:, None] >> np.array([2, 1, 0])) & 1).astype(np.uint8)


@dataclass(frozen=True)
class Read:
    """What a payload says of marks before its last stream: remainders, and the segments coded bit by bit."""

    rest: Small
    triples: Bits
    bitmap: Bits


@dataclass(frozen=True)
class PositionCode:
    """The code for one number of marks per segment.

    Attributes:
        sizes: positions of each segment, int64, shape ``(S,)``; together below 2^30.
        counts: marked ones, same shape, each at most its size.
    """

    sizes: Integers
    counts: Integers

    @cached_property
    def offsets(self) -> Integers:
        """Start of each segment and, last, the end; shape ``(S + 1,)``."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    @cached_property
    def events(self) -> Integers:
        """How many positions are coded: the marked, or the unmarked where these are fewer."""
        return np.minimum(self.counts, self.sizes - self.counts)

    @cached_property
    def _golomb(self) -> Flags:
        """Segments in Golomb code."""
        return (100 * self.events < 34 * self.sizes) | (self.sizes == 0)

    @cached_property
    def _bitwise(self) -> tuple[tuple[Flags, int], tuple[Flags, int]]:
        """The other segments, each kind with the positions that make a unit: in triples, and bit by bit."""
        triples = ~self._golomb & (100 * self.events < 43 * self.sizes)
        return (triples, 3), (~self._golomb & ~triples, 1)

    @cached_property
    def gaps(self) -> Integers:
        """How many gaps each segment sends in Golomb code; 0 for the others."""
        return np.where(self._golomb, self.events, 0)

    @cached_property
    def _code(self) -> Code:
        return Code.of(parameters(self.sizes, self.gaps), self.gaps)

    @cached_property
    def _plain(self) -> bool:
        """Whether all segments send the gaps of their marked positions."""
        return bool(self._golomb.all() and (self.events == self.counts).all())

    def write(self, positions: Positions) -> tuple[list[Bits], Bits]:
        """Code increasing positions over all segments, counted from the first segment's start.

        Returns:
            The streams that both ends can measure, and the unary stream, whose last bit is a one.
        """
        triples = bitmap = np.zeros(0, np.uint8)
        if not self._plain:
            flags = self._flipped(positions)
            triples, bitmap = (self._cut_out(flags, *kind) for kind in self._bitwise)
            positions = np.flatnonzero(flags)
        starts, first = self.offsets[:-1][self.gaps > 0], (np.cumsum(self.gaps) - self.gaps)[self.gaps > 0]
        gaps = np.diff(positions.astype(np.int32), prepend=np.int32(-1)) - np.int32(1)
        gaps[first] = positions[first] - starts
        planes, unary = self._code.pack(gaps)
        return [*planes, *_huffman(triples), bitmap], unary

    def read(self, reader: BitReader) -> Read:
        """Read all but the unary stream.

        Raises:
            EnvelopeError: bits are missing, or free bits of a triple are set.
        """
        rest = self._code.remainders(reader.take)
        triples, bitmap = (int(self._widths(*kind).sum()) for kind in self._bitwise)
        return Read(rest, _unhuffman(reader, triples // 3), reader.take(bitmap))

    def positions(self, read: Read, ends: Small) -> Positions:
        """The positions that `write` was given.

        Args:
            read: from `read`.
            ends: index of each one in the unary stream, as many as there are gaps, int32.

        Raises:
            EnvelopeError: a position lies outside its segment, or a segment has another number of marks.
        """
        positions = self._resolved(read.rest, ends)
        if self._plain:
            return positions
        flags = np.zeros(int(self.offsets[-1]), np.bool_)
        flags[positions] = True
        for kind, bits in zip(self._bitwise, (read.triples, read.bitmap), strict=True):
            self._put_back(flags, bits, *kind)
        self._flip(flags)
        return np.flatnonzero(flags)

    def _resolved(self, rest: Small, ends: Small) -> Small:
        """Positions from remainders and unary codes, checked against the sizes."""
        last = np.cumsum(self.gaps)
        first = last - self.gaps
        quotients = _before(ends, last, -1) - _before(ends, first, -1) - self.gaps
        if np.any(quotients * parameters(self.sizes, self.gaps) + self.gaps > self.sizes):
            raise EnvelopeError("a position lies outside its tensor")
        gaps = np.diff(ends, prepend=np.int32(-1)) - np.int32(1)
        gaps *= self._code.moduli
        gaps += rest
        gaps += 1
        reach = np.cumsum(gaps, out=gaps)
        before = _before(reach, first, 0)
        if np.any(_before(reach, last, 0) - before > self.sizes):
            raise EnvelopeError("a position lies outside its tensor")
        reach += np.repeat((self.offsets[:-1] - before - 1).astype(np.int32), self.gaps)
        return reach

    def _flipped(self, positions: Positions) -> Flags:
        """Flags of the positions to code."""
        flags = np.zeros(int(self.offsets[-1]), np.bool_)
        flags[positions] = True
        self._flip(flags)
        return flags

    def _flip(self, flags: Flags) -> None:
        for part in self._parts(self.events < self.counts):
            np.logical_not(flags[part], out=flags[part])

    def _parts(self, chosen: Flags) -> Iterator[slice]:
        for index in np.flatnonzero(chosen):
            yield slice(self.offsets[index], self.offsets[index + 1])

    def _widths(self, kind: Flags, unit: int) -> Integers:
        """Bits that each segment of a kind takes: its size, filled up to whole units."""
        return -(-self.sizes[kind] // unit) * unit

    def _cut_out(self, flags: Flags, kind: Flags, unit: int) -> Bits:
        """Move the bits of the segments of a kind out of the flags."""
        widths = self._widths(kind, unit)
        bits = np.zeros(int(widths.sum()), np.uint8)
        start = 0
        for part, width in zip(self._parts(kind), widths, strict=True):
            bits[start : start + part.stop - part.start] = flags[part]
            flags[part] = False
            start += width
        return bits

    def _put_back(self, flags: Flags, bits: Bits, kind: Flags, unit: int) -> None:
        """The inverse of `_cut_out`, checked."""
        start = 0
        parts = zip(self._parts(kind), self._widths(kind, unit), self.events[kind], strict=True)
        for part, width, events in parts:
            piece, size = bits[start : start + width], part.stop - part.start
            if piece[size:].any() or np.count_nonzero(piece) != events:
                raise EnvelopeError("a tensor has another number of marks than it claims")
            flags[part] = piece[:size]
            start += width


def _before(numbers: Small, places: Integers, at_start: int) -> Integers:
    """The number before each place, as int64."""
    before = numbers[np.maximum(places - 1, 0)] if numbers.size else np.zeros(places.size)
    return np.where(places > 0, before, at_start).astype(np.int64)


def _huffman(bits: Bits) -> list[Bits]:
    """Streams of the triples: two bits of all, a third of most, a fourth of the rarest."""
    ranks = _RANKS[bits.reshape(-1, 3) @ np.array([4, 2, 1], np.uint8)].astype(np.int8)
    some = ranks[ranks > 0] - 1
    head = np.minimum(some, 5)
    first = np.zeros(ranks.size, np.uint8)
    first[ranks > 0] = 1 + (head >> 1)
    return [part.astype(np.uint8) for part in (first >> 1, first & 1, head & 1, some[some >= 5] - 5)]


def _unhuffman(reader: BitReader, count: int) -> Bits:
    """Bits of the next triples; every pattern is a code."""
    first = 2 * reader.take(count) + reader.take(count)
    some = np.flatnonzero(first)
    head = 2 * (first[some] - 1) + reader.take(some.size)
    last = np.flatnonzero(head == 5)
    head[last] += reader.take(last.size)
    ranks = np.zeros(count, np.uint8)
    ranks[some] = head + 1
    return _TRIPLE_BITS[ranks].reshape(-1)
