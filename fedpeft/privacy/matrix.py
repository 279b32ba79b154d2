"""Noise that is correlated over rounds: the banded matrix mechanism for nodes that take turns.

Rounds ``1..n`` release ``X + C^-1 Z``, where row ``t`` of ``X`` is round ``t``'s sum of clipped updates and
the rows of ``Z`` are independent noise. ``C`` is lower triangular with ``b`` bands. The released matrix is a
function of ``C X + Z``, a Gaussian mechanism whose sensitivity is that of ``C X``. A node that takes part at
most every ``b``-th round meets columns of ``C`` that share no row, so that ``k`` participations move ``C X``
by at most ``sqrt(k)`` clips when no column is longer than 1: as much as ``k`` plain Gaussian releases. It
holds for updates that depend on earlier releases (Denisov et al. 2022, arXiv:2202.08312, theorem 2.1).

Source: Choquette-Choo et al. 2023, arXiv:2306.08153, theorem 2 (bands); Fichtenberger et al. 2023,
arXiv:2202.11205, and Kalinin and Lampert 2024, arXiv:2405.13763 (square-root coefficients).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import PrivacyError

Wide = NDArray[np.float64]


def square_root(bands: int) -> Wide:
    """First column of a banded square root of the prefix-sum matrix, float64, shape ``(bands,)``, norm 1.

    The coefficients are those of ``(1 - x)^(-1/2)``, cut after ``bands`` and scaled. In a matrix of ``n``
    rounds the last ``bands - 1`` columns are cut short, so that they are shorter than 1 and the bound holds.

    Raises:
        PrivacyError: ``bands`` is below 1.
    """
    if bands < 1:
        raise PrivacyError(f"bands = {bands} must be at least 1")
    index = np.arange(1, bands)
    column = np.cumprod(np.concatenate([np.ones(1), (2.0 * index - 1.0) / (2.0 * index)]))
    return column / np.linalg.norm(column)


def correlated(column: Wide, fresh: Wide, history: Wide) -> tuple[Wide, Wide]:
    """One row of ``C^-1 Z`` and the rows that the next round needs.

    Args:
        column: first column of ``C``, shape ``(bands,)``.
        fresh: this round's row of ``Z``, shape ``(size,)``.
        history: earlier rows of ``C^-1 Z``, newest first, shape ``(at most bands - 1, size)``.

    Returns:
        The row, and the new history. Both are as secret as the noise itself.
    """
    row = (fresh - column[1 : len(history) + 1] @ history) / column[0]
    return row, np.concatenate([row[None], history])[: len(column) - 1]


def participations(rounds: int, separation: int) -> int:
    """The most rounds out of ``rounds`` in a row that lie at least ``separation`` apart."""
    return math.ceil(rounds / separation)


def left_over(rounds: int, bands: int, separation: int, done: int) -> int:
    """Plain Gaussian releases that rounds ``done + 1 .. rounds`` weigh, drawn anew after ``done`` rounds.

    A run that goes on from a checkpoint draws other noise for its later rows, so its releases come on top of
    what a lost attempt released. Columns from ``done - bands + 2`` on reach into those rows.
    """
    return participations(min(rounds, rounds - done + bands - 1), separation)


def running_error(column: Wide, rounds: int) -> float:
    """Root mean square, over rounds, of the noise in the sum of all releases so far, for unit noise."""
    impulse, history = np.zeros(rounds), np.zeros((0, 1))
    for index in range(rounds):
        row, history = correlated(column, np.array([float(index == 0)]), history)
        impulse[index] = row[0]
    return float(np.sqrt(np.cumsum(np.cumsum(impulse) ** 2).mean()))
