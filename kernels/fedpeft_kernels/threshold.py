"""Selection of an exact number of largest magnitudes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.intp]

_SAMPLE = 1 << 15
_SIGMAS = 4.0


def largest(values: NDArray[np.float32], count: int) -> Positions:
    """Positions of the ``count`` values of largest magnitude; among equal magnitudes the lowest index wins.

    The count is exact on every platform, which a rule "all at or above the threshold" does not give when
    magnitudes repeat. A regular sample brackets the threshold, so that only the few magnitudes in the bracket
    are partially sorted; when the sample misleads, all are. The result does not depend on it.

    Args:
        values: finite float32, shape ``(N,)``; a NaN would sort last and become the threshold.
        count: how many to select, ``0 <= count <= N``.

    Returns:
        Increasing positions, shape ``(count,)``.

    Raises:
        ValueError: the count is outside the range.
    """
    if not 0 <= count <= values.size:
        raise ValueError(f"cannot select {count} of {values.size} values")
    if count in (0, values.size):
        return np.arange(count)
    magnitudes = np.abs(values)
    low, high = _bracket(magnitudes, count)
    chosen = np.flatnonzero(magnitudes >= low)
    if chosen.size < count:
        chosen, high = np.arange(values.size), np.float32(np.inf)
    return _narrowed(chosen, magnitudes[chosen], count, high)


def _narrowed(chosen: Positions, magnitudes: NDArray[np.float32], count: int, high: np.float32) -> Positions:
    """The ``count`` largest of the chosen, whose threshold is probably at most ``high``."""
    near = magnitudes[magnitudes <= high]
    if near.size <= (surplus := chosen.size - count):
        near = magnitudes
    threshold = np.partition(near, surplus)[surplus]
    above = magnitudes >= threshold
    if surplus := int(np.count_nonzero(above)) - count:
        above[np.flatnonzero(magnitudes == threshold)[-surplus:]] = False
    return chosen[above]


def _bracket(magnitudes: NDArray[np.float32], count: int) -> tuple[np.float32, np.float32]:
    """Two magnitudes between which the ``count``-th largest probably lies."""
    sample = magnitudes[:: max(1, magnitudes.size // _SAMPLE)]
    share = count / magnitudes.size
    expected = sample.size * (1 - share)
    slack = _SIGMAS * np.sqrt(sample.size * share * (1 - share)) + 2
    places = np.clip([expected - slack, expected + slack], 0, sample.size - 1).astype(int)
    low, high = np.partition(sample, places)[places]
    infinite = np.float32(np.inf)
    return (low if places[0] else np.float32(0)), (high if places[1] < sample.size - 1 else infinite)
