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


def parameters(sizes: Integers, events: Integers) -> Integers:
    """Golomb parameter per segment with ``events`` of ``sizes`` positions marked.

    ``floor(ln 2 / p + 1/6)``, at least 1, where ``p`` is the share of marked positions; 1 where there are
    none. Only integers are used, so that all platforms agree. Sizes are below 2^31.
    """
    safe = np.maximum(events, 1)
    return np.where(events > 0, np.maximum(1, (45426 * sizes + 10922 * safe) // (65536 * safe)), 1)


@dataclass(frozen=True)
class Code:
    """The codes of all gaps, in order of segment.

    Attributes:
        moduli: Golomb parameter of each gap, int64, shape ``(K,)``.
        low: bits that every remainder of that segment takes.
        cut: remainders from here on take one more.
    """

    moduli: Integers
    low: Integers
    cut: Integers

    @classmethod
    def of(cls, moduli: Integers, events: Integers) -> Code:
        """From one parameter and one number of gaps per segment."""
        width = np.frexp(moduli - 1.0)[1].astype(np.int64)
        low = np.maximum(width - 1, 0)
        cut = np.where(moduli == 1, 1, (np.int64(1) << width) - moduli)
        return cls(*(np.repeat(law, events) for law in (moduli, low, cut)))

    @property
    def planes(self) -> int:
        """Number of bit planes: as many as the longest remainder has."""
        return int(self.low.max(initial=0))

    def pack(self, gaps: Integers) -> tuple[list[Bits], Bits]:
        """Code the gaps, int64, shape ``(K,)``.

        Returns:
            The remainder streams (a plane for each bit, then the further bits) and the unary stream.
        """
        quotients, rest = np.divmod(gaps.astype(np.uint32), self.moduli.astype(np.uint32))
        longer = rest >= self.cut
        folded = rest + self.cut
        high = np.where(longer, folded >> 1, rest)
        planes = [((high >> p) & 1).astype(np.uint8)[self.low > p] for p in range(self.planes)]
        return [*planes, (folded[longer] & 1).astype(np.uint8)], _unary(quotients)

    def remainders(self, take: Callable[[int], Bits]) -> Integers:
        """Read the remainder streams; every bit pattern is a valid code.

        Args:
            take: the next so many bits; raises when there are fewer.

        Returns:
            Remainders below the moduli, int64, shape ``(K,)``.
        """
        high = np.zeros(self.low.size, np.int64)
        for plane in range(self.planes):
            has = self.low > plane
            high[has] |= take(int(np.count_nonzero(has))).astype(np.int64) << plane
        longer = np.flatnonzero(high >= self.cut)
        high[longer] = 2 * high[longer] + take(longer.size) - self.cut[longer]
        return high

    def gaps(self, ends: Integers, rest: Integers) -> Integers:
        """Gaps from the ends of the unary codes in their stream and the remainders, int64, shape ``(K,)``."""
        return (np.diff(ends, prepend=-1) - 1) * self.moduli + rest


def _unary(quotients: Integers) -> Bits:
    ends = np.cumsum(quotients + 1)
    bits = np.zeros(int(ends[-1]) if ends.size else 0, np.uint8)
    bits[ends - 1] = 1
    return bits
