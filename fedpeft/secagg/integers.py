"""Signed integers in sums modulo 2^bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.secagg.errors import SecureAggregationError

WIDTHS = (8, 16, 32)


def bits_for(bound: int) -> int:
    """The least of 8, 16 and 32 bits that hold every sum within ``bound``.

    Raises:
        SecureAggregationError: none does.
    """
    for bits in WIDTHS:
        if bound <= 2 ** (bits - 1) - 1:
            return bits
    raise SecureAggregationError(f"sums up to {bound} do not fit {WIDTHS[-1]} bits; use coarser steps")


def to_residues(values: NDArray[Any], bits: int, bound: int | None = None) -> NDArray[Any]:
    """Signed integers as unsigned ones of ``bits`` bits, little-endian, shape kept.

    Args:
        values: signed integers.
        bits: 8, 16 or 32.
        bound: largest absolute value that is allowed. None: values wrap; for sums with unbounded noise, where
            a refusal would depend on private data.

    Raises:
        SecureAggregationError: a value is beyond the bound.
    """
    if bound is not None and values.size and (values.max() > bound or values.min() < -bound):
        raise SecureAggregationError(f"a value is beyond the declared bound {bound}; clip before masking")
    return values.astype(f"<i{bits // 8}").view(f"<u{bits // 8}")


def from_residues(total: NDArray[Any], bits: int, bound: int | None = None) -> NDArray[np.int64]:
    """A sum modulo 2^bits as signed integers between -2^(bits-1) and 2^(bits-1) - 1.

    It is the sum itself when that is within ``bound``, which the range must hold: N nodes with values within
    b give N b, so 127 ternary values fit 8 bits.

    Args:
        total: unsigned integers of ``bits`` bits.
        bits: 8, 16 or 32.
        bound: largest absolute value that the true sum can have; None: unknown.

    Raises:
        SecureAggregationError: the range does not hold the bound, or the sum is beyond it, which only a node
            that broke its own bound can cause.
    """
    most = 2 ** (bits - 1) - 1
    if bound is not None and bound > most:
        raise SecureAggregationError(
            f"sums up to {bound} do not fit {bits} bits (at most {most}); use more bits"
        )
    signed = total.view(f"<i{bits // 8}").astype(np.int64)
    if bound is not None and signed.size and max(signed.max(), -signed.min()) > bound:
        raise SecureAggregationError(f"the sum is beyond {bound}: some node sent values beyond its bound")
    return signed
