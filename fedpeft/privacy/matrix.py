"""Noise that is correlated over releases: the banded matrix mechanism.

Releases ``1..n`` are ``X + C^-1 Z``, where row ``t`` of ``X`` is a sum of clipped updates or gradients and
the rows of ``Z`` are independent noise. ``C`` is lower triangular with ``b`` bands. The released matrix is a
function of ``C X + Z``, a Gaussian mechanism whose sensitivity is that of ``C X``. A unit that takes part at
most every ``b``-th time meets columns of ``C`` that share no row, so that ``k`` participations move ``C X``
by at most ``sqrt(k)`` clips when no column is longer than 1: as much as ``k`` plain Gaussian releases. It
holds for updates that depend on earlier releases (Denisov et al. 2022, arXiv:2202.08312, theorem 2.1).
Units are nodes that take turns, or the records of a node in groups (`fedpeft.privacy.step_matrix`).

Source: Choquette-Choo et al. 2023, arXiv:2306.08153, theorem 2 (bands); Fichtenberger et al. 2023,
arXiv:2202.11205, and Kalinin and Lampert 2024, arXiv:2405.13763 (square-root coefficients); McKenna 2025,
arXiv:2405.15913 (optimised Toeplitz coefficients).
"""

from __future__ import annotations

import math
from functools import lru_cache

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


@lru_cache(maxsize=64)
def optimised(bands: int, releases: int) -> Wide:
    """The first column with the least `running_error` over ``releases``, float64, norm 1, read-only.

    Found from `square_root` by quasi-Newton steps with the exact gradient: of ``v = C^-1 1``, the noise in
    the running sums, every derivative is ``-C^-1`` of a shifted ``v``, so that one transposed solve gives
    them all. The mean over running sums is the objective, as every prefix is a model that is used: gradients
    are taken at it. The noise of the last sum alone would end less than 1 % lower.

    Args:
        bands: of the matrix; more than ``releases`` count as so many.
        releases: of the whole run.

    Raises:
        PrivacyError: ``bands`` is below 1.
    """
    from scipy.optimize import minimize

    column = square_root(min(bands, releases))
    if len(column) > 1:
        minimum = minimize(_log_error, column, (releases,), "BFGS", jac=True, options={"gtol": 1e-7}).x
        minimum = minimum / np.linalg.norm(minimum) * math.copysign(1, minimum[0])
        column = min(column, minimum, key=lambda each: running_error(each, releases))
    column.setflags(write=False)
    return column


def _log_error(column: Wide, releases: int) -> tuple[float, Wide]:
    """Logarithm of squared running error and squared norm together, which no scale changes; its gradient."""
    weights = 1 - np.arange(releases) / releases
    sums = _solved(column, np.ones(releases))
    back = _solved(column, (weights * sums)[::-1])[::-1]
    error, square = float(weights @ sums**2), float(column @ column)
    shifted = [back[lag:] @ sums[: releases - lag] for lag in range(len(column))]
    return math.log(error * square), 2 * column / square - 2 * np.array(shifted) / error


def impulse(column: Wide, releases: int) -> Wide:
    """First column of ``C^-1``, shape ``(releases,)``: what a row of ``Z`` adds to the rows from it on."""
    return _solved(column, np.eye(1, releases)[0])


def _solved(column: Wide, right: Wide) -> Wide:
    """``C^-1`` times a vector of as many values as there are releases."""
    from scipy.signal import lfilter

    return np.asarray(lfilter([1.0], column, right), np.float64)


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


def running_error(column: Wide, releases: int) -> float:
    """Root mean square, over releases, of the noise in the sum of all so far, for unit noise."""
    return float(np.sqrt(np.cumsum(np.cumsum(impulse(column, releases)) ** 2).mean()))


def last_error(column: Wide, releases: int) -> float:
    """Deviation of the noise in the sum of all releases, for unit noise."""
    return float(np.linalg.norm(np.cumsum(impulse(column, releases))))
