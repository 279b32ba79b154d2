"""Golomb codes of the gaps between marked positions, for many segments at once, as vectorised bit arrays.

A gap ``g`` is written as its quotient ``g // M`` in unary (zeros, then a one) and its remainder in truncated
binary, where ``M`` belongs to the segment. Quotients and each bit plane of the remainders go to streams of
their own, which makes both directions a few numpy calls over all gaps instead of a loop over bits. Source:
Golomb 1966, "Run-length encodings"; Gallager and van Voorhis 1975 for the optimal parameter, here
approximated in integers. Bits are uint8 arrays of 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
Integers = NDArray[np.int64]
Small = NDArray[np.int32]


def parameters(sizes: Integers, events: Integers) -> Integers:
    """Golomb parameter per segment with ``events`` of ``sizes`` positions marked.

    ``floor(ln 2 / p + 1/6)``, at least 1, where ``p`` is the share of marked positions; 1 where there are
    none. Only integers are used, so that all platforms agree. Sizes are below 2^30.
    """
    safe = np.maximum(events, 1)
    return np.where(events > 0, np.maximum(1, (45426 * sizes + 10922 * safe) // (65536 * safe)), 1)


@dataclass(frozen=True)
class Code:
    """The codes of all gaps, in order of segment.

    Attributes:
        moduli: Golomb parameter of each gap, int32, shape ``(K,)``.
        low: bits that every remainder of that segment takes, uint8.
        cut: remainders from here on take one more, int32.
    """

    moduli: Small
    low: NDArray[np.uint8]
    cut: Small

    @classmethod
    def of(cls, moduli: Integers, events: Integers) -> Code:
        """From one parameter and one number of gaps per segment."""
        width = np.frexp(moduli - 1.0)[1].astype(np.int64)
        low = np.maximum(width - 1, 0).astype(np.uint8)
        cut = np.where(moduli == 1, 1, (np.int64(1) << width) - moduli).astype(np.int32)
        return cls(np.repeat(moduli.astype(np.int32), events), np.repeat(low, events), np.repeat(cut, events))

    @property
    def planes(self) -> int:
        """Number of bit planes: as many as the longest remainder has."""
        return int(self.low.max(initial=0))

    def pack(self, gaps: Small) -> tuple[list[Bits], Bits]:
        """Code the gaps, int32, shape ``(K,)``.

        Returns:
            The remainder streams (a plane for each bit, then the further bits) and the unary stream.
        """
        quotients = (gaps / self.moduli).astype(np.int32)  # exact below 2^31, and faster than //
        rest = gaps - quotients * self.moduli
        longer = rest >= self.cut
        folded = rest + self.cut
        high = np.where(longer, folded >> 1, rest)
        planes = [_bit(high, plane)[self._with(plane)] for plane in range(self.planes)]
        return [*planes, _bit(folded[longer], 0)], _unary(quotients)

    def remainders(self, take: Callable[[int], Bits]) -> Small:
        """Read the remainder streams; every bit pattern is a valid code.

        Args:
            take: the next so many bits; raises when there are fewer.

        Returns:
            Remainders below the moduli, int32, shape ``(K,)``.
        """
        high = np.zeros(self.low.size, np.int32)
        for plane in range(self.planes):
            high[self._with(plane)] |= take(int(np.count_nonzero(self.low > plane))).astype(np.int32) << plane
        longer = np.flatnonzero(high >= self.cut)
        high[longer] = 2 * high[longer] + take(longer.size) - self.cut[longer]
        return high

    def _with(self, plane: int) -> NDArray[np.bool_] | slice:
        """Gaps whose remainder has a bit in this plane."""
        has = self.low > plane
        return slice(None) if has.all() else has


def _bit(numbers: Small, place: int) -> Bits:
    return ((numbers >> place) & 1).astype(np.uint8)


def _unary(quotients: Small) -> Bits:
    ends = np.cumsum(quotients + 1, dtype=np.int64)
    bits = np.zeros(int(ends[-1]) if ends.size else 0, np.uint8)
    bits[ends - 1] = 1
    return bits
