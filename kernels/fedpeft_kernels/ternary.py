"""Mean magnitudes of tensors, and their rounding to the significand that a scale is sent with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIGNIFICAND_BITS = 7
"""Bits of a scale's significand, the leading one included."""
SUM_BITS = 31
"""Bits of a magnitude when magnitudes are summed."""


def mean_magnitudes(magnitudes: NDArray[np.floating], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean of each tensor's magnitudes, 0 for a tensor without any.

    This is the scale that is optimal in L2 for given signs and support (STC, Sattler et al. 2019,
    arXiv 1903.02891). A vector with this one magnitude never has a larger L2 norm than the vector it was
    made from, because a mean is at most the root of the mean square.

    Args:
        magnitudes: not negative, finite, shape ``(K,)``, in order of tensor.
        counts: how many belong to each tensor, shape ``(T,)``, summing to ``K``.

    Returns:
        float64, shape ``(T,)``.
    """
    return magnitude_sums(magnitudes, counts) / np.maximum(counts, 1)


def magnitude_sums(magnitudes: NDArray[np.floating], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of each tensor's magnitudes, float64, shape ``(T,)``; arguments as in `mean_magnitudes`.

    Magnitudes are cut off to integers of 31 bits below the largest of all, so that the sums are exact: the
    result does not depend on the order of addition, nor on the device.
    """
    exponent = int(np.frexp(magnitudes.max(initial=0))[1])
    wide = np.float64 if SUM_BITS - exponent > 127 else magnitudes.dtype  # where the factor is no float32
    whole = (magnitudes * np.ldexp(np.ones((), wide), SUM_BITS - exponent)).astype(np.int32)
    return np.ldexp(group_sums(whole, counts).astype(np.float64), exponent - SUM_BITS)


def group_sums(numbers: NDArray[np.integer], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of runs of numbers: the first ``counts[0]``, the next ``counts[1]`` and so on; 0 if empty."""
    sums = np.zeros(counts.size, np.int64)
    starts = np.cumsum(counts) - counts
    if (filled := counts > 0).any():
        sums[filled] = np.add.reduceat(numbers, starts[filled], dtype=np.int64)
    return sums


def round_down(scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round positive scales down to a significand of 7 bits (at most 1.6 % less), so that norms never grow.

    Rounding is idempotent, and so is "mean magnitude, then round down": a sum of equal numbers of 7 bits is
    exact in float64.
    """
    fraction, exponent = np.frexp(scales)
    return np.ldexp(np.floor(np.ldexp(fraction, SIGNIFICAND_BITS)), exponent - SIGNIFICAND_BITS)
