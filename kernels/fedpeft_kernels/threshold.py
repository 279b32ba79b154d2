"""Selection of an exact number of largest magnitudes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """Mark the ``count`` values of largest magnitude; among equal magnitudes the lowest index wins.

    The count is exact on every platform, which a rule "all at or above the threshold" does not give when
    magnitudes repeat. Selection is a partial sort (introselect), linear in the number of values.

    Args:
        values: finite float32, shape ``(N,)``; a NaN would sort last and become the threshold.
        count: how many to mark, ``0 <= count <= N``.

    Returns:
        Mask of shape ``(N,)`` with exactly ``count`` true entries.

    Raises:
        ValueError: the count is outside the range.
    """
    if not 0 <= count <= values.size:
        raise ValueError(f"cannot select {count} of {values.size} values")
    if count in (0, values.size):
        return np.full(values.shape, count > 0)
    magnitudes = np.abs(values)
    threshold = np.partition(magnitudes, values.size - count)[values.size - count]
    mask = magnitudes > threshold
    missing = count - int(np.count_nonzero(mask))
    mask[np.flatnonzero(magnitudes == threshold)[:missing]] = True
    return mask
