"""Sparse supports: what top-k and ternary leave of the rows, zero-filled or completed to low rank."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedpeft.exchange.layout import FloatVector
from fedpeft.rng import stream
from fedpeft_attacks.tokens.blocks import Block

_RANKS = (4, 8, 16, 32, 64, 128)
_ROUNDS, _TRIAL_ROUNDS = 60, 25
_LEFT_OUT = 0.1


def top(values: FloatVector, density: float) -> FloatVector:
    """The largest values, the rest zero."""
    return np.where(np.abs(values) >= _cut(values, density), values, 0).astype(np.float32)


def ternary(values: FloatVector, density: float) -> FloatVector:
    """The signs of the largest values, the rest zero."""
    return np.sign(top(values, density))


def random_half(values: FloatVector, density: float) -> FloatVector:
    """Values on a public random support, the rest zero."""
    mask = stream(0, 0, "", "audit-support").random(len(values)) < density
    return np.where(mask, values, 0).astype(np.float32)


def _cut(values: FloatVector, density: float) -> float:
    count = max(int(len(values) * density), 1)
    return float(np.partition(np.abs(values), -count)[-count])


SPOILS: dict[str, Callable[[FloatVector], FloatVector]] = {
    "all values": lambda values: values,
    "top 20 %": partial(top, density=0.2),
    "ternary 20 %": partial(ternary, density=0.2),
    "random 20 %": partial(random_half, density=0.2),
    "top 5 %": partial(top, density=0.05),
    "ternary 5 %": partial(ternary, density=0.05),
    "signs": np.sign,
}
"""What is seen of the values, by name."""


def completed(block: Block) -> Block:
    """The block with its zeros replaced by the low-rank matrix that fits the other entries.

    Iterated truncated SVD (Mazumder, Hastie and Tibshirani, JMLR 11, 2010, with a hard threshold); the rank
    is the one that predicts a tenth of the observed entries best, left out for that.
    """
    rows = np.asarray(block.rows, np.float64)
    seen = rows != 0
    left_out = seen & (stream(0, 0, "", "audit-held").random(rows.shape) < _LEFT_OUT)
    errors = {
        rank: float(np.square((_fill(rows, seen & ~left_out, rank, _TRIAL_ROUNDS) - rows)[left_out]).sum())
        for rank in _RANKS
        if rank <= min(rows.shape)
    }
    return Block(_fill(rows, seen, min(errors, key=errors.__getitem__), _ROUNDS), block.atoms)


def _fill(rows: NDArray[np.float64], seen: NDArray[np.bool_], rank: int, rounds: int) -> NDArray[np.float64]:
    filled = np.where(seen, rows, 0.0)
    for _ in range(rounds):
        left, strengths, right = np.linalg.svd(filled, full_matrices=False)
        low = (left[:, :rank] * strengths[:rank]) @ right[:rank]
        filled = np.where(seen, rows, low)
    return filled
