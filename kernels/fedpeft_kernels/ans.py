"""Entropy coding of small alphabets to within a few bytes of their entropy: interleaved range ANS.

The frequencies are the exact counts of the symbols, which both ends know: the cost of a message is then the
empirical entropy of its symbols and, per lane, less than nine bytes. Lanes take the symbols in turn and
share one stream, so that numpy codes a symbol of every lane at once. All arithmetic is in integers. For given
counts there is one byte string for each sequence of symbols. Source: Duda 2013, arXiv 1311.2540; Giesen 2014,
arXiv 1402.3392 (interleaving).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedpeft_kernels.golomb import Integers

_STATE_BITS = 30
_DIGIT_BITS = 32
_DIGIT_MASK = (1 << _DIGIT_BITS) - 1
_LANE = 1 << 12
"""Symbols per lane: the bytes of a lane's state are then below one percent of two-bit symbols."""


def lanes(symbols: int) -> int:
    """How many lanes so many symbols are dealt to."""
    return max(1, symbols // _LANE)


def max_bytes(symbols: int, alphabet: int) -> int:
    """No stream of so many symbols is longer."""
    return -(-symbols * int(alphabet - 1).bit_length() // 8) + 9 * lanes(symbols)


def encode(symbols: NDArray[np.integer], counts: Integers) -> bytes:
    """The stream of symbols: 8 bytes of state per lane, then digits of 4, little-endian.

    Args:
        symbols: from 0, shape ``(n,)``, with ``1 <= n <= 2^30``.
        counts: how often each occurs, int64, summing to ``n``.
    """
    width, low = lanes(symbols.size), _low(symbols.size)
    state = np.full(width, low, np.int64)
    starts, limit = np.cumsum(counts) - counts, (low // symbols.size) << _DIGIT_BITS
    digits: list[NDArray[np.int64]] = []
    for first in reversed(range(0, symbols.size, width)):
        now = symbols[first : first + width]
        x, often = state[: now.size], counts[now]
        full = x >= often * limit
        digits.append(x[full] & _DIGIT_MASK)
        x[full] >>= _DIGIT_BITS
        whole, rest = np.divmod(x, often)
        x[:] = whole * symbols.size + rest + starts[now]
    return state.astype("<u8").tobytes() + np.concatenate(digits[::-1]).astype("<u4").tobytes()


def decode(stream: bytes, counts: Integers) -> NDArray[np.int64] | None:
    """The symbols of a stream, int64; None: it is no stream of these counts.

    Args:
        stream: any bytes.
        counts: not negative, int64, with a sum ``n`` of 1 to ``2^30``; memory is bounded by it.
    """
    size = int(counts.sum())
    width, low = lanes(size), _low(size)
    if len(stream) < 8 * width or len(stream) % 4:
        return None
    state = np.frombuffer(stream, "<i8", width).astype(np.int64)
    if state.min() < low or state.max() >= low << _DIGIT_BITS:
        return None
    digits = np.frombuffer(stream, "<u4", offset=8 * width).astype(np.int64)
    ends, symbols, place = np.cumsum(counts), np.empty(size, np.int64), 0
    for first in range(0, size, width):
        x = state[: min(width, size - first)]
        whole, slot = np.divmod(x, size)
        now = np.searchsorted(ends, slot, "right")
        symbols[first : first + x.size] = now
        x[:] = counts[now] * whole + slot - (ends - counts)[now]
        short = np.flatnonzero(x < low)
        if place + short.size > digits.size:
            return None
        x[short] = (x[short] << _DIGIT_BITS) | digits[place : place + short.size]
        place += short.size
    return symbols if place == digits.size and (state == low).all() else None


def _low(size: int) -> int:
    """The least state: a multiple of the number of symbols, which makes the coding one to one."""
    return size * ((1 << _STATE_BITS) // size)
