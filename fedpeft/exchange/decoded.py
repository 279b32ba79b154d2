"""What an envelope holds, as it is read: positions and numbers, or all numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpeft.exchange.layout import FloatVector, Layout

Positions = NDArray[np.integer]

_RUN = 1 << 16  # positions that are widened at a time


@dataclass(frozen=True)
class Decoded:
    """The values of an envelope, sparse where the codec is.

    Attributes:
        layout: the tensors.
        numbers: float32; of the positions, shape ``(K,)``, or all, shape ``(layout.size,)``.
        positions: increasing, shape ``(K,)``, of the values that are not zero; None: all are in ``numbers``.
    """

    layout: Layout
    numbers: FloatVector
    positions: Positions | None = None

    def dense(self) -> FloatVector:
        """All values, float32, shape ``(layout.size,)``."""
        if self.positions is None:
            return self.numbers
        values = np.zeros(self.layout.size, np.float32)
        values[self.positions] = self.numbers
        return values

    def add_to(self, total: FloatVector, weight: float = 1.0) -> None:
        """Add ``weight`` times the values to a float32 vector, in place, without making them dense.

        Each element takes one float32 product and one float32 sum. Magnitudes that a codec sends have 7 bits
        (dead-zone: times 1, 2 or 4), so with weights of one the sums are exact, whatever their order, while
        the scales of a tensor lie within ``2^(17 - log2 n)`` of one another for ``n`` nodes (dead-zone: a
        fourth of that); where all nodes share a scale they are integers times that scale.
        """
        numbers = self.numbers if weight == 1.0 else self.numbers * np.float32(weight)
        if self.positions is None:
            total += numbers
            return
        for start in range(0, self.positions.size, _RUN):
            run = slice(start, start + _RUN)
            np.add.at(total, self.positions[run].astype(np.intp), numbers[run])

    @property
    def nonzero(self) -> int:
        """How many values are not zero."""
        return int(np.count_nonzero(self.numbers))

    def sign_counts(self) -> NDArray[np.int64]:
        """Positive and negative values per tensor, int64, shape ``(tensors, 2)``."""
        ends = self.layout.offsets if self.positions is None else self._bounds()
        return np.stack([_runs(self.numbers > 0, ends), _runs(self.numbers < 0, ends)], axis=1)

    def _bounds(self) -> NDArray[np.int64]:
        return np.searchsorted(self.positions, self.layout.offsets)  # pyright: ignore[reportCallIssue,reportArgumentType]


def _runs(flags: NDArray[np.bool_], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many flags are set between each end and the next."""
    set_at = np.flatnonzero(flags)
    return np.diff(np.searchsorted(set_at, ends))
