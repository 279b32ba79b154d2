"""Sparse Bayesian recovery: token variances that explain the update's covariance.

It still ranks tokens where the row space is full or noisy and a pursuit has nothing to follow. How much of an
update is noise (rounding, sparse supports, signs) is not assumed but read from it: of several levels, the one
is taken at which half of the rows predict the other half best.

Source: M-SBL, Wipf and Rao, IEEE Trans. Signal Processing 55(7), 2007, with MacKay's fixed point (their
section III) and a falling noise, here for several dictionaries whose tokens share one variance. In torch,
whose threads the config sets: the matrices are small and many threads make them slow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedpeft_attacks.tokens.blocks import Block, Matrix, Vector, unit_rows
from fedpeft_attacks.work import Meter

_TINY = 1e-30
_NOISE_LEVELS = (1e-4, 1e-2, 1e-1, 0.5, 1.0)
_DEFAULT = 1e-1
_START = 0.1
_ITERATIONS, _TRIALS = 30, 12

_Pair = tuple[torch.Tensor, torch.Tensor]


def sparse_bayes(blocks: Sequence[Block], prior: Vector, meter: Meter | None = None) -> list[int]:
    """Rank all tokens by the variance that they need to explain what was observed.

    Args:
        blocks: observations whose tokens are the same, each with at least one row that is not zero.
        prior: how likely each token is without the update, shape ``(tokens,)``; the starting variances.
        meter: counts one step for each pass of the fixed point; blocks of the same shape take as many.

    Returns:
        Token ids, the most likely first.
    """
    rows = [_directions(block) for block in blocks]
    start = torch.from_numpy(np.asarray(prior / max(float(np.sum(prior)), _TINY), np.float32))
    atoms = [torch.from_numpy(block.unit_atoms).float() for block in blocks]
    meter = meter or Meter()
    noise = _noise_level(atoms, rows, start, meter)
    variances = _fit(_pairs(atoms, rows), start, (noise, _ITERATIONS), meter)
    return torch.argsort(-variances, stable=True).tolist()


def _noise_level(
    atoms: Sequence[torch.Tensor], rows: Sequence[Matrix], start: torch.Tensor, meter: Meter
) -> float:
    """The level, relative to the signal, at which the even rows predict the odd ones best.

    All levels are tried: to stop where the prediction gets worse would let rounding decide on the work.
    """
    if min(len(part) for part in rows) < 2:
        return _DEFAULT
    even = _pairs(atoms, [part[0::2] for part in rows])
    odd = _pairs(atoms, [part[1::2] for part in rows])
    fits = [_likelihood(odd, _fit(even, start, (level, _TRIALS), meter), level) for level in _NOISE_LEVELS]
    return _NOISE_LEVELS[int(np.argmax(fits))]


def _fit(
    pairs: Sequence[_Pair], start: torch.Tensor, course: tuple[float, int], meter: Meter
) -> torch.Tensor:
    """Variances after so many fixed-point steps, while the noise falls from its start to the course's."""
    noise, iterations = course
    variances, fall = start, min(noise / _START, 1.0) ** (1.5 / iterations)
    for step in range(iterations):
        if not meter.step():
            break
        level = max(_START * fall**step, noise)
        explained, needed = torch.zeros_like(start), torch.zeros_like(start)
        for atoms, covariance in pairs:
            filters = atoms @ torch.linalg.inv(_model(atoms, variances, level)).float()
            explained += ((filters @ covariance) * filters).sum(dim=1)
            needed += (filters * atoms).sum(dim=1)
        variances = variances * explained.clamp(min=0.0) / needed.clamp(min=_TINY)
    return variances


def _model(atoms: torch.Tensor, variances: torch.Tensor, noise: float) -> torch.Tensor:
    """Covariance of a row under the variances, float64, shape ``(width, width)``."""
    width = atoms.shape[1]
    signal = (atoms.T @ (variances[:, None] * atoms)).double()
    return signal + torch.eye(width, dtype=torch.float64) * (noise / width)


def _likelihood(pairs: Sequence[_Pair], variances: torch.Tensor, noise: float) -> float:
    """Gaussian log likelihood per coordinate at the best common scale, up to a constant."""
    total = 0.0
    for atoms, covariance in pairs:
        model, width = _model(atoms, variances, noise), atoms.shape[1]
        scale = torch.trace(torch.linalg.solve(model, covariance.double())) / width
        total -= float(torch.linalg.slogdet(model).logabsdet / width + scale.log())
    return total


def _directions(block: Block) -> Matrix:
    """Rows that are not zero, each of length one, float64."""
    rows = unit_rows(np.asarray(block.rows, np.float64))
    return rows[np.any(rows != 0, axis=1)]


def _pairs(atoms: Sequence[torch.Tensor], rows: Sequence[Matrix]) -> list[_Pair]:
    """Each dictionary with the second moment of its rows, trace one, float32, shape ``(width, width)``."""
    moments = (part.T @ part / max(float((part**2).sum()), _TINY) for part in rows)
    return [(table, torch.from_numpy(moment).float()) for table, moment in zip(atoms, moments, strict=True)]
