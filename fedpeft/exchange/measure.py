"""What the entropy of a vector allows, to judge an envelope's size by."""

from __future__ import annotations

import numpy as np

from fedpeft.exchange.layout import FloatVector, Layout


def entropy_bits(values: FloatVector, layout: Layout) -> float:
    """Shannon's bound in bits for the signs (-, 0, +) of the values, each tensor with its own frequencies.

    The bound is the empirical entropy of the symbols of each tensor as independent draws. It leaves out
    counts, scales, header and signature, all of which an envelope also has to carry.

    Args:
        values: float32, shape ``(layout.size,)``.
        layout: the tensors.
    """
    total = 0.0
    for part in layout.split(values).values():
        positive, negative = int(np.count_nonzero(part > 0)), int(np.count_nonzero(part < 0))
        counts = np.array([positive, negative, part.size - positive - negative], np.float64)
        counts = counts[counts > 0]
        total += float(-(counts * np.log2(counts / part.size)).sum())
    return total
