"""Golomb codes of the gaps between marked positions, as vectorised bit arrays.

A gap ``g`` is written as its quotient ``g // M`` in unary (zeros, then a one) and its remainder in truncated
binary. Quotients and remainders go to separate streams, which makes decoding a few numpy calls instead of
a loop over bits. Source: Golomb 1966, "Run-length encodings"; Gallager and van Voorhis 1975 for the optimal
parameter, here approximated in integers. Bits are uint8 arrays of 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
Positions = NDArray[np.int64]


def parameter(size: int, events: int) -> int:
    """Golomb parameter for ``events`` marked positions among ``size``: ``floor(ln 2 / p + 1/6)``, at least 1.

    ``p`` is the share of marked positions. Only integers are used, so that all platforms agree.
    """
    return max(1, (45426 * size + 10922 * events) // (65536 * events)) if events else 1


@dataclass(frozen=True)
class Remainder:
    """The truncated binary code of numbers below ``modulus``.

    Numbers below ``cut`` take ``low`` bits, all others one more.
    """

    modulus: int

    @property
    def low(self) -> int:
        """Bits that every number takes."""
        return max(0, (self.modulus - 1).bit_length() - 1)

    @property
    def cut(self) -> int:
        """The numbers below take no further bit."""
        return (1 << (self.modulus - 1).bit_length()) - self.modulus


def pack(positions: Positions, modulus: int) -> tuple[list[Bits], Bits]:
    """Code increasing positions of one tensor.

    Args:
        positions: strictly increasing, from 0, shape ``(K,)``.
        modulus: the Golomb parameter.

    Returns:
        The remainder stream as parts (``low`` planes of ``K`` bits, then the further bits) and the unary
        stream.
    """
    if modulus == 1:
        return [], _marks(positions)
    gaps = np.diff(positions, prepend=-1) - 1
    quotients = gaps // modulus
    code = Remainder(modulus)
    rest = gaps - quotients * modulus
    longer = rest >= code.cut
    high = np.where(longer, (rest + code.cut) >> 1, rest)
    planes = [((high >> plane) & 1).astype(np.uint8) for plane in range(code.low)]
    further = ((rest[longer] + code.cut) & 1).astype(np.uint8)
    return [*planes, further], _marks(np.cumsum(quotients + 1) - 1)


def _marks(positions: Positions) -> Bits:
    bits = np.zeros(int(positions[-1]) + 1 if positions.size else 0, np.uint8)
    bits[positions] = 1
    return bits


def remainders(bits: Bits, events: int, modulus: int) -> tuple[Positions, int]:
    """Read the remainder stream of one tensor from the start of ``bits``.

    Every bit pattern is a valid code, so that only the length can be wrong.

    Returns:
        Remainders below the modulus, shape ``(events,)``, and the number of bits read.

    Raises:
        ValueError: there are too few bits.
    """
    if modulus == 1:
        return np.zeros(events, np.int64), 0
    code = Remainder(modulus)
    read = code.low * events
    if read > bits.size:
        raise ValueError("the remainder stream is cut off")
    high = np.zeros(events, np.int64)
    for plane in range(code.low):
        high |= bits[plane * events : (plane + 1) * events].astype(np.int64) << plane
    longer = np.flatnonzero(high >= code.cut)
    if read + longer.size > bits.size:
        raise ValueError("the remainder stream is cut off")
    further = bits[read : read + longer.size]
    high[longer] = 2 * high[longer] + further - code.cut
    return high, read + longer.size


def positions(ends: Positions, rest: Positions, modulus: int, size: int) -> Positions:
    """Positions from the ends of the unary codes and the remainders, checked against the tensor's size.

    Args:
        ends: index of the one of each unary code, counted from the first bit of the tensor, shape ``(K,)``.
        rest: remainders, shape ``(K,)``.
        modulus: the Golomb parameter.
        size: number of positions of the tensor.

    Returns:
        Strictly increasing positions below ``size``, shape ``(K,)``.

    Raises:
        ValueError: a position is outside the tensor.
    """
    if not ends.size:
        return ends
    events = ends.size
    quotients = int(ends[-1]) + 1 - events
    if quotients * modulus + events > size:
        raise ValueError("a position lies outside its tensor")
    if modulus == 1:
        return ends
    steps = np.diff(ends, prepend=-1) - 1
    steps *= modulus
    steps += rest
    steps += 1
    result = np.cumsum(steps) - 1
    if int(result[-1]) >= size:
        raise ValueError("a position lies outside its tensor")
    return result
