"""The entropy bound of a vector, to compare an envelope's size with."""

from __future__ import annotations

import numpy as np

from fedpeft.exchange.decoded import Decoded
from fedpeft.exchange.layout import FloatVector, Layout


def entropy_bits(values: FloatVector | Decoded, layout: Layout) -> float:
    """Shannon's bound in bits for the signs (-, 0, +) of the values, each tensor with its own frequencies.

    The bound is the empirical entropy of the symbols of each tensor as independent draws. It leaves out
    counts, scales, header and signature, all of which an envelope also has to carry.

    Args:
        values: float32, shape ``(layout.size,)``, or as decoded.
        layout: the tensors.
    """
    decoded = values if isinstance(values, Decoded) else Decoded(layout, values)
    signs = decoded.sign_counts()
    sizes = layout.sizes[:, None].astype(np.float64)
    counts = np.concatenate([signs, sizes - signs.sum(axis=1, keepdims=True)], axis=1)
    shares = np.where(counts > 0, counts, sizes) / sizes
    return float(-(counts * np.log2(shares)).sum())
