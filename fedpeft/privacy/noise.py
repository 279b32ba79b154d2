"""Gaussian noise in float64 that no seed can reproduce."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedpeft.privacy.csprng import words

BLOCK = 1 << 20
"""Values drawn at once: bounds the working memory to some tens of MiB."""

MANTISSA_BITS = 53
SUPPORT = float(np.sqrt(2 * MANTISSA_BITS * np.log(2)))
"""Largest absolute value that `gaussian` can return, 8.57; float32 generators stop at 5.77."""


def gaussian(size: int) -> NDArray[np.float64]:
    """Independent standard normal values, float64, shape ``(size,)``.

    Box-Muller over 53-bit uniforms from AES-256-CTR. The support reaches `SUPPORT` standard deviations
    (mass beyond it: 1e-17), where float32 generators end at 5.77 and so lose delta = 1e-5 within a run.
    Multiply and add in float64; cast the sum afterwards, never the noise.
    """
    blocks = [box_muller(words(2 * ((min(BLOCK, size - i) + 1) // 2))) for i in range(0, size, BLOCK)]
    return np.concatenate(blocks)[:size] if blocks else np.zeros(0, np.float64)


def box_muller(random_words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Two standard normals from each pair of words ``(i, i + half)``; an even number of words."""
    half = len(random_words) // 2
    radius = np.sqrt(-2.0 * np.log(uniform(random_words[:half])))
    angle = 2.0 * np.pi * uniform(random_words[half:])
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


def uniform(random_words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Multiples of 2^-53 in (0, 1], one per word: the logarithm of each is finite."""
    integers = (random_words >> np.uint64(64 - MANTISSA_BITS)) + np.uint64(1)
    return integers.astype(np.float64) * 2.0**-MANTISSA_BITS
