"""A sparse ternary vector as two bit planes: threshold, pack and accumulate, in numpy.

Bit ``i`` of a plane is bit ``i % 8`` of byte ``i // 8``. The mask plane marks the values that are kept, the
sign plane the negative ones among them. Everything is defined over the IEEE-754 bits of the values and over
integers, so that `fedpeft_kernels.gpu` gives the same bits on every device.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedpeft_kernels.threshold import largest

INFINITY = 0x7F800000
"""Bits of infinity: no finite magnitude reaches them."""
MAGNITUDE = 0x7FFFFFFF
"""The bits of a float32 without its sign."""


@dataclass(frozen=True)
class Threshold:
    """Where a selection of largest magnitudes ends.

    Attributes:
        bits: bits of the smallest magnitude that is kept; those of infinity when nothing is.
        ties: how many values of exactly this magnitude are kept, lowest index first.
        equal: how many values have exactly this magnitude, where known.
        shift: the fixed point of the vector's sums (see `Planes`), where known.

    The last two only spare the GPU a pass over the values; they take no part in comparisons.
    """

    bits: int
    ties: int
    equal: int | None = field(default=None, compare=False)
    shift: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Planes:
    """Bit planes of the marked values and exact sums of their magnitudes.

    Attributes:
        mask: marked values, uint8, shape ``(ceil(N / 8),)``; free bits are zero.
        sign: marked negative values, as ``mask``.
        counts: marked values per tensor, int64, shape ``(T,)``.
        sums: per tensor the sum of ``floor(magnitude * 2**shift)`` over marked values, int64, shape ``(T,)``.
        shift: ``31 - e`` where ``2**e`` is the least power of two above the vector's largest magnitude, 0 for
            a vector of zeros; each term of a sum is below ``2**31``, so that sums are exact in any order.
        size: number of values ``N``.
    """

    mask: NDArray[np.uint8]
    sign: NDArray[np.uint8]
    counts: NDArray[np.int64]
    sums: NDArray[np.int64]
    shift: int
    size: int


def threshold(values: NDArray[np.float32], count: int) -> Threshold:
    """Find where the ``count`` largest magnitudes end; among equal ones the lowest index wins.

    Args:
        values: finite float32, shape ``(N,)``.
        count: how many to keep, ``0 <= count <= N``.

    Raises:
        ValueError: the count is outside the range.
    """
    largest_values = np.abs(values[largest(values, count)])
    if count == 0:
        return Threshold(INFINITY, 0)
    smallest = largest_values.min()
    return Threshold(int(smallest.view(np.int32)), int(np.count_nonzero(largest_values == smallest)))


def pack(values: NDArray[np.float32], offsets: NDArray[np.int64], cut: Threshold) -> Planes:
    """Mark the nonzero values that the threshold keeps.

    Args:
        values: finite float32, shape ``(N,)``.
        offsets: starts of the tensors and the end ``N``, shape ``(T + 1,)``.
        cut: from `threshold` of the same values.
    """
    bits = values.view(np.int32) & MAGNITUDE
    marked = bits > cut.bits
    if cut.bits:
        marked[np.flatnonzero(bits == cut.bits)[: cut.ties]] = True
    positions = np.flatnonzero(marked)
    edges = np.searchsorted(positions, offsets)
    shift = fixed_point(int(bits.max(initial=0)))
    terms = np.ldexp(np.abs(values[positions]).astype(np.float64), shift).astype(np.int64)
    totals = np.concatenate([np.zeros(1, np.int64), np.cumsum(terms)])
    return Planes(
        mask=np.packbits(marked, bitorder="little"),
        sign=np.packbits(marked & (values < 0), bitorder="little"),
        counts=np.diff(edges).astype(np.int64),
        sums=np.diff(totals[edges]),
        shift=shift,
        size=values.size,
    )


def accumulate(
    planes_mask: NDArray[np.uint8],
    planes_sign: NDArray[np.uint8],
    scales: NDArray[np.float32],
    offsets: NDArray[np.int64],
    total: NDArray[np.float32],
) -> None:
    """Add the tensor's scale with the sign of each marked value to ``total``, in place.

    Each marked entry takes one float32 addition; all others keep their bits.

    Args:
        planes_mask: see `Planes`.
        planes_sign: see `Planes`.
        scales: magnitude per tensor, float32, shape ``(T,)``.
        offsets: starts of the tensors and the end ``N``, shape ``(T + 1,)``.
        total: float32, shape ``(N,)``.

    Raises:
        ValueError: the planes or scales do not fit ``total`` and ``offsets``.
    """
    check_planes(planes_mask.size, planes_sign.size, total.size)
    check_scales(scales.size, offsets.size)
    positions = np.flatnonzero(_flags(planes_mask, total.size))
    negative = _flags(planes_sign, total.size)[positions]
    steps = np.repeat(scales, np.diff(np.searchsorted(positions, offsets)))
    total[positions] += np.where(negative, -steps, steps)


def _flags(plane: NDArray[np.uint8], size: int) -> NDArray[np.bool_]:
    return np.unpackbits(plane, count=size, bitorder="little").view(np.bool_)


def fixed_point(peak: int) -> int:
    """The shift of `Planes` for the bits of the largest magnitude."""
    if peak == 0:
        return 0
    _, exponent = np.frexp(np.int32(peak).view(np.float32))
    return 31 - int(exponent)


def check_planes(mask: int, sign: int, size: int) -> None:
    """Refuse planes whose bytes are not those of ``size`` values.

    Raises:
        ValueError: a plane is too short or too long.
    """
    if not mask == sign == -(-size // 8):
        raise ValueError(f"planes of {mask} and {sign} bytes do not fit {size} values")


def check_scales(scales: int, offsets: int) -> None:
    """Refuse scales that are not one per tensor.

    Raises:
        ValueError: the numbers differ.
    """
    if scales != offsets - 1:
        raise ValueError(f"{scales} scales do not fit {offsets - 1} tensors")
