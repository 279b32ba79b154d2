"""Mean magnitudes of tensors and vectors of one magnitude per tensor."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SIGNIFICAND_BITS = 7
"""Bits of a scale's significand, the leading one included."""


def mean_magnitudes(values: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean magnitude of the nonzero values of each tensor, 0 for a tensor of zeros.

    This is the scale that is optimal in L2 for given signs and support (STC, Sattler et al. 2019,
    arXiv 1903.02891). A vector with this one magnitude never has a larger L2 norm than the vector it was
    made from, because a mean is at most the root of the mean square.

    Args:
        values: float32, shape ``(N,)``.
        offsets: starts of the tensors and the end, shape ``(T + 1,)``.

    Returns:
        float64, shape ``(T,)``; sums are float64.
    """
    means = np.zeros(len(offsets) - 1)
    for index, (start, end) in enumerate(pairwise(offsets)):
        part = values[start:end]
        if count := np.count_nonzero(part):
            means[index] = np.abs(part).sum(dtype=np.float64) / count
    return means


def round_down(scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round positive scales down to a significand of 7 bits (at most 1.6 % less), so that norms never grow.

    Rounding is idempotent, and so is "mean magnitude, then round down": a sum of equal numbers of 7 bits is
    exact in float64.
    """
    fraction, exponent = np.frexp(scales)
    return np.ldexp(np.floor(np.ldexp(fraction, SIGNIFICAND_BITS)), exponent - SIGNIFICAND_BITS)


def with_magnitudes(
    values: NDArray[np.float32], offsets: NDArray[np.int64], scales: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Replace each nonzero value by its sign times the tensor's scale; zeros become +0.

    Args:
        values: float32, shape ``(N,)``.
        offsets: starts of the tensors and the end, shape ``(T + 1,)``.
        scales: magnitude per tensor, float32, shape ``(T,)``; 0 clears the tensor.

    Returns:
        float32, shape ``(N,)``.
    """
    result = np.sign(values)
    for scale, start, end in zip(scales, offsets[:-1], offsets[1:], strict=True):
        result[start:end] *= scale
    result += np.float32(0.0)
    return result
