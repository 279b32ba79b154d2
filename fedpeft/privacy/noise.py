"""Gaussian noise in float64 that no seed can reproduce."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedpeft.privacy.csprng import Randomness, words

BLOCK = 1 << 15
"""Values drawn at once: their working memory, some 1 MiB, stays in a core's cache."""

MANTISSA_BITS = 53
SUPPORT = float(np.sqrt(2 * MANTISSA_BITS * np.log(2)))
"""Largest absolute value that `gaussian` can return, 8.57; float32 generators stop at 5.77."""


def gaussian(size: int, source: Randomness = words) -> NDArray[np.float64]:
    """Independent standard normal values, float64, shape ``(size,)``.

    Box-Muller over 53-bit uniforms from AES-256-CTR. The support reaches `SUPPORT` standard deviations
    (mass beyond it: 1e-17), where float32 generators end at 5.77 and so lose delta = 1e-5 within a run.
    Multiply and add in float64; cast the sum afterwards, never the noise.

    Args:
        size: number of values.
        source: where the words come from; anything but the default guarantees no privacy.
    """
    values = np.empty(size)
    for start in range(0, size, BLOCK):
        block = values[start : start + BLOCK]
        block[:] = box_muller(source(len(block) + len(block) % 2))[: len(block)]
    return values


def box_muller(random_words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Two standard normals from each pair of words ``(i, i + half)``; an even number of words."""
    half = len(random_words) // 2
    pairs = uniform(random_words)
    radius, angle = pairs[:half], pairs[half:]
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle *= 2.0 * np.pi
    drawn = np.concatenate([np.cos(angle), np.sin(angle)])
    drawn[:half] *= radius
    drawn[half:] *= radius
    return drawn


def uniform(random_words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Multiples of 2^-53 in (0, 1], one per word: the logarithm of each is finite."""
    integers = random_words >> np.uint64(64 - MANTISSA_BITS)
    integers += np.uint64(1)
    values = integers.astype(np.float64)
    values *= 2.0**-MANTISSA_BITS
    return values
